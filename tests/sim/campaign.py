"""Many seeds: over several processes, counted, compared, and summed up.

Rules of this file. 1) A process runs one seed after the other and says what came of each. 2) The
second run of a seed, which must have the same events, is in another process with another order of
hashes: a set of texts that decides anything shows. 3) A violation prints the command that replays
it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count

from .run import Bench, Report

PROGRESS_EVERY_S = 15.0
CHUNK = 4
"""Seeds that a process is given at once."""


@dataclass
class Campaign:
    """What many runs were like."""

    seeds: int = 0
    virtual_s: float = 0.0
    calls: int = 0
    starts: int = 0
    violations: list[tuple[int, str, str]] = field(default_factory=list)
    different: list[int] = field(default_factory=list)
    compared: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)
    _digests: dict[int, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether something was wrong."""
        return bool(self.violations or self.different)

    def add(self, report: Report) -> None:
        """Count a run; the second one of a seed is compared with the first."""
        first = self._digests.pop(report.seed, None)
        if first is not None:
            self.compared += 1
            if first != report.digest:
                self.different.append(report.seed)
                sys.stdout.write(f"seed {report.seed}: two runs, two event logs\n")
            return
        self._digests[report.seed] = report.digest
        self.seeds += 1
        self.virtual_s += report.virtual_s
        self.calls += report.calls
        self.starts += report.starts
        self.faults += report.faults
        self.reached += report.reached
        if report.violations:
            self.violations += [(report.seed, *found) for found in report.violations]
            show(report)

    def line(self) -> str:
        """Return where the campaign is, in a line."""
        hours, real_s = self.virtual_s / 3600, time.monotonic() - self.started
        return (
            f"{self.seeds} seeds, {hours:.2f} virtual hours, {self.calls} calls, {self.starts} "
            f"starts, {sum(self.faults.values())} faults, {len(self.violations)} violations, "
            f"{self.virtual_s / max(real_s, 0.001):.0f}x real time"
        )

    def summary(self) -> str:
        """Return all figures."""
        faults = ", ".join(f"{name} {number}" for name, number in sorted(self.faults.items()))
        reached = ", ".join(f"{name}: {number}" for name, number in sorted(self.reached.items()))
        by_promise = Counter(promise for _, promise, _ in self.violations)
        broken = ", ".join(f"{name} {number}" for name, number in sorted(by_promise.items()))
        return (
            f"{self.line()}\nfaults: {faults}\nreached: {reached}\n"
            f"compared: {self.compared} seeds, {len(self.different)} differ\n"
            f"violations: {broken or 'none'}\n"
        )


def show(report: Report) -> None:
    """Print a run in a line, what was wrong with it, and how to see it again."""
    sys.stdout.write(
        f"seed {report.seed}: {report.virtual_s:.0f} s virtual, {report.real_s:.2f} s real, "
        f"{report.calls} calls, {report.starts} starts, {report.digest[:12]}\n"
    )
    for promise, sentence in report.violations:
        sys.stdout.write(f"  {promise}: {sentence}\n")
    if report.violations:
        sys.stdout.write(f"  replay: python -m tests.sim --seed {report.seed}\n")
    sys.stdout.flush()


def run_seeds(seeds: list[int]) -> list[Report]:
    """Run seeds in this process."""
    with Bench() as bench:
        reports = [bench.run_seed(seed) for seed in seeds]
    for report in reports:
        report.lines = []
    return reports


def run_campaign(
    campaign: Campaign, first: int, last: int | None, *, jobs: int = 1,
    until: float | None = None, twice: bool = False, progress: bool = True,
) -> None:  # fmt: skip
    """Run seeds until there are no more, or the time is over.

    Args:
        campaign: Where they are counted.
        first: The first seed.
        last: The seed behind the last one, None for no end.
        jobs: Processes.
        until: When no further seed is begun, on the monotonic clock.
        twice: Run each a second time, with another order of hashes, and compare.
        progress: Print a line now and then.
    """
    seeds = iter(count(first) if last is None else range(first, last))
    with _pool(jobs, "0") as pool, _pool(1 if twice else 0, "1") as other:
        running: set[Future[list[Report]]] = set()
        shown = time.monotonic()
        while True:
            over = until is not None and time.monotonic() >= until
            while not over and len(running) < (1 + twice) * (jobs + 1):
                chunk = _take(seeds)
                if not chunk:
                    break
                running.add(pool.submit(run_seeds, chunk))
                if twice:
                    running.add(other.submit(run_seeds, chunk))
            if not running:
                return
            done, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                for report in future.result():
                    campaign.add(report)
            if progress and time.monotonic() - shown >= PROGRESS_EVERY_S:
                shown = time.monotonic()
                sys.stdout.write(campaign.line() + "\n")
                sys.stdout.flush()


def _take(seeds: Iterator[int]) -> list[int]:
    return [seed for _, seed in zip(range(CHUNK), seeds, strict=False)]


def _pool(jobs: int, hash_seed: str) -> ProcessPoolExecutor:
    """Return processes whose hashes of texts have an order of their own."""
    os.environ["PYTHONHASHSEED"] = hash_seed
    pool = ProcessPoolExecutor(
        max(1, jobs), mp_context=multiprocessing.get_context("spawn"), initializer=_begin
    )
    if jobs:
        # Processes start with the first task: it must be under this order of hashes.
        pool.submit(_begin).result()
    return pool


def _begin() -> None:
    """Start a process."""
