"""The random engine: inputs from a seed, one after the other, each of them judged.

Theory. An input is a mutation of one from the pool: the target's seeds, the corpus, and what did
something new on the way, which a target tells by its feature. That is not coverage, but it costs
nothing and leads past the first checks. The same name, seed and job give the same inputs in the
same order on every machine, and a finding is told by its bytes, which need no seed to be run again.

What is a finding: any exception that the target does not expect; more than 100 ms of CPU time, in
three tries of the same input; more than 512 MiB of memory in the process.

Rules of this file. 1) The clock is read twice an execution and nothing else is done: a slow judge
would hide slow inputs. 2) No collection of garbage falls into an execution: it runs between them.

Source. The loop of libFuzzer; its `-runs`, `-timeout` and `-rss_limit_mb`.
"""

from __future__ import annotations

import gc
import random
import resource
import sys
import time
import traceback
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .mutate import SIZE_MAX
from .target import Target

SLOW_S = 0.1
MEMORY_MIB_MAX = 512
POOL_MAX = 1024
FEATURES_MAX = 20_000
BATCH = 1000
"""Executions between looks at memory and time."""
YOUNG = 50
"""Executions between collections of young garbage."""


class Finding(Exception):
    """What was found, and the input that shows it."""

    def __init__(self, what: str, data: bytes, execution: int) -> None:
        super().__init__(what, data, execution)
        self.what = what
        self.data = data
        self.execution = execution


class Report(NamedTuple):
    """What a run was."""

    executions: int
    seconds: float
    cpu_s: float
    slowest_s: float
    features: int
    memory_mib: float


def judge(target: Target, data: bytes) -> str | None:
    """Run one input; return what is wrong about it, or None."""
    try:
        times = [_cpu_s(target, data)]
        while times[-1] > SLOW_S and len(times) < 3:
            times.append(_cpu_s(target, data))
    except Exception:  # noqa: BLE001 - the boundary between a target and its engine
        return traceback.format_exc(limit=-8)
    if min(times) > SLOW_S:
        return "too slow: " + ", ".join(f"{t * 1e3:.0f} ms" for t in times) + " of CPU time"
    memory = memory_mib()
    return f"{memory:.0f} MiB of memory" if memory > MEMORY_MIB_MAX else None


def _cpu_s(target: Target, data: bytes) -> float:
    begin = time.process_time()
    target.run(data)
    return time.process_time() - begin


def memory_mib() -> float:
    """Return the most memory that this process has had, without what its parent had (Linux)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (high,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(high.split()[1]) / 1024


def hungriest(target: Target, inputs: list[bytes]) -> bytes:
    """Return the one of `inputs` that takes most memory at once."""
    peaks: list[int] = []
    tracemalloc.start()
    for data in inputs:
        tracemalloc.reset_peak()
        target.run(data)
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    return inputs[peaks.index(max(peaks))]


class Engine:
    """Runs one target."""

    def __init__(self, target: Target, seed: object, corpus: list[bytes]) -> None:
        """Begin with the target's seeds and the corpus, each of which is run as it is first."""
        self.target = target
        self.rng = random.Random(str(seed))
        self.first = target.seeds() + corpus
        self.pool = list(self.first)
        self.features: set[object] = set()
        self.executions = 0
        self.slowest_s = 0.0

    def run(
        self, executions: int | None, seconds: float | None, tell: Callable[[int, float], None]
    ) -> Report:
        """Run so many executions, or for so long.

        Args:
            executions: Exactly so many, or None.
            seconds: Or about so long.
            tell: Told now and then how many there were, and in how many seconds.

        Raises:
            Finding: Something is wrong.
        """
        begin, cpu_begin, enabled = time.monotonic(), time.process_time(), gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            while True:
                passed_s = time.monotonic() - begin
                left = BATCH if executions is None else min(BATCH, executions - self.executions)
                if left <= 0 or (seconds is not None and passed_s >= seconds):
                    break
                tell(self.executions, passed_s)
                self._batch(left)
        finally:
            if enabled:
                gc.enable()
            gc.unfreeze()
        return Report(
            self.executions, time.monotonic() - begin, time.process_time() - cpu_begin,
            self.slowest_s, len(self.features), memory_mib(),
        )  # fmt: skip

    def _batch(self, count: int) -> None:
        run, clock, features = self.target.run, time.perf_counter, self.features
        inputs: list[bytes] = []
        slowest = self.slowest_s
        data = b""
        try:
            for index in range(count):
                if not index % YOUNG:
                    gc.collect(0)
                data = self._next()
                inputs.append(data)
                begin = clock()
                feature = run(data)
                took = clock() - begin
                self.executions += 1
                if took > slowest:
                    slowest = self._slow(data, took, slowest)
                if feature not in features and feature is not None:
                    self._new(feature, data)
        except Finding:
            raise
        except Exception:  # noqa: BLE001 - the boundary between a target and its engine
            raise Finding(traceback.format_exc(limit=-8), data, self.executions) from None
        self.slowest_s = slowest
        gc.collect(1)
        if memory_mib() > MEMORY_MIB_MAX:
            what = f"{memory_mib():.0f} MiB of memory"
            raise Finding(what, hungriest(self.target, inputs), self.executions)

    def _next(self) -> bytes:
        if self.executions < len(self.first):
            return self.first[self.executions]
        chance = self.rng.random
        return self.target.mutate(self.rng, self.pool[int(chance() * len(self.pool))])

    def _slow(self, data: bytes, took_s: float, slowest_s: float) -> float:
        """Look at the slowest input so far: was it the input, or the machine?"""
        if took_s <= SLOW_S:
            return took_s
        what = judge(self.target, data)
        if what is not None:
            raise Finding(what, data, self.executions)
        return slowest_s

    def _new(self, feature: object, data: bytes) -> None:
        """Keep an input that did something new."""
        if len(self.features) >= FEATURES_MAX:
            return
        self.features.add(feature)
        if len(data) > SIZE_MAX:
            return
        if len(self.pool) < POOL_MAX:
            self.pool.append(data)
        else:
            self.pool[int(self.rng.random() * POOL_MAX)] = data


def say(text: str) -> None:
    """Print a line at once, also into a file."""
    print(text, flush=True)


def progress(name: str, every_s: float) -> Callable[[int, float], None]:
    """Return what tells how a run goes: a line every so many seconds, on stderr."""
    told = 0.0

    def tell(executions: int, passed_s: float) -> None:
        nonlocal told
        if passed_s - told >= every_s:
            told = passed_s
            rate = executions / passed_s
            print(f"{name}: {executions:,} executions, {rate:,.0f}/s", file=sys.stderr, flush=True)

    return tell
