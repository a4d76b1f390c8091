"""Policies for the scheduling simulator: ours, those it is compared with, and one that knows all.

Theory. Load balancers decide at once: a call goes to some machine and waits there. They differ in
whom they ask: nobody (random, round robin), two machines (power of two choices), or all of them
(least loaded); and in what they know of a machine: what it *reported* some seconds ago, or what the
balancer itself gave it and has not had back (*counted*).

A gateway keeps calls until a machine has room for them. `Ours` is that gateway: the queue, the
places, the windows and the breakers of `scheduler/`, called as the gateway calls them. `Informed`
is the same queue with the same windows and the truth about every machine: it gives the next call
where it may be expected to end first, and to none that stands still or fails calls.

Rules of this file. 1) Only `Informed` looks at `Machine` beyond its index, slots and round trip.

Source. Mitzenmacher, "The power of two choices in randomized load balancing", 2001, and "How useful
is old information?", 2000.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from easyremote.scheduler.fleet import Fleet
from easyremote.scheduler.host import SHUT_BELOW, Host, Place
from easyremote.scheduler.pending import COST_S, COST_WEIGHT, PendingQueue
from easyremote.scheduler.place import Places
from easyremote.scheduler.policy import DEFAULT
from easyremote.scheduler.policy import Policy as Preferences
from easyremote.scheduler.shares import Shares
from easyremote.scheduler.window import Window

from .scheduling_simulator import Call, Policy, Simulator, Site

QUEUE_MAX = 10**9


class Balancer:
    """A load balancer: every call is given to a machine as soon as it comes.

    It knows how many slots machines have, and draws or visits each as often as it has slots.
    """

    def __init__(self, choices: int, *, counted: bool = True, seed: int = 1) -> None:
        """Ask some machines for each call.

        Args:
            choices: How many are looked at: 0 takes turns, 1 is random; many means all.
            counted: Whether the balancer counts its own calls, or believes what is reported.
            seed: Of its draws.
        """
        self.choices = choices
        self.counted = counted
        self.rng = random.Random(seed)

    def begin(self, simulator: Simulator) -> None:
        """Begin with idle machines."""
        self.simulator = simulator
        self.calls = np.zeros(len(simulator.sites))
        self.reported = np.zeros(len(simulator.sites))
        self.slots = np.array([site.machine.slots for site in simulator.sites], float)
        self.turn = 0
        self._know()

    def _know(self) -> None:
        online = [site for site in self.simulator.sites if site.online]
        self.online = np.array([site.machine.index for site in online])
        self.tickets = [site.machine.index for site in online for _ in range(site.machine.slots)]
        # Turns go through the machines, not from slot to slot of the same one.
        self.rng.shuffle(self.tickets)

    def arrived(self, call: Call, now: float) -> None:
        """Give it away."""
        index = self._choose()
        self.calls[index] += 1
        self.simulator.give(call, self.simulator.sites[index])

    def _choose(self) -> int:
        tickets = self.tickets
        if self.choices == 0:
            self.turn += 1
            return tickets[self.turn % len(tickets)]
        known = self.calls if self.counted else self.reported
        if self.choices < len(self.online):
            asked = [self.rng.choice(tickets) for _ in range(self.choices)]
            return min(asked, key=lambda index: known[index] / self.slots[index])
        loads = (known / self.slots)[self.online]
        return int(self.online[self.rng.choice((loads == loads.min()).nonzero()[0])])

    def returned(self, call: Call, site: Site, claimed_s: float, now: float) -> None:
        """Count it."""
        self.calls[site.machine.index] -= 1

    def lost(self, call: Call, site: Site, now: float) -> None:
        """Count it."""
        self.calls[site.machine.index] -= 1

    def sampled(self, site: Site, calls: int, cpu_used: float, now: float) -> None:
        """Remember what is reported."""
        self.reported[site.machine.index] = calls

    def tick(self, now: float) -> None:
        """Nothing changes with time."""

    def changed(self, site: Site, now: float) -> None:
        """Give nothing to a machine that is gone."""
        self._know()


class Queueing:
    """What both gateways have: calls wait until a machine has room, and users share."""

    def __init__(self) -> None:
        self.shares = Shares()
        self.queue = PendingQueue[Call](self.shares, QUEUE_MAX)

    def begin(self, simulator: Simulator) -> None:
        """Begin with idle machines."""
        self.simulator = simulator
        self.uses = 0
        self.mean_s = COST_S

    def _given(self, call: Call, site: Site, now: float) -> None:
        self.uses += 1
        call.cost_s = self.mean_s
        self.queue.served(call.share, call.cost_s, now)
        self.simulator.give(call, site)

    def _settle(self, call: Call, now: float, used_s: float) -> None:
        if used_s:
            self.mean_s += (used_s - self.mean_s) * COST_WEIGHT
        self.shares.settle(call.share, call.cost_s, call.given_at, used_s, now)


class Ours(Queueing):
    """The gateway of this project, as far as `scheduler/` decides."""

    def __init__(self, preferences: Preferences = DEFAULT) -> None:
        super().__init__()
        self.preferences = preferences

    def begin(self, simulator: Simulator) -> None:
        """Make a place for each machine."""
        super().begin(simulator)
        self.sites = simulator.sites
        self.places: list[Place] = []
        self.all = Places(Fleet(), self.preferences)
        for site in self.sites:
            machine = site.machine
            host = Host(f"node-{machine.index}", self.preferences)
            host.view.interval_s = simulator.world.options.telemetry_s
            host.saw_rtt(machine.rtt_s)
            place = Place(host, "f", machine.slots)
            host.heard(
                {"cpu_count": machine.slots, "cpu_percent": 0.0, "memory_percent": 10.0}, 0.0
            )
            self.places.append(place)
            self.all.add(place)

    def arrived(self, call: Call, now: float) -> None:
        """Give it to the best place, or let it wait."""
        if not self.queue.waiting:
            place = self.all.choose()
            if place is not None:
                self._give(call, place, now)
                return
        self.queue.add(call, now)

    def _give(self, call: Call, place: Place, now: float) -> None:
        place.take(self.uses + 1)
        self._given(call, self.sites[self._index(place)], now)

    @staticmethod
    def _index(place: Place) -> int:
        return int(place.host.node_id[5:])

    def returned(self, call: Call, site: Site, claimed_s: float, now: float) -> None:
        """Learn from it, and fill its place."""
        place = self.places[site.machine.index]
        took_s = 0.0 if call.waited else now - call.given_at
        place.release()
        if place.wants_sample():
            place.learn(claimed_s)
        place.host.succeeded(now, took_s, claimed_s)
        self._settle(call, now, claimed_s)
        self._pump(place, now)

    def lost(self, call: Call, site: Site, now: float) -> None:
        """Remember that the machine failed."""
        place = self.places[site.machine.index]
        place.release()
        place.host.failed(now)
        self._settle(call, now, 0.0)
        self._pump(place, now)

    def _pump(self, place: Place, now: float) -> None:
        """Give waiting calls to a place that has room."""
        queue = self.queue
        while queue.waiting and place in self.all and place.value > SHUT_BELOW:
            call = queue.head(now)
            assert call is not None
            queue.leave(call)
            self._give(call, place, now)

    def sampled(self, site: Site, calls: int, cpu_used: float, now: float) -> None:
        """Fold it in."""
        place = self.places[site.machine.index]
        place.host.heard({"cpu_percent": 100.0 * cpu_used}, now)
        self._pump(place, now)

    def tick(self, now: float) -> None:
        """Let breakers and doubts see the time."""
        for place in self.places:
            if place.host.tick(now):
                self._pump(place, now)

    def changed(self, site: Site, now: float) -> None:
        """A machine without a link is no place."""
        place = self.places[site.machine.index]
        if not site.online:
            self.all.discard(place)
            return
        place.host.restarted()
        slots = site.machine.slots
        place.host.heard({"cpu_count": slots, "cpu_percent": 0.0, "memory_percent": 10.0}, now)
        self.all.add(place)
        self._pump(place, now)


class Informed(Queueing):
    """The same queue, with true and fresh knowledge of every machine."""

    def begin(self, simulator: Simulator) -> None:
        """Begin with idle machines."""
        super().begin(simulator)
        self.sites = simulator.sites
        machines = [site.machine for site in self.sites]
        self.windows = [Window(machine.slots) for machine in machines]
        self.busy = np.zeros(len(machines))
        self.slots = np.array([machine.slots for machine in machines])
        self.limits = self.slots.copy()
        self.rates = np.array([machine.rate(0.0) for machine in machines])
        self.rtts = np.array([machine.rtt_s for machine in machines])
        self.good = np.ones(len(machines), bool)

    def arrived(self, call: Call, now: float) -> None:
        """Let it wait, and give away what can be given."""
        self.queue.add(call, now)
        self._pump(now)

    def _pump(self, now: float) -> None:
        queue = self.queue
        mean_s = self.simulator.world.options.mean_s
        while queue.waiting:
            behind = np.maximum(0.0, self.busy + 1 - self.slots) / self.slots
            takes_s = self.rtts + (1.0 + behind) * mean_s / self.rates
            takes_s[(self.busy >= self.limits) | ~self.good] = np.inf
            index = int(takes_s.argmin())
            if takes_s[index] == np.inf:
                return
            site = self.sites[index]
            fault = site.machine.fault(now + site.machine.rtt_s)
            if not site.online or fault is not None:
                self.good[index] = False
                continue
            call = queue.head(now)
            assert call is not None
            queue.leave(call)
            self.busy[index] += 1
            self._given(call, site, now)

    def returned(self, call: Call, site: Site, claimed_s: float, now: float) -> None:
        """A slot is free."""
        window = self.windows[site.machine.index]
        if window.wants_sample():
            window.learn(now - site.machine.rtt_s / 2.0 - call.started_at)
            self.limits[site.machine.index] = window.limit
        self._free(site)
        self._settle(call, now, call.arrival.work)
        self._pump(now)

    def lost(self, call: Call, site: Site, now: float) -> None:
        """A slot is free."""
        self._free(site)
        self._settle(call, now, 0.0)
        self._pump(now)

    def _free(self, site: Site) -> None:
        self.busy[site.machine.index] -= 1

    def sampled(self, site: Site, calls: int, cpu_used: float, now: float) -> None:
        """It knows better."""

    def tick(self, now: float) -> None:
        """Look at every machine as it is."""
        for site in self.sites:
            index = site.machine.index
            self.rates[index] = site.machine.rate(now)
            self.good[index] = site.online and site.machine.fault(now) is None
        self._pump(now)

    def changed(self, site: Site, now: float) -> None:
        """It knows by the next second."""


POLICIES: dict[str, Callable[[], Policy]] = {
    "random": lambda: Balancer(1),
    "round robin": lambda: Balancer(0),
    "two choices, reported": lambda: Balancer(2, counted=False),
    "two choices, counted": lambda: Balancer(2),
    "least loaded, reported": lambda: Balancer(QUEUE_MAX, counted=False),
    "least loaded, counted": lambda: Balancer(QUEUE_MAX),
    "easyremote": Ours,
    "informed queue": Informed,
}
