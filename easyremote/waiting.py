"""Waiting for news from the io thread: in a thread, in asyncio, or in trio.

Theory. Whoever waits leaves a *wake* behind: a function without arguments that the io thread calls
when there is news. A wake never blocks and never raises: its thread, loop or run may long be gone.
A burst of results wakes an event loop once, not once per result: wakes of one loop are collected,
and only the first one after a pause crosses over to it (a write to a pipe, several microseconds).

Rules of this file. 1) asyncio and trio are found out at each wait, so one future serves both.
2) Neither library is imported for it. 3) A waiter that left (cancelled, timed out) ignores its
wake: each has a flag that says whether it still waits.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any

Wake = Callable[[], object]


def running_library() -> ModuleType | None:
    """Return the module `trio` or `asyncio`, whichever runs the current task, or None."""
    trio = sys.modules.get("trio")
    # trio first: where trio runs as a guest of asyncio, both would answer.
    if trio is not None and trio.lowlevel.in_trio_task():
        return trio
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return asyncio
    return None


class _Crossing:
    """Wakes on their way to one event loop: many of them, one crossing."""

    __slots__ = ("_crossing", "_wakes")

    def __init__(self) -> None:
        self._wakes: deque[Wake] = deque()
        self._crossing = False

    def send(self, wake: Wake, cross: Callable[[Callable[[], None]], object]) -> None:
        """Run `wake` in the loop soon; `cross` is how one gets there. From any thread."""
        self._wakes.append(wake)
        if not self._crossing:
            self._crossing = True
            try:
                cross(self._arrive)
            except RuntimeError:  # Closed under its waiters (trio's RunFinishedError is one, too).
                self._crossing = False
                self._wakes.clear()

    def _arrive(self) -> None:
        # Cleared first: a wake that comes from now on crosses by itself.
        self._crossing = False
        wakes = self._wakes
        for _ in range(len(wakes)):
            wakes.popleft()()


_crossings: weakref.WeakKeyDictionary[Any, _Crossing] = weakref.WeakKeyDictionary()


def crossing_to(loop: Any) -> _Crossing:
    """Return the crossing to an asyncio loop or to a trio run (its token)."""
    found = _crossings.get(loop)
    if found is None:
        found = _crossings[loop] = _Crossing()
    return found


def park(add: Callable[[Wake], bool]) -> Generator[Any, Any, bool]:
    """Suspend the current task until it is woken; for `yield from` in an `__await__`.

    Args:
        add: Takes the wake and returns True, or returns False if there is news already.

    Returns:
        Whether the task was suspended. A task that is cancelled gets its library's exception.

    Raises:
        RuntimeError: Neither asyncio nor trio runs this task.
    """
    library = running_library()
    if library is None:
        raise RuntimeError("this can only be awaited in a task of asyncio or trio")
    if library.__name__ == "trio":
        return (yield from _park_trio(library, add))
    return (yield from _park_asyncio(library, add))


def _park_asyncio(asyncio: Any, add: Callable[[Wake], bool]) -> Generator[Any, Any, bool]:
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def arrive() -> None:
        if not waiter.done():
            waiter.set_result(None)

    crossing = crossing_to(loop)
    if not add(lambda: crossing.send(arrive, loop.call_soon_threadsafe)):
        return False
    yield from waiter
    return True


def _park_trio(trio: Any, add: Callable[[Wake], bool]) -> Generator[Any, Any, bool]:
    lowlevel = trio.lowlevel
    task, token = lowlevel.current_task(), lowlevel.current_trio_token()
    parked = True

    def arrive() -> None:
        nonlocal parked
        if parked:
            parked = False
            lowlevel.reschedule(task)

    def abort(_: Any) -> Any:
        nonlocal parked
        parked = False
        return lowlevel.Abort.SUCCEEDED

    crossing = crossing_to(token)
    if not add(lambda: crossing.send(arrive, token.run_sync_soon)):
        parked = False  # The wake may have been left behind all the same.
        return False
    yield from lowlevel.wait_task_rescheduled(abort).__await__()
    return True


def block(add: Callable[[Wake], bool], timeout_s: float | None = None) -> bool:
    """Block this thread until it is woken; False if that took longer than `timeout_s`."""
    lock = threading.Lock()
    lock.acquire()

    def wake() -> None:
        # Woken twice, by news and by a close, it is released once.
        if lock.locked():
            lock.release()

    if not add(wake):
        return True
    return lock.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))


class Gate:
    """Where several may wait until something that the io thread changes is so.

    The waiter leaves its wake first and looks again afterwards, the io thread changes the state
    first and wakes afterwards: whatever the order, nobody sleeps through news.
    """

    __slots__ = ("_wakes",)

    def __init__(self) -> None:
        self._wakes: list[Wake] = []

    def wake(self) -> None:
        """Wake whoever waits; each looks at the state for itself."""
        if self._wakes:
            wakes, self._wakes = self._wakes, []
            for wake in wakes:
                wake()

    def wait(self, ready: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Block this thread until `ready()`, or for `timeout_s` at most; whether it is ready."""
        while not ready():
            if not block(lambda wake: self._add(wake, ready), timeout_s):
                return ready()
        return True

    async def wait_async(self, ready: Callable[[], bool]) -> None:
        """Suspend this task, of asyncio or trio, until `ready()`."""
        while not ready():
            await _Parking(lambda wake: self._add(wake, ready))

    async def wait_async_within(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Do the same for `timeout_s` at most; whether it is ready."""
        library: Any = running_library()
        if library is None or library.__name__ == "trio":
            import trio

            with trio.move_on_after(max(0.0, timeout_s)):
                await self.wait_async(ready)
        else:
            try:
                async with library.timeout(max(0.0, timeout_s)):
                    await self.wait_async(ready)
            except TimeoutError:
                return ready()
        return ready()

    def _add(self, wake: Wake, ready: Callable[[], bool]) -> bool:
        self._wakes.append(wake)
        return not ready()


class _Parking:
    __slots__ = ("_add",)

    def __init__(self, add: Callable[[Wake], bool]) -> None:
        self._add = add

    def __await__(self) -> Generator[Any, Any, bool]:
        return park(self._add)
