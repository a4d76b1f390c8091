"""Why each call went where it went: kept as numbers, written out for whoever asks.

Theory. `future.placement` shows the four scores of the node that was chosen and why the others were
out. Hardly anybody asks, and every call is placed, so what is kept of a decision is the place, its
scores as they were, and the places that were full: three references. Sentences are made of them on
demand.

Rules of this file. 1) Bounded: the latest decisions are kept, over all users. 2) Who asks has shown
that the call is its own.

Source. features.md I9; scheduler/README.md for the scores.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from ..scheduler import score
from ..scheduler.host import NO_ROOM, Place
from ..scheduler.model import Scores

if TYPE_CHECKING:
    from .calls import GatewayCall
    from .pool import Pool

KEPT_MAX = 10_000
"""Decisions that are remembered: those of the last seconds of a busy gateway."""
COMPARED_MAX = 64
"""In longer pools it is not kept who was full."""


class Trace(NamedTuple):
    """One decision."""

    place: Place
    scores: Scores
    full: tuple[Place, ...]
    pool: Pool
    gpus: tuple[int, ...]
    at: float
    """On trio's clock."""


class Traces:
    """The latest decisions, by user and call id: two users may have calls of one id."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, bytes], Trace] = OrderedDict()

    def keep(
        self, call: GatewayCall, pool: Pool, place: Place, scores: Scores | None, now: float
    ) -> None:
        """Remember why a call goes to a place, before it is counted there.

        Args:
            call: What it reserves is reserved already.
            pool: Where it was placed.
            place: Where it goes.
            scores: What they were before that; None if nothing was reserved.
            now: On trio's clock.
        """
        places = pool.ranked
        full: tuple[Place, ...] = ()
        if 1 < len(places) <= COMPARED_MAX:
            full = tuple(one for one in places if one.value == NO_ROOM and one is not place)
        if scores is None:
            simple = not pool.needy and not pool.kind.prefers
            scores = place.scores() if simple else places.judged(place).scores
        devices = () if call.reservation is None else call.reservation.devices
        known = self._known
        known[call.principal.user, call.message.call_id] = Trace(
            place, scores, full, pool, devices, now
        )
        if len(known) > KEPT_MAX:
            known.popitem(last=False)

    def placement(self, user: str, call_id: bytes, wall_minus_now: float) -> dict[str, Any] | None:
        """Return a decision as plain data; None if it is not remembered.

        Args:
            user: The asker.
            call_id: Of a call of the asker.
            wall_minus_now: Epoch seconds at the zero of trio's clock.
        """
        trace = self._known.get((user, call_id))
        if trace is None:
            return None
        weights, scores = trace.pool.ranked.policy.weights, trace.scores
        shown = {
            "resources": scores.resources,
            "latency": scores.latency,
            "load": scores.load,
            "capability": scores.capability,
        }
        if weights.cheap:
            shown["cheap"] = scores.cheap
        counts = {name: weight for name, weight in weights.as_data().items() if name in shown}
        for name, taken_off, weight in (
            ("slow", scores.slow, weights.slow),
            ("ahead", scores.ahead, weights.ahead),
            ("doubt", scores.doubt, 1.0),
        ):
            if taken_off and weight:
                shown[name], counts[name] = taken_off, -weight
        return {
            "node_id": trace.place.host.node_id,
            "scores": {**shown, "total": score.total(scores, weights)},
            "weights": counts,
            "excluded": {place.host.node_id: why for place, why in _excluded(trace)},
            "gpus": list(trace.gpus),
            "at": trace.at + wall_minus_now,
        }


def _excluded(trace: Trace) -> list[tuple[Place, str]]:
    """Return who was out: the full ones, and those that the calls of that pool never fit."""
    return [(place, f"full: it had {place.limit} of {place.limit} calls") for place in trace.full]
