"""Hard constraints: may this call run at this place, and if not, why?

Theory. A place is out for the first reason that is found, and the reasons are asked in the order in
which an answer helps most: what will never fit before what does not fit now.

Rules of this file. 1) A filter is a plain function of place and request; `FILTERS` is the order.
2) A rejection is a value; nothing raises. 3) Who may call what is not asked here.

Source. house.md, "filter, then score, then choose, and keep the reasons".
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from .breaker import State
from .host import Place
from .model import NO_NEEDS, Needs, Rejection


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be placed.

    Attributes:
        needs: What it reserves.
        exclude: Ids of nodes that must not get it: they gave it back.
        desperate: Every node is shut, so being shut is no reason.
    """

    needs: Needs = NO_NEEDS
    exclude: Collection[str] = ()
    desperate: bool = False


Filter = Callable[[Place, Request], Rejection | None]


def never_fits(place: Place, request: Request) -> Rejection | None:
    """It would not fit on the empty machine."""
    return place.host.ledger.ever(request.needs) if request.needs else None


def excluded(place: Place, request: Request) -> Rejection | None:
    """The node gave this call back."""
    return Rejection("excluded") if place.host.node_id in request.exclude else None


def shut(place: Place, request: Request) -> Rejection | None:
    """The node has been silent for too long, or failed too often."""
    host = place.host
    if not host.shut or request.desperate:
        return None
    return Rejection("suspect" if host.breaker.state is State.OPEN else "stale")


def full(place: Place, request: Request) -> Rejection | None:  # noqa: ARG001
    """It holds as many calls as it may."""
    if place.host.probing and place.busy:
        return Rejection("suspect")
    return Rejection("full") if place.busy >= place.limit else None


def lacks(place: Place, request: Request) -> Rejection | None:
    """It does not have enough left."""
    if not request.needs:
        return None
    found = place.host.ledger.fits(request.needs)
    return found if isinstance(found, Rejection) else None


FILTERS: tuple[Filter, ...] = (never_fits, excluded, shut, full, lacks)


def rejection(place: Place, request: Request) -> Rejection | None:
    """Return why a call cannot run at a place now; None if it can."""
    for one in FILTERS:
        found = one(place, request)
        if found is not None:
            return found
    return None
