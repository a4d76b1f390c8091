"""A short conversation with a gateway: dial, show the token, ask by name, say goodbye.

Theory. What an operator looks at (gauges, tokens, the audit) is no call of a function, and needs
nothing of the client library: one link, a few queries. Each command opens its own.

Rules of this file. 1) Everything has a time limit. 2) What the gateway refuses becomes the error
that it means.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from .. import __version__
from ..errors import EasyRemoteError, GatewayUnreachableError, LinkLostError, from_wire
from ..handlers import LinkHandler, StreamHandler
from ..identity.credential import Resolved, resolve_credential
from ..link import Link
from ..outbox import Outbox
from ..stream import Stream
from ..transport import ByteStream, dial
from ..values import plain
from ..wire.errors import CodecError, ErrorCode, RemoteProtocolError
from ..wire.message import Failure, Kind, Query, Reply, decode

GREET_S = 15.0
"""Time in which a gateway says whether it lets us in; it delays who failed often before."""
ANSWER_S = 20.0
ANSWER_BYTES_MAX = 256 * 1024 * 1024
R = TypeVar("R")


class Conversation(LinkHandler):
    """A link on which questions are asked.

    Attributes:
        info: What the gateway said when it let us in.
    """

    def __init__(self, stream: ByteStream) -> None:
        self.info: dict[str, Any] = {}
        self.link = Link(stream, self, dialer=True, outbox=Outbox())
        self._greeted = trio.Event()
        self._error: EasyRemoteError | None = None

    def on_welcome(self, link: Link, info: dict[str, Any]) -> None:
        """The gateway took us in."""
        self.info = info
        self._greeted.set()

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        """A gateway opens no streams to who only asks."""
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "nothing is to be opened here")

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        """The link is over."""
        self._error = error or LinkLostError(f"{link.peer} said goodbye")
        self._greeted.set()

    async def greet(self, token: str) -> None:
        """Show the token, once the gateway is known to be the right one.

        Raises:
            EasyRemoteError: The gateway refuses, or does not answer.
        """
        self.link.hello("client", {"token": token}, {"version": __version__})
        with trio.move_on_after(GREET_S):
            await self._greeted.wait()
            if self._error is not None:
                raise self._error
            return
        raise GatewayUnreachableError(
            f"{self.link.peer} did not answer the greeting within {GREET_S:g} s; try again"
        )

    async def ask(self, name: str, **args: Any) -> Any:
        """Ask the gateway and return its answer, plain data.

        Raises:
            EasyRemoteError: It refuses, or does not answer.
        """
        answer = _Answer()
        self.link.open(Query(name, args), handler=answer, end=True)
        with trio.move_on_after(ANSWER_S):
            return await answer.value()
        raise GatewayUnreachableError(
            f"{self.link.peer} did not answer {name} within {ANSWER_S:g} s; try again"
        )


class _Answer(StreamHandler):
    """The answer to one query."""

    def __init__(self) -> None:
        self._settled = trio.Event()
        self._value: Any = None
        self._error: EasyRemoteError | None = None
        self._segment = bytearray()

    async def value(self) -> Any:
        await self._settled.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """A reply, whole or with its body in a segment; or a failure."""
        if kind == Kind.FAILURE:
            failure = decode(Failure, payload)
            self._fail(from_wire(failure.code, failure.reason, detail=failure.detail))
            return
        reply = decode(Reply, payload)
        if reply.body is not None:
            self._take(reply.body)
        elif more and len(reply.segments) == 1 and reply.segments[0] <= ANSWER_BYTES_MAX:
            self._segment = bytearray(reply.segments[0])
            stream.fill([memoryview(self._segment)])
        else:
            raise CodecError("a reply is one body")

    def on_filled(self, stream: Stream, end: bool) -> None:
        """The body is there."""
        self._take(bytes(self._segment))

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        """The gateway gave the question up."""
        self._fail(from_wire(code, reason))

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        """The link went away before the answer."""
        self._fail(error)

    def _take(self, body: bytes) -> None:
        try:
            self._value = plain.decode(body)
        except (EasyRemoteError, ValueError) as error:
            raise CodecError(f"a reply is no plain value: {error}") from error
        self._settled.set()

    def _fail(self, error: EasyRemoteError) -> None:
        self._error = error
        self._settled.set()


async def dial_any(resolved: Resolved) -> ByteStream:
    """Dial the addresses of a gateway in turn.

    Raises:
        EasyRemoteError: None of them can be reached, or one of them is not the right gateway.
    """
    *others, last = resolved.addresses
    for address in others:
        try:
            return await dial(address, pin=resolved.pin)
        except GatewayUnreachableError:
            continue
    return await dial(last, pin=resolved.pin)


async def converse_on(
    stream: ByteStream, token: str, talk: Callable[[Conversation], Awaitable[R]]
) -> R:
    """Introduce ourselves on `stream`, run `talk`, and end the link.

    Raises:
        EasyRemoteError: The gateway refuses us, or `talk` raised it.
    """
    conversation = Conversation(stream)
    failure: EasyRemoteError | None = None
    results: list[R] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conversation.link.run)
        try:
            await conversation.greet(token)
            results.append(await talk(conversation))
        except EasyRemoteError as error:
            # Kept until the nursery is closed, which would wrap it in a group.
            failure = error
        conversation.link.close()
    if failure is not None:
        raise failure
    return results[0]


def converse(
    gateway: str | None, auth: str | None, talk: Callable[[Conversation], Awaitable[R]]
) -> R:
    """Find the gateway as every client does, and talk to it.

    Args:
        gateway: Its address, or None for the one that environment and profiles name.
        auth: Whom to be: a profile, `env:NAME` or `file:PATH`; None for the usual.
        talk: What to ask.

    Raises:
        EasyRemoteError: There is no gateway, no credential, or no way to it.
    """
    resolved = resolve_credential(gateway, auth=auth)

    async def run() -> R:
        return await converse_on(await dial_any(resolved), resolved.token, talk)

    return trio.run(run)
