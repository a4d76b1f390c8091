"""What one placement costs: the gateway's choice of a node, among a hundred and ten thousand.

A value is one turn of what the gateway does for a call: choose a place, give the call to it, free
it. The nodes have answered telemetry and differ, so that one is best, or they are equal, so that
all tie and the least recently used has to be found. The floor is a bare `argmax` over as many
numbers, which no choice among them can do without.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

import numpy as np

from easyremote.scheduler.fleet import Fleet
from easyremote.scheduler.host import Host, Place
from easyremote.scheduler.place import Places

from .harness import Measure, Row, median_us
from .rows import Options

NODES = (2, 16, 100, 10_000)
GOALS = {100: "<= 20 us", 10_000: "<= 300 us"}
MEMORY_BYTES = 64 * 10**9


def cluster(nodes: int, *, equal: bool) -> Places:
    """Return a pool of nodes with 64 slots, each of which has sent a sample."""
    rng = random.Random(nodes)
    places = Places(Fleet())
    for number in range(nodes):
        host = Host(f"node{number}")
        used = 0.5 if equal else rng.random()
        place = Place(host, "default", 64)
        host.heard(
            {
                "cpu_percent": 100.0 * used,
                "cpu_count": 16,
                "memory_total_bytes": MEMORY_BYTES,
                "memory_available_bytes": int(MEMORY_BYTES * (1.0 - used)),
            },
            0.0,
        )
        places.add(place)
    return places


def _turns(places: Places, times: int) -> Measure:
    uses = count(1)

    def turn() -> None:
        place = places.choose()
        assert place is not None
        place.take(next(uses))
        place.release()

    return lambda: median_us(turn, times)


def placement(options: Options) -> Iterator[Row]:
    """Choose, give and free, beside a bare argmax."""
    for nodes in NODES:
        values = np.random.default_rng(nodes).random(nodes)
        times = max(options.calls // 5, 20) if nodes > 1000 else options.calls * 4

        def floor(values: np.ndarray = values, times: int = times) -> float:
            return median_us(values.argmax, times)

        for name, equal in (("differ", False), ("tie", True)):
            contestants = {"ours": _turns(cluster(nodes, equal=equal), times), "floor": floor}
            yield Row(
                f"placement {nodes} that {name}",
                "us",
                lower_is_better=True,
                contestants=options.alternate(contestants),
                goal=GOALS.get(nodes, ""),
                includes="choose, take and release; reading the clock twice",
            )
