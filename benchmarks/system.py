"""A whole system as users start it: a gateway, a node with its agent, and this process as client.

Rules of this file. 1) Only the public interface: the command line, a script, `connect` and
`remote`. 2) Everything lives in a home folder of its own, and is ended by its own pid.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

READY_S = 30.0
NODE_ID = "bench"

_SCRIPT = """\
from easyremote import ComputeNode

node = ComputeNode("127.0.0.1:{port}", {node_id!r})
kept = []


@node.register
def noop():
    return None


@node.register
def keep(array):
    kept[:] = [array]
    return array.nbytes


@node.register
def give():
    return kept[0]


node.serve()
"""


class System(NamedTuple):
    """A running system, and three of its functions as the client sees them.

    Attributes:
        gateway: The gateway's process.
        node: The process of the node's script, which is its first worker.
        noop: Takes and returns nothing.
        keep: Takes an array, keeps it and returns its size.
        give: Returns the array that was kept last.
    """

    gateway: psutil.Process
    node: psutil.Process
    noop: Any
    keep: Any
    give: Any

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return every process of the system by its part; this one is the client."""
        node = [self.node, *self.node.children(recursive=True)]
        gateway = [self.gateway, *self.gateway.children(recursive=True)]
        return {"client": [psutil.Process()], "gateway": gateway, "node": node}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def _own_home() -> Iterator[Path]:
    """Point this process and its children at an empty home; undo that afterwards."""
    before = {name: value for name, value in os.environ.items() if name.startswith("EASYREMOTE_")}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in before:
            del os.environ[name]
        os.environ["EASYREMOTE_HOME"] = folder
        os.environ["EASYREMOTE_LOG_LEVEL"] = "warning"
        try:
            yield Path(folder)
        finally:
            for name in [name for name in os.environ if name.startswith("EASYREMOTE_")]:
                del os.environ[name]
            os.environ.update(before)


@contextmanager
def _process(*arguments: str) -> Iterator[psutil.Popen]:
    """Run a program of Python; ask it to end afterwards, and make it after ten seconds."""
    process = psutil.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        family = process.children(recursive=True) if process.is_running() else []
        process.terminate()
        _, alive = psutil.wait_procs([process, *family], timeout=10)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def _until(what: str, process: psutil.Popen, is_done: Any) -> None:
    deadline = time.monotonic() + READY_S
    while not is_done():
        if process.poll() is not None:
            raise RuntimeError(f"{what}: the process ended with code {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not ready within {READY_S:g} s")
        time.sleep(0.005)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextmanager
def system() -> Iterator[System]:
    """Start a gateway and a node, connect to them, and end them afterwards."""
    import easyremote

    with _own_home() as home:
        port = _free_port()
        script = home / "bench_node.py"
        script.write_text(_SCRIPT.format(port=port, node_id=NODE_ID))
        with _process("-m", "easyremote", "gateway", "run", "--port", str(port)) as gateway:
            _until("gateway", gateway, lambda: _accepts(port))
            with _process(str(script)) as node:
                client = easyremote.connect(f"127.0.0.1:{port}")
                try:
                    wanted = {"noop", "keep", "give"}

                    def is_registered() -> bool:
                        return wanted <= {one.function_name for one in client.functions()}

                    _until("node", node, is_registered)
                    functions = [easyremote.remote(NODE_ID, name) for name in sorted(wanted)]
                    give, keep, noop = functions
                    yield System(
                        psutil.Process(gateway.pid), psutil.Process(node.pid), noop, keep, give
                    )
                finally:
                    easyremote.shutdown()
