"""The thread that runs trio, and the way into it for every other thread.

Theory. User code lives in its own threads and event loops; links live in one thread that runs
trio. What a user thread wants done there is put into a deque, and the first one after a pause
wakes the thread, so that a burst of a thousand calls costs one wake. All that a batch caused is
sent once, at its end.

Rules of this file. 1) `post` never blocks and may be called from any thread. 2) Functions that
are posted never block and never raise. 3) Nothing else crosses between the threads.

Source. performance.md, "Client bridge".
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from concurrent.futures import Future as PlainFuture
from typing import Any, TypeVar, TypeVarTuple

import trio

from .errors import NotConnectedError
from .link import Outbox

Ts = TypeVarTuple("Ts")
R = TypeVar("R")


class IoThread:
    """One daemon thread that runs trio, with its outbox.

    Attributes:
        outbox: The links of this thread that have something to send.
    """

    def __init__(self, name: str) -> None:
        self.outbox = Outbox()
        self._name = name
        self._posted: deque[Callable[[], object]] = deque()
        self._awake = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._running = threading.Event()
        self._stop = trio.Event()

    def start(self) -> None:
        """Start the thread and wait until it takes work."""
        self._thread.start()
        self._running.wait()

    def _main(self) -> None:
        trio.run(self._run)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._running.set()
            await self._stop.wait()
            self._drain()
            nursery.cancel_scope.cancel()
        self._nursery = None

    @property
    def alive(self) -> bool:
        """Whether the thread takes work."""
        return self._thread.is_alive() and not self._stop.is_set()

    def on_io_thread(self) -> bool:
        """Whether the caller is this thread, where nothing may block."""
        return threading.get_ident() == self._thread.ident

    def post(self, fn: Callable[[], object]) -> None:
        """Run `fn` on the thread soon; many posts share one wake. Thread-safe."""
        self._posted.append(fn)
        if not self._awake:
            self._wake()

    def _wake(self) -> None:
        self._awake = True
        assert self._token is not None
        try:
            self._token.run_sync_soon(self._drain)
        except trio.RunFinishedError:
            self._awake = False

    def _drain(self) -> None:
        posted = self._posted
        self._awake = False
        self.outbox.begin()
        try:
            for _ in range(len(posted)):  # Not those that come meanwhile: they must not starve us.
                posted.popleft()()
        finally:
            self.outbox.end()
        if posted and not self._awake:
            self._wake()

    def spawn(self, async_fn: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """Start a task in the thread's nursery. Thread-safe."""
        self.post(lambda: self._spawn(async_fn, args))

    def _spawn(self, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        if self._nursery is not None:  # Else the thread is ending: `run` notices.
            self._nursery.start_soon(async_fn, *args)

    def run(self, async_fn: Callable[[*Ts], Awaitable[R]], *args: *Ts) -> R:
        """Run a task there and wait for what it returns or raises. Not on the thread itself."""
        assert not self.on_io_thread()
        outcome: PlainFuture[R] = PlainFuture()

        async def task() -> None:
            try:
                outcome.set_result(await async_fn(*args))
            except trio.Cancelled:
                outcome.cancel()
                raise
            except Exception as error:  # noqa: BLE001 (task boundary: the caller gets it)
                outcome.set_exception(error)

        self.spawn(task)
        while True:
            try:
                return outcome.result(timeout=1.0)
            except CancelledError:
                raise self._stopped() from None
            except TimeoutError:
                if outcome.done():
                    raise
                if not self.alive:
                    raise self._stopped() from None

    def _stopped(self) -> NotConnectedError:
        return NotConnectedError(f"the thread {self._name} has been stopped; connect again")

    def stop(self, timeout_s: float = 5.0) -> None:
        """End every task and the thread."""
        if not self._thread.is_alive():
            return
        assert self._token is not None
        try:
            self._token.run_sync_soon(self._stop.set)
        except trio.RunFinishedError:
            return
        if not self.on_io_thread():
            self._thread.join(timeout_s)
