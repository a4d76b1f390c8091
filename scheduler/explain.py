"""Why this node, and why not the others: kept as numbers, written as sentences when somebody asks.

Theory. A decision over thousands of nodes has thousands of reasons, of which nobody reads more than
a few, and mostly nobody reads any. So a reason is kept as a small number (its kind), with an amount
beside it, and becomes a `Rejection` or a sentence on demand:

        0 of 5 nodes: 3 lack gpu_memory (want 20 GB; the most is 8 GB), 2 stale

Rules of this file. 1) Nothing is decided here. 2) Sentences name at most `NAMED_MAX` nodes; counts
are always of all. 3) Which nodes somebody may know of is the caller's business: it passes those.

Source. "0/5 nodes are available" of Kubernetes' scheduler.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import nan

from .filter import Request, rejection
from .host import Host, Place
from .model import NO_NEEDS, Needs, Placement, Rejection, Unplaceable, show_amount
from .place import Places
from .reserve import Reservation

NAMED_MAX = 8
"""Nodes that a sentence names."""


class Reasons(Mapping[str, Rejection]):
    """Rejections by node id, as arrays: some twenty bytes each, beside the ids."""

    __slots__ = ("_at", "_haves", "_kinds", "_known", "_texts")

    def __init__(self, reasons: Iterable[tuple[str, Rejection]] = ()) -> None:
        self._at: dict[str, int] = {}
        self._known: list[Rejection] = []
        self._kinds = array("L")
        self._haves = array("d")
        self._texts: dict[int, str] = {}
        known: dict[Rejection, int] = {}
        for node_id, why in reasons:
            if node_id in self._at:
                continue
            at = self._at[node_id] = len(self._kinds)
            kind = why._replace(have=None)
            number = known.setdefault(kind, len(known))
            if number == len(self._known):
                self._known.append(kind)
            self._kinds.append(number)
            if isinstance(why.have, str):
                self._texts[at] = why.have
            self._haves.append(why.have if isinstance(why.have, int | float) else nan)

    def __getitem__(self, node_id: str) -> Rejection:
        """Return why a node was rejected."""
        at = self._at[node_id]
        have: float | str | None = self._texts.get(at)
        if have is None and (amount := self._haves[at]) == amount:
            have = amount
        return self._known[self._kinds[at]]._replace(have=have)

    def __iter__(self) -> Iterator[str]:
        """Go through the node ids."""
        return iter(self._at)

    def __len__(self) -> int:
        """Return how many nodes were rejected."""
        return len(self._at)


def placement(
    places: Places,
    chosen: Place,
    reservation: Reservation | None = None,
    exclude: Collection[str] = (),
) -> Placement:
    """Return the decision for `chosen` with its scores and the reasons against the others.

    Called before `chosen.take()` and `reserve`: afterwards the numbers are those for the next call.

    Args:
        places: The pool.
        chosen: What `choose` returned.
        reservation: What was reserved there.
        exclude: As for `choose`.
    """
    ranked = places.judged(chosen)
    desperate = places.desperate
    reasons = Reasons(
        (place.host.node_id, why)
        for place in places
        if place is not chosen
        and (why := rejection(place, Request(places.needs_at(place), exclude, desperate)))
        is not None
    )
    return Placement(
        chosen.host.node_id,
        ranked.scores,
        ranked.total,
        places.policy.weights.as_data(),
        ranked.devices if reservation is None else reservation.devices,
        len(places) - len(reasons),
        reasons,
    )


def why_not(places: Iterable[Place], needs: Needs = NO_NEEDS, exclude: Collection[str] = ()) -> (
    Unplaceable
):  # fmt: skip
    """Return why a call runs nowhere now: the reason against each place, where there is one."""
    request = Request(needs, exclude)
    return Unplaceable(
        Reasons(
            (place.host.node_id, why)
            for place in places
            if (why := rejection(place, request)) is not None
        ),
        needs,
    )


def infeasible(hosts: Iterable[Host], needs: Needs) -> Unplaceable | None:
    """Return why no node could ever run a call, or None if one could, or may; None for no nodes."""
    reasons: list[tuple[str, Rejection]] = []
    if not needs:
        return None
    for host in hosts:
        why = host.ledger.ever(needs)
        if why is None:
            return None
        reasons.append((host.node_id, why))
    return Unplaceable(Reasons(reasons), needs) if reasons else None


def sentence(unplaceable: Unplaceable, nodes: int | None = None) -> str:
    """Say in one line why a call runs nowhere.

    Args:
        unplaceable: From `why_not` or `infeasible`.
        nodes: How many nodes were asked; those that rejected it, if None.
    """
    reasons = unplaceable.rejections
    count = len(reasons) if nodes is None else nodes
    parts = [_many(kind, number, reasons) for kind, number in _kinds(reasons).most_common()]
    can = max(0, count - len(reasons))
    return f"{can} of {count} node{'' if count == 1 else 's'}: {', '.join(parts) or 'none known'}"


def offers(unplaceable: Unplaceable) -> list[str]:
    """Say of each node what it lacks, for `InfeasibleError`; the last line counts the rest.

    The lines begin with the node id, as in `gpu1 has 8 GB gpu_memory (want 16 GB)`.
    """
    reasons = unplaceable.rejections
    lines = [f"{node_id} {_one(reasons[node_id])}" for node_id in sorted(reasons)[:NAMED_MAX]]
    if len(reasons) > NAMED_MAX:
        lines.append(f"and {len(reasons) - NAMED_MAX} more")
    return lines


def _one(why: Rejection) -> str:
    return why.shown() if why.reason == "lacks" or why.never else f"is {why.shown()}"


def _kinds(reasons: Mapping[str, Rejection]) -> Counter[Rejection]:
    return Counter(why._replace(have=None) for why in reasons.values())


def _many(kind: Rejection, number: int, reasons: Mapping[str, Rejection]) -> str:
    if kind.reason != "lacks":
        return f"{number} {kind.shown()}"
    haves = [why.have for why in reasons.values() if why._replace(have=None) == kind]
    amounts = [have for have in haves if isinstance(have, int | float)]
    want = f"want {show_amount(kind.key, kind.want)}"
    if amounts:
        left = "" if kind.never else " left"
        want += f"; the most is {show_amount(kind.key, max(amounts)) or 'nothing'}{left}"
    return f"{number} lack{'s' if number == 1 else ''} {kind.key} ({want})"
