"""One call on its way: the handler of its stream, and the source of its future.

Theory. A call is encoded where it is made, on the thread of the caller, and opened on the io
thread. What comes back is decoded there only if it is small and plain; a pickle runs code of
users, and a large value takes time, so these go to other threads. The outcome settles the future.

    HELD --open--> SENT --ACCEPTED--> ACCEPTED --outcome--> SETTLED
     | ^             |                   |
     | +--link lost--+-------------------+   under the same id; streams: SETTLED
     +--cancelled, expired, closed, no link in time--> SETTLED

Rules of this file. 1) All but `request_cancel`, `whereabouts` and the progress belongs to the io
thread. 2) A call is submitted again under the same id after a loss; the gateway knows the id, or
asks its nodes. 3) What has an outcome holds nothing.

Source. decisions.md 9, 10, 15, 22; wire/README.md, "Messages".
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import alive, values
from ..errors import (
    EasyRemoteError,
    LinkLostError,
    SerializationError,
    TaskCancelledError,
    TaskTimeoutError,
    from_wire,
)
from ..handlers import StreamHandler
from ..relay import END_ONLY, END_ONLY_KIND
from ..wire.errors import ErrorCode
from ..wire.message import (
    CODEC_PICKLE,
    Call,
    Failure,
    Item,
    Kind,
    Progress,
    Result,
    decode,
    encode,
)
from .again import lost_for_good, next_attempt, settle_or_repeat, too_late
from .bodies import open_body
from .future import Future, Input
from .news import News, news_of
from .offload import offload
from .progress import Reporting

if TYPE_CHECKING:
    from ..facts import Usage
    from ..link import Link
    from ..stream import Stream
    from ..timers import Timer
    from .feed import Feeds
    from .info import Whereabouts
    from .retry import RetryPolicy
    from .session import Session

BACKSTOP_S = 2.0
"""After the deadline the gateway settles a call; if it does not, we do, this much later."""

DECODE_HERE_BYTES = 256 * 1024
"""A larger value is decoded on another thread: the io thread has other calls to serve."""

Valued = Result | Item | Progress


class OutgoingCall(Reporting, StreamHandler):
    """One call. The class holds the defaults of what most calls never need.

    Attributes:
        session: Through which it goes.
        call_id: Its identity everywhere.
        function: What it calls.
        future: What its caller holds; None once it has an outcome.
        stream: On which it is open, None while it is held back.
        sent: It was written to a link at least once.
        accepted: The gateway has taken responsibility.
        deadline: When it must have an outcome, on `time.monotonic()`.
        feeds: The producers of its streamed arguments.
        wants_items: The function yields items.
        retry: What may be made again, None for what the function was registered with.
        attached: Somebody else made it, or this program did before.
        attempts: How often it was made.
        tried: There was an attempt before this one, which may have run.
        news: What the gateway was asked about it, None before somebody asked.
        lost: It was open on a link that is gone, and waits for another one.
    """

    retry: RetryPolicy | None = None
    attached = False
    attempts = 1
    tried = False
    lost = False
    _opened_at = 0.0
    _lost_at: float | None = None
    _since = 0

    future: Future[Any] | None = None
    stream: Stream | None = None
    sent = False
    accepted = False
    ended = False
    deadline: float | None = None
    feeds: Feeds | None = None
    wants_items = False
    seconds = 0.0
    bytes_received = 0
    _timer: Timer | None = None
    _filling: tuple[Valued, list[memoryview]] | None = None
    _cancel: tuple[int, int] | None = None
    news: News | None = None

    def __init__(
        self, session: Session, message: Call, buffers: list[memoryview], deadline: float | None,
    ) -> None:  # fmt: skip
        self.session = session
        self.call_id = message.call_id
        self.function = message.function
        self.node_ids = message.node_ids
        self._buffers = buffers
        self.made_at = time.monotonic()
        self.bytes_sent = sum(message.segments) + len(message.body or b"")
        if deadline is None:
            self._payload: bytes | None = encode(message)
            self._message: Call | None = None
        else:
            self._payload = None
            self._message = message
            self.deadline = deadline

    # ---- on its way (io thread) ----------------------------------------------------------------

    @property
    def speaks_on(self) -> bool:
        """Whether we say more than the opening message on its stream."""
        return self.wants_items or self.feeds is not None

    @property
    def cancelling(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancel is not None

    def begin_again(self, call_id: bytes, *, may_have_run: bool) -> None:
        """Become another call, with the same arguments and for the same future."""
        self.call_id = call_id
        self.attempts += 1
        self.tried = self.tried or may_have_run
        self.stream, self._since, self._lost_at, self.news = None, 0, None, None
        self.sent = self.accepted = self.ended = False
        message = self._message or self._payload
        assert message is not None
        self._message = next_attempt(message, call_id, self.attempts)
        self._payload = None

    def _opening(self) -> bytes | None:
        """Return the message that opens its stream now; None if its time is over."""
        if self._payload is not None and not self._since:
            return self._payload
        message = self._message or decode(Call, self._payload or b"")
        if self.deadline is not None:
            left_s = self.deadline - time.monotonic()
            if left_s <= 0:
                return None
            message = message._replace(deadline_ms=max(1, int(left_s * 1000)))
        return encode(message._replace(since=self._since))

    def open_on(self, link: Link) -> None:
        """Write it to a link that has room for a stream."""
        if too_late(self._lost_at):
            self.lose(LinkLostError("for too long: nobody may know the call any more"))
            return
        payload = self._opening()
        if payload is None:
            self._expire()
            return
        self._since = self._since or self.session.incarnation
        self.ended = not self.speaks_on
        self.stream = link.open_encoded(
            Kind.CALL, payload, self._buffers, handler=self, end=self.ended
        )
        self.sent, self.lost, self._opened_at = True, False, alive.clock()
        if self._cancel is not None:
            self.stream.cancel(*self._cancel)

    def arm(self) -> None:
        """Watch its deadline from now on."""
        if self.deadline is not None and self.future is not None:
            left_s = max(0.0, self.deadline - time.monotonic())
            self._timer = self.session.timers.after(left_s, self._on_deadline)

    def _on_deadline(self) -> None:
        if self.future is None:
            return
        if self.stream is None:
            self._expire()
        else:
            self._timer = self.session.timers.after(BACKSTOP_S, self._expire)

    def _expire(self) -> None:
        error = TaskTimeoutError(f"{self.function}: the deadline of the call has passed")
        error.may_have_run = self.may_have_run()
        stream = self.stream
        self.settle(error=error)
        if stream is not None and stream.is_open:
            stream.reset(ErrorCode.DEADLINE, "the caller waits no longer")

    # ---- its outcome ---------------------------------------------------------------------------

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        """Give it its outcome, unless it has one; from any thread."""
        reports = self._progress
        if reports is not None and reports.watched:
            # Whoever watches has seen every report before the outcome is there.
            reports.drain(partial(self._settle, value, error))
        else:
            self._settle(value, error)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        future, self.future = self.future, None
        if future is None:
            return
        self._end()
        self.session.tally.settled(self, error)
        if error is not None and future._cancelling and isinstance(error, TaskCancelledError):
            future._step(Input.CANCEL, None, error)
        else:
            future._step(Input.SETTLE, value, error)

    def _end(self) -> None:
        """It has its outcome: let go of all that it held."""
        self._payload = self._message = None
        self._buffers = []
        self.session.settled(self)
        if self._timer is not None:
            self.session.drop_timer(self._timer)
            self._timer = None
        if self.feeds is not None:
            self.feeds.stop()

    def fail(self, error: EasyRemoteError) -> None:
        """End it with an error of ours."""
        self.settle(error=error)

    # ---- what the gateway says (io thread) -----------------------------------------------------

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """The outcome, a progress report, or credit for a streamed argument."""
        if kind == Kind.RESULT:
            result = decode(Result, payload)
            self.session.throttle.succeeded()
            self.seconds = result.seconds
            if more:
                self._receive(stream, result, result.segments)
            else:
                self._end_ours(stream)
                self._on_result(result, [])
        elif kind == Kind.FAILURE:
            self._end_ours(stream)
            self._on_failure(decode(Failure, payload))
        else:
            self.accepted = True
            self._on_more(stream, kind, payload, more)

    def _on_more(self, stream: Stream, kind: int, payload: bytes, more: bool) -> None:
        if kind == Kind.PROGRESS:
            progress = decode(Progress, payload)
            if more:
                self._receive(stream, progress, progress.segments)
            else:
                self._on_progress(progress, [])
        elif kind == Kind.WANT and self.feeds is not None:
            self.feeds.on_want(payload)

    def _receive(self, stream: Stream, message: Valued, segments: list[int]) -> None:
        """Choose where the segments of a message go: into the memory of the value itself."""
        try:
            buffers = values.allocate(segments, limit_bytes=self.session.object_bytes_max)
        except SerializationError as error:
            error.may_have_run = True
            self.settle(error=error)
            stream.reset(ErrorCode.TOO_LARGE, "the caller has no room for this value")
            return
        self.bytes_received += sum(segments)
        self._filling = message, buffers
        stream.fill(buffers)

    def on_filled(self, stream: Stream, end: bool) -> None:
        """The segments of a message are complete."""
        assert self._filling is not None
        (message, buffers), self._filling = self._filling, None
        if type(message) is Result:
            self._end_ours(stream)
            self._on_result(message, buffers)
        elif type(message) is Progress:
            self._on_progress(message, buffers)
        elif type(message) is Item:
            self.on_item(message, buffers)

    def on_item(self, item: Item, buffers: list[memoryview]) -> None:
        """An item came; a call that returns one value has none."""

    def _end_ours(self, stream: Stream) -> None:
        """The other side has ended: so do we, whatever the streamed arguments still had."""
        self.stream = None
        if not self.ended and stream.is_open:
            self.ended = True
            stream.forward(END_ONLY_KIND, END_ONLY, False, True)

    def _on_result(self, result: Result, buffers: list[memoryview]) -> None:
        self.bytes_received += len(result.body or b"")
        if result.codec == CODEC_PICKLE:
            self.session.trust.judge(self, partial(self._open_pickled, result, buffers))
        elif result.body is None or sum(result.segments) > DECODE_HERE_BYTES:
            offload.run(partial(self._open, result, buffers, False))
        else:
            self._open(result, buffers, False)

    def _open_pickled(self, result: Result, buffers: list[memoryview], trusted: bool) -> None:
        if trusted:
            offload.run(partial(self._open, result, buffers, True))
        else:
            self.settle(error=self.session.trust.refusal(self.function, "result"))

    def _open(self, result: Result, buffers: list[memoryview], allow_pickle: bool) -> None:
        try:
            value = open_body(result.body, buffers, allow_pickle)
        except EasyRemoteError as error:
            error.may_have_run = True
            self.settle(error=error)
        else:
            self.settle(value)

    def _on_failure(self, failure: Failure) -> None:
        if failure.code == ErrorCode.REMOTE_ERROR:
            # The class of an exception belongs to a user, and may have code that runs when it is
            # made.
            offload.run(lambda: self._on_raised(values.decode_exception(failure.detail)))
            return
        code, reason, maybe, after_s, detail = failure
        error = from_wire(code, reason, maybe_executed=maybe, retry_after_s=after_s, detail=detail)
        settle_or_repeat(self, error, idempotent=detail.get("idempotent") is True)

    def _on_raised(self, error: BaseException) -> None:
        """The body raised; on another thread."""
        if self.retry is not None and self.retry.exceptions:
            self.session.link.post(partial(settle_or_repeat, self, error))
        else:
            self.settle(error=error)

    def on_accepted(self, stream: Stream) -> None:
        """The gateway has taken responsibility."""
        self.accepted = True
        self.session.noted()

    def on_started(self, stream: Stream) -> None:
        """User code runs."""
        self.accepted = True
        self._lost_at = None
        if self.future is not None:
            self.future._step(Input.START)
        self.session.noted()

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        """The gateway gave the call up, perhaps inside its result."""
        self.stream = None
        settle_or_repeat(self, from_wire(code, reason, maybe_executed=True))

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        """The link is gone."""
        if stream is not self.stream:
            return  # The outcome was there, or this was an attempt before.
        self.stream = self._filling = None
        self.lost = True
        self._lost_at = self._lost_at or max(self._opened_at, stream.link.alive.at)
        self.session.lost(self, error)

    def on_drained(self, stream: Stream, size_bytes: int) -> None:
        """Bytes of ours have left: producers of streamed arguments may go on."""
        if self.feeds is not None:
            self.feeds.on_drained(stream)

    @property
    def can_go_again(self) -> bool:
        """Whether it may be submitted again after a loss."""
        begun = self.feeds is not None and self.feeds.begun
        parted = self.accepted and self.speaks_on
        wanted = self.future is not None and self._cancel is None
        return wanted and not begun and not parted and not too_late(self._lost_at)

    def lose(self, error: EasyRemoteError) -> None:
        """The link is gone for good, as far as this call goes."""
        if self._cancel is not None and self.sent:
            self.session.cancel_later(self.call_id, self._cancel)
        self.settle(error=lost_for_good(self, error))

    # ---- what its future asks (any thread) -----------------------------------------------------

    def request_cancel(self, strength: int, grace_ms: int) -> None:
        """Ask for it to be stopped."""
        self.session.link.post(partial(self._on_cancel, strength, grace_ms))

    def _on_cancel(self, strength: int, grace_ms: int) -> None:
        self._cancel = (strength, grace_ms)
        future = self.future
        if self.stream is not None and self.stream.is_open:
            self.stream.cancel(strength, grace_ms)
        elif future is not None and (self.lost or not self.sent):
            error = TaskCancelledError("the call was cancelled while there was no link for it")
            error.may_have_run = self.may_have_run()
            if self.lost:
                self.session.cancel_later(self.call_id, self._cancel)
            self.settle(error=error)
        if future is not None and future.done():
            self._give_up()

    def _give_up(self) -> None:
        """Its future was settled without it: the outcome is still awaited, and ignored."""
        if self.feeds is not None:
            self.feeds.stop()

    def on_io_thread(self) -> bool:
        """Whether the caller runs on the io thread."""
        return self.session.link.on_io_thread()

    def was_accepted(self) -> bool:
        """Whether the gateway has taken responsibility."""
        return self.accepted

    def may_have_run(self) -> bool:
        """Whether user code may have started."""
        return self.sent or self.tried

    def whereabouts(self) -> Whereabouts | None:
        """Ask the gateway where it is, at most a few times a second."""
        return news_of(self).where() if self.sent else None

    def usage(self) -> Usage | None:
        """What it has cost; None before its outcome."""
        return news_of(self).usage() if self.future is None else None
