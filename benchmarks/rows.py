"""What is measured of EasyRemote, each beside its floor.

Each row is a function that yields finished rows of the report, so that what was measured is shown
even if a later part fails. Goals are those of the project's design.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from . import bulk_floors, floors
from .bulk_floors import Bulk, Bytes
from .harness import (
    RUNS,
    WARM_UPS,
    Measure,
    Progress,
    Row,
    Series,
    affinity,
    alternate,
    median_us,
    percentile,
    timed,
)
from .peers import Peer
from .system import System, system

MB = 1_000_000


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        runs: Values for each contestant.
        warm_ups: Turns that do not count.
        sizes: Bytes of the arrays.
        calls: Calls for one value of a round trip.
        outstanding: Calls in flight for one value of the pipelined row.
        peers: Other systems that take part.
    """

    progress: Progress
    runs: int = RUNS
    warm_ups: int = WARM_UPS
    sizes: tuple[int, ...] = (1 * MB, 100 * MB, 256 * MB, 1000 * MB)
    calls: int = 500
    outstanding: int = 5000
    peers: tuple[Peer, ...] = ()

    def alternate(self, contestants: Mapping[str, Measure]) -> list[Series]:
        """Measure the contestants in turns."""
        return alternate(
            contestants, runs=self.runs, warm_ups=self.warm_ups, progress=self.progress
        )

    def with_peers(
        self, contestants: dict[str, Measure], what: str, number: int
    ) -> dict[str, Measure]:
        """Add the peers that can do this."""
        for peer in self.peers:
            if peer.can(what, number):
                contestants[peer.name] = peer.measure(what, number)
        return contestants


@contextmanager
def _placed(pinned: bool) -> Iterator[System]:
    with affinity(pinned), system() as running:
        yield running


def _places() -> list[tuple[str, bool]]:
    return [("free", False), ("pinned", True)]


def round_trip(options: Options) -> Iterator[Row]:
    """One call at a time from a lone blocking caller."""
    for place, pinned in _places():
        with _placed(pinned) as ours, affinity(pinned), floors.chain(options.calls) as floor:
            contestants: dict[str, Measure] = {
                "ours": lambda: median_us(lambda: ours.noop().result(), options.calls),
                "floor": floor,
            }
            if not pinned:
                options.with_peers(contestants, "round_trip", options.calls)
            yield Row(
                f"round_trip {place}",
                "us",
                lower_is_better=True,
                contestants=options.alternate(contestants),
                goal="<= 2.8, then 2",
                includes="call and result() through gateway, agent and worker over TLS",
            )


def pipelined(options: Options) -> Iterator[Row]:
    """Many calls in flight from one client."""
    count = options.outstanding

    def run(noop: Any) -> float:
        begin = time.perf_counter()
        futures = [noop() for _ in range(count)]
        for future in futures:
            future.result()
        return count / (time.perf_counter() - begin)

    for place, pinned in _places():
        with _placed(pinned) as ours, affinity(pinned), floors.poll_chain(count) as floor:
            contestants: dict[str, Measure] = {
                "ours": lambda: run(ours.noop),
                "floor": floor,
            }
            if not pinned:
                options.with_peers(contestants, "pipelined", count)
            yield Row(
                f"pipelined {count} {place}",
                "calls/s",
                lower_is_better=False,
                contestants=options.alternate(contestants),
                goal=">= 0.6",
                includes="making the calls and every result()",
            )


def _array(size_bytes: int) -> Bytes:
    return np.random.default_rng(size_bytes).integers(0, 256, size_bytes, np.uint8)


def _ours_in_bulk(ours: System, array: Bytes) -> Bulk:
    def per_s(work: Callable[[], object]) -> float:
        return array.nbytes / timed(work) / 1e9

    def verify() -> None:
        assert ours.keep(array).result() == array.nbytes
        returned = ours.give().result()
        assert np.array_equal(array, returned), "an array came back changed"

    return Bulk(
        lambda: per_s(lambda: ours.keep(array).result()),
        lambda: per_s(lambda: ours.give().result()),
        verify,
    )


def arrays(options: Options) -> Iterator[Row]:
    """Arrays there and back; every byte is compared outside the timed part."""
    with _placed(pinned=False) as running:
        for size in options.sizes:
            array = _array(size)
            with ExitStack() as stack:
                ours = _ours_in_bulk(running, array)
                relay = stack.enter_context(bulk_floors.bulk_chain(array, worker=False))
                same = stack.enter_context(bulk_floors.bulk_chain(array, worker=True))
                straight = stack.enter_context(bulk_floors.direct(array))
                for one in (ours, relay, same, straight):
                    one.verify()
                contestants: dict[str, Measure] = {
                    "ours": ours.send,
                    "floor": relay.send,
                    "same hops": same.send,
                    "direct": straight.send,
                    "memcpy": bulk_floors.memcpy(array),
                }
                options.with_peers(contestants, "send", size)
                yield _bulk_row(f"send {size // MB} MB", options.alternate(contestants))
                contestants = {
                    "ours": ours.receive,
                    "floor": relay.receive,
                    "same hops": same.receive,
                    "direct": straight.receive,
                }
                options.with_peers(contestants, "receive", size)
                yield _bulk_row(f"receive {size // MB} MB", options.alternate(contestants))


def _bulk_row(name: str, contestants: list[Series]) -> Row:
    return Row(
        name,
        "GB/s",
        lower_is_better=False,
        contestants=contestants,
        goal=">= 0.9",
        includes="call and result() through the gateway; floor: plain relay loop without a worker",
    )


def small_during_bulk(options: Options) -> Iterator[Row]:
    """Small calls while the largest array is on its way on the same link."""
    array = _array(max(options.sizes))
    with _placed(pinned=False) as ours:
        speeds: list[float] = []
        middles: list[float] = []

        def small_calls_p99() -> float:
            taken: list[float] = []
            begin = time.perf_counter()
            transfer = ours.keep(array)
            while not transfer.done():
                taken.append(timed(lambda: ours.noop().result()) * 1000)
            transfer.result()
            speeds.append(array.nbytes / (time.perf_counter() - begin) / 1e9)
            middles.append(percentile(taken, 50))
            return percentile(taken, 99)

        measured = options.alternate(
            {"ours": small_calls_p99, "alone": _ours_in_bulk(ours, array).send}
        )
        by_name = {series.name: series.values for series in measured}
        warm = options.warm_ups
        yield Row(
            f"small calls during {len(array) // MB} MB, p99",
            "ms",
            lower_is_better=True,
            contestants=[
                Series("ours", by_name["ours"]),
                Series("ours p50", middles[warm:]),
            ],
            goal="p99 <= 2 ms",
            includes="one caller, one call at a time, same link",
        )
        yield Row(
            f"{len(array) // MB} MB during small calls",
            "GB/s",
            lower_is_better=False,
            contestants=[Series("ours", speeds[warm:]), Series("floor", by_name["alone"])],
            goal=">= 0.8",
            includes="floor: the same transfer alone",
        )


def start_up(options: Options) -> Iterator[Row]:
    """Importing, and the first result from nothing."""

    def import_s() -> float:
        return timed(
            lambda: subprocess.run([sys.executable, "-c", "import easyremote"], check=True)
        )

    def first_result_s() -> float:
        begin = time.perf_counter()
        with system() as running:
            running.noop().result()
            return time.perf_counter() - begin

    yield Row(
        "import easyremote",
        "s",
        lower_is_better=True,
        contestants=options.alternate({"ours": import_s, "floor": bulk_floors.bare_python}),
        goal="<= 0.15 s",
        includes="a new interpreter; floor: python -c pass",
    )
    yield Row(
        "first result from nothing",
        "s",
        lower_is_better=True,
        contestants=options.alternate({"ours": first_result_s, "floor": bulk_floors.bare_python}),
        goal="<= 2 s",
        includes="gateway and node started one after the other, keys made, first call",
    )


def memory(options: Options) -> Iterator[Row]:
    """Idle memory and CPU of every process, and the gateway's growth under a large array."""
    with _placed(pinned=False) as ours:
        ours.noop().result()
        parts = ours.processes()
        everyone = [process for family in parts.values() for process in family]
        notes = {
            f"{part} {kind}": sum(_memory_mb(process, kind) for process in family)
            for part, family in parts.items()
            for kind in ("pss", "rss")
        }
        used = [sum(process.cpu_times()[:2]) for process in everyone]
        wait_s = 5.0
        options.progress(f"idle for {wait_s:g} s")
        time.sleep(wait_s)
        after = [sum(process.cpu_times()[:2]) for process in everyone]
        notes["busiest idle CPU %"] = max(
            100 * (end - begin) / wait_s for begin, end in zip(used, after, strict=True)
        )
        total = sum(_memory_mb(process, "pss") for process in everyone)
        floor = len(everyone) * _bare_pss_mb()
        yield Row(
            f"idle memory, {len(everyone)} processes",
            "MB PSS",
            lower_is_better=True,
            contestants=[Series("ours", [total]), Series("floor", [floor])],
            goal="<= 120 MB, gateway <= 60 MB",
            includes="this process, too; floor: as many bare interpreters",
            notes=notes,
        )
        array = _array(max(options.sizes))
        growth = _growth_mb(ours.gateway, _ours_in_bulk(ours, array).verify)
        yield Row(
            f"gateway's growth by {len(array) // MB} MB",
            "MB RSS",
            lower_is_better=True,
            contestants=[Series("ours", [growth])],
            goal="< 64 MB",
            includes="peak during the array's way there and back, less what it was before",
        )


def _memory_mb(process: psutil.Process, kind: str) -> float:
    return float(getattr(process.memory_full_info(), kind)) / MB


def _bare_pss_mb() -> float:
    process = psutil.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        process.stdout.readline()
        return _memory_mb(psutil.Process(process.pid), "pss")
    finally:
        process.communicate(b"\n")


def _growth_mb(process: psutil.Process, work: Callable[[], object]) -> float:
    before = process.memory_info().rss
    peak, over = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return (peak - before) / MB


ROWS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "round_trip": round_trip,
    "pipelined": pipelined,
    "arrays": arrays,
    "small_during_bulk": small_during_bulk,
    "start_up": start_up,
    "memory": memory,
}
"""Every row by its name."""


def only_floors(options: Options) -> Iterator[Row]:
    """The floors by themselves, without any system of ours."""
    for place, pinned in _places():
        with affinity(pinned), floors.chain(options.calls) as chain:
            series = options.alternate({"floor": chain})
            yield Row(f"round_trip {place}", "us", lower_is_better=True, contestants=series)
        with affinity(pinned), floors.poll_chain(options.outstanding) as poll:
            series = options.alternate({"floor": poll})
            yield Row(f"pipelined {place}", "calls/s", lower_is_better=False, contestants=series)
    for size in options.sizes:
        array = _array(size)
        with ExitStack() as stack:
            relay = stack.enter_context(bulk_floors.bulk_chain(array, worker=False))
            same = stack.enter_context(bulk_floors.bulk_chain(array, worker=True))
            straight = stack.enter_context(bulk_floors.direct(array))
            for one in (relay, same, straight):
                one.verify()
            contestants = {
                "floor": relay.send,
                "same hops": same.send,
                "direct": straight.send,
                "memcpy": bulk_floors.memcpy(array),
            }
            yield _bulk_row(f"send {size // MB} MB", options.alternate(contestants))
    series = options.alternate({"floor": bulk_floors.bare_python})
    yield Row("python -c pass", "s", lower_is_better=True, contestants=series)
