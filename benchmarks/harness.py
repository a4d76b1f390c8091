"""Measuring fairly: alternate, repeat, take medians, keep minima and maxima.

Theory. Two programs that are measured one after the other meet different machines: clocks, caches
and neighbours change within seconds. So the contestants of a row take turns, each turn beginning
with another one, after turns that do not count. The result is a ratio of medians.

Rules of this file. 1) A contestant is started before it is measured; starting is never part of a
figure, except where it is the figure. 2) Every value is kept, and written to the JSON file.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

Measure = Callable[[], float]
"""One run of a contestant: returns one value in the unit of its row."""

RUNS = 5
WARM_UPS = 1


@dataclass(frozen=True)
class Series:
    """The values of one contestant."""

    name: str
    values: list[float]

    @property
    def median(self) -> float:
        """Return the median of all runs."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        name: Which row, and how it was run.
        unit: Of every value.
        lower_is_better: Whether a small value is a good one.
        contestants: Ours first, then the floor, then peers.
        goal: The ratio to the floor that we aim at, as text.
        includes: What a value includes.
    """

    name: str
    unit: str
    lower_is_better: bool
    contestants: list[Series]
    goal: str = ""
    includes: str = ""
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Return ours as a multiple of the floor, or None where there is no floor."""
        by_name = {series.name: series for series in self.contestants}
        if "ours" not in by_name or "floor" not in by_name:
            return None
        return by_name["ours"].median / by_name["floor"].median

    def lines(self) -> list[str]:
        """Return the row as text for people."""
        out = [
            f"{self.name:34} {series.name:10} {series.median:12.5g} {self.unit:8}"
            f" [{min(series.values):.5g} .. {max(series.values):.5g}]"
            for series in self.contestants
        ]
        if (ratio := self.ratio) is not None:
            goal = f"  (goal {self.goal})" if self.goal else ""
            out.append(f"{self.name:34} {'ratio':10} {ratio:12.2f} x{goal}")
        out += [f"{self.name:34} {name:10} {value:12.5g}" for name, value in self.notes.items()]
        return out

    def as_data(self) -> dict[str, Any]:
        """Return the row as plain data for JSON."""
        data = asdict(self)
        data["ratio"] = self.ratio
        return data


def alternate(
    contestants: Mapping[str, Measure],
    *,
    runs: int = RUNS,
    warm_ups: int = WARM_UPS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Series]:
    """Measure the contestants in turns.

    Args:
        contestants: By name, in the order of the report.
        runs: Values to take of each.
        warm_ups: Turns before those, which do not count.
        progress: Told what is measured now.

    Returns:
        One series for each contestant, in the same order.
    """
    values: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(warm_ups + runs):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            progress(f"{name} {turn + 1}/{warm_ups + runs}")
            value = contestants[name]()
            if turn >= warm_ups:
                values[name].append(value)
    return [Series(name, taken) for name, taken in values.items()]


@contextmanager
def affinity(pinned: bool) -> Iterator[None]:
    """Keep this process, and those that it starts meanwhile, on one core; or on all of them.

    Pinned runs show what the code costs; free runs add what waking another core costs.
    """
    if not pinned or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def median_us(work: Callable[[], object], times: int) -> float:
    """Return the median of many calls of `work`, in microseconds."""
    clock = time.perf_counter_ns
    taken = []
    for _ in range(times):
        begin = clock()
        work()
        taken.append(clock() - begin)
    return statistics.median(taken) / 1000


def percentile(values: list[float], percent: float) -> float:
    """Return the value below which `percent` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def environment() -> dict[str, Any]:
    """Return what the figures depend on, for the JSON file."""
    import ssl

    import numpy as np

    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "openssl": ssl.OPENSSL_VERSION,
        "numpy": np.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


class Progress:
    """One line on a terminal that says what is measured now; nothing in a file."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self.row = ""

    def __call__(self, text: str) -> None:
        """Show `text` beside the name of the row."""
        if self._on:
            print(f"\r\033[K{self.row}: {text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the line."""
        if self._on:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
