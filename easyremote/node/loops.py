"""Event loops for `async def` functions: asyncio, and trio where a function asks for it.

Theory. A loop runs in a thread of its own, beside the sync bodies, so that neither waits for the
other. The io thread hands calls over through a deque and wakes the loop once per batch. How many
calls run at once is counted on the io thread, where they come and go.

Rules of this file. 1) Nothing that a body does ends its loop: `SystemExit` and `KeyboardInterrupt`
of a body are its own outcome. 2) `trio.Cancelled` is never caught, only seen by its scope.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from . import bodies

if TYPE_CHECKING:
    import asyncio

    import trio

    from .executor import Executor
    from .outcome import Outcome
    from .task import Task


class Loop(Protocol):
    """One event loop in its thread."""

    def launch(self, task: Task) -> None:
        """Run the body of a call (from the io thread)."""

    def close(self) -> None:
        """Cancel every body and end the thread, without waiting for it."""


class _Inbox:
    """Functions for a loop, with one wake per batch."""

    def __init__(self) -> None:
        self._posted: deque[Callable[[], object]] = deque()
        self._awake = False
        self.wake: Callable[[Callable[[], None]], object] | None = None

    def post(self, fn: Callable[[], object]) -> None:
        """Run `fn` on the loop soon. From the io thread only."""
        self._posted.append(fn)
        if not self._awake:
            self._awake = True
            assert self.wake is not None
            try:
                self.wake(self._drain)
            except RuntimeError:  # The loop has ended; so has whatever it ran.
                return

    def _drain(self) -> None:
        self._awake = False
        posted = self._posted
        for _ in range(len(posted)):
            posted.popleft()()
        if posted and not self._awake:
            self._awake = True
            assert self.wake is not None
            self.wake(self._drain)


class AsyncioLoop:
    """An asyncio loop in a daemon thread."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._inbox = _Inbox()
        self._running: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        threading.Thread(target=self._main, name="easyremote-asyncio", daemon=True).start()
        self._ready.wait()

    def _main(self) -> None:
        import asyncio

        asyncio.run(self._run())

    async def _run(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        self._inbox.wake = loop.call_soon_threadsafe
        self._stop = asyncio.Event()
        self._create_task = loop.create_task
        self._cancelled_error = asyncio.CancelledError
        self._ready.set()
        await self._stop.wait()

    def launch(self, task: Task) -> None:
        """Run the body of a call (from the io thread)."""
        handle: list[asyncio.Task[None]] = []
        task.abort = partial(self._inbox.post, partial(self._cancel, handle))
        self._inbox.post(partial(self._start, task, handle))

    def _start(self, task: Task, handle: list[asyncio.Task[None]]) -> None:
        running = self._create_task(self._body(task))
        handle.append(running)
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    def _cancel(self, handle: list[asyncio.Task[None]]) -> None:
        handle[0].cancel()

    async def _body(self, task: Task) -> None:
        try:
            outcome = await bodies.run_async(task)
        except BaseException as error:  # noqa: BLE001 - the task boundary: SystemExit, too
            outcome = bodies.of_error(task, error)
        self._executor.report(task, outcome, None)

    def close(self) -> None:
        """Cancel every body and end the thread, without waiting for it."""
        if self._stop is not None:
            self._inbox.post(self._stop.set)


class TrioLoop:
    """A trio run in a daemon thread."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._inbox = _Inbox()
        self._ready = threading.Event()
        self._nursery: trio.Nursery | None = None
        threading.Thread(target=self._main, name="easyremote-trio", daemon=True).start()
        self._ready.wait()

    def _main(self) -> None:
        import trio

        trio.run(self._run)

    async def _run(self) -> None:
        import trio

        self._inbox.wake = trio.lowlevel.current_trio_token().run_sync_soon
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await trio.sleep_forever()

    def launch(self, task: Task) -> None:
        """Run the body of a call (from the io thread)."""
        import trio

        scope = trio.CancelScope()
        task.abort = partial(self._inbox.post, scope.cancel)
        self._inbox.post(partial(self._start, task, scope))

    def _start(self, task: Task, scope: trio.CancelScope) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._body, task, scope)

    async def _body(self, task: Task, scope: trio.CancelScope) -> None:
        import trio

        outcome: Outcome | None = None
        try:
            with scope:
                outcome = await bodies.run_async(task)
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 - the task boundary: SystemExit, too
            outcome = bodies.of_error(task, error)
        if outcome is None:
            outcome = bodies.stopped(task)
        self._executor.report(task, outcome, None)

    def close(self) -> None:
        """Cancel every body and end the thread, without waiting for it."""
        if self._nursery is not None:
            self._inbox.post(self._nursery.cancel_scope.cancel)


class AsyncGroup:
    """The slots of a group of async functions. Io thread only."""

    def __init__(self, name: str, slots: int, executor: Executor) -> None:
        self.name = name
        self.slots = slots
        self._executor = executor
        self._free = slots
        self._queue: deque[Task] = deque()

    def submit(self, task: Task) -> bool:
        """Start a call, or queue it. True if it starts now."""
        if not self._free:
            self._queue.append(task)
            return False
        self._free -= 1
        self._launch(task)
        return True

    def _launch(self, task: Task) -> None:
        task.claimed = True
        self._executor.loop_for(task).launch(task)

    def withdraw(self, task: Task) -> bool:
        """Take a queued call back; False if it was started."""
        if task.claimed:
            return False
        task.withdrawn = True
        return True

    def interrupt(self, task: Task) -> None:
        """Cancel the body of a call once more: it may have swallowed the first."""
        if task.abort is not None:
            task.abort()

    def freed(self) -> Task | None:
        """A body is over: start the next call, and return it."""
        while self._queue:
            task = self._queue.popleft()
            if not task.withdrawn:
                self._launch(task)
                return task
        self._free += 1
        return None

    @property
    def queued(self) -> int:
        """Calls that wait for a slot, those included that were withdrawn."""
        return len(self._queue)

    def close(self) -> None:
        """Nothing to close: bodies end with their loop."""
