"""Calls in, outcomes out: admits calls, gives them to slots, stops them, reports what came of them.

Theory. The io thread decides and the threads of the bodies work. A call crosses between them once
each way: into the seat or the loop that runs it, and back through one deque, which is emptied in
batches, so that a thousand quick calls cost a few wakes. Being told to stop is a ladder: the
signal that a body may look at (and the cancellation of an async body) comes at once, an interrupt
when the grace is over, and shortly after that the outcome is settled, whether or not the body has
returned.

Rules of this file. 1) What is refused here has provably not run. 2) Nothing of a call is decoded
but its header until it may run. 3) One outcome per call; its stream is released exactly once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .. import values
from ..errors import OverloadedError, SerializationError
from ..handlers import StreamHandler
from ..log import Log
from ..timers import Timer, Timers
from ..wire.errors import ErrorCode
from ..wire.message import CODEC_PICKLE, FLAG_STREAM, Dispatch, Message, decode
from . import bodies
from . import outcome as outcomes
from .loops import AsyncGroup, AsyncioLoop, Loop, TrioLoop
from .outcome import Outcome
from .register import Function, FunctionTable
from .slots import Seat, SlotGroup
from .spec import AcceptCode, accepts_pickles
from .task import Input, Phase, Task

if TYPE_CHECKING:
    from ..bridge import IoThread
    from ..stream import Stream

_log = Log("node")

GRACE_S = 5.0
"""Grace of a call whose caller went away without naming one."""
DEADLINE_GRACE_S = 0.5
"""Grace of a call whose deadline has passed: its caller has stopped waiting."""
SETTLE_S = 1.0
"""Time that an interrupted body has to unwind before the outcome is settled without it."""

RETRY_AFTER_S = 1.0
"""When a call that was handed back may come again: about when the script serves again."""

NOBODY = ("", "anonymous")
"""Principals that are no individual."""

_Report = tuple[Task, Message | None, list[memoryview], bool]
"""A call, what is said on its stream, the raw segments, and whether it is the outcome."""


class Executor:
    """The calls of one worker process."""

    def __init__(
        self, *, io: IoThread, table: FunctionTable, timers: Timers, node_id: str,
        accept_code: AcceptCode, main_group: str, main_slots: int, object_bytes_max: int,
        serves_one: bool = False,
    ) -> None:  # fmt: skip
        self.node_id = node_id
        self.object_bytes_max = object_bytes_max
        self.main_group = SlotGroup(main_group, main_slots, self)
        self.execute = bodies.run_in_seat
        self.on_idle: Callable[[], None] | None = None
        self.on_stuck: Callable[[list[str]], None] | None = None
        self._io = io
        self._table = table
        self._timers = timers
        self._accept_code = accept_code
        self._serves_one = serves_one
        """It is a replica: whatever sync call comes is of its one function."""
        self._groups: dict[tuple[str, bool, int], SlotGroup | AsyncGroup] = {}
        self._loops: dict[str, Loop] = {}
        self._tasks: set[Task] = set()
        self._reports: deque[_Report] = deque()
        self._started: deque[Task] = deque()
        self._posted = False

    # ---- arrival (io thread) -----------------------------------------------------------------

    def open(self, stream: Stream, payload: bytes, more: bool, end: bool) -> StreamHandler:
        """Take a DISPATCH: the handler of its stream, which may be refused already."""
        call = decode(Dispatch, payload)
        function = self._table.get(call.function)
        refused = self._refuse(call, function)
        if refused is not None or function is None:
            return self._settle_unborn(stream, refused)
        deadline = None
        if call.deadline_ms is not None:
            deadline = time.monotonic() + call.deadline_ms / 1000
        task = Task(self, stream, call, function, deadline)
        task.opener_ended = end
        self._tasks.add(task)
        if more:
            try:
                buffers = values.allocate(call.segments, limit_bytes=self.object_bytes_max)
            except (SerializationError, MemoryError) as error:
                self._tasks.discard(task)
                refused = outcomes.refusal(ErrorCode.TOO_LARGE, str(error) or "out of memory")
                return self._settle_unborn(stream, refused)
            task.phase = Phase.RECEIVING
            task.buffers = buffers
            stream.fill(buffers)
        if deadline is not None:
            task.deadline_timer = self._timers.at(deadline, partial(self._deadline, task))
        if not more:
            self._submit(task)
        return task

    def arrived(self, task: Task) -> None:
        """The raw segments of a call are complete."""
        task.advance(Input.ARRIVED)
        self._submit(task)

    def _submit(self, task: Task) -> None:
        task.group = group = self._group(task.function)
        if group.submit(task):
            self._note_started(task)

    def _refuse(self, call: Dispatch, function: Function | None) -> Outcome | None:
        """Return why a call may not run here, or None. Nothing of it was decoded."""
        if function is None:
            return outcomes.refusal(
                ErrorCode.NOT_FOUND, f"no function {call.function!r} is offered here"
            )
        options = function.options
        if options.auth_required and (
            call.principal in NOBODY or call.context.get("shared") is True
        ):
            return outcomes.refusal(
                ErrorCode.AUTH_REQUIRED, f"{function.name} is for individual users only"
            )
        if options.access_level is not None and not _has_level(call, options.access_level):
            return outcomes.refusal(
                ErrorCode.FORBIDDEN,
                f"{function.name} needs the access level {options.access_level!r}",
            )
        if call.codec == CODEC_PICKLE and not self.accepts(call):
            return outcomes.refusal(
                ErrorCode.UNSUPPORTED_CODEC,
                f"the arguments of {function.name} are a pickle, and node {self.node_id} takes "
                "none from this caller: pass plain data or arrays, or widen the node's accept_code",
            )
        if function.shape.stream != bool(call.flags & FLAG_STREAM):
            said = "answers with a stream" if function.shape.stream else "answers with one value"
            stub = "stream=True" if function.shape.stream else "a stub without stream=True"
            return outcomes.refusal(
                ErrorCode.BAD_ARGUMENT, f"{function.name} {said}: call it with {stub}"
            )
        return None

    def accepts(self, call: Dispatch) -> bool:
        """Whether pickles of this caller are loaded here."""
        is_owner = call.context.get("owner") is True
        return accepts_pickles(self._accept_code, call.principal, call.roles, is_owner)

    def _settle_unborn(self, stream: Stream, refused: Outcome | None) -> StreamHandler:
        assert refused is not None
        stream.send(refused.message, refused.buffers, end=True)
        stream.release()
        return StreamHandler()

    def _group(self, function: Function) -> SlotGroup | AsyncGroup:
        """Return the group of a function, made when its first call comes."""
        is_async = function.shape.is_async
        if not is_async and (self._serves_one or function.group == self.main_group.name):
            return self.main_group
        # A function that is replaced may get other slots; running calls keep their old group.
        key = function.group, is_async, function.slots
        group = self._groups.get(key)
        if group is None:
            kind = AsyncGroup if is_async else SlotGroup
            group = self._groups[key] = kind(function.group, function.slots, self)
        return group

    def loop_for(self, task: Task) -> Loop:
        """Return the event loop on which an async call runs, started when it is first needed."""
        backend = task.function.options.async_backend
        loop = self._loops.get(backend)
        if loop is None:
            loop = TrioLoop(self) if backend == "trio" else AsyncioLoop(self)
            self._loops[backend] = loop
        return loop

    def _note_started(self, task: Task) -> None:
        """A call begins now: tell its caller, unless its outcome is faster, and start its clock."""
        if task.phase is Phase.WAITING:
            task.advance(Input.STARTED)
            if not task.stream_over:
                task.stream.started()
        timeout_s = task.function.options.timeout
        if timeout_s is not None and task.phase is Phase.RUNNING:
            when, timer = time.monotonic() + timeout_s, task.deadline_timer
            if timer is None or when < timer[0]:
                self._cancel_timer(timer)
                task.deadline_timer = self._timers.at(when, partial(self._deadline, task))

    # ---- reports (any thread) ------------------------------------------------------------------

    def report(self, task: Task, outcome: Outcome, follower: Task | None) -> None:
        """A body is over; `follower` begins on the same seat."""
        self._reports.append((task, outcome.message, outcome.buffers, True))
        if follower is not None:
            self._started.append(follower)
        self._post()

    def report_started(self, task: Task) -> None:
        """A queued call begins on a slot that was lent."""
        self._started.append(task)
        self._post()

    def say(self, task: Task, message: Message | None, buffers: list[memoryview]) -> None:
        """Say something that is not the outcome; None is the newest progress report."""
        self._reports.append((task, message, buffers, False))
        self._post()

    def _post(self) -> None:
        if not self._posted:
            self._posted = True
            self._io.post(self._flush)

    def _flush(self) -> None:
        """Send what was reported, and say which calls began and have not ended yet."""
        self._posted = False
        reports, started = self._reports, self._started
        for _ in range(len(reports)):
            task, message, buffers, is_outcome = reports.popleft()
            if is_outcome:
                assert message is not None
                self._finish(task, message, buffers)
            else:
                task.send(message, buffers)
        for _ in range(len(started)):
            task = started.popleft()
            if task.phase is not Phase.DONE:
                self._note_started(task)
        if reports:
            self._post()

    def _finish(self, task: Task, message: Message, buffers: list[memoryview]) -> None:
        """The body of a call has returned."""
        settled = task.phase is Phase.ABANDONED
        task.advance(Input.RETURNED)
        group = task.group
        if type(group) is AsyncGroup:
            follower = group.freed()
            if follower is not None:
                self._note_started(follower)
        if settled:
            self._forget(task)
        else:
            self._settle(task, message, buffers)

    def _settle(self, task: Task, message: Message, buffers: list[memoryview]) -> None:
        """Say the outcome of a call and give its stream back."""
        if not task.stream_over:
            task.stream.send(message, buffers, end=True)
        task.stream.release()
        if task.deadline_timer is not None:
            self._cancel_timer(task.deadline_timer)
        if task.phase is Phase.DONE:
            self._forget(task)

    def _forget(self, task: Task) -> None:
        if task.stop_code is not None:
            self._cancel_timer(task.interrupt_timer)
            self._cancel_timer(task.settle_timer)
        task.inputs = None
        self._tasks.discard(task)
        if not self._tasks and self.on_idle is not None:
            self.on_idle()

    def _cancel_timer(self, timer: Timer | None) -> None:
        if timer is not None:
            self._timers.cancel(timer)

    # ---- stopping (io thread) ------------------------------------------------------------------

    def stop(
        self, task: Task, code: ErrorCode, reason: str, *,
        grace_s: float = GRACE_S, at_once: bool = False,
    ) -> None:  # fmt: skip
        """Tell a call to stop; the first reason is the one that its caller hears."""
        if task.phase in (Phase.DONE, Phase.ABANDONED):
            return
        first = task.stop_code is None
        if first:
            task.stop_code, task.stop_reason = code, reason
        if task.phase is Phase.RECEIVING or (
            task.phase is Phase.WAITING and task.group is not None and task.group.withdraw(task)
        ):
            task.advance(Input.WITHDRAWN)
            task.buffers = []  # The queue may keep the call itself for a while.
            refused = outcomes.refusal(code, reason)
            self._settle(task, refused.message, refused.buffers)
            return
        task.advance(Input.STOP)
        if first:
            task.wake()
            if task.abort is not None:
                task.abort()
        self._escalate(task, 0.0 if at_once else grace_s, grace_s + SETTLE_S)

    def _escalate(self, task: Task, interrupt_s: float, settle_s: float) -> None:
        """Interrupt and settle after these times, unless that is to happen sooner already."""
        assert task.group is not None
        now = time.monotonic()
        old = task.interrupt_timer
        if old is None or (old[2] is not None and now + interrupt_s < old[0]):
            self._cancel_timer(old)
            interrupt = partial(task.group.interrupt, task)
            task.interrupt_timer = self._timers.at(now + interrupt_s, interrupt)
        old = task.settle_timer
        if old is None or (old[2] is not None and now + settle_s < old[0]):
            self._cancel_timer(old)
            task.settle_timer = self._timers.at(now + settle_s, partial(self._abandon, task))

    def _deadline(self, task: Task) -> None:
        self.stop(
            task, ErrorCode.DEADLINE, "the deadline of the call has passed",
            grace_s=DEADLINE_GRACE_S,
        )  # fmt: skip

    def _abandon(self, task: Task) -> None:
        """Settle the outcome of a call whose body does not return; its slot stays taken."""
        if task.phase is not Phase.STOPPING:
            return
        task.advance(Input.GRACE_OVER)
        _log.warning(
            "a function does not stop; its slot stays taken until it returns",
            function=task.function.name, call_id=task.call.call_id.hex(),
        )  # fmt: skip
        outcome = bodies.stopped(task)
        self._settle(task, outcome.message, outcome.buffers)
        self._check_stuck()

    def _check_stuck(self) -> None:
        """Tell the worker if every slot for sync calls is stuck and nothing else runs."""
        stuck = [task for task in self._tasks if task.phase is Phase.ABANDONED]
        busy = [t for t in self._tasks if t.phase in (Phase.RUNNING, Phase.STOPPING)]
        in_main = [task for task in stuck if task.group is self.main_group]
        if not busy and len(in_main) >= self.main_group.slots and self.on_stuck is not None:
            self.on_stuck(sorted({task.function.name for task in stuck}))

    def hand_back(self, reason: str) -> None:
        """Refuse every call that no thread has begun: this process is about to be ended."""
        error = OverloadedError(reason)
        error.retry_after_s = RETRY_AFTER_S
        outcome = outcomes.refusal(ErrorCode.OVERLOADED, reason, error=error)
        for task in list(self._tasks):
            group = task.group
            if task.phase is Phase.WAITING and group is not None and group.withdraw(task):
                task.advance(Input.WITHDRAWN)
                task.buffers = []
                self._settle(task, outcome.message, outcome.buffers)

    # ---- as a whole ----------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Calls that have arrived and whose bodies are not gone."""
        return len(self._tasks)

    def main_seat(self) -> Seat:
        """Make the seat of the program's main thread."""
        return self.main_group.main_seat()

    def close(self) -> None:
        """Let seats and loops go; bodies that run are left to the end of the process."""
        for group in (self.main_group, *self._groups.values()):
            group.close()
        for loop in self._loops.values():
            loop.close()


def _has_level(call: Dispatch, level: str) -> bool:
    levels = call.context.get("levels")
    return "owner" in call.roles or (isinstance(levels, list | tuple) and level in levels)
