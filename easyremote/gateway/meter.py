"""What a gateway measures of its own work: calls a second, failures, response and routing times.

Theory. Rates are counted in buckets of one second, of which the last ten whole ones are looked at:
a rate is then what happened in a window that everybody can name, and old load is forgotten. Times
are kept as means of the same buckets; of routing times the latest few hundred are kept as well, for
their percentiles, because a mean hides the call that waited.

Rules of this file. 1) Pure: time is an argument. 2) Counting a call costs a few additions. 3) An
empty window has no failures and no time: 0.0, never a division by zero.

Source. features.md 1.7, GatewayMetrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

WINDOW_S = 10
"""Seconds over which rates and means are taken."""
ROUTING_SAMPLES_MAX = 512
ROUTING_EVERY = 8
"""One call in so many has its routing measured, for two looks at the clock cost as much as a hop's
bookkeeping."""


class Rates(NamedTuple):
    """What happened within the window."""

    per_second: float
    """Calls that came to an outcome."""
    error_rate: float
    """Share of them that failed, whoever's fault it was."""
    response_s: float
    """Mean time from the call's arrival to its outcome."""


class Meter:
    """Counts calls as they end.

    Attributes:
        finished_total: Calls that had an outcome since the start.
        failed_total: Those of them that failed.
    """

    __slots__ = (
        "_buckets", "_second", "_submitted", "failed_total", "finished_total", "routing_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.finished_total = 0
        self.failed_total = 0
        self.routing_s: deque[float] = deque(maxlen=ROUTING_SAMPLES_MAX)
        # Of each second: calls, failures, seconds. One more than the window: the running one.
        self._buckets: deque[list[float]] = deque([[0.0, 0.0, 0.0]], maxlen=WINDOW_S + 1)
        self._second = 0
        self._submitted = 0

    def finished(self, now: float, response_s: float, *, failed: bool) -> None:
        """Count a call that has its outcome."""
        second = int(now)
        if second != self._second:
            self._turn(second)
        bucket = self._buckets[-1]
        bucket[0] += 1.0
        bucket[2] += response_s
        self.finished_total += 1
        if failed:
            bucket[1] += 1.0
            self.failed_total += 1

    def wants_routing(self) -> bool:
        """Count a call that came; True if the time that it takes to route it is to be measured."""
        self._submitted += 1
        return self._submitted % ROUTING_EVERY == 1

    def _turn(self, second: int) -> None:
        """Begin the bucket of another second, and empty ones for those without a call."""
        for _ in range(max(1, min(second - self._second, WINDOW_S + 1))):
            self._buckets.append([0.0, 0.0, 0.0])
        self._second = second

    def rates(self, now: float, uptime_s: float) -> Rates:
        """Return what happened in the last whole seconds, or since the start if that is less."""
        second = int(now)
        if second != self._second:
            self._turn(second)
        whole = list(self._buckets)[:-1]
        calls, failures, seconds = (sum(one[i] for one in whole) for i in range(3))
        if not calls:
            return Rates(0.0, 0.0, 0.0)
        return Rates(calls / min(WINDOW_S, max(1.0, uptime_s)), failures / calls, seconds / calls)

    def routing(self) -> tuple[float, float, float]:
        """Return mean, median and 99th percentile of the routing times, in seconds."""
        samples = sorted(self.routing_s)
        if not samples:
            return 0.0, 0.0, 0.0
        mean = sum(samples) / len(samples)
        last = len(samples) - 1
        return mean, samples[last // 2], samples[round(last * 0.99)]


def jain(loads: Iterable[float]) -> float:
    """Return Jain's index of loads: 1.0 if they are even, 1/n if one node has everything.

    R. Jain, D. Chiu, W. Hawe, A Quantitative Measure of Fairness (1984). No load at all is even.

    >>> jain([2.0, 2.0]), jain([1.0, 0.0])
    (1.0, 0.5)
    """
    known = list(loads)
    squares = sum(load * load for load in known)
    return 1.0 if not squares else sum(known) ** 2 / (len(known) * squares)
