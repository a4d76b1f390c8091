"""The four scores of a node, each in [0, 1], and their sum.

Theory. Each score is a formula that a reader can recompute from numbers that are shown:

        resources   nothing asked for: mean of the free shares of processors and memory;
                    otherwise the smallest share of an asked resource that stays free afterwards
        latency     1 / (1 + (round trip + usual body) / latency_ref)
        load        1 - busy / slots, not below 0
        capability  how well the node fits what is preferred (capability.py), 1 if nothing is

        total = sum of weight x score - weight of slow x slow - weight of ahead x ahead - doubt

`slow` is how often the latency doubles the reference. Where bodies last long, all of `latency` is
near 0, and yet a node that is twice as slow keeps a call for twice as long; a logarithm sees that
at any length. `ahead` are the calls per slot where no slot is free, so that calls go to free slots
first and then spread by what is waiting. `doubt` is how little the node is trusted.

Rules of this file. 1) Plain functions of numbers. 2) An unknown share
scores nothing; an unknown time takes no time, so that a new node is tried. 3) No
result leaves [0, 1], and none is NaN, whatever comes in.

Source. features.md I4 to I8.
"""

from __future__ import annotations

import math

from .model import Scores
from .policy import ScoreWeights

LATENCY_LEAST = 2.0**-40
"""A latency of centuries is long enough."""


def share(value: float | None) -> float:
    """Return a share, cut to [0, 1]; 0 for what is unknown or no number."""
    if value is None or not value > 0.0:
        return 0.0
    return min(value, 1.0)


def resources(cpu_free: float | None, memory_free: float | None) -> float:
    """Return how much of a node is free, for a call that asks for nothing in particular."""
    return (share(cpu_free) + share(memory_free)) / 2.0


def latency(rtt_s: float | None, body_s: float | None, latency_ref_s: float) -> float:
    """Return how soon a node answers; what is not known of it takes no time.

    >>> latency(0.05, None, 0.05), latency(None, None, 0.05)
    (0.5, 1.0)
    """
    total_s = (rtt_s or 0.0) + (body_s or 0.0)
    return share(1.0 / (1.0 + max(0.0, total_s) / latency_ref_s))


def slow(latency_score: float) -> float:
    """Return how often bodies double the reference: the logarithm of the inverse of their score.

    Round trips do not count here: they are in `latency`, and one of them says little.

    >>> slow(1.0), slow(0.5), slow(0.25)
    (0.0, 1.0, 2.0)
    """
    return math.log2(1.0 / max(latency_score, LATENCY_LEAST))


def load(busy: int, slots: int) -> float:
    """Return the share of free slots."""
    return max(0.0, 1.0 - busy / slots)


def ahead(busy: int, slots: int) -> float:
    """Return the calls per slot if none is free, else 0: one call more would have to wait."""
    return busy / slots if busy >= slots else 0.0


def cheap(price: float) -> float:
    """Return how little a call costs: 1 for nothing."""
    return share(1.0 / (1.0 + max(0.0, price)))


def total(scores: Scores, weights: ScoreWeights) -> float:
    """Return the weighted sum, less what is taken off.

    >>> round(total(Scores(1.0, 0.5, 1.0, 1.0), ScoreWeights()), 6)
    0.9
    """
    return (
        weights.resources * scores.resources
        + weights.latency * scores.latency
        + weights.load * scores.load
        + weights.capability * scores.capability
        + weights.cheap * scores.cheap
        - weights.ahead * scores.ahead
        - weights.slow * scores.slow
        - scores.doubt
    )
