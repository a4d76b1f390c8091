"""Watching several futures: who is done, in the order in which they were.

Rules of this file. 1) A future of ours tells us on the io thread by a wake, one of the standard
library by a callback; either only appends to a deque. 2) Whoever stops watching takes its wakes
back, so that it no longer counts as somebody who waits.
"""

from __future__ import annotations

import concurrent.futures as cf
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar, cast

from .. import seam
from ..waiting import Gate, Wake
from .future import SLICE_S, Future

T = TypeVar("T")


def follow(
    future: cf.Future[Any], arrived: Callable[[cf.Future[Any]], object],
    mine: list[Wake] | None = None,
) -> None:  # fmt: skip
    """Call `arrived` once when there is an outcome, at once if there is one already.

    It may be called on the io thread, so it does next to nothing and raises nothing.
    """
    if isinstance(future, Future):
        if not future._add_wake(partial(arrived, future), [] if mine is None else mine):
            arrived(future)
    else:
        future.add_done_callback(arrived)


class Watch:
    """Some futures, and those of them that are done.

    Attributes:
        done: In the order in which they were seen to be done.
    """

    def __init__(self) -> None:
        self.done: deque[cf.Future[Any]] = deque()
        self._gate = Gate()
        self._wakes: dict[Future[Any], list[Wake]] = {}

    def add(self, future: cf.Future[Any]) -> None:
        """Watch one more."""
        mine: list[Wake] = []
        if isinstance(future, Future):
            self._wakes[future] = mine
        follow(future, self._arrived, mine)

    def _arrived(self, future: cf.Future[Any]) -> None:
        self.done.append(future)
        self._gate.wake()

    def forget(self) -> None:
        """Watch no longer."""
        for future, mine in self._wakes.items():
            if mine and not future.done():
                future._remove_wakes(mine)
        self._wakes.clear()

    def block(self, ready: Callable[[], bool], timeout_s: float | None) -> bool:
        """Block this thread until `ready()`; False if that took too long."""
        if ready():
            return True
        until = None if timeout_s is None else time.monotonic() + timeout_s
        lender = seam.current_lender.get()
        if lender is None:
            return self._block_until(ready, until, None)
        with lender.lend():
            return self._block_until(ready, until, SLICE_S)

    def _block_until(
        self, ready: Callable[[], bool], until: float | None, slice_s: float | None
    ) -> bool:
        while not ready():
            left_s = None if until is None else until - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            limits = [limit for limit in (left_s, slice_s) if limit is not None]
            self._gate.wait(ready, min(limits) if limits else None)
        return True

    async def wait(self, ready: Callable[[], bool], timeout_s: float | None) -> bool:
        """Suspend this task until `ready()`; False if that took too long."""
        if timeout_s is None:
            await self._gate.wait_async(ready)
            return True
        return await self._gate.wait_async_within(ready, timeout_s)


class AsCompleted(Iterator[Future[T]], AsyncIterator[Future[T]], Generic[T]):
    """Futures as they get their outcomes. Made by `as_completed`."""

    def __init__(self, fs: Iterable[Any], timeout_s: float | None) -> None:
        self._watch = Watch()
        self._known: set[Any] = set()
        self._given = 0
        self._until = None if timeout_s is None else time.monotonic() + timeout_s
        for future in fs:
            self.add(future)

    def add(self, f: Future[T]) -> None:
        """Wait for one more; without effect if it is known."""
        if f not in self._known:
            self._known.add(f)
            self._watch.add(f)

    def _ready(self) -> bool:
        return bool(self._watch.done) or self._given >= len(self._known)

    def _left_s(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def _next(self) -> Future[T]:
        self._given += 1
        return cast("Future[T]", self._watch.done.popleft())

    def _late(self) -> TimeoutError:
        self._watch.forget()
        left = len(self._known) - self._given
        return TimeoutError(f"{left} (of {len(self._known)}) futures have no outcome yet")

    def __next__(self) -> Future[T]:
        """Block until one more is done."""
        if not self._watch.done and self._given >= len(self._known):
            raise StopIteration
        if not self._watch.block(self._ready, self._left_s()):
            raise self._late()
        return self._next()

    def __aiter__(self) -> AsCompleted[T]:
        return self

    async def __anext__(self) -> Future[T]:
        """Wait until one more is done."""
        if not self._watch.done and self._given >= len(self._known):
            raise StopAsyncIteration
        if not await self._watch.wait(self._ready, self._left_s()):
            raise self._late()
        return self._next()

    def __del__(self) -> None:
        watch = getattr(self, "_watch", None)
        if watch is not None:
            watch.forget()
