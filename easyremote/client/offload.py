"""Threads for what must not run on the io thread: callbacks of users, large or pickled values.

Theory. The io thread serves every call of the process; a callback that sleeps there would stop
them all, and unpickling runs code that a user wrote. Such work goes to a few daemon threads that
come when there is something to do and leave when there is not. There may be several because a
callback may itself wait for a call whose outcome needs one.

Rules of this file. 1) What runs here never raises out of its thread: it is logged. 2) `Serial`
keeps the order of its jobs; the bare threads do not.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable

from ..log import Log

_log = Log("client")

Job = Callable[[], object]

THREADS_MAX = 16
"""More at once would only take turns; a job that waits for the outcome of another finds one."""
IDLE_S = 5.0
"""An idle thread leaves after this time."""


class Offload:
    """The threads."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, without threads: at first, and in a forked child."""
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        # Reentrant: a finaliser that runs in between may have a job, too.
        self._lock = threading.RLock()
        self._threads = 0
        self._idle = 0
        """Threads that wait for a job and were not promised one."""

    def run(self, job: Job) -> None:
        """Run `job` in one of the threads soon; from any thread."""
        self._jobs.put(job)
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
                return
            if self._threads >= THREADS_MAX:
                return
            self._threads += 1
        threading.Thread(target=self._main, name="easyremote-callbacks", daemon=True).start()

    def _main(self) -> None:
        while (job := self._next()) is not None:
            perform(job)
            del job  # It may hold a result, and this thread may wait for long.

    def _next(self) -> Job | None:
        """Return the next job, or None to leave."""
        while True:
            try:
                return self._jobs.get_nowait()
            except queue.Empty:
                with self._lock:
                    self._idle += 1
            try:
                return self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._idle == 0:
                        continue  # A job was promised to us.
                    self._idle -= 1
                    # One that came meanwhile found us counted, and perhaps no room for more.
                    if self._jobs.empty():
                        self._threads -= 1
                        return None


def perform(job: Job) -> None:
    """Run a job of a user; what it raises is logged."""
    try:
        job()
    except Exception as error:  # noqa: BLE001 - the task boundary
        _log.error("a callback raised", exception=error)


class Serial:
    """Jobs that run one after the other, in order."""

    __slots__ = ("_busy", "_jobs", "_lock", "_offload")

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()
        self._busy = False

    def run(self, job: Job) -> None:
        """Run `job` after those that were given before; from any thread."""
        with self._lock:
            self._jobs.append(job)
            if self._busy:
                return
            self._busy = True
        self._offload.run(self._work)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._busy = False
                    return
                job = self._jobs.popleft()
            perform(job)


offload = Offload()
"""The threads of this process; they hold nothing while there is nothing to do."""
