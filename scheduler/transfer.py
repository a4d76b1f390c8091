"""Large arguments: go where the data is, or where there is room?

Theory. From `LARGE_BYTES` on, moving the data counts. Always following the data puts everything on
one node; never following it moves all of it for the sake of a slot. Both are a time, so they are
compared as such: the seconds until the body can begin are those for moving the data and those of
waiting for a slot. Candidates that are close to the soonest stay in the choice, and their totals
decide. A place that has the data and is full may be worth waiting for, as long as waiting is
shorter than moving: data draws calls, and a queue drives them away again.

Rules of this file. 1) Pure. 2) Times are estimates, so those that differ little are equal.
3) Nobody waits behind a body of which nothing is known.

Source. Delay scheduling (Zaharia et al., 2010).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from .host import Place

LARGE_BYTES = 1 << 20
"""Arguments from here on take noticeable time on the way."""
CLOSE_FACTOR = 1.25
CLOSE_S = 0.05
"""Delays that differ by less than that factor and time are equal."""


@dataclass(frozen=True, slots=True)
class Large:
    """Arguments that take time to move.

    Attributes:
        size_bytes: How much.
        holders: Ids of nodes that have them already.
        waiting: Calls that wait at the pool before this one.
    """

    size_bytes: int
    holders: Collection[str] = ()
    waiting: int = 0

    def transfer_s(self, place: Place) -> float:
        """Return how long moving them to a place takes."""
        host = place.host
        return 0.0 if host.node_id in self.holders else self.size_bytes / host.bytes_per_s


def soonest(candidates: Sequence[Place], places: Iterable[Place], large: Large) -> set[Place]:
    """Return the candidates where the body can begin soon; none if waiting is better.

    Args:
        candidates: Places that could take the call now, one at least.
        places: Those of the whole pool, of which some may have the data and be full.
        large: What is to be moved.
    """
    delays = {place: large.transfer_s(place) + place.wait_s() for place in candidates}
    best_s = min(delays.values())
    if large.holders and any(
        place.host.node_id in large.holders
        and not place.host.shut
        and place.wait_s(large.waiting) * CLOSE_FACTOR + CLOSE_S < best_s
        for place in places
    ):
        return set()
    limit_s = best_s * CLOSE_FACTOR + CLOSE_S
    return {place for place, delay_s in delays.items() if delay_s <= limit_s}
