"""What the scheduling simulator measures, and the bound that knows everything.

Theory. *Slowdown* is how long a call took, as a multiple of what it would have taken on the nearest
and fastest machine with nothing else in the world: it makes waiting comparable between short and
long calls. *Utilisation* is the work that was done until the last call came, as a part of what the
machines could have done. *Fairness* is Jain's index of what users got, relative to what they should
have got: of the calls that began in `WINDOW_S`, each user's number over his max-min fair number;
1 is fair, 1/n is everything for one of n. Only windows in which calls had to wait are counted.

The bound knows all sizes, interrupts calls and moves them at no cost, gives the shortest rest to
the fastest slot, and meets neither faults nor other people's work nor longer round trips. Of all
that can be done it is about the best for the mean; a p99 may in principle be bought below its own
by letting short calls wait.

Rules of this file. 1) The first `WARM_UP` of the calls do not count, for nobody knows anything yet.

Source. Jain, Chiu and Hawe, "A quantitative measure of fairness", 1984. Shortest remaining
processing time: Schrage, 1968; slowdown: Harchol-Balter, 2013.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .scheduling_simulator import Call
from .scheduling_world import World

WARM_UP = 0.1
WINDOW_S = 2.0
CONTENDED = 1.1
"""A window counts if so much more was asked for than began."""


@dataclass(frozen=True)
class Measured:
    """One policy in one world. `fairness` is None where nobody had to wait, or nobody is asked."""

    mean_slowdown: float
    p99_slowdown: float
    utilisation: float
    fairness: float | None
    lost: int = 0


def measure(world: World, calls: Sequence[Call], lost: int) -> Measured:
    """Return what a policy did for the calls of a world."""
    took = np.array([call.ended_at - call.arrival.at for call in calls])
    ended = np.array([call.ended_at for call in calls])
    began = np.array([call.started_at for call in calls])
    return _measured(world, took, ended, fairness(world, began), lost)


def _measured(
    world: World,
    took_s: NDArray[np.float64],
    ended: NDArray[np.float64],
    fair: float | None,
    lost: int = 0,
) -> Measured:
    work = np.array([arrival.work for arrival in world.arrivals])
    slowdown = took_s / (world.nearest_s + work / world.fastest)
    counted = slowdown[int(WARM_UP * len(slowdown)) :]
    done = float(work[ended <= world.duration_s].sum())
    return Measured(
        float(counted.mean()),
        float(np.percentile(counted, 99)),
        done / (world.capacity * world.duration_s),
        fair,
        lost,
    )


def fairness(world: World, began: NDArray[np.float64]) -> float | None:
    """Return Jain's index of calls that began, over the windows in which calls had to wait."""
    users = world.options.users
    edges = np.arange(0.0, world.duration_s + WINDOW_S, WINDOW_S)
    asked, started = np.zeros((users, len(edges) - 1)), np.zeros((users, len(edges) - 1))
    at = np.array([arrival.at for arrival in world.arrivals])
    whose = np.array([arrival.user for arrival in world.arrivals])
    for user in range(users):
        asked[user] = np.histogram(at[whose == user], edges)[0]
        started[user] = np.histogram(began[whose == user], edges)[0]
    waiting = np.cumsum(asked - started, axis=1) - (asked - started)
    asked = np.maximum(started, asked + waiting)
    indexes = [
        jain(began_here / fair[fair > 0.0])
        for want, got in zip(asked.T, started.T, strict=True)
        if want.sum() > CONTENDED * got.sum() > 0.0
        for fair in (max_min(want, float(got.sum())),)
        for began_here in (got[fair > 0.0],)
    ]
    return float(np.mean(indexes)) if indexes else None


def max_min(asked: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """Divide `total` so that nobody can get more without somebody who has less getting less.

    >>> max_min(np.array([1.0, 10.0, 10.0]), 9.0).tolist()
    [1.0, 4.0, 4.0]
    """
    fair = np.zeros(len(asked))
    left, rest = total, len(asked)
    for user in np.argsort(asked, kind="stable"):
        fair[user] = min(float(asked[user]), left / rest)
        left -= fair[user]
        rest -= 1
    return fair


def jain(got: NDArray[np.float64]) -> float:
    """Return Jain's index.

    >>> jain(np.array([1.0, 1.0])), jain(np.array([1.0, 0.0]))
    (1.0, 0.5)
    """
    return float(got.sum() ** 2 / (len(got) * (got**2).sum()))


def clairvoyant(world: World) -> Measured:
    """Return what nobody can do better; see the module."""
    speeds = sorted((m.speed for m in world.machines for _ in range(m.slots)), reverse=True)
    rates = np.array(speeds)
    ended = np.zeros(len(world.arrivals))
    # What is left of each call, ascending. Faster slots have shorter rests, so the order stays.
    rest: NDArray[np.float64] = np.zeros(0)
    whose: list[int] = []
    now, coming, arrivals = 0.0, 0, world.arrivals
    while coming < len(arrivals) or whose:
        running = min(len(whose), len(rates))
        end = now + float(rest[0]) / speeds[0] if whose else float("inf")
        if coming < len(arrivals) and arrivals[coming].at <= end:
            rest[:running] -= rates[:running] * (arrivals[coming].at - now)
            now = arrivals[coming].at
            place = bisect_right(rest, arrivals[coming].work)
            rest = np.insert(rest, place, arrivals[coming].work)
            whose.insert(place, coming)
            coming += 1
        else:
            rest[:running] -= rates[:running] * (end - now)
            now = end
            rest = rest[1:]
            ended[whose.pop(0)] = now
    took = ended - np.array([arrival.at for arrival in arrivals]) + world.nearest_s
    return _measured(world, took, ended, None)
