"""What is done to a campaign's processes and links, drawn from one seed.

Theory. A fault at a random moment mostly hits a process that waits. The interesting moments are
few: a call was submitted and not dispatched yet, a body has just begun, a result is on its way. So
most shots wait for such a moment, which the logs of clients and bodies show, and then hit the very
process that is in it.

Rules of this file. 1) No I/O, no clock: the same seed draws the same shots and steps.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from tests.faults import Direction, Fault, Step

from .world import Role

T = TypeVar("T")


class Point(StrEnum):
    """At which moment of some call a shot is fired."""

    RANDOM = "random"
    BEFORE = "before"
    """A call was submitted just now."""
    STARTED = "started"
    """A body has just begun; its process, its agent, its client or the gateway is hit."""
    RESULT = "result"
    """A body is about to return, or has returned just now."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One signal to one process."""

    role: Role
    number: signal.Signals
    point: Point
    delay_s: float
    """From the point to the shot."""
    stop_s: float
    """After SIGSTOP: time until SIGCONT."""
    pause_s: float
    """From this shot to the next one."""
    down_s: float
    """How long a gateway that was killed stays away."""
    draw: float
    """Which of several victims: a fraction of their list."""

    def describe(self) -> str:
        """Return the kind of shot, as it is counted."""
        return f"{self.number.name} {self.role}"


ROLES = {
    Role.WORKER: 34, Role.AGENT: 26, Role.REPLICA: 10, Role.CLIENT: 15, Role.GATEWAY: 15,
}  # fmt: skip
SIGNALS = {signal.SIGKILL: 70, signal.SIGSTOP: 18, signal.SIGTERM: 12}
POINTS = {Point.RANDOM: 30, Point.BEFORE: 20, Point.STARTED: 25, Point.RESULT: 25}
FAULTS = {
    Fault.CUT: 20, Fault.CLOSE: 12, Fault.LIMIT: 12, Fault.STALL: 12, Fault.ONE_WAY: 10,
    Fault.BLACK_HOLE: 10, Fault.TRICKLE: 4, Fault.LATENCY: 8, Fault.SLICE: 6, Fault.CORRUPT: 6,
}  # fmt: skip


class Killer:
    """Draws shots and faults of links."""

    def __init__(
        self, seed: int, targets: Collection[Role], *, lease_s: float, gap_s: tuple[float, float],
        signals: Mapping[signal.Signals, int] = SIGNALS,
    ) -> None:  # fmt: skip
        self._shots = random.Random(f"{seed} shots")
        self._faults = random.Random(f"{seed} faults")
        self._weights = {role: weight for role, weight in ROLES.items() if role in targets}
        self._lease_s = lease_s
        self._gap_s = gap_s
        self._signals = signals

    def shot(self) -> Shot:
        """Draw the next shot."""
        rng = self._shots
        point = _pick(rng, POINTS)
        late_s = {Point.STARTED: 0.05, Point.RESULT: 0.01}.get(point, 0.0)
        return Shot(
            role=_pick(rng, self._weights),
            number=_pick(rng, self._signals),
            point=point,
            delay_s=rng.choice((0.0, rng.uniform(0.0, late_s))),
            stop_s=rng.choice((0.2, 0.6, 1.7)) * self._lease_s,
            pause_s=rng.uniform(*self._gap_s),
            down_s=rng.choice((0.0, 0.5, 2.0)),
            draw=rng.random(),
        )

    def step(self, links: Sequence[str]) -> tuple[float, Step]:
        """Draw a fault of a link, and the time from the one before it."""
        rng = self._faults
        fault = _pick(rng, FAULTS)
        duration_s = {
            Fault.STALL: rng.choice((0.3, 1.5)) * self._lease_s,
            Fault.ONE_WAY: rng.choice((0.3, 1.5)) * self._lease_s,
            Fault.BLACK_HOLE: 1.6 * self._lease_s,
            Fault.TRICKLE: 0.5,
            Fault.LATENCY: 2.0,
            Fault.SLICE: 2.0,
        }.get(fault, 0.0)
        amount = {
            Fault.LIMIT: int(10 ** rng.uniform(0.0, 5.5)),
            Fault.TRICKLE: 200,
            Fault.LATENCY: 40,
            Fault.SLICE: 100,
        }.get(fault, 0)
        direction = rng.choice(tuple(Direction))
        if fault is Fault.ONE_WAY and direction is Direction.BOTH:
            direction = Direction.UP
        step = Step(0.0, rng.choice(links), fault, duration_s, direction, amount)
        return rng.uniform(1.0, 5.0), step


def _pick(rng: random.Random, weights: Mapping[T, int]) -> T:
    (one,) = rng.choices(list(weights), list(weights.values()))
    return one
