"""A scripted gateway: the other end of a client's link, in memory, driven by a test.

It speaks the real protocol through a real `Link`, in the client's own io thread, and does nothing
by itself: it keeps what the client says, call by call, and says what the test tells it to.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import trio

from easyremote import values
from easyremote.client.bodies import open_body, pack
from easyremote.client.client import Client
from easyremote.client.dialer import ClientLink
from easyremote.config import Address
from easyremote.errors import EasyRemoteError
from easyremote.handlers import LinkHandler, StreamHandler
from easyremote.identity.credential import Credential
from easyremote.identity.token import Token, TokenKind
from easyremote.link import Link
from easyremote.outbox import Outbox
from easyremote.stream import Stream
from easyremote.transport import ByteStream, MemoryStream, memory_stream_pair
from easyremote.transport.network import Listener, TlsFiles
from easyremote.wire.errors import ErrorCode
from easyremote.wire.event import HelloReceived
from easyremote.wire.message import (
    BY_KIND,
    Call,
    Failure,
    Item,
    Kind,
    Message,
    Progress,
    Query,
    Reply,
    Result,
    decode,
)
from easyremote.wire.settings import Settings

WAIT_S = 10.0
"""Far beyond what anything here takes; a test that reaches it fails."""
PIN = bytes(32)
ADDRESS = Address("gateway.test", 8080)


class GivenCall(StreamHandler):
    """One call that the client made: the message, and what came on its stream since."""

    def __init__(self, gateway: ScriptedGateway, stream: Stream, call: Call, end: bool) -> None:
        self.gateway = gateway
        self.stream = stream
        self.call = call
        self.buffers: list[memoryview] = []
        self.ended = end
        self.events: queue.Queue[tuple[str, Any, list[memoryview]]] = queue.Queue()
        self._filling: tuple[Any, list[memoryview]] | None = None

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        body, buffers = self.call.body, self.buffers
        if body is None:
            return values.decode_call(buffers[0], buffers[1:], allow_pickle=True)
        return values.decode_call(body, buffers, allow_pickle=True)

    # ---- io thread -----------------------------------------------------------------------------

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        self.ended = self.ended or end
        if kind not in BY_KIND:
            self.events.put(("end", None, []))
            return
        message = decode(BY_KIND[kind], payload)
        if more:
            buffers = values.allocate(message.segments, limit_bytes=1 << 30)
            self._filling = message, buffers
            stream.fill(buffers)
        else:
            self.events.put((type(message).__name__, message, []))

    def on_filled(self, stream: Stream, end: bool) -> None:
        self.ended = self.ended or end
        if self._filling is None:
            self.gateway.arrived(self)
            return
        (message, buffers), self._filling = self._filling, None
        self.events.put((type(message).__name__, message, buffers))

    def on_cancel(self, stream: Stream, strength: int, grace_ms: int) -> None:
        self.events.put(("cancel", (strength, grace_ms), []))

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        self.events.put(("reset", (code, reason), []))

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        self.events.put(("lost", error, []))

    # ---- for the test, and for `auto` on the io thread -------------------------------------------

    def next(self, *names: str) -> Any:
        """Return the next event of one of these names; others are passed over."""
        while True:
            name, message, buffers = self.events.get(timeout=WAIT_S)
            if name in names:
                return (message, buffers) if name == "Item" else message

    def item(self) -> Any:
        """Return the value of the next item of a streamed argument."""
        message, buffers = self.next("Item")
        return open_body(message.body, buffers, True)

    def say(
        self, message: Message, buffers: Sequence[memoryview] = (), *, end: bool = False
    ) -> None:  # fmt: skip
        self.gateway.do(lambda: self.stream.send(message, buffers, end=end))

    def result(self, value: Any = None, seconds: float = 0.25, *, pickled: bool = False) -> None:
        codec, body, segments, buffers = pack(values.encode(value, allow_pickle=pickled))
        self.say(Result(codec, seconds, body, segments), buffers, end=True)
        self.release()

    def yield_(self, value: Any, *, pickled: bool = False) -> None:
        codec, body, segments, buffers = pack(values.encode(value, allow_pickle=pickled))
        self.say(Item(0, codec, body, segments), buffers)

    def progress(self, value: Any) -> None:
        codec, body, segments, buffers = pack(values.encode(value, allow_pickle=False))
        self.say(Progress(codec, body, segments), buffers)

    def fail(
        self, code: ErrorCode, reason: str = "no", *, maybe: bool = False,
        detail: dict[str, Any] | None = None, retry_after_s: float | None = None,
    ) -> None:  # fmt: skip
        self.say(Failure(int(code), reason, maybe, retry_after_s, detail or {}), end=True)
        self.release()

    def raise_(self, error: BaseException) -> None:
        self.fail(
            ErrorCode.REMOTE_ERROR, str(error), maybe=True, detail=values.encode_exception(error)
        )

    def accept(self) -> None:
        self.gateway.do(self.stream.accept)

    def started(self) -> None:
        self.gateway.do(self.stream.started)

    def reset(self, code: ErrorCode, reason: str = "gave up") -> None:
        self.gateway.do(lambda: self.stream.reset(code, reason))

    def release(self) -> None:
        self.gateway.do(self.stream.release)


class _Question(StreamHandler):
    """A query, answered at once from the gateway's table."""


class _Peer(LinkHandler):
    """The gateway's side of one link."""

    def __init__(self, gateway: ScriptedGateway, stream: MemoryStream) -> None:
        self.gateway = gateway
        self.memory = stream
        self.link = Link(stream, self, dialer=False, outbox=Outbox(), settings=gateway.settings)

    def on_hello(self, link: Link, event: HelloReceived) -> None:
        self.gateway.hellos.append(event)
        refusal = self.gateway.refusal
        if refusal is not None:
            link.close(*refusal)
        elif self.gateway.silent:
            return
        else:
            link.welcome(self.gateway.info)

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        if kind == Kind.QUERY:
            self.gateway.answer(stream, decode(Query, payload))
            return _Question()
        assert kind == Kind.CALL
        given = GivenCall(self.gateway, stream, decode(Call, payload), end)
        if more:
            given.buffers = values.allocate(given.call.segments, limit_bytes=1 << 30)
            stream.fill(given.buffers)
        else:
            self.gateway.arrived(given)
        return given


class ScriptedGateway:
    """A network that leads to one scripted gateway.

    Attributes:
        info: What it says when it takes a client in.
        refusal: Code and reason with which it refuses clients, None to take them in.
        unreachable: What dialling raises, None to succeed.
        answers: What it answers to queries: a value, or an error to fail with.
        hold: Names of queries that wait for `let_go`.
        auto: What to do at once with every call, on the io thread.
        dials: How often it was dialled.
        hellos: What clients said about themselves.
    """

    def __init__(self, *, streams_credit: int = 256) -> None:
        self.settings = Settings(streams_credit=streams_credit, streams_credit_max=streams_credit)
        self.info: dict[str, Any] = {"user": "alice", "role": "member"}
        self.refusal: tuple[ErrorCode, str] | None = None
        self.unreachable: EasyRemoteError | None = None
        self.silent = False
        self.answers: dict[str, Any] = {}
        self.asked: list[Query] = []
        self.hold: set[str] = set()
        self.held: list[tuple[Stream, Query]] = []
        self.auto: Callable[[GivenCall], None] | None = None
        self.dials = 0
        self.hellos: list[HelloReceived] = []
        self.calls: queue.Queue[GivenCall] = queue.Queue()
        self.peer: _Peer | None = None
        self._clients: list[Client] = []

    # ---- what a `Network` does -----------------------------------------------------------------

    async def dial(
        self, address: Address, *, pin: bytes | None, timeout_s: float = 10.0
    ) -> ByteStream:
        await trio.lowlevel.checkpoint()
        self.dials += 1
        if self.unreachable is not None:
            raise self.unreachable
        ours, theirs = memory_stream_pair(1024 * 1024, peers=("gateway", "client"))
        self.peer = _Peer(self, theirs)
        trio.lowlevel.spawn_system_task(self.peer.link.run)
        return ours

    async def listen(self, host: str, port: int, *, tls: TlsFiles) -> Listener:
        raise NotImplementedError

    # ---- io thread -----------------------------------------------------------------------------

    def arrived(self, given: GivenCall) -> None:
        if self.auto is not None:
            self.auto(given)
        else:
            self.calls.put(given)

    def answer(self, stream: Stream, query: Query) -> None:
        self.asked.append(query)
        if query.name in self.hold:
            self.held.append((stream, query))
        else:
            self._answer(stream, query)

    def _answer(self, stream: Stream, query: Query) -> None:
        value = self.answers.get(query.name, [])
        if isinstance(value, EasyRemoteError):
            stream.send(Failure(int(value.code), str(value), False, None, {}), end=True)
        else:
            body = values.encode(value, allow_pickle=False).body
            if len(body) > 32 * 1024:
                stream.send(Reply(None, [len(body)]), [memoryview(body)], end=True)
            else:
                stream.send(Reply(body, []), end=True)
        stream.release()

    # ---- for the test --------------------------------------------------------------------------

    def client(self, **more: Any) -> Client:
        """Return a client whose network leads here; it connects when it is used."""
        credential = Credential(Token.new(TokenKind.CLIENT).text(), PIN, (ADDRESS,))
        client = Client(auth=credential, network=self, **more)
        self._clients.append(client)
        return client

    def link_of(self, client: Client) -> ClientLink:
        assert client._made is not None
        return client._made[1]

    def do(self, fn: Callable[[], object]) -> None:
        """Run something on the io thread, now if this is it; else wait until it was run."""
        made = next(client._made for client in reversed(self._clients) if client._made is not None)
        link = made[1]
        if link.on_io_thread():
            fn()
            return
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def run() -> None:
            try:
                fn()
            except BaseException as error:  # noqa: BLE001 - it belongs to the test
                done.put(error)
            else:
                done.put(None)

        link.post(run)
        error = done.get(timeout=WAIT_S)
        if error is not None:
            raise error

    def next_call(self) -> GivenCall:
        """Return the next call that the client made."""
        return self.calls.get(timeout=WAIT_S)

    def let_go(self) -> None:
        """Answer the queries that were held, and those to come."""
        self.hold.clear()
        held, self.held = self.held, []
        for stream, query in held:
            self.do(partial(self._answer, stream, query))

    def cut(self) -> None:
        """Lose the connection, without a word."""
        self.do(self._cut)

    def _cut(self) -> None:
        assert self.peer is not None
        self.peer.memory.cut()

    def goodbye(self) -> None:
        """Say goodbye, as a gateway that stops does."""
        assert self.peer is not None
        self.do(self.peer.link.close)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def scripted(**more: Any) -> Iterator[ScriptedGateway]:
    """Open a scripted gateway; close its clients at the end."""
    gateway = ScriptedGateway(**more)
    try:
        yield gateway
    finally:
        gateway.close()
