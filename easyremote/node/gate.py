"""Where a body waits until the io thread has news for it.

Theory. A producer waits for credit, a consumer for the next item, both also for being stopped. The
state that they wait for is plain attributes that only the io thread writes; a gate only wakes.
The waiter publishes itself first and looks at the state again afterwards, the io thread changes
the state first and looks for waiters afterwards: whatever the order, nobody sleeps through news.

Rules of this file. 1) `wake` runs on the io thread and never blocks. 2) A waiter is used once.
3) asyncio and trio are found out at the moment of waiting, so that one object serves both.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol


class _Waiter(Protocol):
    def wake(self) -> None: ...


class _ThreadWaiter:
    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self) -> None:
        self._lock.acquire()

    def wake(self) -> None:
        self._lock.release()


class _AsyncioWaiter:
    __slots__ = ("_future", "_loop")

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._future = loop.create_future()

    async def wait(self) -> None:
        await self._future

    def wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle)
        except RuntimeError:  # The loop was closed under its waiter: nobody waits any more.
            return

    def _settle(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class _TrioWaiter:
    __slots__ = ("_event", "_token")

    def __init__(self) -> None:
        import trio

        self._event = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    async def wait(self) -> None:
        await self._event.wait()

    def wake(self) -> None:
        import trio

        try:
            self._token.run_sync_soon(self._event.set)
        except trio.RunFinishedError:  # The run ended under its waiter: nobody waits any more.
            return


class Gate:
    """The waiters of one call. Woken all together; each looks at the state for itself."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[_Waiter] = []

    def wake(self) -> None:
        """Wake whoever waits (io thread, after it has changed the state)."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            # One that joins the old list now has not looked at the state yet, and will not sleep.
            for waiter in waiters:
                waiter.wake()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Block this thread until `ready()`."""
        while not ready():
            waiter = _ThreadWaiter()
            self._waiters.append(waiter)
            if ready():
                return
            waiter.wait()

    async def wait_async(self, ready: Callable[[], bool]) -> None:
        """Suspend this task, of asyncio or trio, until `ready()`."""
        while not ready():
            waiter = _async_waiter()
            self._waiters.append(waiter)
            if ready():
                return
            await waiter.wait()


def _async_waiter() -> _AsyncioWaiter | _TrioWaiter:
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            return _AsyncioWaiter(asyncio.get_running_loop())
        except RuntimeError:
            pass
    return _TrioWaiter()
