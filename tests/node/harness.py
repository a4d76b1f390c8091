"""A scripted agent: the other end of a worker's socketpair, driven by a test.

It speaks the real protocol through a real `Link`, but does nothing by itself: it keeps what the
worker says, call by call, and says what the test tells it to.
"""

from __future__ import annotations

import queue
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from easyremote import values
from easyremote.bridge import IoThread
from easyremote.errors import EasyRemoteError
from easyremote.handlers import LinkHandler, StreamHandler
from easyremote.link import Link
from easyremote.node.options import parse
from easyremote.node.outcome import pack
from easyremote.node.register import FunctionTable, build
from easyremote.node.spec import NodeSpec
from easyremote.node.worker import Worker
from easyremote.node.worker_link import worker_link_settings
from easyremote.stream import Stream
from easyremote.transport.socket_stream import SocketStream
from easyremote.wire import event as ev
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import (
    BY_KIND,
    FLAG_STREAM,
    Dispatch,
    Failure,
    Item,
    ItemsEnd,
    Kind,
    Message,
    Progress,
    Registered,
    Result,
    Want,
    decode,
)

F = TypeVar("F", bound=Callable[..., Any])

WAIT_S = 10.0
"""Far beyond what anything here takes; a test that reaches it fails."""


class AgentCall(StreamHandler):
    """One call that the agent gave to the worker: what came back, in order."""

    def __init__(self, agent: ScriptedAgent) -> None:
        self.agent = agent
        self.events: queue.Queue[tuple[str, Any, list[memoryview]]] = queue.Queue()
        self.stream: Stream | None = None
        self.ended_here = False
        self._filling: tuple[Message, list[memoryview], bool] | None = None

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        message = decode(BY_KIND[kind], payload)
        if more:
            buffers = values.allocate(message.segments, limit_bytes=1 << 30)
            self._filling = message, buffers, end
            stream.fill(buffers)
        else:
            self._came(message, [], end)

    def on_filled(self, stream: Stream, end: bool) -> None:
        assert self._filling is not None
        (message, buffers, _), self._filling = self._filling, None
        self._came(message, buffers, end)

    def _came(self, message: Any, buffers: list[memoryview], end: bool) -> None:
        self.events.put((type(message).__name__, message, buffers))
        if end and not self.ended_here and self.stream is not None and self.stream.is_open:
            self.stream.send(ItemsEnd(0, None), end=True)  # Our half of the stream ends, too.

    def on_started(self, stream: Stream) -> None:
        self.events.put(("started", None, []))

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        self.events.put(("reset", (code, reason), []))

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        self.events.put(("lost", error, []))

    # ---- for the test ------------------------------------------------------------------------

    def next(self, *names: str, timeout_s: float = WAIT_S) -> tuple[Any, list[memoryview]]:
        """Return the next message of one of these names; others are passed over."""
        while True:
            name, message, buffers = self.events.get(timeout=timeout_s)
            if name in names:
                return message, buffers
            if name in ("Failure", "Result", "lost"):
                raise AssertionError(f"got {name} {message} while waiting for {names}")

    def outcome(self) -> Result | Failure:
        message: Result | Failure = self.next("Result", "Failure")[0]
        return message

    def result(self, timeout_s: float = WAIT_S) -> Any:
        """Return the decoded result; fails the test if there is none."""
        message, buffers = self.next("Result", timeout_s=timeout_s)
        return open_body(message, buffers)

    def failure(self) -> Failure:
        message: Failure = self.next("Failure")[0]
        return message

    def items(self, count: int) -> list[Any]:
        return [open_body(*self.next("Item")) for _ in range(count)]

    def say(self, message: Message, buffers: Sequence[memoryview] = ()) -> None:
        self._post(lambda stream: stream.send(message, buffers))

    def _post(self, fn: Callable[[Stream], None]) -> None:
        def run() -> None:
            assert self.stream is not None
            if self.stream.is_open:  # Else the outcome was faster than what we had to say.
                fn(self.stream)

        self.agent.io.post(run)

    def want(self, total: int, channel: int = 0) -> None:
        self.say(Want(channel, total))

    def item(self, value: Any, channel: int = 1) -> None:
        codec, body, segments, buffers = pack(values.encode(value, allow_pickle=False))
        self.say(Item(channel, codec, body, segments), buffers)

    def end_items(self, channel: int = 1, error: dict[str, Any] | None = None) -> None:
        self.say(ItemsEnd(channel, error))

    def cancel(self, strength: int = 0, grace_ms: int = 5000) -> None:
        self._post(lambda stream: stream.cancel(strength, grace_ms))

    def reset(self) -> None:
        self._post(lambda stream: stream.reset(ErrorCode.CANCELLED, "gave up"))


def open_body(message: Item | Result | Progress, buffers: list[memoryview]) -> Any:
    body: Any = message.body
    if body is None:
        body, buffers = buffers[0], buffers[1:]
    return values.decode(body, buffers, allow_pickle=message.codec == 1)


class _Registration(StreamHandler):
    def __init__(self, agent: ScriptedAgent) -> None:
        self.agent = agent
        self._buffers: list[memoryview] = []

    def take(self, stream: Stream, info: bytes | None, segments: list[int], more: bool) -> None:
        if more:
            self._buffers = values.allocate(segments, limit_bytes=1 << 30)
            stream.fill(self._buffers)
        else:
            assert info is not None
            self.agent.offers.put(values.decode(info, [], allow_pickle=False))

    def on_filled(self, stream: Stream, end: bool) -> None:
        body, rest = self._buffers[0], self._buffers[1:]
        self.agent.offers.put(values.decode(body, rest, allow_pickle=False))

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        message = decode(BY_KIND[kind], payload)
        self.take(stream, message.info, message.segments, more)


class ScriptedAgent(LinkHandler):
    """The accepting end of the pair."""

    def __init__(self, sock: socket.socket) -> None:
        self.io = IoThread("scripted-agent")
        self.offers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.nested: queue.Queue[tuple[Stream, Any]] = queue.Queue()
        self.hello: ev.HelloReceived | None = None
        self.refuse: tuple[ErrorCode, str] | None = None
        self.link: Link | None = None
        self.registration: Stream | None = None
        self.on_nested: Callable[[Stream, Any], None] | None = None
        self._sock = sock
        self.io.start()
        self.io.spawn(self._run)

    async def _run(self) -> None:
        self.link = Link(
            SocketStream(self._sock, "worker"),
            self,
            dialer=False,
            outbox=self.io.outbox,
            settings=worker_link_settings(),
        )
        await self.link.run()

    def on_hello(self, link: Link, event: ev.HelloReceived) -> None:
        self.hello = event
        link.welcome({})

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        message = decode(BY_KIND[kind], payload)
        if kind == Kind.REGISTER:
            self.registration = stream
            handler = _Registration(self)
            handler.take(stream, message.info, message.segments, more)
            if self.refuse is not None:
                code, reason = self.refuse
                stream.send(Failure(int(code), reason, False, None, {}), end=True)
                return handler
            stream.send(Registered({"epoch": 1}))
            return handler
        if self.on_nested is not None:
            self.on_nested(stream, message)
        self.nested.put((stream, message))
        return StreamHandler()

    # ---- for the test ------------------------------------------------------------------------

    def offer(self) -> dict[str, Any]:
        """Return the next registration or update."""
        return self.offers.get(timeout=WAIT_S)

    def call(
        self, function: str, *args: Any, roles: Sequence[str] = ("member",), flags: int = 0,
        principal: str = "alice", deadline_ms: int | None = None, context: Any = None,
        pickled: bool = False, credit: int | None = None,
        handler: type[AgentCall] | None = None, **kwargs: Any,
    ) -> AgentCall:  # fmt: skip
        """Give the worker a call; `credit` makes it a stream call."""
        encoded = values.encode_call(args, kwargs, allow_pickle=pickled)
        codec, body, segments, buffers = pack(encoded)
        call = (handler or AgentCall)(self)
        dispatch = Dispatch(
            secrets.token_bytes(16), function, principal, list(roles), deadline_ms,
            1 if pickled else codec, flags | (FLAG_STREAM if credit is not None else 0),
            b"", 1, context or {}, body, segments,
        )  # fmt: skip

        def send() -> None:
            assert self.link is not None
            call.stream = self.link.open(dispatch, buffers, handler=call)
            if credit:
                call.stream.send(Want(0, credit))

        self.io.post(send)
        return call

    def close(self) -> None:
        """Say goodbye, as an agent does that ends in order."""

        def close() -> None:
            if self.link is not None:
                self.link.close()

        self.io.post(close)

    def drain(self, reason: str) -> None:
        """Say that the process will be ended soon."""

        def drain() -> None:
            assert self.link is not None
            self.link.drain(reason)

        self.io.post(drain)

    def vanish(self) -> None:
        """End without a word, as a process that was killed."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self.close()
        self.io.stop()


class Rig:
    """A worker in this process with a scripted agent."""

    def __init__(self, spec: NodeSpec, group: str | None = None) -> None:
        ours, theirs = socket.socketpair()
        self.spec = spec
        self.table = FunctionTable()
        self.agent = ScriptedAgent(theirs)
        self.worker = Worker(ours, self.table, spec, group=group)

    @overload
    def register(self, fn: F, **keywords: Any) -> F: ...
    @overload
    def register(self, **keywords: Any) -> Callable[[F], F]: ...
    def register(self, fn: Any = None, **keywords: Any) -> Any:
        options = parse(keywords)

        def decorate(fn: Any) -> Any:
            self.table.add(build(fn, options, self.spec.max_concurrency or 1), replace=False)
            return fn

        return decorate if fn is None else decorate(fn)

    def start(self, *, main: bool = True) -> ScriptedAgent:
        self.worker.start()
        if main:
            self.worker.run_in_background()
        assert self.worker.wait_registered(WAIT_S)
        self.agent.offer()
        return self.agent

    def stop(self) -> None:
        self.worker.close()
        self.agent.stop()


@contextmanager
def rig(group: str | None = None, **spec: Any) -> Iterator[Rig]:
    made = Rig(NodeSpec(gateway=None, node_id="n1", **spec), group)
    try:
        yield made
    finally:
        made.stop()
