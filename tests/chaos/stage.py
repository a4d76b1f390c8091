"""A small world for one test: a gateway, nodes with marks, a client in this process.

Rules of this file. 1) Whatever happens in the test, every process of its world has ended when the
stage is left, and it is an error if one had to be killed for that after it was asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easyremote import Client, EasyRemoteError

from .history import Mark
from .watch import Tail
from .world import Proc, Role, World

LIMIT_S = 30.0
"""Nothing that must happen takes longer."""
LOOK_S = 0.005
ASK_EVERY_S = 0.05
"""Pause between two looks that cost something."""


def until(
    condition: Callable[[], Any], limit_s: float = LIMIT_S, what: str = "", *,
    every_s: float = LOOK_S,
) -> float:  # fmt: skip
    """Wait until a condition holds, and return how long that took.

    Raises:
        AssertionError: It took too long.
    """
    began = time.monotonic()
    while not condition():
        took_s = time.monotonic() - began
        assert took_s < limit_s, f"{what or condition} did not happen within {limit_s:g} s"
        time.sleep(every_s)
    return time.monotonic() - began


@dataclass
class Stage:
    """See the module."""

    world: World
    client: Client
    nodes: dict[str, bool] = field(default_factory=dict)
    """Whether a node is run by `easyremote node`."""

    def __post_init__(self) -> None:
        """Follow the marks from now on."""
        self._tail = Tail(self.world.markers)
        self._marks: list[Mark] = []

    # ---- processes -------------------------------------------------------------------------------

    def start_gateway(self) -> None:
        """Start it, and return when it listens."""
        self.world.start_gateway()
        assert self.world.wait_port(LIMIT_S), self.log("gateway")

    def start_node(
        self, node_id: str, *, by_command: bool = True, port: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Start a node, and return when the gateway says that it is healthy."""
        self.nodes[node_id] = by_command
        self.world.start_node(node_id, by_command=by_command, port=port, env=env)
        self.wait_healthy(node_id)

    def wait_healthy(self, node_id: str) -> float:
        """Wait until a node takes calls; return how long that took."""
        return until(
            lambda: self.health(node_id) == "healthy", what=f"{node_id} up", every_s=ASK_EVERY_S
        )

    def health(self, node_id: str) -> str | None:
        """Return what the gateway says of a node."""
        with contextlib.suppress(EasyRemoteError):
            for node in self.client.nodes():
                if node.node_id == node_id and node.functions:  # Else it has not registered yet.
                    return node.health
        return None

    def proc(self, role: Role, member: str) -> Proc:
        """Return the one living process of this role."""
        found = [p for p in self.world.scan() if p.role is role and p.member == member]
        assert len(found) == 1, found
        return found[0]

    def hit(self, role: Role, member: str, number: signal.Signals) -> float:
        """Send a signal to that process; return when."""
        proc = self.proc(role, member)
        now = time.monotonic()
        assert self.world.hit(proc, number)
        return now

    def log(self, member: str) -> str:
        """Return what the processes of a member have written."""
        return (self.world.folder / f"{member}.log").read_text()

    def command(self, *words: str) -> str:
        """Run a command of `easyremote` and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "easyremote", *words],
            env={**self.world.environment("command"), "EASYREMOTE_GATEWAY": self.world.address},
            capture_output=True, text=True, timeout=LIMIT_S, check=True,
        )  # fmt: skip
        return done.stdout

    def status(self) -> dict[str, Any]:
        """Return the gauges of the gateway."""
        answer: dict[str, Any] = json.loads(self.command("status", "--json"))["gateway"]
        return answer

    # ---- bodies ----------------------------------------------------------------------------------

    def marks(self, key: str, *, ended: bool = False) -> list[Mark]:
        """Return how often the body of a call has begun, or was about to return."""
        self._marks += self._tail.marks()
        return [mark for mark in self._marks if mark.key == key and mark.ended is ended]

    def wait_begun(self, key: str) -> Mark:
        """Wait until the body of a call runs."""
        until(lambda: self.marks(key), what=f"the body of {key}")
        return self.marks(key)[0]

    # ---- the end ---------------------------------------------------------------------------------

    def end(self) -> list[Proc]:
        """Ask everybody to end, nodes first; return who did not."""
        for role in (Role.AGENT, Role.GATEWAY):
            for proc in self.world.scan():
                if proc.role in (role, Role.CLIENT):
                    self.world.hit(proc, signal.SIGCONT)
                    self.world.hit(proc, signal.SIGTERM)
            limit = time.monotonic() + LIMIT_S
            while time.monotonic() < limit and self._any_left(role):
                time.sleep(ASK_EVERY_S)
        return self.world.end()

    def _any_left(self, role: Role) -> bool:
        """Return whether a gateway is left, or, before it was asked, anybody else."""
        gateway = role is Role.GATEWAY
        return any((proc.role is Role.GATEWAY) is gateway for proc in self.world.scan())


def failed(future: Future[Any], limit_s: float = LIMIT_S) -> tuple[EasyRemoteError, float]:
    """Wait for a call to fail; return its error and when that was."""
    error = future.exception(limit_s)
    now = time.monotonic()
    assert isinstance(error, EasyRemoteError), f"{future} did not fail"
    return error, now


@contextmanager
def on_stage(folder: Path, lease_s: float = 3.0) -> Iterator[Stage]:
    """Start a gateway and a client of it in this process; no node yet."""
    world = World(folder, lease_s)
    kept = {name: value for name, value in os.environ.items() if name.startswith("EASYREMOTE_")}
    for name in kept:
        del os.environ[name]
    os.environ |= {"EASYREMOTE_HOME": str(world.home), "EASYREMOTE_LEASE_S": f"{lease_s:g}"}
    client = Client(world.address)
    stage = Stage(world, client)
    try:
        stage.start_gateway()
        yield stage
    finally:
        client.close()
        left = stage.end()
        for name in [name for name in os.environ if name.startswith("EASYREMOTE_")]:
            del os.environ[name]
        os.environ |= kept
    assert left == []
