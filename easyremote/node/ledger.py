"""What a node has done and how it went: the numbers behind `node.metrics()`.

Theory. The agent sees every call come and go, whichever process ran it, so it keeps the books. Each
number is a count or a sum that only grows, or an average that forgets: an exponentially weighted
one, whose weight follows from the time between two samples, so that a late sample counts for more.

Satisfaction is estimated by Apdex: a call that came back within its target satisfies, within four
targets it satisfies by half. The target is the function's own measure, for an hour of training is
no bad service while an hour of waiting is: a quarter of the declared timeout, else twice the mean
time of its bodies, a second at least. An explicit rating counts more than any estimate.

Rules of this file. 1) Pure: time is an argument. 2) A call costs a few additions.

Source. features.md 1.7; Apdex Alliance, "Application Performance Index, Technical Specification".
"""

from __future__ import annotations

import math
from typing import Any

CPU_TAU_S = 1.0
RATE_TAU_S = 10.0
TARGET_LEAST_S = 1.0
TOLERATED_TARGETS = 4.0
BODIES_PER_TARGET = 2.0


class Average:
    """An exponentially weighted average; what is older than some `tau_s` hardly counts."""

    __slots__ = ("_at", "_tau_s", "value")

    def __init__(self, tau_s: float) -> None:
        self.value = 0.0
        self._tau_s = tau_s
        self._at: float | None = None

    def add(self, value: float, now: float) -> None:
        """Take one more value; the first one counts alone."""
        if self._at is None:
            self.value = value
        else:
            weight = 1.0 - math.exp(-max(0.0, now - self._at) / self._tau_s)
            self.value += weight * (value - self.value)
        self._at = now


class Ledger:
    """The books of one node."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._finished = 0
        self._succeeded = 0
        self._body_s = 0.0
        self._satisfied = 0.0
        self._bodies: dict[str, tuple[int, float]] = {}
        self._connected_since: float | None = None
        self._connected_s = 0.0
        self._cpu = Average(CPU_TAU_S)
        self._rate = Average(RATE_TAU_S)
        self._moved: tuple[int, float] | None = None
        self._sample: dict[str, Any] = {}
        self._revenue = 0.0
        self._rating: float | None = None

    # ---- calls -----------------------------------------------------------------------------------

    def finished(
        self, function: str, *, succeeded: bool, body_s: float, response_s: float,
        timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        """A call is over.

        Args:
            function: Its name.
            succeeded: It has a result.
            body_s: Wall time of its body.
            response_s: Time from its arrival at the node to its outcome.
            timeout_s: What the function declares.
        """
        self._finished += 1
        self._body_s += body_s
        count, total_s = self._bodies.get(function, (0, 0.0))
        self._bodies[function] = count + 1, total_s + body_s
        if not succeeded:
            return
        self._succeeded += 1
        if timeout_s is not None:
            target_s = timeout_s / TOLERATED_TARGETS
        else:
            target_s = BODIES_PER_TARGET * (total_s + body_s) / (count + 1)
            target_s = max(TARGET_LEAST_S, target_s)
        if response_s <= target_s:
            self._satisfied += 1.0
        elif response_s <= target_s * TOLERATED_TARGETS:
            self._satisfied += 0.5

    # ---- the link --------------------------------------------------------------------------------

    def connected(self, now: float) -> None:
        """The gateway has taken the node; again means the same."""
        if self._connected_since is None:
            self._connected_since = now

    def lost(self, now: float) -> None:
        """The link is gone; again means the same."""
        if self._connected_since is not None:
            self._connected_s += now - self._connected_since
            self._connected_since = None
        self._moved = None

    def moved(self, total_bytes: int | None, now: float) -> None:
        """So many bytes have passed on this link until now."""
        before, self._moved = self._moved, None if total_bytes is None else (total_bytes, now)
        if before is None or total_bytes is None or now <= before[1]:
            return
        self._rate.add(max(0, total_bytes - before[0]) / (now - before[1]), now)

    # ---- what others say -------------------------------------------------------------------------

    def sampled(self, sample: dict[str, Any], now: float) -> None:
        """A sample of the machine."""
        self._sample = sample
        self._cpu.add(float(sample.get("cpu_percent", 0.0)), now)

    def told(self, change: dict[str, Any]) -> None:
        """The gateway says what the node has earned, and how its users rate it."""
        revenue: Any = change.get("revenue")
        rating: Any = change.get("rating")
        if type(revenue) in (int, float) and math.isfinite(revenue):
            self._revenue = float(revenue)
        if type(rating) in (int, float) and 0.0 <= rating <= 1.0:
            self._rating = float(rating)

    # ---- as a whole ------------------------------------------------------------------------------

    def to_plain(self, now: float) -> dict[str, Any]:
        """Return the fields of `ComputeNodeMetrics`, but for what only the agent knows."""
        uptime = max(0.0, now - self._began)
        connected = self._connected_s
        if self._connected_since is not None:
            connected += now - self._connected_since
        finished, sample = self._finished, self._sample
        gpus = list(sample.get("gpus", ()))
        busy = [float(gpu.get("utilisation", 0.0)) for gpu in gpus]
        apdex = self._satisfied / finished if finished else 1.0
        return {
            "cpu_usage": self._cpu.value,
            "memory_usage": float(sample.get("memory_percent", 0.0)),
            "gpu_usage": 100.0 * sum(busy) / len(busy) if busy else 0.0,
            "functions_executed": finished,
            "avg_execution_time": self._body_s / finished if finished else 0.0,
            "success_rate": self._succeeded / finished if finished else 1.0,
            "uptime": uptime,
            "connection_stability": min(1.0, connected / uptime) if uptime else 1.0,
            "data_transfer_rate": self._rate.value,
            "revenue_generated": self._revenue,
            "user_satisfaction": apdex if self._rating is None else self._rating,
            "memory_own_bytes": int(sample.get("memory_own_bytes", 0)),
            "gpus": gpus,
        }
