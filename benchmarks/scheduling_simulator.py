"""Discrete events: calls come, run on machines, are lost and come again.

Theory. A machine serves the calls that it was given in their order, on the first slot that is free,
so it is known when a call is given at what time it will end, and one event per call is enough. What
goes wrong meanwhile changes those times: on a machine that stands still everything moves by that
time, and when one goes its calls are lost and their clients send them again. The time that a call
waited counts from its first arrival.

A policy is told what a gateway would see and nothing else: arrivals, returned and lost calls,
samples that machines sent some time ago, and machines that come and go. It answers by `give`.

Rules of this file. 1) Same world, same policy, same events. 2) Only policies that say so look at
`Machine`; the others know its index and its slots.

Source. Any textbook on discrete-event simulation: a heap of times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Protocol

from easyremote.scheduler.pending import Level
from easyremote.scheduler.shares import Share

from .scheduling_world import LIE, Arrival, Fault, Machine, World

NOTICE_S = 0.05
"""Time until the gateway notices that a machine is gone."""
RETRY_S = 0.1
"""Time until a client sends a call again that was lost or crashed."""
CRASH_S = 0.005
"""Time in which a crashing machine fails a call."""


@dataclass(eq=False)
class Call:
    """One call on its way.

    Attributes:
        share: Whose it is, for queues that are fair.
        attempt: Grows when what was foreseen for it does not hold any more.
        cost_s: What its user was charged for it at first.
        given_at: When a machine was given it.
        started_at: When its body began.
        waited: Whether it waited for a slot at the machine.
        ended_at: When its last result came back; 0.0 before.
        at: Where it is.
        machine: Where it was last.
    """

    arrival: Arrival
    sequence: int
    share: Share
    priority: int = 0
    level: Level[Any] | None = None
    attempt: int = 0
    cost_s: float = 0.0
    given_at: float = 0.0
    started_at: float = 0.0
    waited: bool = False
    crashes: bool = False
    ended_at: float = 0.0
    at: Site | None = None
    machine: Machine | None = None


@dataclass(eq=False)
class Site:
    """A machine while it is simulated.

    Attributes:
        ends: When each slot has done what it was given, a heap.
        calls: What is there, with the time at which the result is back.
        online: Whether it has a link to the gateway.
    """

    machine: Machine
    ends: list[float]
    calls: dict[Call, float] = field(default_factory=dict)
    online: bool = True

    def sample(self, now: float) -> tuple[int, float]:
        """Return what it says: calls that are there, and the share of its processors in use."""
        machine = self.machine
        if machine.liar:
            return 0, 0.0
        running = sum(1 for end in self.ends if end > now)
        here = sum(1 for back in self.calls.values() if back - machine.rtt_s / 2.0 > now)
        foreign = 1.0 - machine.free_share(now)
        return here, min(1.0, foreign + (1.0 - foreign) * running / machine.slots)


class Policy(Protocol):
    """What decides where calls go."""

    def begin(self, simulator: Simulator) -> None:
        """All machines are there, and idle."""

    def arrived(self, call: Call, now: float) -> None:
        """A call came, for the first time or again."""

    def returned(self, call: Call, site: Site, claimed_s: float, now: float) -> None:
        """A call's result came; the machine says how long its body took."""

    def lost(self, call: Call, site: Site, now: float) -> None:
        """A call failed by the machine's fault, or was lost with it."""

    def sampled(self, site: Site, calls: int, cpu_used: float, now: float) -> None:
        """A machine sent a sample."""

    def tick(self, now: float) -> None:
        """Another second has passed."""

    def changed(self, site: Site, now: float) -> None:
        """A machine went or came back."""


class Simulator:
    """One policy in one world.

    Attributes:
        calls: All of them, in order of arrival.
        lost: How many times calls were lost or crashed.
        done_work: Work of all calls that came to their end.
    """

    def __init__(self, world: World, policy: Policy) -> None:
        self.world = world
        self.policy = policy
        self.sites = [Site(one, [0.0] * one.slots) for one in world.machines]
        self.calls: list[Call] = []
        self.lost = 0
        self.left = len(world.arrivals)
        self.now = 0.0
        self.sequence = 0
        self._events: list[tuple[float, int, str, Any, int]] = []
        self._number = 0

    def run(self) -> None:
        """Simulate until every call has come back."""
        for site in self.sites:
            self._at(site.machine.index % 97 / 97.0 * self._interval_s, "sample", site)
            for fault in site.machine.faults:
                self._at(fault.start, "fault", (site, fault))
        self._at(0.0, "tick", None)
        self.policy.begin(self)
        arrivals, coming = self.world.arrivals, 0
        events = self._events
        while self.left:
            if coming < len(arrivals) and arrivals[coming].at <= events[0][0]:
                arrival = arrivals[coming]
                coming += 1
                self.now = arrival.at
                self.sequence += 1
                call = Call(arrival, self.sequence, self.share_of(arrival.user))
                self.calls.append(call)
                self.policy.arrived(call, self.now)
                continue
            self.now, _, kind, what, attempt = heappop(events)
            self._handle(kind, what, attempt)

    def share_of(self, user: int) -> Share:
        """Return a user's share; policies without a fair queue have none of their own."""
        shares = getattr(self.policy, "shares", None)
        return Share(str(user), 1.0) if shares is None else shares.of(str(user), self.now)

    def give(self, call: Call, site: Site) -> None:
        """Give a call to a machine that is online."""
        assert site.online
        machine, now = site.machine, self.now
        call.attempt += 1
        call.machine = machine
        call.given_at, call.at, call.crashes = now, site, False
        there = now + machine.rtt_s / 2.0
        fault = machine.fault(there)
        if fault is not None and fault.kind == "crashing":
            call.crashes, call.started_at, call.waited = True, there, False
            end = there + CRASH_S
        else:
            free = site.ends[0]
            call.waited = free > there
            start = max(free, there)
            if fault is not None:
                start = max(start, fault.end)
            call.started_at = start
            end = start + call.arrival.work / machine.rate(start)
            heapreplace(site.ends, end)
        self._back(call, site, end + machine.rtt_s / 2.0)

    @property
    def _interval_s(self) -> float:
        return self.world.options.telemetry_s

    def _at(self, at: float, kind: str, what: Any, attempt: int = 0) -> None:
        self._number += 1
        heappush(self._events, (at, self._number, kind, what, attempt))

    def _back(self, call: Call, site: Site, at: float) -> None:
        site.calls[call] = at
        self._at(at, "back", call, call.attempt)

    def _handle(self, kind: str, what: Any, attempt: int) -> None:
        now = self.now
        if kind == "back":
            if what.attempt == attempt:
                self._returned(what)
        elif kind == "sample":
            fault = what.machine.fault(now)
            if fault is None or fault.kind == "crashing":
                calls, cpu_used = what.sample(now)
                self.policy.sampled(what, calls, cpu_used, now)
            self._at(now + self._interval_s, "sample", what)
        elif kind == "tick":
            self.policy.tick(now)
            self._at(now + 1.0, "tick", None)
        elif kind == "fault":
            self._fault(*what)
        elif kind == "online":
            what.online = True
            self.policy.changed(what, now)
        elif kind == "gone":
            what.online = False
            self.policy.changed(what, now)
            for call in list(what.calls):
                self._fail(call)
            what.ends = [now] * what.machine.slots
        else:
            assert kind == "again"
            self.sequence += 1
            what.sequence = self.sequence
            self.policy.arrived(what, now)

    def _returned(self, call: Call) -> None:
        site, now = call.at, self.now
        assert site is not None
        if call.crashes:
            self._fail(call)
            return
        del site.calls[call]
        machine = site.machine
        call.ended_at, call.at = now, None
        self.left -= 1
        body_s = now - machine.rtt_s / 2.0 - call.started_at
        self.policy.returned(call, site, body_s * LIE if machine.liar else body_s, now)

    def _fail(self, call: Call) -> None:
        site = call.at
        assert site is not None
        del site.calls[call]
        call.at = None
        call.attempt += 1
        self.lost += 1
        self.policy.lost(call, site, self.now)
        self._at(self.now + RETRY_S, "again", call)

    def _fault(self, site: Site, fault: Fault) -> None:
        if fault.kind == "gone":
            # Nothing comes back after it went; what was under way is lost when that is noticed.
            for call in site.calls:
                call.attempt += 1
            self._at(self.now + NOTICE_S, "gone", site)
            self._at(fault.end, "online", site)
        elif fault.kind == "still":
            still_s = fault.end - fault.start
            site.ends = [max(end, self.now) + still_s for end in site.ends]
            heapify(site.ends)
            for call, back in list(site.calls.items()):
                call.attempt += 1
                self._back(call, site, back + still_s)
