"""Deadlines of many calls on one task: a heap of moments, and a sleep until the first.

Rules of this file. 1) Io thread only. 2) The task lives as long as there is a timer. 3) A timer
that is cancelled stays in the heap until its moment or until half of the heap is dead.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Any

import trio

COMPACT_MIN = 1024
"""Below this many dead timers the heap is not rebuilt."""

Timer = list[Any]
"""[when, order, function or None]; a list, so that it can be cancelled in place."""


class Timers:
    """Calls functions at moments of trio's clock."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._order = count()
        self._dead = 0
        self._running = False
        self._sooner = trio.Event()

    def after(self, delay_s: float, fn: Callable[[], object]) -> Timer:
        """Call `fn` after `delay_s` seconds."""
        timer: Timer = [trio.current_time() + delay_s, next(self._order), fn]
        heapq.heappush(self._heap, timer)
        if not self._running:
            self._running = True
            trio.lowlevel.spawn_system_task(self._run)
        elif self._heap[0] is timer:
            self._sooner.set()
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
        return len(self._heap) - self._dead

    async def _run(self) -> None:
        # A system task, because whoever owns the io thread may be a worker, which has no nursery
        # for us. It holds nothing that must be cleaned up.
        while self._heap:
            self._fire()
            self._sooner = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else -math.inf):
                await self._sooner.wait()
        self._running = False

    def _fire(self) -> None:
        now = trio.current_time()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2] is None):
            timer = heapq.heappop(self._heap)
            fn, timer[2] = timer[2], None
            if fn is None:
                self._dead -= 1
            else:
                fn()
