"""A call that the gateway's own program makes: through the front door, without a socket.

Theory. A call has one life, and it begins with a link: quotas, bills, deadlines, the audit and
whoever asks "why does it wait" know nothing else. So the program in which a gateway runs does not
reach around the dispatcher. It opens a link in memory, shows the token of the gateway's owner, and
calls like any client. What it sends and takes is plain data: nothing is unpickled here.

Rules of this file. 1) One link for each call. 2) A call that its caller gives up is cancelled.

Source. features.md G7, G15, G17.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from .. import __version__
from ..errors import (
    AuthenticationError,
    EasyRemoteError,
    LinkLostError,
    SerializationError,
    from_wire,
)
from ..handlers import LinkHandler, StreamHandler
from ..identity.profile import gateway_profile_name, load_profile
from ..link import Link
from ..stream import Stream
from ..transport import memory_stream_pair
from ..values import plain
from ..values.exceptions import decode_exception
from ..wire.errors import ErrorCode, RemoteProtocolError
from ..wire.message import (
    CODEC_PICKLE,
    CODEC_PLAIN,
    INLINE_MAX,
    Call,
    Failure,
    Kind,
    Result,
    decode,
)

if TYPE_CHECKING:
    from .core import Gateway

BUFFER_BYTES = 1024 * 1024
RESULT_BYTES_MAX = 256 * 1024 * 1024
CALL_ID_BYTES = 16
PEERS = ("gateway", "this process:0")


async def call_inside(
    gateway: Gateway, function: str, node_id: str | None, arguments: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Any:  # fmt: skip
    """Call a function as the owner of the gateway and return its result.

    Args:
        gateway: On whose thread this runs.
        function: The name of a function that does not yield.
        node_id: The node that shall run it; None for the best one.
        arguments: By name; plain data and arrays.
        options: Options of the call, as a client sends them.

    Raises:
        EasyRemoteError: The call has an error for an outcome.
    """
    body, buffers = _encoded(arguments)
    token = _owner_token(gateway)
    ours, theirs = memory_stream_pair(BUFFER_BYTES, peers=PEERS)
    front, answer = _Front(), _Answer()
    link = Link(ours, front, dialer=True, outbox=gateway.outbox)
    inline = body if len(body) <= INLINE_MAX else None
    buffers = buffers if inline is not None else [memoryview(body), *buffers]
    message = Call(
        os.urandom(CALL_ID_BYTES), function, None if node_id is None else [node_id],
        dict(options), None, CODEC_PLAIN, 0, b"", inline, [one.nbytes for one in buffers],
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.serve_peer, theirs)
        nursery.start_soon(link.run)
        try:
            link.hello("client", {"token": token}, {"version": __version__})
            await front.greeted.wait()
            if front.error is None:
                link.open(message, buffers, handler=answer, end=True)
                await answer.settled.wait()
        finally:
            link.close()  # A goodbye: a call without an outcome is cancelled.
    error = answer.error or (None if answer.settled.is_set() else front.error)
    if error is not None:
        raise error
    return answer.value


def _encoded(arguments: Mapping[str, Any]) -> tuple[bytes, list[memoryview]]:
    try:
        body, outlet = plain.lowered([[], dict(arguments)], plain.new_outlet())
    except plain.NotPlain as error:
        raise SerializationError(
            f"an argument {error}; a call from inside the gateway takes plain data and arrays"
        ) from None
    return body, [] if outlet is None else outlet.buffers()


def _owner_token(gateway: Gateway) -> str:
    profile = load_profile(gateway_profile_name(gateway.state.port))
    if profile is None:
        raise AuthenticationError(
            "the profile of the gateway's owner is gone from this machine; restart the gateway, "
            "which makes it again"
        )
    return profile.token


class _Front(LinkHandler):
    """The calling end of the link."""

    def __init__(self) -> None:
        self.greeted = trio.Event()
        self.error: EasyRemoteError | None = None

    def on_welcome(self, link: Link, info: dict[str, Any]) -> None:
        """We were let in."""
        self.greeted.set()

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        """A gateway opens no streams to a client."""
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "nothing is to be opened here")

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        """The link is over; the answer hears of it by its own stream."""
        self.error = error or LinkLostError("the gateway is stopping")
        self.greeted.set()


class _Answer(StreamHandler):
    """The outcome of one call."""

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.value: Any = None
        self.error: EasyRemoteError | None = None
        self._result: Result | None = None
        self._buffers: list[memoryview] = []

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """The outcome; progress and credit are not looked at."""
        if kind == Kind.FAILURE:
            self._fail(_error(decode(Failure, payload)))
        elif kind == Kind.RESULT:
            result = decode(Result, payload)
            if not more:
                self._take(result, [])
            elif sum(result.segments) > RESULT_BYTES_MAX:
                self._fail(SerializationError("the result is too large to be taken in here"))
                stream.reset(ErrorCode.TOO_LARGE, "the caller has no room for this value")
            else:
                self._result = result
                self._buffers = [memoryview(bytearray(size)) for size in result.segments]
                stream.fill(self._buffers)
        elif kind == Kind.ITEM:
            self._fail(SerializationError("the function yields; call it with @remote instead"))
            stream.reset(ErrorCode.CANCELLED, "the caller takes no items")

    def on_filled(self, stream: Stream, end: bool) -> None:
        """The buffers of the result are there."""
        assert self._result is not None
        self._take(self._result, self._buffers)

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        """The call was given up."""
        self._fail(from_wire(code, reason))

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        """The link ended before the outcome."""
        self._fail(error)

    def _take(self, result: Result, buffers: list[memoryview]) -> None:
        if result.codec == CODEC_PICKLE:
            self._fail(
                SerializationError(
                    "the result is no plain data, and the gateway unpickles nothing; call the "
                    "function with @remote"
                )
            )
            return
        body = result.body if result.body is not None else bytes(buffers[0])
        try:
            self.value = plain.decode(body, buffers if result.body is not None else buffers[1:])
        except EasyRemoteError as error:
            self._fail(error)
        self.settled.set()

    def _fail(self, error: EasyRemoteError) -> None:
        if not self.settled.is_set():
            self.error = error
            self.settled.set()


def _error(failure: Failure) -> EasyRemoteError:
    if failure.code == ErrorCode.REMOTE_ERROR:
        return decode_exception(failure.detail)
    return from_wire(
        failure.code, failure.reason, maybe_executed=failure.maybe_executed,
        retry_after_s=failure.retry_after_s, detail=failure.detail,
    )  # fmt: skip
