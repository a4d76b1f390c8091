"""Choose where a call runs: the best place with room, and of equals the least recently used.

Theory. Calls wait at pools, and a pool has places. A call that comes in is given to the place with
the largest value that has room; if none has, it waits, and is taken by the first place that becomes
free. Places whose values are within `epsilon` of the best are equal, and take turns: without that,
the one that is better by nothing would get everything.

The common question ("any place will do, who is best?") is answered from numbers that places keep:
by a loop in short pools, by numpy in long ones, with the same answer. A pool whose calls need
resources keeps, for each place, what its resources score, and computes it again where the node
changed. Everything else (nodes that gave the call back, large arguments, users' own strategies)
goes the long way: filter, score, choose. In a long pool it does so for the best by their values.

Rules of this file. 1) Pure. 2) What does not pass the filters is never chosen. 3) The order of
places never matters. 4) "No" is None; `explain` says why.

Source. The least-recently-used tie-break of features.md I9.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import score
from .filter import Request, rejection
from .fleet import Fleet
from .host import NO_ROOM, SHUT_BELOW, Host, Place
from .model import NO_NEEDS, Needs, NodeSnapshot, Rejection, Scores
from .policy import DEFAULT, Lots, Policy
from .transfer import LARGE_BYTES, Large, soonest

LONG = 64
"""Pools with more places are asked through the fleet's table: looping costs 0.06 us a place, the
table some 4 us and then next to nothing a place (`python -m benchmarks placement`)."""
SHORT = 48
"""Pools with fewer places leave it again: one that goes up and down does so seldom."""

SHORTLIST = 32
"""Places of a long pool that are looked at closely: the best by their values."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with what is said for it."""

    place: Place
    scores: Scores
    total: float
    devices: tuple[int, ...] = ()


class Places:
    """The places of one pool.

    Attributes:
        fleet: The table of the gateway.
        policy: How one of them is chosen.
        needs: What each call of the pool reserves, where no place says otherwise.
    """

    __slots__ = (
        "_adjusted", "_bonuses", "_capability", "_index", "_liked", "_list", "_long", "_lots",
        "_own", "_plain", "_quick", "_reserves", "_seen", "_slots", "fleet", "needs", "policy",
    )  # fmt: skip

    def __init__(
        self,
        fleet: Fleet,
        policy: Policy = DEFAULT,
        needs: Needs = NO_NEEDS,
        *,
        capability: Callable[[Host], float] | None = None,
        lots: Lots | None = None,
    ) -> None:
        """Begin without places.

        Args:
            fleet: The table of the gateway.
            policy: The hosts' own policy, or another for the calls of this pool.
            needs: What each call reserves.
            capability: How well a node fits what is preferred, in [0, 1]; asked once per place.
            lots: Draws for the strategy `random`.
        """
        assert lots is not None or not policy.draws
        self.fleet = fleet
        self.policy = policy
        self.needs = needs
        self._capability = capability
        self._lots = lots
        self._plain = not needs and capability is None
        # Until a place comes that was valued by another policy.
        self._quick = policy.chooser is None and not policy.draws
        self._list: list[Place] = []
        self._slots: dict[Place, int] = {}  # Where in the list.
        self._liked: dict[Place, float] = {}
        self._long = False
        self._index: NDArray[np.intp] | None = None
        self._seen: NDArray[np.int64] = np.zeros(0, np.int64)
        self._adjusted: NDArray[np.float64] = np.zeros(0)
        self._bonuses: dict[Place, tuple[int, float]] = {}
        self._own: dict[Place, Needs] = {}
        self._reserves: NDArray[np.bool_] = np.zeros(0, np.bool_)

    def __len__(self) -> int:
        """Return how many places there are."""
        return len(self._list)

    def __iter__(self) -> Iterator[Place]:
        """Go through the places, in no order that means anything."""
        return iter(self._list)

    def __contains__(self, place: object) -> bool:
        """Whether a place is one of them."""
        return place in self._slots

    def needs_at(self, place: Place) -> Needs:
        """Return what a call reserves at one of the places."""
        return self._own.get(place, self.needs)

    def add(self, place: Place, needs: Needs | None = None) -> None:
        """Take a place in; of one that is there, only what calls reserve may have changed.

        Args:
            place: The place.
            needs: What a call reserves there, if that differs from the pool's `needs`.
        """
        if needs is None or needs == self.needs:
            self._own.pop(place, None)
        else:
            self._own[place] = needs
            self._plain = False
        self._bonuses.pop(place, None)
        if place in self._slots:
            self._index = None
            return
        self._slots[place] = len(self._list)
        self._list.append(place)
        self._quick = self._quick and place.host.policy == self.policy
        if self._capability is not None:
            self._liked[place] = score.share(self._capability(place.host))
        self._index = None
        if self._long:
            self.fleet.enter(place)
        elif len(self._list) > LONG:
            self._long = True
            for one in self._list:
                self.fleet.enter(one)

    def discard(self, place: Place) -> None:
        """Give a place up; nothing happens if it is not there."""
        at = self._slots.pop(place, None)
        if at is None:
            return
        last = self._list.pop()
        if last is not place:
            self._list[at] = last
            self._slots[last] = at
        self._liked.pop(place, None)
        self._bonuses.pop(place, None)
        self._own.pop(place, None)
        self._index = None
        if self._long:
            self.fleet.leave(place)
            if len(self._list) < SHORT:
                self._long = False
                for one in self._list:
                    self.fleet.leave(one)

    # ---- choose --------------------------------------------------------------------------------

    def choose(self, exclude: Collection[str] = (), large: Large | None = None) -> Place | None:
        """Return the place that should get a call now; None if it has to wait.

        With needs, `place.host.reserve(needs)` follows at once, and succeeds.

        Args:
            exclude: Ids of nodes that must not get it.
            large: What is known of large arguments; see `transfer.py`.
        """
        places = self._list
        if large is not None and large.size_bytes < LARGE_BYTES:
            large = None
        if exclude or large is not None or not self._quick:
            return self._choose_slowly(exclude, large)
        if self._long:
            return self._choose_long()
        if not self._plain:
            return self._choose_adjusted()
        best = NO_ROOM
        for place in places:
            if place.value > best:  # noqa: PLR1730  # A call of max() costs as much as the loop.
                best = place.value
        if best < SHUT_BELOW:
            return self._desperately(best)
        best -= self.policy.epsilon
        chosen: Place | None = None
        for place in places:
            if place.value >= best and (chosen is None or place.used < chosen.used):
                chosen = place
        return chosen

    def takes(self, place: Place, exclude: Collection[str] = ()) -> bool:
        """Return whether a call that waits here may be given to a place of the pool now.

        It is the question of a place that became free; `choose` is that of a call that came.
        """
        value = place.value
        if value < SHUT_BELOW and (value == NO_ROOM or not self.desperate):
            return False
        host = place.host
        needs = self.needs_at(place)
        if needs and isinstance(host.ledger.fits(needs), Rejection):
            return False
        return host.node_id not in exclude

    def _choose_adjusted(self) -> Place | None:
        """As in a plain pool, with what resources and preferences add for this pool."""
        values: list[tuple[float, Place]] = []
        best = NO_ROOM
        for place in self._list:
            value = place.rest if self.needs_at(place) else place.value
            if value == NO_ROOM:
                continue
            version = place.host.version
            known = self._bonuses.get(place)
            if known is None or known[0] != version:
                known = self._bonuses[place] = version, self._bonus(place)
            value += known[1]
            values.append((value, place))
            best = max(best, value)
        if best < SHUT_BELOW:
            return self._desperately(best)
        best -= self.policy.epsilon
        near = [place for value, place in values if value >= best]
        return min(near, key=_last_use)

    def _choose_long(self) -> Place | None:
        values, index = self._values()
        at = int(values.argmax())
        best = values[at]
        if best < SHUT_BELOW:
            return self._desperately(best)
        near = (values >= best - self.policy.epsilon).nonzero()[0]
        if len(near) > 1:
            at = int(near[self.fleet.used.take(index.take(near)).argmin()])
        return self._list[at]

    def _desperately(self, best: float) -> Place | None:
        """Nothing that is not shut has room: wait, unless everything is shut."""
        if best == NO_ROOM or not self.desperate:
            return None
        return self._choose_slowly((), None)

    def _values(self) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Return the values of all places of a long pool, a fresh array, and their rows."""
        fleet, index = self.fleet, self._index
        if index is None:
            index = self._rows()
        if self._plain:
            return fleet.value.take(index), index
        values = np.where(self._reserves, fleet.rest.take(index), fleet.value.take(index))
        values += self._adjust(index)
        return values, index

    def _rows(self) -> NDArray[np.intp]:
        index = np.fromiter((place.row for place in self._list), np.intp, len(self._list))
        self._index = index
        self._seen = np.full(len(index), -1, np.int64)
        self._adjusted = np.zeros(len(index))
        self._reserves = np.array([bool(self.needs_at(place)) for place in self._list], np.bool_)
        return index

    def _adjust(self, index: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return what `_bonus` says of each place."""
        versions = self.fleet.version.take(index)
        for at in (versions != self._seen).nonzero()[0].tolist():
            self._adjusted[at] = self._bonus(self._list[at])
        self._seen = versions
        return self._adjusted

    def _bonus(self, place: Place) -> float:
        """Return what needs and preferences add to a value; minus infinity if it does not fit.

        With needs it is added to `rest`, for their resources are scored instead.
        """
        weights = self.policy.weights
        liked = weights.capability * (self._liked.get(place, 1.0) - 1.0)
        needs = self.needs_at(place)
        if not needs:
            return liked
        ledger = place.host.ledger
        devices = ledger.fits(needs)
        if isinstance(devices, Rejection):
            return NO_ROOM
        return liked + weights.resources * ledger.free_after(needs, devices)

    # ---- the long way: filter, score, choose -----------------------------------------------------

    def rank(
        self, exclude: Collection[str] = (), among: Collection[Place] | None = None
    ) -> list[Ranked]:
        """Return the candidates, best first, equals by their last use.

        Args:
            exclude: Ids of nodes that must not get the call.
            among: The places that are looked at, all by default.
        """
        desperate = self.desperate
        found = [
            self.judged(place)
            for place in (self._list if among is None else among)
            if rejection(place, Request(self.needs_at(place), exclude, desperate)) is None
        ]
        found.sort(key=lambda ranked: (-ranked.total, ranked.place.used))
        return found

    @property
    def desperate(self) -> bool:
        """Whether all nodes that could run a call are shut: then one of them has to do."""
        return all(
            place.host.shut
            or (bool(needs := self.needs_at(place)) and place.host.ledger.ever(needs) is not None)
            for place in self._list
        )

    def judged(self, place: Place) -> Ranked:
        """Return the scores of a place for a call of this pool."""
        needs = self.needs_at(place)
        devices = place.host.ledger.fits(needs) if needs else ()
        if isinstance(devices, Rejection):
            devices = ()
        scores = place.scores(needs, devices, self._liked.get(place, 1.0))
        return Ranked(place, scores, score.total(scores, self.policy.weights), devices)

    def _choose_slowly(self, exclude: Collection[str], large: Large | None) -> Place | None:
        ranked: list[Ranked] = []
        if self._long and self._quick:
            ranked = self.rank(exclude, self._shortlist(large))
        ranked = ranked or self.rank(exclude)
        if large is not None and ranked:
            soon = soonest([one.place for one in ranked], self._list, large)
            ranked = [one for one in ranked if one.place in soon]
        if not ranked:
            return None
        policy = self.policy
        if policy.chooser is not None:
            return self._ask(ranked)
        return self._best(ranked)

    def _best(self, ranked: list[Ranked]) -> Place:
        """Return the best of the candidates, as the weights say; of equals the least used."""
        policy = self.policy
        if policy.draws:
            assert self._lots is not None
            return ranked[self._lots.randrange(len(ranked))].place
        least = ranked[0].total - policy.epsilon
        near = [one.place for one in ranked if one.total >= least]
        return min(near, key=_last_use)

    def _shortlist(self, large: Large | None) -> dict[Place, None]:
        """Return the best places of a long pool, and those that have the data."""
        values, _ = self._values()
        some = min(SHORTLIST, len(values))
        best = np.argpartition(values, -some)[-some:]
        found = {self._list[at]: None for at in best.tolist()}
        if large is not None and large.holders:
            found.update((p, None) for p in self._list if p.host.node_id in large.holders)
        return found

    def _ask(self, ranked: list[Ranked]) -> Place | None:
        """Let a user's own strategy choose; what it says that is no candidate leaves it to us.

        None lets the call wait, if there is a call whose end can end the wait.
        """
        assert self.policy.chooser is not None
        snapshots = [one.place.snapshot(one.scores, one.total) for one in ranked]
        answer = self.policy.chooser(snapshots, self.needs_at(ranked[0].place))
        wanted = answer.node_id if isinstance(answer, NodeSnapshot) else answer
        for one in ranked:
            if one.place.host.node_id == wanted:
                return one.place
        if wanted is None and any(place.busy for place in self._list):
            return None
        return self._best(ranked)


def _last_use(place: Place) -> int:
    return place.used
