"""A client that says exactly what a test wants said, over a real link to a real gateway."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from easyremote import values
from easyremote.errors import EasyRemoteError
from easyremote.handlers import LinkHandler, StreamHandler
from easyremote.identity.credential import resolve_credential
from easyremote.link import Link
from easyremote.outbox import Outbox
from easyremote.stream import Stream
from easyremote.transport import dial
from easyremote.wire.message import (
    BY_KIND,
    INLINE_MAX,
    Call,
    Failure,
    Query,
    Reply,
    Result,
    decode,
)

WAIT_S = 20.0
"""Far beyond what anything here takes; a test that reaches it fails."""


class PendingCall(StreamHandler):
    """One call: whether it started, and its outcome."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.over = trio.Event()
        self.outcomes: list[Any] = []
        self.stream: Stream | None = None
        self._filling: tuple[Any, list[memoryview]] | None = None
        self.buffers: list[memoryview] = []

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        message = decode(BY_KIND[kind], payload)
        if more:
            buffers = values.allocate(message.segments, limit_bytes=1 << 30)
            self._filling = message, buffers
            stream.fill(buffers)
        elif end:
            self._settle(message)

    def on_filled(self, stream: Stream, end: bool) -> None:
        assert self._filling is not None
        (message, self.buffers), self._filling = self._filling, None
        if end:
            self._settle(message)

    def on_started(self, stream: Stream) -> None:
        self.started.set()

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        self._settle(Failure(code, f"reset: {reason}", True, None, {}))

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        self._settle(Failure(int(error.code), f"lost: {error}", True, None, {}))

    def _settle(self, outcome: Any) -> None:
        self.outcomes.append(outcome)
        self.over.set()

    async def outcome(self) -> Any:
        """Wait for the one outcome."""
        with trio.fail_after(WAIT_S):
            await self.over.wait()
        assert len(self.outcomes) == 1
        return self.outcomes[0]

    async def failure(self) -> Failure:
        """Wait for the outcome, which must be a failure."""
        outcome = await self.outcome()
        assert isinstance(outcome, Failure), outcome
        return outcome

    async def result(self) -> Any:
        """Wait for the outcome, which must be a result; return its value."""
        outcome = await self.outcome()
        assert isinstance(outcome, Result), outcome
        body = outcome.body
        buffers = self.buffers
        if body is None:
            body, buffers = bytes(buffers[0]), buffers[1:]
        return values.decode(body, buffers, allow_pickle=False)

    async def wait_started(self) -> None:
        """Wait until the body runs."""
        with trio.fail_after(WAIT_S):
            await self.started.wait()


class Caller(LinkHandler):
    """A client's link."""

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.link: Link | None = None

    def on_welcome(self, link: Link, info: dict[str, Any]) -> None:
        self.link = link
        self.ready.set()

    def start(
        self, function: str, *args: Any, deadline_ms: int | None = None, call_id: bytes = b""
    ) -> PendingCall:
        """Make a call."""
        assert self.link is not None
        call_id = call_id or secrets.token_bytes(16)
        encoded = values.encode_call(args, {}, allow_pickle=False)
        body: bytes | None = encoded.body
        buffers = list(encoded.buffers)
        if len(encoded.body) > INLINE_MAX:
            body, buffers = None, [memoryview(encoded.body), *buffers]
        sizes = [buffer.nbytes for buffer in buffers]
        call = Call(
            call_id or secrets.token_bytes(16),
            function,
            None,
            {},
            deadline_ms,
            0,
            0,
            b"",
            body,
            sizes,
        )
        pending = PendingCall()
        pending.stream = self.link.open(call, buffers, handler=pending, end=True)
        return pending

    async def call(self, function: str, *args: Any) -> Any:
        """Make a call and return its result."""
        return await self.start(function, *args).result()

    async def query(self, name: str) -> Any:
        """Ask the gateway something."""
        assert self.link is not None
        pending = PendingCall()
        pending.stream = self.link.open(Query(name, {}), handler=pending, end=True)
        reply = await pending.outcome()
        assert isinstance(reply, Reply), reply
        body = reply.body if reply.body is not None else bytes(pending.buffers[0])
        return values.decode(body, [], allow_pickle=False)

    async def wait_for(self, function: str, node_id: str | None = None) -> None:
        """Wait until somebody, or a certain node, offers a function."""
        with trio.fail_after(WAIT_S):
            while True:
                listed = await self.query("functions")
                for entry in listed:
                    if function == entry["function_name"] and node_id in (None, entry["node_id"]):
                        return
                await trio.sleep(0.05)


@asynccontextmanager
async def open_caller(address: str) -> AsyncIterator[Caller]:
    """Connect to a gateway as its owner."""
    resolved = resolve_credential(address)
    stream = await dial(resolved.address, pin=resolved.pin)
    caller = Caller()
    link = Link(stream, caller, dialer=True, outbox=Outbox())
    link.hello("client", {"token": resolved.token}, {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        with trio.fail_after(WAIT_S):
            await caller.ready.wait()
        yield caller
        link.close()
        nursery.cancel_scope.cancel()


__all__ = ["WAIT_S", "Caller", "PendingCall", "open_caller"]
