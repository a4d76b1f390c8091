"""A gateway in a process of its own, and scripts that are nodes, with everything they start."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import trio

T = TypeVar("T")
FAMILY_VARIABLE = "NODE_AGENT_TEST_FAMILY"
WAIT_S = 20.0

HEAD = """
import os, signal, sys, time
from easyremote.node import ComputeNode
node = ComputeNode({address!r}, {node_id!r})
"""


class Gateway:
    """A gateway that can be stopped and started again on its port."""

    def __init__(self, home: Path, root: Path) -> None:
        self.home = home
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._env = {**os.environ, "EASYREMOTE_HOME": str(home), "PYTHONPATH": str(root)}
        self._log = home.with_name("gateway.log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = (
            "from easyremote.gateway.server import Server; "
            f"Server(port={self.port}, host='127.0.0.1').run()"
        )
        self.home.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program], env=self._env, stdout=log, stderr=log
            )
        wait_until(self._listens)

    def _listens(self) -> bool:
        assert self._process is not None
        said = self._log.read_text(errors="replace")
        assert self._process.poll() is None, said
        return "gateway listens" in said

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


class Script:
    """A script that runs, and the processes that it started."""

    def __init__(
        self, argv: Sequence[str], env: dict[str, str], folder: Path, node_id: str
    ) -> None:
        self.node_id = node_id
        self.folder = folder
        self.family = secrets.token_hex(8)
        self.output = folder / f"output.{self.family}"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                argv, env={**env, FAMILY_VARIABLE: self.family}, cwd=folder,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def members(self) -> list[psutil.Process]:
        """Return every process of this script that is alive: itself, agent, replicas."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.environ().get(FAMILY_VARIABLE) == self.family
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def agent(self) -> psutil.Process:
        """Return the agent process."""
        (agent,) = [p for p in self.members() if any("agent_main" in a for a in p.cmdline())]
        return agent

    def wait(self) -> int:
        """Wait for the end of the script and return its exit code."""
        return self.process.wait(WAIT_S)

    def wait_gone(self) -> None:
        """Wait until nothing of the script is left."""
        wait_until(lambda: not self.members())

    def end(self) -> None:
        """Kill whatever is left, by pid."""
        for process in self.members():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        self.process.wait()


async def in_thread(fn: Callable[..., T], *args: object) -> T:
    """Run something that blocks, while links and timers of the test go on."""
    return await trio.to_thread.run_sync(partial(fn, *args))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail if that takes very long."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Gateway]:
    """A gateway for all tests of a module."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway") / "home", root)
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def gateway(shared_gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """The gateway, with its owner's home folder for clients and nodes of this test."""
    monkeypatch.setenv("EASYREMOTE_HOME", str(shared_gateway.home))
    return shared_gateway


Run = Callable[..., Script]


@pytest.fixture
def run(gateway: Gateway, tmp_path: Path, root: Path) -> Iterator[Run]:
    """Run scripts: `run(body)` puts a node before it, and ends what is left after the test."""
    scripts: list[Script] = []

    def run_script(
        body: str, *, node_id: str = "", under_agent: bool = False, head: str = HEAD,
        env: dict[str, str] | None = None,
    ) -> Script:  # fmt: skip
        path = tmp_path / f"script{len(scripts)}.py"
        node_id = node_id or f"n-{secrets.token_hex(4)}"
        text = head.format(address=gateway.address, node_id=node_id) + textwrap.dedent(body)
        path.write_text(text)
        argv = [sys.executable, str(path)]
        if under_agent:
            program = (
                "import sys; from easyremote.log import configure; configure(); "
                "from easyremote.node.launch import run_script_under_agent; "
                f"sys.exit(run_script_under_agent({str(path)!r}))"
            )
            argv = [sys.executable, "-c", program]
        full = {**os.environ, "PYTHONPATH": str(root), **(env or {})}
        script = Script(argv, full, tmp_path, node_id)
        scripts.append(script)
        return script

    yield run_script
    for script in scripts:
        script.end()
