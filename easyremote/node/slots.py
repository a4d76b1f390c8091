"""Slots: how many sync bodies run at once, on which threads, and how a blocked one lends its slot.

Theory. A group has a number of slots and a queue. A body needs a slot and a *seat*: a thread. At
first there are as many seats as slots are used. When a body waits for another call, it lends its
slot, and a further seat may run the next call with it; when its answer is there, the body takes
the next slot that falls free, ahead of everybody who queues, before it goes on. So a recursive
program on a full node waits for itself without a deadlock, and never more bodies run at once than
there are slots.

The seat of the main thread, where there is one, is always preferred: libraries that insist on the
main thread work, as long as no body of the group waits for another call.

        submit -> [ queue ] -> slot free? -> seat: body -> finished -> slot to: a body that wants
                                                                       its slot back, else the
                                                                       queue, else free

Rules of this file. 1) One lock per group, held for a few instructions and never while user code
runs. 2) A call is *claimed* under that lock, by the thread that will run it; before, it can be
withdrawn and has provably not started. 3) An interrupt is sent under that lock, only to the body
that it is meant for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import OverloadedError
from . import forked, interrupt

if TYPE_CHECKING:
    from .executor import Executor
    from .outcome import Outcome
    from .task import Task

LENT_MAX = 512
"""Slots of one group that may be lent at once: each is a thread that waits."""

SPARE_SEATS = 4
"""Threads beyond the slots that are kept for the next loan."""

DEPTH_MAX = 32
"""Longest chain of calls that wait for one another (`decisions.md` 8)."""


Attempt = tuple[Any, BaseException | None]
"""What a part of a body returned, or None and what it raised."""


class Seat:
    """One thread that runs bodies, one after the other.

    Attributes:
        task: The call whose slot this seat holds, None between calls.
        open: An interrupt may be sent: the body of `task` runs right now.
        retired: The thread ends: there are enough others.
    """

    __slots__ = ("group", "is_main", "open", "retired", "task", "thread_id", "wake")

    def __init__(self, group: SlotGroup, *, is_main: bool = False) -> None:
        self.group = group
        self.is_main = is_main
        self.task: Task | None = None
        self.open = False
        self.retired = False
        self.thread_id = 0
        self.wake = threading.Lock()
        self.wake.acquire()

    def run(self) -> None:
        """Run what the group gives this seat, until the group closes."""
        self.thread_id = threading.get_ident()
        group, execute = self.group, self.group.executor.execute
        while True:
            self.wake.acquire()
            task = self.task
            if task is None:
                return
            while task is not None:
                outcome = execute(self, task)
                task = group.finished(self, task, outcome)
            if group.closed or self.retired:
                return

    def attempt(self, task: Task, fn: Callable[..., Any], *args: Any) -> Attempt:
        """Run a part of a body, which may be interrupted. Never raises."""
        value: Any = None
        error: BaseException | None = None
        try:
            try:
                self._reopen(task)
                value = fn(*args)
            except BaseException as raised:  # noqa: BLE001 - the task boundary
                error = raised
            self._close(task)
        except interrupt.Interrupted as late:  # It came between the body and here.
            error = late
            self._close(task)
        if forked.current_pid() != self.group.pid:
            forked.end_child(error)
        return value, error

    def _reopen(self, task: Task) -> None:
        """From now on this thread can be interrupted; an interrupt that had to wait comes now."""
        with self.group.lock:
            self.open = True
            due, task.interrupt_due = task.interrupt_due, False
        if due:
            raise interrupt.Interrupted

    def _close(self, task: Task) -> None:
        """From now on no interrupt can hit this thread, not even one that is on its way."""
        with self.group.lock:
            self.open = False
        if task.interrupt_sent:
            interrupt.withdraw(self.thread_id)

    def undisturbed(self, task: Task, fn: Callable[[], None]) -> None:
        """Run `fn`, which belongs to us, in the middle of a body that may be interrupted.

        An interrupt between two instructions of `fn` could leave the io thread without its wake.
        One that was on its way, or comes meanwhile, is raised afterwards.
        """
        self._close(task)
        try:
            fn()
        finally:
            self._reopen(task)
        if task.interrupt_sent and not task.interrupt_repeated:
            task.interrupt_repeated = True
            raise interrupt.Interrupted


class SlotGroup:
    """The slots of one group and who uses them."""

    def __init__(self, name: str, slots: int, executor: Executor) -> None:
        self.name = name
        self.slots = slots
        self.executor = executor
        self.pid = forked.current_pid()
        self.lock = threading.Lock()
        self.closed = False
        self.lent = 0
        self._free = slots
        self._queue: deque[Task] = deque()
        self._returning: deque[tuple[Task, threading.Lock]] = deque()
        self._idle: deque[Seat] = deque()
        self._threads = 0

    def main_seat(self) -> Seat:
        """Make the seat of the thread that will call `run` on it: the program's main thread."""
        seat = Seat(self, is_main=True)
        self._idle.append(seat)
        return seat

    # ---- io thread -----------------------------------------------------------------------

    def submit(self, task: Task) -> bool:
        """Give a call to a seat, or queue it. True if it starts now."""
        with self.lock:
            if not self._free:
                self._queue.append(task)
                return False
            self._free -= 1
            seat = self._take_seat(task)
        self._start(seat)
        return True

    def withdraw(self, task: Task) -> bool:
        """Take a queued call back; False if a thread has claimed it."""
        with self.lock:
            if task.claimed:
                return False
            task.withdrawn = True
            return True

    def interrupt(self, task: Task) -> None:
        """Interrupt the body of a call, if it runs."""
        interrupt.load()
        with self.lock:
            seat = task.seat
            if seat is None or seat.task is not task or task.interrupt_sent:
                return
            if not seat.open:
                task.interrupt_due = True
                return
            task.interrupt_sent = True
            interrupt.interrupt(seat.thread_id)

    def close(self) -> None:
        """Let every seat go when its body is over."""
        with self.lock:
            self.closed = True
            idle, self._idle = list(self._idle), deque()
        for seat in idle:
            seat.wake.release()

    @property
    def queued(self) -> int:
        """Calls that wait for a slot, those included that were withdrawn."""
        return len(self._queue)

    # ---- the thread of a seat --------------------------------------------------------------

    def finished(self, seat: Seat, task: Task, outcome: Outcome) -> Task | None:
        """A body is over: pass its slot on and report. Returns the next call of this seat."""
        follower = None
        with self.lock:
            seat.task = None
            if task.holds_slot:
                if not self._return_slot():
                    follower = self._next_queued()
            else:
                self._forget_loan(task)
            if follower is None:
                self._rest(seat)
            else:
                self._claim(follower, seat)
        self.executor.report(task, outcome, follower)
        return follower

    def _return_slot(self) -> bool:
        """Give a slot to the first body that wants its own back. Under the lock."""
        if not self._returning:
            return False
        task, gate = self._returning.popleft()
        task.holds_slot = True
        self.lent -= 1
        gate.release()
        return True

    def _forget_loan(self, task: Task) -> None:
        """A body ended while a thread of its own still waits with the slot lent."""
        self.lent -= 1
        for waiting, gate in list(self._returning):
            if waiting is task:
                self._returning.remove((waiting, gate))
                gate.release()

    def _next_queued(self) -> Task | None:
        """Take the next call that was not withdrawn; the slot falls free if there is none."""
        while self._queue:
            task = self._queue.popleft()
            if not task.withdrawn:
                return task
        self._free += 1
        return None

    def _rest(self, seat: Seat) -> None:
        """Keep a seat for later, or let its thread end if there are enough."""
        if seat.is_main:
            self._idle.append(seat)  # The next call takes the seat at this end.
        elif len(self._idle) < self.slots + SPARE_SEATS:
            self._idle.appendleft(seat)
        else:
            seat.retired = True

    def _claim(self, task: Task, seat: Seat) -> None:
        task.claimed = True
        task.seat = seat
        seat.task = task

    def _take_seat(self, task: Task) -> Seat:
        seat = self._idle.pop() if self._idle else Seat(self)
        self._claim(task, seat)
        return seat

    def _start(self, seat: Seat) -> None:
        """Wake a seat that was given a call, or make its thread. Outside the lock."""
        seat.wake.release()
        if seat.thread_id == 0 and not seat.is_main:
            seat.thread_id = -1
            self._threads += 1
            name = f"easyremote-{self.name}-{self._threads}"
            threading.Thread(target=seat.run, name=name, daemon=True).start()

    # ---- lending ---------------------------------------------------------------------------

    def lend(self, task: Task, seat: Seat) -> bool:
        """The body of `task` waits for another call: its slot may be used meanwhile.

        Returns:
            Whether the body must take the slot back: not if a thread that has outlived its
            call waits here.

        Raises:
            OverloadedError: Too many bodies wait already; waiting here could not end.
        """
        follower = other = None
        with self.lock:
            if seat.task is not task:
                return False
            if not task.holds_slot:  # Another thread of the same body has lent it already.
                return True
            if self.lent >= LENT_MAX:
                raise OverloadedError(
                    f"{LENT_MAX} calls on this node wait for other calls already; call fewer "
                    "functions from inside functions, or give the node more max_concurrency"
                )
            task.holds_slot = False
            self.lent += 1
            if not self._return_slot():
                follower = self._next_queued()
                if follower is not None:
                    other = self._take_seat(follower)
        if follower is not None and other is not None:
            self._start(other)
            self.executor.report_started(follower)
        return True

    def take_back(self, task: Task, seat: Seat) -> None:
        """Wait, first in line, for a slot: the body goes on."""
        with self.lock:
            if seat.task is not task or task.holds_slot:
                return
            if self._free:
                self._free -= 1
                self.lent -= 1
                task.holds_slot = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._returning.append((task, gate))
        gate.acquire()


class Loan:
    """A slot that is lent while a `with` block waits for another call."""

    __slots__ = ("_lent", "_task")

    def __init__(self, task: Task) -> None:
        self._task = task
        self._lent = False

    def __enter__(self) -> None:
        task, seat = self._task, self._task.seat
        if task.depth >= DEPTH_MAX:
            raise OverloadedError(
                f"this call is the {DEPTH_MAX}th in a chain of calls that wait for one another; "
                "end the recursion earlier"
            )
        if seat is not None:
            task.undisturbed(self._lend)

    def _lend(self) -> None:
        seat = self._task.seat
        assert seat is not None
        self._lent = seat.group.lend(self._task, seat)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lent:
            self._task.undisturbed(self._take_back)

    def _take_back(self) -> None:
        seat = self._task.seat
        assert seat is not None
        seat.group.take_back(self._task, seat)
