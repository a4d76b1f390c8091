"""A question to the gateway by name, and its plain answer.

Rules of this file. An answer is plain data, whatever the gateway says; a question is not asked
again after a loss, for some are orders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import values
from ..errors import (
    EasyRemoteError,
    GatewayUnreachableError,
    ProtocolViolationError,
    SerializationError,
    from_wire,
)
from ..handlers import StreamHandler
from ..wire.errors import ErrorCode
from ..wire.message import Failure, Kind, Query, Reply, decode
from .future import Future, Input
from .source import NoCall

if TYPE_CHECKING:
    from ..link import Link
    from ..stream import Stream
    from .session import Session

REPLY_BYTES_MAX = 256 * 1024 * 1024
"""A listing of many functions is large; more than this is a mistake."""


class OutgoingQuery(StreamHandler):
    """One question.

    Attributes:
        future: What is still to be settled; None when there is an answer.
        answer: The future of the answer.
    """

    can_go_again = False

    def __init__(
        self, session: Session, name: str, args: dict[str, Any],
        then: Callable[[Any], object] | None = None,
    ) -> None:  # fmt: skip
        """Prepare a question; `then` is told on the io thread, None if there is no answer."""
        self.session = session
        self.answer: Future[Any] = Future(NoCall(name, session.link.on_io_thread))
        self.future: Future[Any] | None = self.answer
        self._then = then
        self._query = Query(name, args)
        self._segment: list[memoryview] = []

    def open_on(self, link: Link) -> None:
        """Ask."""
        link.open(self._query, handler=self, end=True)

    def arm(self) -> None:
        """A question has no deadline; whoever waits for the answer has one."""

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """The answer, or why there is none."""
        if kind == Kind.FAILURE:
            failure = decode(Failure, payload)
            self.fail(
                from_wire(
                    failure.code, failure.reason, maybe_executed=failure.maybe_executed,
                    retry_after_s=failure.retry_after_s, detail=failure.detail,
                )
            )  # fmt: skip
        elif kind == Kind.REPLY:
            reply = decode(Reply, payload)
            if reply.body is not None:
                self._open(reply.body)
            elif more and len(reply.segments) == 1:
                self._receive(stream, reply.segments)
            else:
                self.fail(ProtocolViolationError("the gateway sent an answer without a body"))

    def _receive(self, stream: Stream, segments: list[int]) -> None:
        try:
            self._segment = values.allocate(segments, limit_bytes=REPLY_BYTES_MAX)
        except SerializationError as error:
            self.fail(error)
            stream.reset(ErrorCode.TOO_LARGE, "no room for this answer")
        else:
            stream.fill(self._segment)

    def on_filled(self, stream: Stream, end: bool) -> None:
        """A large answer is complete."""
        self._open(self._segment[0])

    def _open(self, body: bytes | memoryview) -> None:
        try:
            value = values.decode(body, [], allow_pickle=False)
        except EasyRemoteError as error:
            self.fail(error)
        else:
            self._settle(value, None)

    def fail(self, error: EasyRemoteError) -> None:
        """There is no answer."""
        self._settle(None, error)

    def lose(self, error: EasyRemoteError) -> None:
        """The link is gone."""
        if isinstance(error, GatewayUnreachableError):
            self.fail(error)
        else:
            self.fail(GatewayUnreachableError(f"the link to the gateway was lost: {error}"))

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        """The gateway gave the question up."""
        self.fail(from_wire(code, reason))

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        """The link is gone."""
        self.session.lost(self, error)

    def _settle(self, value: Any, error: EasyRemoteError | None) -> None:
        future, self.future = self.future, None
        if future is None:
            return
        self.session.settled(self)
        future._step(Input.SETTLE, value, error)
        if self._then is not None:
            future._seen()
            self._then(value)
