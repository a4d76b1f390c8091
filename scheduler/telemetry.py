"""What a node says about itself, folded into one view that a liar cannot make shine.

Theory. A node samples itself about once a second and sends what changed. One sample of a processor
says little, so shares are smoothed; two samples after a jump, three quarters of it are seen. What
is said is a hint and is checked: a number that cannot be is counted and *forgotten*, with the value
before it, so that nobody profits from a good number followed by nonsense. What is not known counts
as nothing free.

Between two samples the gateway knows more than the node said: how many calls it gave and how many
have ended. Each is worth `call_cores` processors, learned from samples with calls running.

A node that falls silent although its link stands loses trust after `STALE_AFTER` intervals, by and
by, and gets no more calls after `STALE_SHUT`.

Rules of this file. 1) Pure: `now` is an argument. 2) Nothing a node sends raises. 3) A share is
None or in [0, 1].

Source. Exponentially weighted moving averages; promises.md T15.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .model import Device
from .needs import GPUS_MAX

INTERVAL_S = 1.0
"""Time between two samples, as nodes take them."""
STALE_AFTER = 3.0
"""Intervals of silence after which a node is trusted less."""
STALE_SHUT = 10.0
"""Intervals of silence after which it gets no calls."""
WEIGHT = 0.5
"""Weight of a new sample of a share."""
CORES_WEIGHT = 0.25
"""Weight of a new sample of what one call costs."""

_BYTES_MAX = 2.0**62
_RANGES: dict[str, float] = {
    "cpu_percent": 100.5,
    "memory_percent": 100.5,
    "cpu_count": 65536.0,
    "load_1m": 1e6,
    "memory_total_bytes": _BYTES_MAX,
    "memory_available_bytes": _BYTES_MAX,
    "memory_own_bytes": _BYTES_MAX,
    "disk_total_bytes": _BYTES_MAX,
    "disk_free_bytes": _BYTES_MAX,
    "net_sent_bytes": _BYTES_MAX,
    "net_received_bytes": _BYTES_MAX,
    "calls_running": 1e9,
}
"""What is understood, each from 0 to its largest believable value."""
_COUNTERS = ("net_sent_bytes", "net_received_bytes")
_AT_MOST = (
    ("memory_available_bytes", "memory_total_bytes"),
    ("memory_own_bytes", "memory_total_bytes"),
    ("disk_free_bytes", "disk_total_bytes"),
)


class NodeView:
    """The latest that is believed of one node.

    Attributes:
        sampled_at: When it last sent a sample, on the gateway's clock; None if never.
        interval_s: Time between its samples.
        invalid: Numbers that could not be, so far.
        values: What it said last, by key, checked.
        cpu_used: Smoothed share of its processors in use, None if unknown.
        devices: Its GPUs; None if it has not said, empty if it has none.
        gpu_used: Mean share of time in which its GPUs compute, smoothed; None without any.
        call_cores: Processors that one call keeps busy.
    """

    __slots__ = (
        "call_cores", "cpu_used", "devices", "gpu_used", "interval_s", "invalid", "sampled_at",
        "values",
    )  # fmt: skip

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self.interval_s = interval_s
        self.invalid = 0
        self.restarted()

    def restarted(self) -> None:
        """Forget what it said: its agent has started again, and counters may begin anew."""
        self.sampled_at: float | None = None
        self.values: dict[str, float] = {}
        self.cpu_used: float | None = None
        self.devices: tuple[Device, ...] | None = None
        self.gpu_used: float | None = None
        self.call_cores = 1.0

    def fold(self, sample: Mapping[str, Any], now: float, calls: int) -> None:
        """Take a sample in.

        Args:
            sample: As the node sent it; keys that are not there are unchanged, unless it says
                `full`: then they are unknown.
            now: On the gateway's clock.
            calls: Calls that the gateway knows to be there.
        """
        self.sampled_at = now
        if sample.get("full") is True:
            self._forget_unsaid(sample)
        for key, most in _RANGES.items():
            if key in sample:
                self._take(key, sample[key], most)
        for small, large in _AT_MOST:
            if self.values.get(small, 0.0) > self.values.get(large, math.inf):
                self._forget(small)
        if "gpus" in sample:
            self._fold_gpus(sample["gpus"])
        self._fold_cpu(calls, fresh="cpu_percent" in sample)

    def _forget_unsaid(self, sample: Mapping[str, Any]) -> None:
        self.values = {key: value for key, value in self.values.items() if key in sample}
        if "gpus" not in sample:
            self.devices = self.gpu_used = None

    def _take(self, key: str, value: Any, most: float) -> None:
        if type(value) not in (int, float) or not 0.0 <= value <= most:
            self._forget(key)
            return
        if key in _COUNTERS and value < self.values.get(key, 0.0):
            self._forget(key)
        self.values[key] = float(value)

    def _forget(self, key: str) -> None:
        self.invalid += 1
        self.values.pop(key, None)

    def _fold_cpu(self, calls: int, *, fresh: bool) -> None:
        percent = self.values.get("cpu_percent")
        if percent is None:
            self.cpu_used = None
            return
        used = min(1.0, percent / 100.0)
        self.cpu_used = used if self.cpu_used is None else _mix(self.cpu_used, used, WEIGHT)
        if calls > 0 and fresh:
            cores = min(1.0, used * self.cpus / calls)
            self.call_cores = _mix(self.call_cores, cores, CORES_WEIGHT)

    def _fold_gpus(self, told: Any) -> None:
        if type(told) is not list or len(told) > GPUS_MAX:
            self.invalid += 1
            self.devices = None
            self.gpu_used = None
            return
        found = [device for one in told if (device := _device(one)) is not None]
        unique = {device.index: device for device in found}
        self.invalid += len(told) - len(unique)
        self.devices = tuple(unique.values())
        if not unique:
            self.gpu_used = None
            return
        used = sum(device.busy for device in self.devices) / len(self.devices)
        self.gpu_used = used if self.gpu_used is None else _mix(self.gpu_used, used, WEIGHT)

    # ---- what follows from it ------------------------------------------------------------------

    @property
    def cpus(self) -> float:
        """Its processors; one if it has not said."""
        return max(1.0, self.values.get("cpu_count", 1.0))

    @property
    def memory_free(self) -> float | None:
        """Return the share of its memory that is free."""
        total = self.values.get("memory_total_bytes")
        available = self.values.get("memory_available_bytes")
        if total and available is not None:
            return available / total
        percent = self.values.get("memory_percent")
        return None if percent is None else max(0.0, 1.0 - percent / 100.0)

    def bytes_of(self, key: str) -> int | None:
        """Return a size that it said last, None if unknown."""
        value = self.values.get(key)
        return None if value is None else int(value)

    def age_s(self, now: float) -> float | None:
        """Return how old its last sample is; None if it never sent one."""
        return None if self.sampled_at is None else max(0.0, now - self.sampled_at)

    def doubt(self, now: float) -> float:
        """Return how little its word counts by now: 0 fresh, 1 when it gets no more calls.

        A node that never sent a sample shines in nothing, but is not silent either.
        """
        age_s = self.age_s(now)
        if age_s is None:
            return 0.0
        late = age_s / self.interval_s - STALE_AFTER
        return min(1.0, max(0.0, late / (STALE_SHUT - STALE_AFTER)))


def _mix(old: float, new: float, weight: float) -> float:
    return old + (new - old) * weight


def _device(told: Any) -> Device | None:
    """Return one GPU as a node described it, None if it cannot be."""
    if type(told) is not dict:
        return None
    index, total = told.get("index"), told.get("memory_total_bytes")
    if type(index) is not int or not 0 <= index < GPUS_MAX:
        return None
    if type(total) is not int or not 0 < total < _BYTES_MAX:
        return None
    sizes: list[int | None] = []
    for key in ("memory_free_bytes", "memory_foreign_bytes"):
        size = told.get(key)
        if size is not None and (type(size) is not int or not 0 <= size <= total):
            return None
        sizes.append(size)
    busy = told.get("utilisation", 0.0)
    if type(busy) not in (int, float) or not 0.0 <= busy <= 1.0:
        return None
    model = told.get("model", "")
    return Device(
        index, model[:128] if type(model) is str else "", total, sizes[0], sizes[1], float(busy)
    )
