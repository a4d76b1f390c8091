"""Where the calls of a slot group run: in the worker that serves everything, or in replicas.

Theory. Most calls go to one worker, the user's script, which sorts out slots and threads by
itself; the pool only holds them while that worker is being started again. Some functions
(`replica_plan` says which) have a pool of replicas: second runs of the script, each with one call
at a time, so that any of them can be killed without hurting another call. Replicas are started when
calls come that need them, stay for the next ones, and are replaced when they are killed.

Rules of this file. 1) A call is in one place: a pool's queue, or one worker. 2) How many calls
come is bounded by the gateway (slots and a little more), so queues here have no limit of their
own. 3) A pool never starts processes itself: it says how many it wants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..wire.errors import ErrorCode
from .replica_plan import Devices
from .workers import WorkerProcess, WorkerState

if TYPE_CHECKING:
    from .agent_calls import DispatchedCall


SILENT_S = 3.0
"""Time after its grace in which a stopped call must have been settled by any worker that can speak:
that is the second for the body to unwind, and some for a busy machine."""


class Pool:
    """A queue of calls and the workers that take them.

    Attributes:
        isolated: One call at a time in each worker, which may be killed for it.
    """

    isolated = False

    def __init__(self, on_gone: Callable[[DispatchedCall], None]) -> None:
        self._queue: deque[DispatchedCall] = deque()
        self._on_gone = on_gone

    def submit(self, call: DispatchedCall) -> None:
        """Give a call to a worker, or hold it."""
        if self._queue or not self._give(call):
            call.hold()
            self._queue.append(call)
            self.wanted()

    def _give(self, call: DispatchedCall) -> bool:
        raise NotImplementedError

    def wanted(self) -> None:
        """Calls wait: more workers may be needed."""

    def pump(self) -> None:
        """A worker has room: give it what waits."""
        queue = self._queue
        while queue and self._give(queue[0]):
            queue.popleft()

    def forget(self, call: DispatchedCall) -> None:
        """A call that was held will not run."""
        self._queue.remove(call)

    def worker_freed(self, worker: WorkerProcess) -> None:
        """A call of `worker` is gone."""

    def stopping(self, call: DispatchedCall, grace_s: float) -> None:
        """A call that a worker has was told to stop."""

    def call_gone(self, call: DispatchedCall) -> None:
        """A call is gone, wherever it was."""
        self._on_gone(call)

    @property
    def held(self) -> int:
        """Calls that wait here."""
        return len(self._queue)

    def fail_held(self, code: ErrorCode, reason: str) -> None:
        """No worker will come: the calls that wait have an outcome, and did not run."""
        queue, self._queue = self._queue, deque()
        for call in queue:
            call.stop_now(code, reason)


class MainPool(Pool):
    """The calls of the worker that serves everything.

    A worker settles what it was told to stop shortly after the grace, whatever the body does. One
    that does not is silent: some body holds the interpreter's lock. That may pass, and is nobody's
    business while another call may run there; if every call that began should have stopped, the
    worker is of no use to anybody, and is reported as stuck.

    Attributes:
        worker: It, None while there is none.
    """

    def __init__(
        self, on_gone: Callable[[DispatchedCall], None],
        on_stuck: Callable[[WorkerProcess], None] | None = None,
    ) -> None:  # fmt: skip
        """Hold calls until there is a worker.

        Args:
            on_gone: Told about a call that is no longer anywhere.
            on_stuck: Told about a worker that is silent and runs nothing that is wanted.
        """
        super().__init__(on_gone)
        self.worker: WorkerProcess | None = None
        self._on_stuck = on_stuck
        self._overdue: set[DispatchedCall] = set()

    def stopping(self, call: DispatchedCall, grace_s: float) -> None:
        """Look at a call again when its worker must have settled it."""
        call.timers.after(grace_s + SILENT_S, partial(self._look_at, call))

    def _look_at(self, call: DispatchedCall) -> None:
        """If a call was not settled in time, ask whether its worker is of any use."""
        worker = call.worker
        if worker is None or worker is not self.worker or call.call_id not in worker.calls:
            return
        self._overdue = {one for one in self._overdue if worker.calls.get(one.call_id) is one}
        self._overdue.add(call)
        if worker.ready and self._on_stuck is not None and not self._may_run(worker):
            self._on_stuck(worker)

    def _may_run(self, worker: WorkerProcess) -> bool:
        """Whether a call that is wanted may be running in a silent worker.

        A body that takes the lock at once is not even said to have begun. Calls begin in the order
        in which they were given, so what came before the first that is overdue may run, too.
        """
        first_seen = False
        for call in worker.calls.values():
            if call in self._overdue:
                first_seen = True
            elif call.started or not first_seen:
                return True
        return False

    def _give(self, call: DispatchedCall) -> bool:
        worker = self.worker
        if worker is None or not worker.ready:
            return False
        link = worker.link
        if link is None or link.streams_available <= 0:
            return False
        call.give(worker, link)
        return True


class ReplicaPool(Pool):
    """The calls of one function that runs in replicas.

    A call goes to an idle replica with the right devices. If there is none, one is started, within
    the slots; an idle one that is pinned elsewhere makes room for it. Where the number of replicas
    is decided from outside (`scaling=`), so many are kept, and idle ones beyond that are ended.

    Attributes:
        function: Its name.
        group: Its slot group.
        slots: Calls at once, and so replicas at most.
        sets: Sets of devices to pin replicas to; empty if they are not pinned.
        kept: Replicas that are kept although no call waits.
        memory_bytes_max: Memory that one of them may use, None for any.
        workers: Replicas that are alive, starting ones included.
    """

    isolated = True

    def __init__(
        self, function: str, group: str, slots: int, on_gone: Callable[[DispatchedCall], None],
        start: Callable[[ReplicaPool, Devices], None], end: Callable[[WorkerProcess], None],
    ) -> None:  # fmt: skip
        """Begin without replicas.

        Args:
            function: The name of the function.
            group: Its slot group.
            slots: Replicas at most.
            on_gone: Told about a call that is no longer anywhere.
            start: Starts a replica, pinned to devices if any are given.
            end: Ends one that has no call.
        """
        super().__init__(on_gone)
        self.function = function
        self.group = group
        self.slots = slots
        self.sets: tuple[Devices, ...] = ()
        self.kept = 0
        self.memory_bytes_max: int | None = None
        self.workers: list[WorkerProcess] = []
        self._idle: list[WorkerProcess] = []
        self._start = start
        self._end = end

    def submit(self, call: DispatchedCall) -> None:
        """Give a call to a replica, or hold it. One that waits for other devices is in no way."""
        if not self._give(call):
            call.hold()
            self._queue.append(call)
            self.wanted()

    def pump(self) -> None:
        """Give what waits to the replicas that have room for it."""
        for call in list(self._queue):
            if not self._idle:
                return
            if call in self._queue and self._give(call):
                self._queue.remove(call)

    def _give(self, call: DispatchedCall) -> bool:
        devices = call.devices if self.sets else None
        for worker in self._idle:
            link = worker.link
            if devices is not None and worker.devices != devices:
                continue
            if worker.ready and link is not None and link.streams_available > 0:
                self._idle.remove(worker)
                if self.sets:
                    call.see(worker.devices)
                call.give(worker, link)
                return True
        return False

    def wanted(self) -> None:
        """Ask for as many replicas as there are calls for, and as are kept, within the slots."""
        starting = [w.devices for w in self.workers if w.state is WorkerState.STARTING]
        leaving = sum(worker.state is WorkerState.ENDING for worker in self.workers)
        for call in list(self._queue):
            devices = call.devices if self.sets else None
            coming = next((one for one in starting if devices in (None, one)), None)
            if coming is not None:
                starting.remove(coming)
            elif len(self.workers) < self.slots:
                self._start(self, devices or self._next_set())
            elif leaving:
                leaving -= 1
            elif self.sets and self._idle:  # It has other devices: make room.
                self._end(self._idle.pop(0))
            else:
                break
        for _ in range(min(self.kept, self.slots) - len(self.workers)):
            self._start(self, self._next_set())

    def _next_set(self) -> Devices:
        """Return the devices that the fewest replicas are pinned to."""
        pinned = [worker.devices for worker in self.workers]
        return min(self.sets, key=pinned.count, default=())

    def keep(self, count: int, slots: int) -> None:
        """Keep so many replicas from now on: start what lacks, end what is idle beyond that."""
        self.kept, self.slots = count, slots
        self.shrink()
        self.wanted()

    def can_serve(self, devices: Devices) -> bool:
        """Whether an idle replica has exactly these devices."""
        return any(worker.devices == devices for worker in self._idle)

    def leave(self, devices: Devices) -> None:
        """End the idle replicas that see one of these devices: what they hold there is needed."""
        for worker in [one for one in self._idle if set(one.devices) & set(devices)]:
            self._idle.remove(worker)
            self._end(worker)

    def shrink(self) -> None:
        """End idle replicas beyond those that are kept; those that were idle longest first."""
        while self._idle and self.alive > self.kept:
            self._end(self._idle.pop(0))  # It is ENDING from now on.

    @property
    def alive(self) -> int:
        """Replicas that serve or will soon."""
        return sum(worker.state is not WorkerState.ENDING for worker in self.workers)

    def worker_ready(self, worker: WorkerProcess) -> None:
        """A replica takes its first call, unless it is one too many by now."""
        self._idle.append(worker)
        self.pump()
        if self.alive > self.slots:
            self.shrink()

    def worker_freed(self, worker: WorkerProcess) -> None:
        """The call of a replica is gone: it takes the next one, unless it is one too many."""
        if worker.ready and worker not in self._idle:
            self._idle.append(worker)
            self.pump()
            if self._queue:
                self.wanted()
            if self.alive > self.slots:
                self.shrink()

    def worker_gone(self, worker: WorkerProcess) -> None:
        """A replica is dead."""
        self.workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)
