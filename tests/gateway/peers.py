"""Scripted clients and nodes on real links over streams in memory."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing

from easyremote.errors import EasyRemoteError
from easyremote.gateway.core import Gateway
from easyremote.gateway.limits import GatewayLimits
from easyremote.gateway.state import GatewayState
from easyremote.handlers import LinkHandler, StreamHandler
from easyremote.identity.role import Role
from easyremote.link import Link
from easyremote.outbox import Outbox
from easyremote.stream import Stream
from easyremote.transport import MemoryStream, memory_stream_pair
from easyremote.values import plain
from easyremote.wire.errors import ErrorCode
from easyremote.wire.event import HelloReceived
from easyremote.wire.frame import HEADER_SIZE
from easyremote.wire.message import (
    CODEC_PLAIN,
    Call,
    Dispatch,
    Failure,
    Item,
    ItemsEnd,
    Kind,
    Message,
    Progress,
    Query,
    Register,
    Registered,
    Reply,
    Result,
    Update,
    Want,
    decode,
)

PATIENCE_S = 120.0
_ids = itertools.count(1)

MESSAGES: dict[int, Any] = {
    Kind.ITEM: Item,
    Kind.ITEMS_END: ItemsEnd,
    Kind.WANT: Want,
    Kind.PROGRESS: Progress,
    Kind.RESULT: Result,
    Kind.FAILURE: Failure,
    Kind.REGISTERED: Registered,
    Kind.REPLY: Reply,
    Kind.UPDATE: Update,
}


def new_id() -> bytes:
    return next(_ids).to_bytes(16, "big")


class Probe(StreamHandler):
    """Records what happens on one stream."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.messages: list[Any] = []
        self.data: list[bytes] = []
        self.ended = False
        self.reset: tuple[int, str] | None = None
        self.lost: EasyRemoteError | None = None
        self.accepted = 0
        self.started = 0
        self.cancels: list[tuple[int, int]] = []
        self._changed = trio.Event()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        cls = MESSAGES.get(kind)
        self.messages.append(kind if cls is None else decode(cls, payload))
        self.ended = self.ended or end
        self._notify()

    def on_data(self, stream: Stream, frame: memoryview, last: bool, end: bool) -> None:
        self.data.append(bytes(frame[HEADER_SIZE:]))
        self.ended = self.ended or end
        self._notify()

    def on_accepted(self, stream: Stream) -> None:
        self.accepted += 1
        self._notify()

    def on_started(self, stream: Stream) -> None:
        self.started += 1
        self._notify()

    def on_cancel(self, stream: Stream, strength: int, grace_ms: int) -> None:
        self.cancels.append((strength, grace_ms))
        self._notify()

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        self.reset = (code, reason)
        self._notify()

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        self.lost = error
        self._notify()

    async def until(self, what: Callable[[], Any]) -> None:
        """Wait until something is true that an event on this stream makes true."""
        with trio.fail_after(PATIENCE_S):
            while not what():
                await self._changed.wait()

    async def outcome(self) -> Any:
        """Wait for the end and return the last message."""
        await self.until(lambda: self.ended or self.reset or self.lost)
        assert self.ended, (self.reset, self.lost)
        return self.messages[-1]


class Given(Probe):
    """A call that a scripted node was given."""

    def __init__(self, stream: Stream, dispatch: Dispatch, end: bool) -> None:
        super().__init__()
        self.stream = stream
        self.dispatch = dispatch
        self.ended = end

    def say(self, message: Message, buffers: Any = (), *, end: bool = False) -> None:
        assert self.stream is not None
        self.stream.send(message, buffers, end=end)

    def answer(self, body: bytes = b"ok", seconds: float = 0.001) -> None:
        self.say(Result(CODEC_PLAIN, seconds, body, []), end=True)
        self.release()

    def fail(self, code: ErrorCode, *, maybe: bool = False, reason: str = "no") -> None:
        self.say(Failure(int(code), reason, maybe, None, {}), end=True)
        self.release()

    def release(self) -> None:
        assert self.stream is not None
        self.stream.release()


class Peer(LinkHandler):
    """One end of a link to the gateway under test."""

    def __init__(self, world: World, stream: MemoryStream) -> None:
        self.world = world
        self.memory = stream
        self.link = Link(stream, self, dialer=True, outbox=world.outbox)
        self.info: dict[str, Any] | None = None
        self.error: EasyRemoteError | None = None
        self.over = trio.Event()
        self.greeted = trio.Event()

    def on_welcome(self, link: Link, info: dict[str, Any]) -> None:
        self.info = info
        self.greeted.set()

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        self.error = error
        self.over.set()
        self.greeted.set()

    def on_hello(self, link: Link, event: HelloReceived) -> None:
        raise AssertionError("a gateway does not introduce itself")

    def query(self, name: str, **args: Any) -> Probe:
        probe = Probe()
        probe.stream = self.link.open(Query(name, args), handler=probe, end=True)
        return probe

    async def ask(self, name: str, **args: Any) -> Any:
        """Ask and return the value, or the Failure."""
        probe = self.query(name, **args)
        outcome = await probe.outcome()
        if isinstance(outcome, Reply):
            body = outcome.body if outcome.body is not None else b"".join(probe.data)
            return plain.decode(body)
        return outcome

    async def goodbye(self) -> None:
        self.link.close()
        await self.over.wait()

    async def cut(self) -> None:
        """Lose the connection, without a word."""
        self.memory.cut()
        await self.over.wait()
        await trio.testing.wait_all_tasks_blocked()


class Client(Peer):
    """A scripted client."""

    def call(
        self, function: str, body: bytes = b"args", *, node_ids: list[str] | None = None,
        options: dict[str, Any] | None = None, deadline_ms: int | None = None, codec: int = 0,
        flags: int = 0, ticket: bytes = b"", call_id: bytes | None = None,
        segments: list[bytes] | None = None, end: bool = True, stalled: bool = False,
    ) -> Probe:  # fmt: skip
        probe = Probe()
        probe.relay = stalled  # Nobody says `consumed`: no credit ever returns.
        message = Call(
            call_id or new_id(), function, node_ids, options or {}, deadline_ms, codec, flags,
            ticket, body if not segments else None, [len(one) for one in segments or []],
        )  # fmt: skip
        buffers = [memoryview(one) for one in segments or []]
        probe.stream = self.link.open(message, buffers, handler=probe, end=end)
        return probe


class Node(Client):
    """A scripted node: records what it is given; `auto` answers at once."""

    def __init__(self, world: World, stream: MemoryStream, node_id: str) -> None:
        super().__init__(world, stream)
        self.node_id = node_id
        self.given: list[Given] = []
        self.auto: Callable[[Given], None] | None = None
        self.registration = Probe()
        self._arrived = trio.Event()

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        assert kind == Kind.DISPATCH
        given = Given(stream, decode(Dispatch, payload), end)
        self.given.append(given)
        if self.auto is not None:
            self.auto(given)
        self._arrived.set()
        self._arrived = trio.Event()
        return given

    async def wait_given(self, count: int = 1) -> Given:
        with trio.fail_after(PATIENCE_S):
            while len(self.given) < count:
                await self._arrived.wait()
        return self.given[count - 1]

    async def register(self, *functions: dict[str, Any], **info: Any) -> Any:
        body = plain.encode({"functions": list(functions), **info})
        probe = self.registration = Probe()
        probe.stream = self.link.open(Register(body, []), handler=probe)
        await probe.until(lambda: probe.messages)
        return probe.messages[0]

    async def update(self, **info: Any) -> None:
        assert self.registration.stream is not None
        self.registration.stream.send(Update(plain.encode(info), []))
        await trio.testing.wait_all_tasks_blocked()


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "group": "main", "slots": 1, "doc": f"The {name}.", **more}


class World:
    """A gateway in memory, and whoever connects to it."""

    def __init__(self, gateway: Gateway, nursery: trio.Nursery) -> None:
        self.gateway = gateway
        self.nursery = nursery
        self.outbox = Outbox()
        self._tokens: dict[tuple[str, str], str] = {}

    def token(self, role: str = "member", user: str = "alice", **more: Any) -> str:
        return self.gateway.state.store.create_token(Role(role), user, **more).text()

    def _pair(self) -> MemoryStream:
        ours, theirs = memory_stream_pair(1024 * 1024, peers=("gateway", "192.0.2.7:4711"))
        self.nursery.start_soon(self.gateway.serve_peer, theirs)
        return ours

    async def _greet(
        self, peer: Peer, role: str, credential: dict[str, Any], info: dict[str, Any]
    ) -> None:
        self.nursery.start_soon(peer.link.run)
        peer.link.hello(role, credential, info)
        await peer.greeted.wait()

    async def client(
        self, role: str = "member", user: str = "alice", *, token: str | None = None, **more: Any
    ) -> Client:
        client = Client(self, self._pair())
        text = self.token(role, user, **more) if token is None else token
        await self._greet(client, "client", {"token": text}, {})
        return client

    async def node(
        self, node_id: str, *functions: dict[str, Any], user: str = "alice",
        token: str | None = None, secret: bytes | None = None, boot: bytes | None = None,
        **info: Any,
    ) -> Node:  # fmt: skip
        node = Node(self, self._pair(), node_id)
        credential = {
            "node_id": node_id,
            "secret": secret or node_id.encode().ljust(32, b"."),
            "token": self.token("node", user) if token is None else token,
        }
        await self._greet(node, "node", credential, {"boot": boot or new_id()})
        if node.info is not None and functions:
            await node.register(*functions, **info)
        return node


@asynccontextmanager
async def open_world(folder: Path, limits: GatewayLimits | None = None) -> AsyncIterator[World]:
    """Open a gateway with its state in `folder`."""
    state = GatewayState.open(folder, ["gateway.test"], 8080)
    try:
        async with trio.open_nursery() as nursery:
            gateway = Gateway(state, limits, inline=True)
            await nursery.start(gateway.run)
            yield World(gateway, nursery)
            nursery.cancel_scope.cancel()
    finally:
        state.close()
