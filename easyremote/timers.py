"""Deadlines of many calls on one task: a heap of moments, and a sleep until the first.

Theory. A task or a cancel scope for each deadline would cost more than the call it belongs to. An
entry of a heap costs about a microsecond, and most are cancelled long before their moment.

Rules of this file. 1) Io thread only. 2) A timer that is cancelled stays in the heap until its
moment or until half of the heap is dead, whichever is first: cancelling costs nothing.

Source. The timer heaps of asyncio (`_timer_cancelled_count`) and of trio. The gateway has a heap
of its own: there a call is told of its moment, and nothing is ever cancelled.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import trio

COMPACT_MIN = 1024
"""Below this many dead timers the heap is not rebuilt."""

Timer = list[Any]
"""[when, order, function or None]; a list, so that it can be cancelled in place."""


class Timers:
    """Calls functions at moments of a clock."""

    def __init__(
        self, clock: Callable[[], float], *,
        start: Callable[[Callable[[], Awaitable[None]]], object] | None = None,
    ) -> None:  # fmt: skip
        """Begin without a timer.

        Args:
            clock: Tells the moments, in seconds.
            start: Starts `run` whenever there is a timer and no task, for owners without a
                nursery; `run` then ends with the last timer. Without it the owner runs `run`.
        """
        self._clock = clock
        self._start = start
        self._heap: list[Timer] = []
        self._order = count()
        self._dead = 0
        self._started = start is None
        self._sooner = trio.Event()

    def at(self, when: float, fn: Callable[[], object]) -> Timer:
        """Call `fn` at `when`."""
        timer: Timer = [when, next(self._order), fn]
        heapq.heappush(self._heap, timer)
        if not self._started:
            assert self._start is not None
            self._started = True
            self._start(self.run)
        elif self._heap[0] is timer:
            self._sooner.set()
        return timer

    def after(self, delay_s: float, fn: Callable[[], object]) -> Timer:
        """Call `fn` after `delay_s` seconds."""
        return self.at(self._clock() + delay_s, fn)

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

    def fire(self) -> None:
        """Call what is due."""
        now = self._clock()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2] is None):
            timer = heapq.heappop(self._heap)
            fn, timer[2] = timer[2], None
            if fn is None:
                self._dead -= 1
            else:
                fn()

    async def run(self) -> None:
        """Fire for ever, or until the last timer if it was started for one; on the io thread."""
        while True:
            self.fire()
            if self._start is not None and not self._heap:
                self._started = False
                return
            self._sooner = trio.Event()
            delay_s = self._heap[0][0] - self._clock() if self._heap else math.inf
            with trio.move_on_after(max(0.0, delay_s)):
                await self._sooner.wait()
