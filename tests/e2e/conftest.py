"""A real gateway and a real node, as processes of their own, shared by the tests of a module."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

import easyremote

START_LIMIT_S = 20.0
STOP_LIMIT_S = 15.0


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """One gateway and the nodes that were started at it."""

    folder: Path
    port: int
    stack: ExitStack
    settings: dict[str, str] = field(default_factory=dict)
    gateway: subprocess.Popen[bytes] | None = None
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where the gateway listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every process of this cluster."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("EASYREMOTE_")}
        return clean | {"EASYREMOTE_HOME": str(self.folder / "home")} | self.settings

    def start_gateway(self, wrapper: str | None = None) -> None:
        """Start the gateway: by the command line, or by a script that wraps it."""
        if wrapper is None:
            words = ["-m", "easyremote", "gateway", "run", "--host", "127.0.0.1"]
            words += ["--port", str(self.port)]
        else:
            script = self.folder / "gateway.py"
            script.write_text(textwrap.dedent(wrapper))
            words = [str(script), str(self.port)]
        self.gateway = self._start("gateway", words)
        self._wait_for_port()

    def start_node(
        self, node_id: str, source: str, *, wait: bool = True
    ) -> subprocess.Popen[bytes]:
        """Start a node script: `source` after a line that makes `node`, before `node.serve()`."""
        script = self.folder / f"{node_id}.py"
        head = (
            "from easyremote import ComputeNode, context\n"
            f'node = ComputeNode("{self.address}", node_id="{node_id}")\n'
        )
        script.write_text(head + textwrap.dedent(source) + "\nnode.serve()\n")
        self.nodes[node_id] = self._start(node_id, [str(script)])
        if wait:
            self.wait_for_node(node_id)
        return self.nodes[node_id]

    def members(self) -> list[psutil.Process]:
        """Return all living processes of nodes: scripts, agents, replicas, what they started."""
        home, found = str(self.folder / "home"), []
        known = {os.getpid(), 0 if self.gateway is None else self.gateway.pid}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_ours = process.environ().get("EASYREMOTE_HOME") == home
                if is_ours and process.pid not in known and process.status() != "zombie":
                    found.append(process)
        return found

    def agents(self) -> list[psutil.Process]:
        """Return the agents of all nodes."""
        found = []
        for process in self.members():
            with suppress(psutil.Error):
                if any("agent_main" in word for word in process.cmdline()):
                    found.append(process)
        return found

    def end_nodes(self) -> None:
        """Let every node drain and end, also those whose first script is long gone."""
        agents = self.agents()
        for agent in agents:
            agent.terminate()
        psutil.wait_procs(agents, STOP_LIMIT_S)
        for process in self.nodes.values():
            process.wait(STOP_LIMIT_S)

    def end_rest(self) -> None:
        """Kill, by pid, what a test that failed has left of its nodes."""
        for process in self.members():
            with suppress(psutil.Error):
                process.kill()

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command of the command line."""
        return subprocess.run(
            [sys.executable, "-m", "easyremote", *words],
            env=self.environment | {"EASYREMOTE_GATEWAY": self.address},
            capture_output=True,
            text=True,
            timeout=30,
            check=check,
        )

    def log(self, name: str) -> str:
        """What a process has written so far."""
        return (self.folder / f"{name}.log").read_text()

    def _start(self, name: str, words: list[str]) -> subprocess.Popen[bytes]:
        log = self.stack.enter_context((self.folder / f"{name}.log").open("ab"))
        process = subprocess.Popen(
            [sys.executable, *words],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        self.stack.callback(end, process)
        return process

    def _wait_for_port(self) -> None:
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the gateway did not listen:\n{self.log('gateway')}")

    def wait_for_node(self, node_id: str) -> None:
        """Wait until the gateway lists functions of this node."""
        client = easyremote.connect(self.address)
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until:
            if any(f.node_id == node_id for f in client.functions()):
                return
            time.sleep(0.05)
        raise AssertionError(f"{node_id} did not come up:\n{self.log(node_id)}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End one process: ask, then insist."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def cluster_in(folder: Path, settings: dict[str, str] | None = None) -> Iterator[Cluster]:
    """Make a cluster without processes yet; `settings` are further variables for all of them."""
    patch = pytest.MonkeyPatch()
    with ExitStack() as stack:
        stack.callback(patch.undo)
        for name in [name for name in os.environ if name.startswith("EASYREMOTE_")]:
            patch.delenv(name)
        patch.setenv("EASYREMOTE_HOME", str(folder / "home"))
        cluster = Cluster(folder, free_port(), stack, settings or {})
        stack.callback(cluster.end_rest)  # The last thing of all.
        stack.callback(easyremote.shutdown)
        yield cluster


@pytest.fixture(scope="module")
def cluster_factory(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], Cluster]]:
    """Make clusters that end with the module."""
    with ExitStack() as stack:

        def make() -> Cluster:
            return stack.enter_context(cluster_in(tmp_path_factory.mktemp("cluster")))

        yield make


@pytest.fixture(autouse=True)
def own_home() -> None:
    """Replaces the fixture of all tests: a cluster's home is shared by the tests of its module."""
