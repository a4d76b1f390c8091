"""Choose where a call runs: the candidate with the fewest calls in flight.

Theory. Among equal nodes the one that holds least, relative to what it can run at once, answers
soonest. Ties go to the one that was used least recently, so that equal nodes share equal work.

Rules of this file. 1) Pure. 2) A candidate that may hold no more is never chosen; that is not an
error but the answer None, and the call waits.

Source. "Least outstanding requests" as in Envoy's load balancer, with capacities.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What the choice needs to know of a place where a call could run."""

    @property
    def busy(self) -> int:
        """Calls that are there and occupy a slot or wait for one."""
        ...

    @property
    def limit(self) -> int:
        """How many may be there."""
        ...

    @property
    def slots(self) -> int:
        """How many run at once."""
        ...

    @property
    def used(self) -> int:
        """A counter that grows with every use of any candidate."""
        ...


C = TypeVar("C", bound=Candidate)


def choose(candidates: Iterable[C]) -> C | None:
    """Return the candidate with the fewest calls per slot that may take one more, or None."""
    best: C | None = None
    best_load, best_used = 0.0, 0
    for candidate in candidates:
        busy = candidate.busy
        if busy >= candidate.limit:
            continue
        load = busy / candidate.slots
        used = candidate.used
        if best is None or load < best_load or (load == best_load and used < best_used):
            best, best_load, best_used = candidate, load, used
    return best
