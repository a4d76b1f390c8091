"""One call at a worker: its states, what the peer says to it, and what it says back.

Theory. A call arrives, waits for a slot, runs, and has exactly one outcome. It can be told to stop
at any moment (a cancel, its deadline, a caller that went away); what that means depends on where
it is. A body cannot be forced to return, so the outcome may be settled before the body has
returned: the call is then *abandoned*, and its slot stays taken until the body is gone.

    RECEIVING --ARRIVED--> WAITING --STARTED--> RUNNING --RETURNED--> DONE
        |                     |                    |
       STOP               WITHDRAWN              STOP
        v                     v                    v
       DONE                 DONE               STOPPING --RETURNED--> DONE
                                                   |
                                               GRACE_OVER
                                                   v
                                               ABANDONED --RETURNED--> DONE

Rules of this file. 1) `phase` moves on the io thread alone, along `TRANSITIONS`; a missing pair is
a bug of ours. 2) News of the threads (STARTED, RETURNED) may come late; the table allows for it.
3) The other attributes say who writes them; readers on other threads look at them whole.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from .. import values
from ..errors import EasyRemoteError, SerializationError
from ..handlers import StreamHandler
from ..waiting import Gate
from ..wire.errors import ErrorCode
from ..wire.message import Dispatch, Item, ItemsEnd, Kind, Message, Progress, Want, decode
from . import outcome as outcomes
from .slots import Loan
from .spec import may_ship

if TYPE_CHECKING:
    from ..stream import Stream
    from ..timers import Timer
    from .executor import Executor
    from .inputs import StreamedArgument
    from .loops import AsyncGroup
    from .register import Function
    from .slots import Seat, SlotGroup


class Phase(IntEnum):
    """Where a call is."""

    RECEIVING = 0
    """Raw segments of its arguments are on their way."""
    WAITING = 1
    """It waits for a slot, or a thread has just claimed it."""
    RUNNING = 2
    STOPPING = 3
    """It runs and was told to stop."""
    ABANDONED = 4
    """Its outcome is settled; its body still runs."""
    DONE = 5


class Input(IntEnum):
    """What may happen to a call."""

    ARRIVED = 0
    STARTED = 1
    STOP = 2
    WITHDRAWN = 3
    """It was told to stop before a thread claimed it."""
    RETURNED = 4
    GRACE_OVER = 5


_P, _I = Phase, Input
TRANSITIONS: dict[tuple[Phase, Input], Phase] = {
    (_P.RECEIVING, _I.ARRIVED): _P.WAITING,
    (_P.RECEIVING, _I.WITHDRAWN): _P.DONE,
    (_P.WAITING, _I.STARTED): _P.RUNNING,
    (_P.WAITING, _I.WITHDRAWN): _P.DONE,
    (_P.WAITING, _I.STOP): _P.STOPPING,
    (_P.WAITING, _I.RETURNED): _P.DONE,
    (_P.RUNNING, _I.STARTED): _P.RUNNING,
    (_P.RUNNING, _I.STOP): _P.STOPPING,
    (_P.RUNNING, _I.RETURNED): _P.DONE,
    (_P.STOPPING, _I.STARTED): _P.STOPPING,
    (_P.STOPPING, _I.STOP): _P.STOPPING,
    (_P.STOPPING, _I.RETURNED): _P.DONE,
    (_P.STOPPING, _I.GRACE_OVER): _P.ABANDONED,
    (_P.ABANDONED, _I.STARTED): _P.ABANDONED,
    (_P.ABANDONED, _I.STOP): _P.ABANDONED,
    (_P.ABANDONED, _I.RETURNED): _P.DONE,
    (_P.DONE, _I.STARTED): _P.DONE,
    (_P.DONE, _I.STOP): _P.DONE,
}
"""The whole life of a call. STARTED and STOP may reach a call whose outcome is there."""

ITEM_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of yielded items that wait to be sent before the producer has to wait."""


class Task(StreamHandler):
    """One call. The class level holds the defaults of what most calls never need.

    Attributes:
        executor: Who runs it.
        stream: The stream it came on and answers on.
        call: The message that brought it.
        function: What it calls.
        deadline: When it must have ended, on `time.monotonic()`; None is never.
        phase: Where it is (io thread).
        buffers: Raw segments of its arguments, until they are decoded.
        claimed: A thread took it (under the lock of its group).
        withdrawn: It was taken back before that (under the lock of its group).
        holds_slot: Its body occupies a slot (under the lock of its group).
        group: The slots that it runs on (io thread).
        seat: The seat of its thread; None of an async call.
        interrupt_sent: An interrupt is on its way (under the lock of its group).
        interrupt_due: One waits until the body may be interrupted (under the lock of its group).
        interrupt_repeated: It was raised once more, for it may have been lost (its own thread).
        stop_code: Why it should stop, None while it should not (io thread).
        stop_seen: Its body was told so.
        entered: The provider's function was called.
        stream_over: Nothing can be said on the stream any more (io thread).
        credit: Items that the caller allows in all (io thread).
    """

    phase = Phase.WAITING
    buffers: list[memoryview] = []  # noqa: RUF012 - never changed in place, only replaced
    claimed = False
    withdrawn = False
    holds_slot = True
    group: SlotGroup | AsyncGroup | None = None
    seat: Seat | None = None
    interrupt_sent = False
    interrupt_due = False
    interrupt_repeated = False
    stop_code: ErrorCode | None = None
    stop_reason = ""
    stop_seen = False
    entered = False
    stream_over = False
    opener_ended = False
    credit = 0
    abort: Any = None
    """Stops the body of an async call: called on the io thread, any number of times."""
    interrupt_timer: Timer | None = None
    settle_timer: Timer | None = None
    deadline_timer: Timer | None = None
    inputs: dict[int, StreamedArgument] | None = None
    _gate: Gate | None = None
    _filling: tuple[Item, list[memoryview]] | None = None
    _progress: deque[tuple[Progress, list[memoryview]]] | None = None
    _progress_posted = False
    _handed_bytes = 0
    _said_bytes = 0
    _pending_bytes = 0
    _watching = False

    def __init__(
        self, executor: Executor, stream: Stream, call: Dispatch, function: Function,
        deadline: float | None,
    ) -> None:  # fmt: skip
        self.executor = executor
        self.stream = stream
        self.call = call
        self.function = function
        self.deadline = deadline

    def advance(self, what: Input) -> None:
        """Move along the table (io thread)."""
        phase = TRANSITIONS.get((self.phase, what))
        assert phase is not None, f"a call in {self.phase!r} cannot take {what!r}"
        self.phase = phase

    # ---- for the thread that runs the body ---------------------------------------------------

    @property
    def may_ship(self) -> bool:
        """Whether the caller may get pickles."""
        return may_ship(self.call.roles)

    @property
    def depth(self) -> int:
        """How many calls wait for this one, one for the other."""
        depth = self.call.context.get("depth", 0)
        return depth if isinstance(depth, int) else 0

    def lend(self) -> Loan:
        """Lend the slot while a `with` block waits (the seam's `SlotLender`)."""
        return Loan(self)

    @property
    def gate(self) -> Gate:
        """Where the body waits for news, made when it first has to."""
        if self._gate is None:
            self._gate = Gate()
        return self._gate

    def can_yield(self, produced: int) -> bool:
        """Whether item number `produced` may be made now, or the call should stop."""
        if self.stop_code is not None:
            return True
        waiting_bytes = self._handed_bytes - self._said_bytes + self._pending_bytes
        return produced < self.credit and waiting_bytes < ITEM_BYTES_MAX

    def say(self, message: Message, buffers: list[memoryview]) -> None:
        """Say something on the stream; from any thread."""
        self._handed_bytes += sum(buffer.nbytes for buffer in buffers)
        self.undisturbed(lambda: self.executor.say(self, message, buffers))

    def report_progress(self, value: Any) -> None:
        """Say how far the body is; a report that has not left yet is replaced."""
        if self._progress is None:
            self._progress = deque(maxlen=1)
        self._progress.append(outcomes.progress(value, self.may_ship))
        # Looked at after the report is there: the io thread clears it before it takes the report.
        if not self._progress_posted:
            self._progress_posted = True
            self.undisturbed(lambda: self.executor.say(self, None, []))

    def undisturbed(self, fn: Callable[[], None]) -> None:
        """Run a few instructions of ours, during which no interrupt may come."""
        seat = self.seat
        if seat is None or not seat.open or threading.get_ident() != seat.thread_id:
            fn()
        else:
            seat.undisturbed(self, fn)

    # ---- io thread: what the executor says through us ------------------------------------------

    def send(self, message: Message | None, buffers: list[memoryview]) -> None:
        """Send a message that is not the last one; None sends the newest progress report."""
        if message is None:
            self._progress_posted = False
            if not self._progress:
                return
            message, buffers = self._progress.popleft()
        if buffers:
            self._said_bytes += sum(buffer.nbytes for buffer in buffers)
            if not self._watching and not self.stream_over:
                self._watching = True
                self.stream.watch_drained()
        if self.stream_over:
            return
        self.stream.send(message, buffers)
        if buffers:
            self._pending_bytes = self.stream.pending_bytes

    def wake(self) -> None:
        """Something changed that the body may wait for."""
        if self._gate is not None:
            self._gate.wake()

    # ---- io thread: what the peer says ---------------------------------------------------------

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """Credit for our items, or items of a streamed argument."""
        if kind == Kind.WANT:
            want = decode(Want, payload)
            if want.channel == 0 and want.total > self.credit:
                self.credit = want.total
                self.wake()
        elif kind == Kind.ITEM:
            self._on_item(decode(Item, payload), more)
        elif kind == Kind.ITEMS_END:
            over = decode(ItemsEnd, payload)
            argument = (self.inputs or {}).get(over.channel)
            if argument is not None:
                argument.finish(over.error)
                self.wake()

    def _on_item(self, item: Item, more: bool) -> None:
        if not more:
            self._feed(item, [])
            return
        try:
            buffers = values.allocate(item.segments, limit_bytes=self.executor.object_bytes_max)
        except (SerializationError, MemoryError) as error:
            self.executor.stop(self, ErrorCode.TOO_LARGE, str(error))
            return
        self._filling = item, buffers
        self.stream.fill(buffers)

    def _feed(self, item: Item, buffers: list[memoryview]) -> None:
        argument = (self.inputs or {}).get(item.channel)
        if argument is None:
            return  # Its body is over, or the caller sends what nobody asked for.
        if argument.feed(item, buffers):
            self.wake()
        else:
            self.executor.stop(
                self, ErrorCode.PROTOCOL, "the caller sent more items than it was allowed"
            )

    def on_filled(self, stream: Stream, end: bool) -> None:
        """Raw segments are complete: those of the arguments, or of a streamed item."""
        if self._filling is not None:
            (item, buffers), self._filling = self._filling, None
            self._feed(item, buffers)
        elif self.phase is Phase.RECEIVING:
            self.executor.arrived(self)

    def on_drained(self, stream: Stream, size_bytes: int) -> None:
        """Items of ours have left: the producer may go on."""
        self._pending_bytes = stream.pending_bytes
        self.wake()

    def on_cancel(self, stream: Stream, strength: int, grace_ms: int) -> None:
        """The caller wants the work stopped."""
        self.executor.stop(
            self, ErrorCode.CANCELLED, "the call was cancelled",
            grace_s=grace_ms / 1000, at_once=strength > 0,
        )  # fmt: skip

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        """The peer gave the stream up: stop, and say nothing."""
        self.stream_over = True
        self.executor.stop(self, ErrorCode.CANCELLED, "the caller gave the call up")

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        """The link is gone: stop, and say nothing."""
        self.stream_over = True
        self.executor.stop(self, ErrorCode.CANCELLED, "the link to the agent is gone")
