"""Calls that pass through the agent on their way to a worker.

Theory. The agent relays frames and looks at nothing but the header of a call. What it adds is the
knowledge of processes: it can say how the worker of a call ended, it can end the worker of an
isolated function when a call does not stop in time, and it knows which worker runs which call, so
that a nested call is let out only from where its parent runs.

    HELD --give--> GIVEN --outcome--> SETTLED
      |              +---worker gone, kill, stop of the node---^
      +-----cancel, deadline, stop of the node-----------------^

When the gateway is lost, a call that it had given whole goes on as an *orphan*, and keeps what it
has to say; the gateway that comes back may attach to it (`agent_orphans.py`).

Rules of this file. 1) A call has one outcome: the worker's, or ours in `fail`, whichever is first.
2) A call that was never written to a worker has provably not run; any other may have. 3) The
stream of a call is released once, when its work is gone.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from ..errors import EasyRemoteError
from ..flow import Buffers
from ..log import Log
from ..relay import Relay
from ..wire.errors import ErrorCode
from ..wire.message import (
    FLAG_STREAM,
    Dispatch,
    Failure,
    Kind,
    Result,
    body_seconds,
    decode,
    encode,
)
from .process import ExitStatus
from .replica_plan import Devices
from .visible import GPUS_KEY, VISIBLE_KEY, value_of

if TYPE_CHECKING:
    from ..link import Link
    from ..stream import Stream
    from ..timers import Timer, Timers
    from .agent_orphans import Orphanage
    from .agent_record import Record
    from .pools import Pool
    from .workers import WorkerProcess

_log = Log("node")

INTERRUPT, KILL = 1, 2
"""Strengths of a cancel, beside 0 that asks."""
GRACE_MS = 5000
"""Grace of a call whose caller is gone."""
DEADLINE_GRACE_S = 0.5
"""Grace of a call whose deadline has passed: its caller has stopped waiting."""
REFUSALS = frozenset({ErrorCode.OVERLOADED, ErrorCode.SHUTTING_DOWN})
"""Codes by which a worker gives a call back that never began; a gateway may give it to us again."""
KILL_SLACK_S = 0.5
"""Time after the grace in which an interrupted body can unwind before its process is killed."""


class CallState(IntEnum):
    """Where a dispatched call is."""

    HELD = 0
    """No worker has it yet."""
    GIVEN = 1
    """It was written to a worker's link."""
    SETTLED = 2
    """It has its outcome."""


class DispatchedCall(Relay):
    """A call that the gateway gave to this node, and the relay of its two streams.

    Attributes:
        call_id: Its identity.
        function: What it calls.
        state: Where it is.
        worker: Who has it, None while it is held.
        started: Its body was said to run.
        attached: It came back to its gateway after a loss.
        given_back: Its worker refused it before it began.
        killed_for: Why its worker is being killed, if it is.
        devices: The GPUs that the gateway chose for it; None if it chose none.
        arrived_at: When it came.
        succeeded: Whether its body ended well; None if it did not end by itself.
        body_s: Wall time of its body, None if nobody said.
        orphans: Where it goes when its gateway is lost.
    """

    orphans: Orphanage | None = None

    worker: WorkerProcess | None = None
    started = False
    attached = False
    given_back = False
    killed_for: tuple[ErrorCode, str] | None = None
    devices: Devices | None = None
    succeeded: bool | None = None
    body_s: float | None = None
    _kill_timer: Timer | None = None
    _held_timer: Timer | None = None
    _stop_by: float | None = None
    _released = False
    _last_word: tuple[int, bytes] | None = None
    _record: Record | None = None

    def __init__(
        self, pool: Pool, timers: Timers, buffers: Buffers, message: Dispatch, payload: bytes,
        up: Stream, more: bool, end: bool, *, idempotent: bool = False,
    ) -> None:  # fmt: skip
        Relay.__init__(self, up, buffers, more=more, end=end)
        self.pool = pool
        self.timers = timers
        self.call_id = message.call_id
        self.function = message.function
        self.attempt = message.attempt
        self.grant = message.grant
        self.flags = message.flags
        self.context = message.context
        self._hint = {"idempotent": True} if idempotent else {}
        self.state = CallState.HELD
        self._opened_on = up
        self._opening: tuple[bytes, bool, bool] | None = (payload, more, end)
        self.arrived_at = trio.current_time()
        self._deadline: float | None = None
        if message.deadline_ms is not None:
            self._deadline = self.arrived_at + message.deadline_ms / 1000

    # ---- on its way to a worker ----------------------------------------------------------------

    def hold(self) -> None:
        """Wait for a worker, at most until the deadline."""
        if self._deadline is not None and self._held_timer is None:
            self._held_timer = self.timers.at(self._deadline, self._expired_held)

    def see(self, devices: Devices) -> None:
        """Tell the body which GPUs it has."""
        assert self._opening is not None
        payload, more, end = self._opening
        message = decode(Dispatch, payload)
        context = {**message.context, GPUS_KEY: list(devices), VISIBLE_KEY: value_of(devices)}
        self._opening = encode(message._replace(context=context)), more, end

    def give(self, worker: WorkerProcess, link: Link) -> None:
        """Write the call to a worker's link."""
        assert self.state is CallState.HELD and self._opening is not None
        payload, more, end = self._opening
        self._opening = None
        if self._held_timer is not None:
            self.timers.cancel(self._held_timer)
            payload = self._with_time_left(payload)
        self.state = CallState.GIVEN
        self.worker = worker
        worker.calls[self.call_id] = self
        self.attach_down(
            link.open_encoded(Kind.DISPATCH, payload, handler=self, more=more, end=end)
        )
        if self.pool.isolated and self._deadline is not None:
            self._kill_at(
                self._deadline + DEADLINE_GRACE_S, ErrorCode.DEADLINE,
                "the deadline passed and the body did not stop",
            )  # fmt: skip

    def _with_time_left(self, payload: bytes) -> bytes:
        """Return the message with the time that is left after waiting here."""
        assert self._deadline is not None
        left_ms = max(0, int((self._deadline - trio.current_time()) * 1000))
        return encode(decode(Dispatch, payload)._replace(deadline_ms=left_ms))

    # ---- what happens to it --------------------------------------------------------------------

    def on_outcome(self, kind: int, payload: bytes, more: bool) -> bool:
        """The worker says how it ended. A body that may still be running is not trusted."""
        if kind == Kind.FAILURE:
            self._look_at(decode(Failure, payload))
        elif self.succeeded is None:
            self.succeeded, self.body_s = True, body_seconds(payload)
        # The outcome of a stream without its items would look like a short success, and what was
        # given back is perhaps elsewhere by now.
        orphans = None if self.flags & FLAG_STREAM or self.given_back else self.orphans
        if orphans is not None and not more:
            self._last_word = kind, payload
            if self.up is not None:
                orphans.written(self, kind, payload)
        elif orphans is not None and kind == Kind.RESULT:
            size_bytes = sum(decode(Result, payload).segments)
            self._record = orphans.record(size_bytes, (kind, payload, True, False))
        return False

    def _look_at(self, failure: Failure) -> None:
        """See in a failure whether the body never began, or did not end in time."""
        self.given_back = not failure.maybe_executed and failure.code in REFUSALS
        if failure.maybe_executed and failure.code != ErrorCode.CANCELLED:
            self.succeeded = False
        if self._stop_by is not None and self.worker is not None:
            stopped = failure.code in (ErrorCode.CANCELLED, ErrorCode.DEADLINE)
            if stopped and trio.current_time() >= self._stop_by:
                self.worker.kill("a body did not stop within its grace")

    def on_data(self, stream: Stream, frame: memoryview, last: bool, end: bool) -> None:
        """A piece of an argument or of the result."""
        if self._record is not None and stream is self.down:
            self._record.entries.append((frame, last, end))
        Relay.on_data(self, stream, frame, last, end)

    def on_drained(self, stream: Stream, size_bytes: int) -> None:
        """Bytes have left us: all of the result, perhaps."""
        Relay.on_drained(self, stream, size_bytes)
        record = self._record
        said = record is not None and self.state is CallState.SETTLED and stream is self.up
        if said and self.orphans is not None and not stream.pending_bytes:
            assert record is not None
            self._record = None
            self.orphans.written_large(self, record)

    def on_callee_done(self) -> None:
        """The worker has said its last word."""
        self.state = CallState.SETTLED
        self._work_gone()

    def on_callee_gone(self, code: int, reason: str, error: EasyRemoteError | None) -> None:
        """The worker gave the stream up, or its link is gone: then wait for how it ended."""
        worker = self.worker
        assert worker is not None
        if error is not None:
            worker.orphans.append(self)
            return
        self.fail(ErrorCode.INTERNAL, f"the worker gave the call up: {reason}", may_have_run=True)
        self._work_gone()

    def on_caller_gone(self, code: int, reason: str, error: EasyRemoteError | None) -> None:
        """The gateway gave the call up: stop the work. Its link is gone: wait for the next one."""
        orphans, record = self.orphans, self._record
        if error is not None and orphans is not None and self._can_wait:
            self.detach_up()
            if record is not None:
                flow = self._flow_down()
                for entry in record.renew():
                    flow.hold(entry)
            self._release()
            orphans.take(self)
            return
        if error is not None and orphans is not None and record is not None and self.down_ended:
            orphans.written_large(self, record)
        self.forsake()

    @property
    def _can_wait(self) -> bool:
        """Whether it may be taken up again: nothing of it was lost halfway."""
        whole = self.up_ended and not self.up_mid
        spoken = self._record is None and (self.down_mid or self.outcome_seen)
        spoken = spoken or bool(self.flags & FLAG_STREAM)
        return whole and not spoken and self.state is not CallState.SETTLED

    @property
    def deadline_ms(self) -> int | None:
        """Time that it has left, None for ever."""
        if self._deadline is None:
            return None
        return max(0, int((self._deadline - trio.current_time()) * 1000))

    def reattach(self, up: Stream) -> None:
        """The gateway is back: say on a new stream all that there is to say."""
        self._opened_on, self._released, self.attached = up, False, True
        self.attach_up(up)
        if self.started:
            up.started()
        if self._last_word is not None and self.orphans is not None:
            self.orphans.written(self, *self._last_word)  # This link may be lost as well.
        if self.state is CallState.SETTLED:
            self._release()

    def on_started(self, stream: Stream) -> None:
        """The body runs."""
        self.started = self.started or stream is self.down
        Relay.on_started(self, stream)

    def forsake(self) -> None:
        """Nobody wants the outcome any more: stop the work."""
        down, incomplete, held = self.down, self.up_mid, self.state is CallState.HELD
        self.state = CallState.SETTLED
        self.up = self._record = None
        self.mute()
        self._release()
        if held:
            self.pool.forget(self)
            self._work_gone()
        elif down is not None and not self.down_ended:
            if incomplete:
                # Nothing else can be said on a stream in the middle of a segment.
                down.reset(ErrorCode.CANCELLED, "the caller is gone")
                self.down_ended = True
                if self.pool.isolated and self.worker is not None:
                    self.worker.kill("its caller went away in the middle of an argument")
                self._work_gone()
            else:
                self._stop(down, INTERRUPT, GRACE_MS)

    def on_cancel(self, stream: Stream, strength: int, grace_ms: int) -> None:
        """The caller wants it stopped."""
        if stream is not self.up:
            return
        if self.state is CallState.HELD:
            self.pool.forget(self)
            self.fail(ErrorCode.CANCELLED, "cancelled before it began", may_have_run=False)
            self._work_gone()
        elif self.down is not None and not self.down_ended:
            self._stop(self.down, strength, grace_ms)

    def _stop(self, down: Stream, strength: int, grace_ms: int) -> None:
        down.cancel(strength, grace_ms)
        if not self.pool.isolated:
            self.pool.stopping(self, grace_ms / 1000)
            return
        reason = "the body did not stop within the grace of the cancel"
        if strength >= KILL:
            self._kill(ErrorCode.CANCELLED, reason)
        else:
            self._kill_at(trio.current_time() + grace_ms / 1000, ErrorCode.CANCELLED, reason)

    def _kill_at(self, when: float, code: ErrorCode, reason: str) -> None:
        """Kill the worker soon after `when`, unless it is to be killed sooner already."""
        old = self._kill_timer
        if old is not None:
            if old[2] is not None and old[0] <= when + KILL_SLACK_S:
                return
            self.timers.cancel(old)
        self._stop_by = when
        self._kill_timer = self.timers.at(when + KILL_SLACK_S, partial(self._kill, code, reason))

    def _kill(self, code: ErrorCode, reason: str) -> None:
        if self.down_ended or self.worker is None:
            return
        self.killed_for = code, reason
        self.worker.kill(reason)

    def _expired_held(self) -> None:
        if self.state is CallState.HELD:
            self.pool.forget(self)
            self.fail(ErrorCode.DEADLINE, "the deadline passed before it began", may_have_run=False)
            self._work_gone()

    # ---- outcomes of our own ---------------------------------------------------------------------

    def crashed(self, status: ExitStatus) -> None:
        """The worker is gone and so is the call."""
        if self.killed_for is not None:
            code, reason = self.killed_for
            self.fail(code, f"{reason}; its process was killed", may_have_run=True)
        else:
            self.fail(
                ErrorCode.WORKER_DIED,
                f"the process that ran {self.function} {status.describe()} during the call",
                may_have_run=True, detail={**status.detail(), **self._hint},
            )  # fmt: skip
        self._work_gone()

    def fail(
        self, code: ErrorCode, reason: str, *, may_have_run: bool,
        detail: dict[str, Any] | None = None, retry_after_s: float | None = None,
    ) -> None:  # fmt: skip
        """Give the call its outcome, unless it has one."""
        if self.state is CallState.SETTLED:
            return
        self.state = CallState.SETTLED
        if may_have_run and code != ErrorCode.CANCELLED:
            self.succeeded = False
        up, mid, seen = self.up, self.down_mid, self.outcome_seen
        orphaned = self.orphans is not None and self in self.orphans
        self._record = None
        self.mute()
        failure = Failure(int(code), reason, may_have_run, retry_after_s, detail or {})
        if up is None:
            if orphaned:  # Nobody has heard the beginning of a result that will have no end.
                self._last_word = Kind.FAILURE, encode(failure)
                self.say_up(*self._last_word)
        elif up.is_open:
            if mid:
                up.reset(code, reason)
            elif not seen:
                if self.orphans is not None and not self.flags & FLAG_STREAM:
                    self.orphans.written(self, Kind.FAILURE, encode(failure))
                up.send(failure, end=True)
        self._release()

    def stop_now(self, code: ErrorCode, reason: str) -> None:
        """The node ends before the call does."""
        self.fail(code, reason, may_have_run=self.worker is not None)
        self._work_gone()

    def _work_gone(self) -> None:
        """Its work is gone: nobody keeps it any more."""
        for timer in (self._kill_timer, self._held_timer):
            if timer is not None:
                self.timers.cancel(timer)
        self._release()
        worker = self.worker
        if worker is not None and worker.calls.pop(self.call_id, None) is not None:
            self.pool.worker_freed(worker)
        self.pool.call_gone(self)

    def _release(self) -> None:
        """Return the stream credit of the gateway, once."""
        if not self._released:
            self._released = True
            self._opened_on.release()
