"""The one place where bytes meet trio: a wire connection on a byte stream, in one nursery.

Theory. A link is one authenticated connection to a peer. Its reader receives a batch, takes every
whole frame out of it and tells the handlers *synchronously*: no task, channel or cancel scope
exists per message. What they say in return is collected, over all links of the thread, and sent
once at the end of the batch (`writer`). A writer task runs only while a socket is full; a timer
task sleeps until the next timeout.

Rules of this file. 1) Handlers never block, await or raise. 2) Whoever causes something to be
sent marks the link in its `Outbox`; a flush is never forgotten, for marking outside a batch
schedules one. 3) Errors of the wire and of the byte stream become ours here, and nowhere else.
4) `LinkHandler.on_lost` is called exactly once per link, after `on_lost` of every stream (`loss`).

Source. performance.md, "Small messages" and "Bulk".
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from . import errors
from .alive import Alive
from .errors import OverloadedError
from .handlers import LinkHandler, StreamHandler
from .link_events import TELL
from .loss import Loss
from .outbox import Outbox
from .stream import Stream
from .transport import ByteStream, StreamBroken
from .wire import event as ev
from .wire.connection import Connection
from .wire.errors import CodecError, ErrorCode, RemoteProtocolError
from .wire.message import Message, kind_of
from .wire.message import encode as encode_message
from .wire.settings import Settings
from .writer import Writer

__all__ = ["Link", "LinkHandler", "Outbox", "Stream", "StreamHandler"]

_log = logging.getLogger("easyremote.link")

READ_BUDGET_BYTES = 256 * 1024
"""Bytes after which a reader lets other tasks run: about a millisecond of somebody's bulk."""

EVENTS_PER_LOOK = 4
"""How often the clock is looked at."""

FLUSH_EVERY_BYTES = 256 * 1024
"""Received bytes after which a batch sends what it has caused so far: bulk flows on early."""

GOODBYE_S = 0.5
"""Time that the last frames of a link have to leave."""


class Link:
    """One connection to a peer. See the module.

    Attributes:
        peer: Name of the other end, for logs.
        alive: When the peer was last known to be there.
        ready: The handshake is done and the link is not over.
        goodbye: The peer said goodbye (code, reason) before the end, if it did.
        writer: Sends.
        streams: The streams that are not over, by id.
        lane: What it shares with the other links of its user (`turns`), if there may be others.
        over: It has ended, though not everybody may have been told.
        patient: Its streams are told of its loss in turns.
        loss: Who was told of its loss; None while it is not lost.
    """

    def __init__(
        self, stream: ByteStream, handler: LinkHandler, *,
        dialer: bool, outbox: Outbox, settings: Settings | None = None,
    ) -> None:  # fmt: skip
        self.stream = stream
        self.handler = handler
        self.outbox = outbox
        self.peer = stream.peer
        self.connection = Connection(dialer=dialer, now=trio.current_time(), settings=settings)
        self.alive = Alive()
        self.marked = False
        self.goodbye: tuple[int, str] | None = None
        self.writer = Writer(stream, self.connection)
        self.streams: dict[int, Stream] = {}
        self._broken: str | None = None
        self._closed_here = False
        self._ended = trio.Event()
        self._timer = trio.Event()
        self._timer_at = 0.0
        self.over = False
        self.patient = False
        self.loss: Loss | None = None
        self._unfinished = False
        """There are events that nobody was told of, and the reader will go on with them."""
        self.lane: trio.Lock | None = None

    # ---- what the owner does ---------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether streams may be opened."""
        return self.connection.ready

    @property
    def rtt_s(self) -> float | None:
        """Shortest round trip of a ping so far, in seconds."""
        return self.connection.rtt_s

    @property
    def streams_available(self) -> int:
        """How many streams may be opened now."""
        return self.connection.streams_available

    def hello(self, role: str, credential: dict[str, Any], info: dict[str, Any]) -> None:
        """Introduce ourselves (dialer)."""
        self.connection.hello(role, credential, info)
        self.outbox.mark(self)

    def welcome(self, info: dict[str, Any]) -> None:
        """Take the peer in (accepting side)."""
        self.connection.welcome(info)
        self.wake_timer()
        self.outbox.mark(self)

    def open(
        self, message: Message, buffers: Sequence[memoryview] = (), *,
        handler: StreamHandler, end: bool = False,
    ) -> Stream:  # fmt: skip
        """Open a stream with a message.

        Raises:
            OverloadedError: The peer grants no more streams now.
        """
        payload = encode_message(message)
        return self.open_encoded(kind_of(message), payload, buffers, handler=handler, end=end)

    def open_encoded(
        self, kind: int, payload: bytes, buffers: Sequence[memoryview] = (), *,
        handler: StreamHandler, more: bool = False, end: bool = False,
    ) -> Stream:  # fmt: skip
        """Open a stream with an encoded message; with `more`, segments follow by forwarding."""
        connection = self.connection
        if connection.streams_available <= 0:
            raise OverloadedError(f"{self.peer} takes no more streams now; try again shortly")
        stream_id = connection.open(kind, payload, buffers, more=more, end=end)
        stream = Stream(self, stream_id, handler)
        self.streams[stream_id] = stream
        if handler.relay:
            connection.manual_credit(stream_id)
        self.outbox.mark(self)
        return stream

    def drain(self, reason: str) -> None:
        """Say that we take no new streams."""
        if self.connection.ready:
            self.connection.drain(reason)
            self.outbox.mark(self)

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, reason: str = "") -> None:
        """Say goodbye and end: the handlers are told (see `loss`), `run` returns soon."""
        if self.over:
            return
        self._closed_here = True
        self.outbox.begin()
        try:
            self.connection.close(code, reason)
            self._dispatch()
            self.outbox.mark(self)
        finally:
            self.outbox.end()

    def wake_timer(self) -> None:
        """The connection's next timeout may have come nearer."""
        when = self.connection.next_timeout()
        if when is None or when < self._timer_at:
            self._timer.set()

    def _next_timeout(self) -> float:
        when, writer = self.connection.next_timeout(), self.writer.next_timeout()
        return min(math.inf if when is None else when, math.inf if writer is None else writer)

    def forget(self, stream_id: int) -> None:
        """A stream is over, and everything was told of it."""
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            stream.forget_handler()

    @property
    def streams_open(self) -> int:
        """Streams that are not over."""
        return len(self.streams)

    # ---- running ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive the link to its end; every handler has been told when this returns."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_loop)
                nursery.start_soon(self._write_loop)
                nursery.start_soon(self._timer_loop)
                await self._ended.wait()
                await self._lost.tell_rest()
                with trio.move_on_after(GOODBYE_S):
                    await self._write_rest()
                nursery.cancel_scope.cancel()
        finally:
            self.close()
            self._lost.tell()
            with trio.CancelScope(shield=True), trio.move_on_after(GOODBYE_S):
                await self.stream.aclose()

    async def _read_loop(self) -> None:
        turns = self.outbox.turns
        while not self.over:
            idle = self._receive_batch(*turns.bounds(first=True))
            while not (idle or self.over):
                idle = await turns.further(self.lane, self._further_turn)
            if not self.over:
                await self._wait(self.stream.wait_receivable)

    def _further_turn(self) -> bool:
        return self._receive_batch(*self.outbox.turns.bounds(first=False))

    def _receive_batch(self, for_s: float, events_max: int) -> bool:
        """Receive and dispatch for one turn; True if the stream has nothing more now."""
        connection, receive = self.connection, self.stream.try_receive_into
        budget, unsent = READ_BUDGET_BYTES, FLUSH_EVERY_BYTES
        until = trio.current_time() + for_s
        self.outbox.begin()
        try:
            if self._unfinished:
                events_max -= self._dispatch(until, events_max)
            while budget > 0 and not (self._unfinished or self.over):
                try:
                    size = receive(connection.receive_buffer())
                except StreamBroken as broken:
                    self._broke(broken)
                    return True
                if size is None:
                    return True
                now = trio.current_time()
                if size:
                    connection.received(size, now)
                else:
                    connection.receive_eof(now)
                events_max -= self._dispatch(until, events_max)
                budget -= size
                unsent -= size
                if unsent <= 0:
                    self.outbox.flush()
                    unsent = FLUSH_EVERY_BYTES
            return False
        finally:
            if connection.wants_write:
                self.outbox.mark(self)
            self.outbox.end()

    async def _wait(self, ready: Callable[[], Awaitable[None]]) -> None:
        try:
            await ready()
        except StreamBroken as broken:
            self._broke(broken)

    def _broke(self, broken: StreamBroken) -> None:
        """The byte stream is gone."""
        self._broken = str(broken)
        self.writer.forget()
        self.connection.receive_eof(trio.current_time())
        self._dispatch()

    def _broke_sending(self, broken: StreamBroken) -> None:
        """Nobody takes our bytes: what the peer said before may tell why, so hear it first."""
        self._broken = str(broken)
        self.writer.forget()
        self._timer.set()

    async def _hear_out(self, reason: str) -> None:
        """Take what a peer has said that takes nothing more, in turns, and end."""
        with trio.move_on_after(GOODBYE_S):
            idle = self.over
            while not (idle or self.over):
                idle = await self.outbox.turns.further(self.lane, self._further_turn)
        self.outbox.begin()
        try:
            self._broke(StreamBroken(reason))
        finally:
            self.outbox.end()

    def _dispatch(self, until: float = math.inf, events_max: int = sys.maxsize) -> int:
        """Tell the handlers what happened, one event after the other; return how many there were.

        Where there is more to tell, nothing may be received before it was told.
        """
        connection, streams, next_event = self.connection, self.streams, self.connection.next_event
        told = 0
        while (event := next_event()) is not None:
            try:
                if isinstance(event, ev.MessageReceived):
                    stream_id, kind, payload, more, end = event
                    stream = streams.get(stream_id)
                    if stream is not None:
                        stream.handler.on_message(stream, kind, payload, more, end)
                else:
                    self._handle(event)
            except (CodecError, RemoteProtocolError) as error:
                _log.warning("link broken by peer peer=%s reason=%s", self.peer, error)
                code = error.code if isinstance(error, RemoteProtocolError) else ErrorCode.DECODE
                connection.fail(RemoteProtocolError(code, str(error)))
            told += 1
            if told >= events_max:
                break
            if not told % EVENTS_PER_LOOK and trio.current_time() >= until:
                break
        self._unfinished = event is not None
        self._forget_over()
        return told

    def _handle(self, event: ev.Event) -> None:
        if isinstance(event, ev.ConnectionLost):
            self._on_connection_lost(event)
        else:
            TELL[type(event)](self, event)

    def charge(self, cost: float) -> None:
        """Draw on the peer's abuse budget for something that only its handlers can see.

        The link ends if the budget is used up, at the next event: charge only from a handler, or
        from what one has caused.
        """
        connection = self.connection
        if connection.ready and not connection.budget.charge(cost, connection.now):
            connection.fail(RemoteProtocolError(ErrorCode.ABUSE, "too much that is not for you"))

    def _on_connection_lost(self, event: ev.ConnectionLost) -> None:
        self.over = True
        self._ended.set()
        error = errors.loss_of_link(
            self.peer, event.error, self.goodbye, self._broken, closed_here=self._closed_here
        )
        streams, self.streams = self.streams, {}
        self.loss = Loss(self, streams, error)
        self.loss.begin()

    @property
    def _lost(self) -> Loss:
        assert self.loss is not None
        return self.loss

    def _forget_over(self) -> None:
        """Drop the handles of streams that are over and of which everything was told."""
        for stream_id in self.connection.take_over():
            self.forget(stream_id)

    # ---- sending ---------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what there is, until there is nothing, the stream is full or the budget spent."""
        writer = self.writer
        if self._broken is not None:
            return
        if writer.full:
            if self.connection.out.pending_bytes > self.connection.settings.out_pending_bytes_max:
                self._check_peer()
            return
        try:
            writer.send()
        except StreamBroken as broken:
            self._broke_sending(broken)
            return
        if writer.full_since is not None and self._next_timeout() < self._timer_at:
            self._timer.set()
        for stream_id, size_bytes in self.connection.take_drained():
            if (stream := self.streams.get(stream_id)) is not None:
                stream.handler.on_drained(stream, size_bytes)
        self._forget_over()

    def _check_peer(self) -> None:
        """Part with a peer that does not take its bytes."""
        error = self.writer.overdue(trio.current_time())
        if error is not None:
            self.connection.fail(error)
            self._dispatch()

    async def _write_loop(self) -> None:
        while True:
            await self.writer.wait_full()
            while self.writer.full:
                await self._wait(self.stream.wait_sendable)
                self._send_again()

    def _send_again(self) -> None:
        """The stream may have room."""
        self.writer.full = False
        self.outbox.begin()
        try:
            self.flush()
        finally:
            self.outbox.end()

    async def _write_rest(self) -> None:
        """Give the goodbye a chance."""
        while self.writer.pending and self._broken is None:
            if self.writer.full:
                await self._wait(self.stream.wait_sendable)
            self._send_again()
            await trio.lowlevel.checkpoint()

    # ---- time ------------------------------------------------------------------------------

    async def _timer_loop(self) -> None:
        connection = self.connection
        while not self.over:
            self._timer_at = self._next_timeout()
            with trio.move_on_at(self._timer_at):
                await self._timer.wait()
            if self._timer.is_set():
                self._timer = trio.Event()
                if self._broken is not None:
                    await self._hear_out(self._broken)
                continue
            now = trio.current_time()
            self.outbox.begin()
            try:
                # We may have been the one that slept: look again before somebody is blamed.
                if now >= connection.heard_at + connection.settings.lease_s:
                    self._receive_batch(math.inf, sys.maxsize)
                if self.writer.overdue(now) is not None:
                    self._send_again()
                    self._check_peer()
                connection.handle_timeout(now)
                if not self._unfinished:
                    self._dispatch()
                self.outbox.mark(self)
            finally:
                self.outbox.end()
