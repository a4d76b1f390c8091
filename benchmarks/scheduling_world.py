"""The world of the scheduling simulator: machines, their faults, and the calls that come.

Theory. What makes placement hard is what is in here: machines of mixed speeds and sizes, other
people's work on them that slows calls down and that a gateway hears of late, bodies of which few
are a thousand times longer than most, arrivals that come in bursts, and machines that
lie about their load, fail every call at once, stand still for a while, or go.

Everything is drawn before a policy sees any of it, from one seed, so that all policies meet exactly
the same world.

Rules of this file. 1) A function of options and seed. 2) `work` is seconds on a machine of speed 1.

Source. Heavy tails: Crovella and Bestavros, 1997, and the Google cluster traces (Reiss et al.,
2012). Bursts: a two-state Markov-modulated Poisson process.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

SPEEDS = (0.25, 0.5, 1.0, 1.0, 2.0, 4.0)
SLOTS = (1, 1, 2, 4, 8)
RTTS_S = (0.001, 0.005, 0.02, 0.05)

FOREIGN_SHARE = 0.3
"""Part of the machines on which other people's work comes and goes."""
FOREIGN_S = 30.0
"""Mean time after which it changes."""

BURST_FACTOR = 3.0
BURST_S = 2.0
BURST_EVERY_S = 20.0

LIE = 0.05
"""A liar says that bodies took this part of what they took."""


@dataclass(frozen=True)
class Options:
    """What is simulated.

    Attributes:
        nodes: Machines.
        calls: Calls that come.
        load: Work that comes, as a part of what the machines can do.
        bodies: "pareto", "lognormal" or "equal".
        mean_s: Mean work of a call.
        bursts: Whose calls come in bursts: "none", "all" users', or one user's at a time ("one").
        telemetry_s: Time between two samples of a machine.
        liars: Part of the machines that say they are idle and fast, and are neither.
        failing: Part of the machines that go, stand still, or fail calls.
        users: Users who send calls.
        seed: Of everything.
    """

    nodes: int = 100
    calls: int = 40_000
    load: float = 0.8
    bodies: str = "pareto"
    mean_s: float = 1.0
    bursts: str = "all"
    telemetry_s: float = 5.0
    liars: float = 0.0
    failing: float = 0.0
    users: int = 8
    seed: int = 1


@dataclass(frozen=True)
class Fault:
    """A time in which something is wrong with a machine.

    Attributes:
        kind: "gone" (its calls are lost), "still" (nothing moves) or "crashing" (calls fail).
    """

    kind: str
    start: float
    end: float


@dataclass
class Machine:
    """One machine as it really is.

    Attributes:
        changes: When other people's work changed, ascending, from 0.0.
        free: What it left of the machine since then.
    """

    index: int
    speed: float
    slots: int
    rtt_s: float
    liar: bool
    changes: list[float] = field(default_factory=lambda: [0.0])
    free: list[float] = field(default_factory=lambda: [1.0])
    faults: list[Fault] = field(default_factory=list)

    def free_share(self, now: float) -> float:
        """Return what other people leave of it."""
        return self.free[bisect_right(self.changes, now) - 1]

    def rate(self, now: float) -> float:
        """Return the work that one slot does in a second."""
        return self.speed * self.free_share(now)

    def fault(self, now: float) -> Fault | None:
        """Return what is wrong with it now."""
        for fault in self.faults:
            if fault.start <= now < fault.end:
                return fault
        return None


@dataclass(eq=False)
class Arrival:
    """One call that comes."""

    at: float
    work: float
    user: int


@dataclass
class World:
    """Machines, and the calls that come to them."""

    options: Options
    machines: list[Machine]
    arrivals: list[Arrival]
    duration_s: float
    capacity: float
    """Work that all machines do in a second, on average."""

    @property
    def fastest(self) -> float:
        """Return the speed of the fastest machine."""
        return max(machine.speed for machine in self.machines)

    @property
    def nearest_s(self) -> float:
        """Return the shortest round trip."""
        return min(machine.rtt_s for machine in self.machines)

    def ideal_s(self, work: float) -> float:
        """Return how long a call would take on the nearest and fastest machine, were it free."""
        return self.nearest_s + work / self.fastest


def make(options: Options) -> World:
    """Draw a world."""
    rng = random.Random(options.seed)
    capacity, machines = 0.0, []
    for index in range(options.nodes):
        # Every speed and size is there, also among few machines; who has which is drawn.
        machine = Machine(
            index, SPEEDS[index % len(SPEEDS)], rng.choice(SLOTS), rng.choice(RTTS_S), liar=False
        )
        machines.append(machine)
    for machine in rng.sample(machines, round(options.liars * options.nodes)):
        machine.liar, machine.speed = True, min(SPEEDS)
    expected = sum(machine.speed * machine.slots for machine in machines)
    duration_s = options.calls * options.mean_s / (options.load * expected)
    for machine in machines:
        if rng.random() < FOREIGN_SHARE:
            _occupy(machine, rng, duration_s)
    failing = [machine for machine in machines if not machine.liar]
    for machine in rng.sample(failing, round(options.failing * options.nodes)):
        _break(machine, rng, duration_s)
    for machine in machines:
        capacity += machine.slots * _mean_rate(machine, duration_s)
    arrivals = list(_arrivals(options, rng, options.load * capacity / options.mean_s))
    # With heavy tails the mean of what was drawn is not the mean that was asked for.
    stretch = sum(one.work for one in arrivals) / (options.load * capacity * arrivals[-1].at)
    for arrival in arrivals:
        arrival.at *= stretch
    return World(options, machines, arrivals, arrivals[-1].at, capacity)


def _occupy(machine: Machine, rng: random.Random, duration_s: float) -> None:
    at = 0.0
    while at < duration_s:
        machine.changes.append(at := at + rng.expovariate(1.0 / FOREIGN_S))
        machine.free.append(rng.choice((1.0, 0.75, 0.5, 0.25)))


def _break(machine: Machine, rng: random.Random, duration_s: float) -> None:
    at = 0.0
    while at < duration_s:
        start = at + rng.expovariate(1.0 / 60.0)
        at = start + rng.uniform(5.0, 30.0)
        machine.faults.append(Fault(rng.choice(("gone", "still", "crashing")), start, at))


def _mean_rate(machine: Machine, duration_s: float) -> float:
    done = 0.0
    ends = [*machine.changes[1:], math.inf]
    for start, end, free in zip(machine.changes, ends, machine.free, strict=True):
        done += max(0.0, min(end, duration_s) - start) * free
    lost = sum(max(0.0, min(one.end, duration_s) - one.start) for one in machine.faults)
    return machine.speed * done / duration_s * (1.0 - min(1.0, lost / duration_s))


def _arrivals(options: Options, rng: random.Random, rate: float) -> Iterator[Arrival]:
    """Yield the calls: in calm times of all users, in bursts of one."""
    now, user, ends, burst = 0.0, -1, 0.0, False
    share = BURST_S / (BURST_S + BURST_EVERY_S)
    bursts = options.bursts != "none"
    calm = rate / (1.0 - share + share * BURST_FACTOR) if bursts else rate
    for _ in range(options.calls):
        while True:
            gap = rng.expovariate(calm * (BURST_FACTOR if burst else 1.0))
            if not bursts or now + gap < ends:
                break
            now, burst = ends, not burst
            ends = now + rng.expovariate(1.0 / (BURST_S if burst else BURST_EVERY_S))
            user = rng.randrange(options.users) if options.bursts == "one" else -1
        now += gap
        whose = user if burst and rng.random() < 1.0 - 1.0 / BURST_FACTOR else -1
        if whose < 0:
            whose = rng.randrange(options.users)
        yield Arrival(now, _work(options, rng), whose)


def _work(options: Options, rng: random.Random) -> float:
    if options.bodies == "equal":
        return options.mean_s
    if options.bodies == "lognormal":
        sigma = 1.5
        return options.mean_s * rng.lognormvariate(-sigma * sigma / 2.0, sigma)
    return options.mean_s * _pareto(rng.random()) / _PARETO_MEAN


_ALPHA = 1.3
_LONGEST = 1000.0


def _pareto(drawn: float) -> float:
    """Return a bounded Pareto number between 1 and `_LONGEST`."""
    return math.pow(1.0 - drawn * (1.0 - math.pow(_LONGEST, -_ALPHA)), -1.0 / _ALPHA)


_PARETO_MEAN = (
    (_ALPHA / (_ALPHA - 1.0))
    * (1.0 - math.pow(_LONGEST, 1.0 - _ALPHA))
    / (1.0 - math.pow(_LONGEST, -_ALPHA))
)
