"""Deadlines of calls: one heap for all of them, one task that sleeps until the next.

Theory. A cancel scope or a task per call would cost more than the call. A heap of (when, call)
costs a fraction of a microsecond, and most entries are never looked at again: a call that is over
leaves its entry behind. When most of the heap is such entries, it is swept.

Rules of this file. 1) Entries are never searched for; an entry of a settled call is void.
2) A call is told in the order of time. 3) The clock is trio's.

Source. The timer heaps of asyncio (`_timer_cancelled_count`) and of trio.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from .calls import CallInput, CallState

if TYPE_CHECKING:
    from .calls import GatewayCall

SWEEP_FROM = 1024
"""Void entries below this number are not worth a sweep."""

FIRE_MAX = 64
"""Calls in one turn: a thousand that were lost with one link must not hold up everybody else."""

Entry = tuple[float, int, "GatewayCall", CallInput]


class Timers:
    """What must happen to which call, and when.

    Attributes:
        void: Entries of calls that are settled, by the count of those who settle them.
    """

    def __init__(self, tell: Callable[[GatewayCall, CallInput], None]) -> None:
        self._tell = tell
        self._heap: list[Entry] = []
        self._sweep_at = SWEEP_FROM
        self._count = 0
        self._sleeps_until = -math.inf
        self._wake = trio.Event()
        self.void = 0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when: float, call: GatewayCall, what: CallInput) -> None:
        """Tell `call` of `what` at `when`, unless it is settled by then."""
        self._count += 1
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        heapq.heappush(self._heap, (when, self._count, call, what))
        if when < self._sleeps_until:
            self._wake.set()

    def settled(self) -> None:
        """Count an entry whose call is over; sweep the heap if most are."""
        self.void += 1
        if self.void > SWEEP_FROM and self.void > len(self._heap) // 2:
            self._sweep()

    def _sweep(self) -> None:
        """Drop the entries of calls that are settled.

        Whoever cancels calls with an hour of grace each must not keep them here for an hour: the
        heap is never more than twice as long as it needs to be, and a bit.
        """
        self._heap = [e for e in self._heap if e[2].state is not CallState.SETTLED]
        heapq.heapify(self._heap)
        self._sweep_at = 2 * len(self._heap) + SWEEP_FROM
        self.void = 0

    def fire(self, now: float) -> None:
        """Tell the calls whose time has come; at most `FIRE_MAX` at once."""
        heap = self._heap
        for _ in range(FIRE_MAX):
            if not heap or heap[0][0] > now:
                break
            _, _, call, what = heapq.heappop(heap)
            if call.state is CallState.SETTLED:
                self.void = max(0, self.void - 1)
            else:
                self._tell(call, what)
            heap = self._heap

    async def run(self, batch: Callable[[Callable[[], None]], None]) -> None:
        """Fire timers until cancelled.

        Args:
            batch: Runs a function as one batch, so that what it causes is sent at once.
        """
        while True:
            self._sleeps_until = self._heap[0][0] if self._heap else math.inf
            with trio.move_on_at(self._sleeps_until):
                await self._wake.wait()
            self._wake = trio.Event()
            self._sleeps_until = -math.inf
            batch(lambda: self.fire(trio.current_time()))
