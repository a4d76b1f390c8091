"""How many replicas of a script a node should run for one function.

Theory. Every replica has slots, and a queue of `target_queue` calls behind each is no reason for
another one: it keeps the replica busy. So `n` replicas are enough for `n * (slots + target_queue)`
calls, and when there are more, the number grows. It at most doubles, and then waits `GROW_S`, so
that the replicas which were just started can show what they do to the queue.

A replica is given up when nothing waited for `idle_s` and fewer would have done for the whole of
that time; then as many are kept as the busiest moment of that time needed. Growing looks at
waiting calls, shrinking at running ones, and the two bounds lie `target_queue` calls a replica
apart: a steady load moves neither (hysteresis).

Rules of this file. 1) Pure: one function, (rules, state, load, now) -> state. 2) The number never
leaves the bounds. 3) What a user wrote and cannot be meant is a ValueError that says what can be.

Source. Target tracking on queue length with separate scale-in stabilisation, as in Kubernetes'
horizontal pod autoscaler ("Algorithm details", `stabilizationWindowSeconds`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

REPLICAS_MAX = 256
"""More replicas of one script than this are a slip of the pen."""

TARGET_QUEUE = 2.0
IDLE_S = 60.0

GROW_S = 2.0
"""Seconds between two growths: about what a script needs to start."""

_KEYS = ("min", "max", "target_queue", "idle_s")


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a user wrote as `scaling=`.

    Attributes:
        min: Fewest replicas.
        max: Most; None: as many as the node has room for.
        target_queue: Waiting calls for each replica that are no reason for another.
        idle_s: How long fewer must have been enough before one is given up.
    """

    min: int = 0
    max: int | None = None
    target_queue: float = TARGET_QUEUE
    idle_s: float = IDLE_S

    def bound(self, replicas: int, room: int) -> int:
        """Return the number nearest to `replicas` that is allowed on a node with `room`."""
        most = room if self.max is None else min(self.max, room)
        return min(max(replicas, self.min), most)


@dataclass(frozen=True, slots=True)
class Load:
    """What a node has of one function.

    Attributes:
        waiting: Calls that wait for it.
        busy: Calls that run.
        slots: Calls that one replica runs at once.
        room: Most replicas that the node's resources permit.
    """

    waiting: int
    busy: int
    slots: int
    room: int


@dataclass(frozen=True, slots=True)
class Replicas:
    """The number wanted, and what is remembered to decide the next one.

    Attributes:
        wanted: How many replicas there should be.
        grown_at: When the number last grew.
        calm_since: Since when fewer would do, None if they would not.
        needed: The most that were needed since then.
    """

    wanted: int = 0
    grown_at: float = -math.inf
    calm_since: float | None = None
    needed: int = 0


def step(scaling: Scaling, state: Replicas, load: Load, now: float) -> Replicas:
    """Return how many replicas are wanted now. Call it about once a second."""
    assert load.slots > 0
    assert min(load.waiting, load.busy, load.room) >= 0
    wanted = scaling.bound(state.wanted, load.room)
    for_queue = math.ceil((load.busy + load.waiting) / (load.slots + scaling.target_queue))
    if load.waiting and for_queue > wanted:
        if now - state.grown_at < GROW_S:
            return replace(state, wanted=wanted, calm_since=None)
        grown = scaling.bound(min(for_queue, max(1, 2 * wanted)), load.room)
        return Replicas(grown, now if grown > wanted else state.grown_at)
    needed = math.ceil(load.busy / load.slots)
    if load.waiting or needed >= wanted:
        return replace(state, wanted=wanted, calm_since=None)
    if state.calm_since is None:
        return replace(state, wanted=wanted, calm_since=now, needed=needed)
    needed = max(needed, state.needed)
    if now - state.calm_since < scaling.idle_s:
        return replace(state, wanted=wanted, needed=needed)
    return replace(state, wanted=scaling.bound(needed, load.room), calm_since=None)


def read_scaling(given: object) -> Scaling:
    """Return what a user means by `scaling=`: "auto", a number, or a dict.

    Raises:
        ValueError: It can't be meant; the message says what can.
    """
    if given == "auto":
        return Scaling()
    if isinstance(given, int) and not isinstance(given, bool):
        replicas = _count("scaling", given)
        return Scaling(replicas, replicas)
    if not isinstance(given, Mapping):
        raise ValueError(  # noqa: TRY004 - it was written so
            f"scaling={given!r}: write 'auto', a number of replicas, or a dict such as "
            "{'min': 1, 'max': 4, 'target_queue': 2, 'idle_s': 60}"
        )
    for key in given:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"scaling has no {key!r}, but {', '.join(_KEYS)}{hint}")
    least = _count("scaling['min']", given.get("min", 0))
    most = given.get("max")
    if most is not None:
        most = _count("scaling['max']", most)
        if most < max(1, least):
            raise ValueError(f"scaling['max'] is {most}: it must be at least {max(1, least)}")
    return Scaling(
        least,
        most,
        _amount("scaling['target_queue']", given.get("target_queue", TARGET_QUEUE)),
        _amount("scaling['idle_s']", given.get("idle_s", IDLE_S)),
    )


def _count(name: str, given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= REPLICAS_MAX:
        raise ValueError(f"{name} is {given!r}: write a whole number from 0 to {REPLICAS_MAX}")
    return given


def _amount(name: str, given: object) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf:
        return float(given)
    raise ValueError(f"{name} is {given!r}: write a number that is not negative")
