"""An agent in this process with real scripts below it, and a gateway that says what a test says.

The agent's link to its gateway is a stream in memory; its workers are real processes.
"""

from __future__ import annotations

import os
import secrets
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import trio

from easyremote import values
from easyremote.config import Address
from easyremote.handlers import LinkHandler, StreamHandler
from easyremote.identity.join import JoinString
from easyremote.identity.token import Token, TokenKind
from easyremote.link import Link
from easyremote.node.agent import Agent
from easyremote.node.leash import label, new_leash
from easyremote.node.rerun_plan import RerunPlan
from easyremote.node.starter import start_script
from easyremote.node.workers import WorkerProcess
from easyremote.outbox import Outbox
from easyremote.stream import Stream
from easyremote.transport import MemoryStream, memory_stream_pair
from easyremote.wire.event import HelloReceived
from easyremote.wire.message import (
    Dispatch,
    Kind,
    Register,
    Registered,
    Telemetry,
    Update,
    decode,
)

from .caller import WAIT_S, PendingCall

CAPACITY_BYTES = 256 * 1024
PIN = b"p" * 32


class ScriptedGateway(LinkHandler):
    """Takes one node in, and remembers what it says.

    Attributes:
        functions: The descriptions of its functions, the latest of each.
        samples: Its telemetry, as it came.
        capabilities: As it registered them.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.functions: dict[str, dict[str, Any]] = {}
        self.samples: list[dict[str, Any]] = []
        self.capabilities: dict[str, Any] = {}
        self.link: Link | None = None
        self.registration: Stream | None = None
        self._nursery = nursery
        self._outbox = Outbox()

    async def dial(self, address: Address, pin: bytes | None) -> MemoryStream:
        """Connect a node that wants to."""
        ours, theirs = memory_stream_pair(CAPACITY_BYTES, peers=("node", "gateway"))
        link = Link(ours, self, dialer=False, outbox=self._outbox)
        self._nursery.start_soon(link.run)
        return theirs

    def on_hello(self, link: Link, event: HelloReceived) -> None:
        self.link = link
        link.welcome({"gateway_id": "g", "incarnation": 1})

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        assert kind == Kind.REGISTER
        self.registration = stream
        self._take(decode(Register, payload).info)
        stream.send(Registered({"node_id": "n"}))
        return _Registration(self)

    def _take(self, body: bytes | None) -> None:
        assert body is not None
        offer = values.decode(body, [], allow_pickle=False)
        self.functions.update({entry["name"]: entry for entry in offer["functions"]})
        self.capabilities = offer.get("capabilities") or self.capabilities

    # ---- for the test ------------------------------------------------------------------------

    def tell(self, **change: Any) -> None:
        """Say something on the registration stream."""
        assert self.registration is not None
        body = values.encode(change, allow_pickle=False).body
        self.registration.send(Update(body, []))

    def start(self, function: str, *args: Any, **context: Any) -> PendingCall:
        """Give the node a call."""
        assert self.link is not None
        body = values.encode_call(args, {}, allow_pickle=False).body
        message = Dispatch(
            secrets.token_bytes(16), function, "ann", ["member"], None, 0, 0, b"", 1, context,
            body, [],
        )  # fmt: skip
        pending = PendingCall()
        pending.stream = self.link.open(message, handler=pending, end=True)
        return pending

    async def call(self, function: str, *args: Any, **context: Any) -> Any:
        """Give the node a call and return its result."""
        return await self.start(function, *args, **context).result()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        with trio.fail_after(WAIT_S):
            while not condition():
                await trio.sleep(0.02)

    def latest(self, key: str) -> Any:
        """Return what the samples say last of something, None if nothing."""
        return next((one[key] for one in reversed(self.samples) if key in one), None)


class _Registration(StreamHandler):
    def __init__(self, gateway: ScriptedGateway) -> None:
        self._gateway = gateway

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        if kind == Kind.TELEMETRY:
            self._gateway.samples.append(decode(Telemetry, payload).sample)
        else:
            self._gateway._take(decode(Update, payload).info)


class Node:
    """A node under an agent in this process."""

    def __init__(self, agent: Agent, gateway: ScriptedGateway) -> None:
        self.agent = agent
        self.gateway = gateway

    def pids(self, function: str) -> list[int]:
        """Return the processes that serve a function of its own."""
        pools = self.agent.family.replica_pools()
        return [w.process.pid for pool in pools if pool.function == function for w in pool.workers]


HEAD = """
import os, sys, time
from easyremote import ComputeNode, NodeLimits, context
"""


@asynccontextmanager
async def open_node(
    folder: Path, body: str, *, env: dict[str, str], **node: Any
) -> AsyncIterator[Node]:  # fmt: skip
    """Run a script that serves a node; when the block ends, nothing of it is left.

    Args:
        folder: Where the script lies and runs.
        body: What follows the making of `node`.
        env: What its environment has beside ours.
        node: Keywords of its `ComputeNode`, as Python writes them.
    """
    join = JoinString(("localhost",), 9, PIN, Token.new(TokenKind.NODE)).encode()
    keywords = "".join(f", {key}={value}" for key, value in node.items())
    text = HEAD + f"node = ComputeNode(node_id='n', join={join!r}{keywords})\n"
    path = folder / "script.py"
    path.write_text(text + textwrap.dedent(body) + "\nnode.serve()\n")
    plan = RerunPlan((sys.executable, str(path)), str(folder), {**os.environ, **env})
    async with trio.open_nursery() as nursery:
        gateway = ScriptedGateway(nursery)
        agent = Agent(plan, connect=gateway.dial)
        agent.family.leash = leash = new_leash()
        over = trio.Event()

        def first() -> WorkerProcess:
            return WorkerProcess(agent, *start_script(plan, first_run=True, label=label(leash, 0)))

        async def serve() -> None:
            await agent.serve(first)
            over.set()

        nursery.start_soon(serve)
        try:
            await gateway.until(lambda: gateway.registration is not None)
            yield Node(agent, gateway)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(WAIT_S):
                agent.stop_signal("the test is over", at_once=True)
                await over.wait()
            left = [pid for pid in agent_children() if label(leash, 0)[:-3] in environment(pid)]
            nursery.cancel_scope.cancel()
    assert not left


def agent_children() -> list[int]:
    """Return the processes below this one."""
    return [process.pid for process in psutil.Process().children(recursive=True)]


def environment(pid: int) -> str:
    """Return the environment of a process as text, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""
