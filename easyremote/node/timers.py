"""Deadlines of many calls on one task: a heap of moments, and a sleep until the first.

Rules of this file. 1) Io thread only. 2) A timer that is cancelled stays in the heap until its
moment or until half of the heap is dead, whichever is first: cancelling costs nothing.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import trio

COMPACT_MIN = 1024
"""Below this many dead timers the heap is not rebuilt."""

Timer = list[Any]
"""[when, order, function or None]; a list, so that it can be cancelled in place."""


class Timers:
    """Calls functions at moments of `time.monotonic()`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heap: list[Timer] = []
        self._order = count()
        self._dead = 0
        self._sooner = trio.Event()

    def at(self, when: float, fn: Callable[[], None]) -> Timer:
        """Call `fn` at `when`."""
        timer: Timer = [when, next(self._order), fn]
        if not self._heap or when < self._heap[0][0]:
            self._sooner.set()
        heapq.heappush(self._heap, timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """Do not call it any more; without effect if it was called."""
        if timer[2] is None:
            return
        timer[2] = None
        self._dead += 1
        if self._dead >= COMPACT_MIN and self._dead * 2 > len(self._heap):
            self._heap = [timer for timer in self._heap if timer[2] is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    def fire(self) -> None:
        """Call what is due."""
        heap, now = self._heap, self._clock()
        while heap and (heap[0][0] <= now or heap[0][2] is None):
            timer = heapq.heappop(heap)
            fn, timer[2] = timer[2], None
            if fn is None:
                self._dead -= 1
            else:
                fn()
                heap = self._heap

    async def run(self) -> None:
        """Fire for ever; one task of the io thread."""
        while True:
            self.fire()
            self._sooner = trio.Event()
            delay_s = self._heap[0][0] - self._clock() if self._heap else float("inf")
            with trio.move_on_after(max(0.0, delay_s)):
                await self._sooner.wait()
