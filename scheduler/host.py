"""A node as placement sees it, and the places on it where calls may run.

Theory. A *host* is one node: what it says (`NodeView`), what it promised (`Ledger`), what was seen
of it (`Breaker`). A *place* is one group of its slots, with a window of calls (`Window`). A place
keeps its total for a call that asks for nothing in particular as one number, `value`, so that
choosing among places is looking for the largest number. The number is brought up to date where it
changes: in one step when a call comes or goes, from the beginning when the node is heard.

        value = fixed + weight x (cpu - busy x cores of a call) + memory - step x busy
                fixed: latency, slow, capability, load of the empty place, price, doubt
                step:  of load while a slot is free, of ahead afterwards
                minus infinity where there is no room; `SHUT` less where nothing should be given

Rules of this file. 1) Pure: `now` is an argument. 2) `busy` changes in `take`, `take_back`,
`release` and `reset` alone. 3) `value` is what `score.total` says of `scores()`.

Source. score.py for the formulas; house.md, words: "score", "candidate".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from . import score
from .breaker import Breaker, State, is_late
from .model import NO_NEEDS, Needs, NodeSnapshot, Rejection, Resources, Scores
from .needs import read_resources
from .policy import DEFAULT, Policy
from .reserve import Ledger, Reservation
from .telemetry import NodeView
from .window import BODY_S_MAX, Window

if TYPE_CHECKING:
    from .fleet import Fleet

NO_ROOM = float("-inf")
SHUT = 1e9
"""Taken off the value of a place that is shut: it is behind every place that is not."""
SHUT_BELOW = -SHUT / 2
"""Values below are of places that are shut, or have no room."""

LATENCY_WEIGHT = 0.25
BANDWIDTH_WEIGHT = 0.25
BODIES_MAX = 64
"""Bodies over which the usual one is averaged: enough to tell a machine that is twice as fast from
one that had luck, few enough to notice that it got slower."""
BODY_S_LEAST = 1e-6
BYTES_PER_S = 100e6
"""What a node's link is taken for before anything was measured."""
MEASURE_BYTES = 1 << 20
"""Transfers below say more about latency than about bandwidth."""
DOUBT_STEP = 0.01  # Doubt that changed less is not spread over the places.
DEGRADED_DOUBT = 0.2
DEGRADED_MEMORY = 0.05


class Host:
    """One node.

    Attributes:
        node_id: Its id.
        policy: The gateway's; the same for all hosts of a fleet.
        view: What it says.
        ledger: What it promised.
        breaker: What was seen of it.
        places: Its slot groups.
        price: What a call costs there, as its owner declared; 0.0 by default.
        rtt_s: Smoothed round trip, None if unknown.
        bytes_per_s: Smoothed bandwidth for large arguments.
        exceeds: Keys of its declaration that are larger than what was detected.
        doubt: How little it is trusted, in [0, 1].
        shut: Nothing should be given to it.
        probing: One call at a time is given to it.
        version: Grows when something changed that a call with needs looks at.
        now: When it was last heard or looked at.
    """

    __slots__ = (
        "_declared", "breaker", "bytes_per_s", "doubt", "exceeds", "ledger", "node_id", "now",
        "places", "policy", "price", "probing", "rtt_s", "shut", "version", "view",
    )  # fmt: skip

    def __init__(self, node_id: str, policy: Policy = DEFAULT) -> None:
        self.node_id = node_id
        self.policy = policy
        self.view = NodeView()
        self.ledger = Ledger()
        self.breaker = Breaker()
        self.places: list[Place] = []
        self.price = 0.0
        self.rtt_s: float | None = None
        self.bytes_per_s = BYTES_PER_S
        self.exceeds: tuple[str, ...] = ()
        self.doubt = 0.0
        self.shut = False
        self.probing = False
        self.version = 0
        self.now = 0.0
        self._declared = Resources()

    # ---- what it says ------------------------------------------------------------------------

    def declare(self, capabilities: Mapping[str, Any]) -> None:
        """Take over what its owner declared; measured values count more, see `Resources.over`."""
        self._declared = read_resources(capabilities)
        price = capabilities.get("price", 0.0)
        self.price = float(price) if type(price) in (int, float) and 0 <= price < 1e9 else 0.0
        self._measured()
        self.refresh()

    def heard(self, sample: Mapping[str, Any], now: float) -> None:
        """Take a telemetry sample in."""
        self.view.fold(sample, now, sum(place.busy for place in self.places))
        for place in self.places:
            place.busy_seen = place.busy
        self._measured()
        self._judge(now)
        self.refresh()

    def _measured(self) -> None:
        view = self.view
        cpus = view.values.get("cpu_count")
        detected = Resources(
            cpus, view.bytes_of("memory_total_bytes"), view.bytes_of("disk_total_bytes"),
            view.devices,
        )  # fmt: skip
        total, self.exceeds = self._declared.over(detected)
        self.ledger.measured(
            total,
            view.bytes_of("memory_available_bytes"),
            view.bytes_of("memory_own_bytes"),
            view.bytes_of("disk_free_bytes"),
        )

    def restarted(self) -> None:
        """Its agent has started again: nothing runs there, and nothing of it is known yet."""
        self.view.restarted()
        self.ledger.clear()
        self._measured()
        for place in self.places:
            place.reset()
        self.refresh()

    # ---- what was seen -------------------------------------------------------------------------

    def saw_rtt(self, rtt_s: float) -> None:
        """A round trip was measured; a shorter one counts at once, for queues make them longer."""
        if 0.0 <= rtt_s < 3600.0:
            old = self.rtt_s
            self.rtt_s = rtt_s if old is None else min(rtt_s, old + (rtt_s - old) * LATENCY_WEIGHT)
            self.refresh()

    def saw_transfer(self, size_bytes: int, took_s: float) -> None:
        """Arguments were sent to it."""
        if size_bytes >= MEASURE_BYTES and took_s > 0.0:
            self.bytes_per_s += (size_bytes / took_s - self.bytes_per_s) * BANDWIDTH_WEIGHT

    def succeeded(self, now: float, took_s: float = 0.0, claimed_s: float | None = None) -> None:
        """A call came to an outcome there that is not the node's fault; see `Breaker`."""
        breaker = self.breaker
        before = breaker.state
        breaker.succeeded(now, took_s, claimed_s)
        if breaker.state is not before:
            self.tick(now)

    def failed(self, now: float) -> None:
        """The node lost a call, never ended it, or broke the protocol."""
        self.breaker.failed(now)
        self.tick(now)

    def tick(self, now: float) -> bool:
        """Let time pass, about once a second; True if it may be given calls that it could not."""
        opened = self.breaker.tick(now)
        doubt, shut, probing = self.doubt, self.shut, self.probing
        self._judge(now)
        changed = (shut, probing) != (self.shut, self.probing)
        if changed or abs(doubt - self.doubt) >= DOUBT_STEP:
            self.refresh()
        else:
            self.doubt = doubt
        return opened or (changed and not self.shut)

    def _judge(self, now: float) -> None:
        self.now = now
        silence = self.view.doubt(now)
        state = self.breaker.state
        self.doubt = min(1.0, silence + self.breaker.doubt(now))
        self.shut = silence >= 1.0 or state is State.OPEN
        self.probing = state is State.PROBING

    @property
    def health(self) -> str:
        """`healthy`, `degraded` (it gets fewer calls) or `unhealthy` (it gets none)."""
        if self.shut:
            return "unhealthy"
        memory = self.view.memory_free
        tight = memory is not None and memory < DEGRADED_MEMORY
        return "degraded" if self.probing or tight or self.doubt > DEGRADED_DOUBT else "healthy"

    # ---- what is reserved ------------------------------------------------------------------------

    def reserve(self, needs: Needs) -> Reservation | None:
        """Promise what a call needs; None if it does not fit (any more)."""
        devices = self.ledger.fits(needs)
        if isinstance(devices, Rejection):
            return None
        reservation = self.ledger.take(needs, devices)
        self.changed()
        return reservation

    def holds(self, needs: Needs, there: tuple[int, ...]) -> Reservation:
        """A node came back with a call: it has what it needs there, whatever we know of the node.

        Args:
            needs: How much.
            there: The devices that it uses, as the node says.
        """
        devices: tuple[int, ...] | Rejection = there
        if len(there) != needs.devices:
            devices = self.ledger.fits(needs)
        if isinstance(devices, Rejection):
            devices = tuple(range(needs.devices))
        reservation = self.ledger.take(needs, devices)
        self.changed()
        return reservation

    def give_back(self, reservation: Reservation) -> None:
        """The body is gone."""
        self.ledger.give_back(reservation)
        self.changed()

    def changed(self) -> None:
        """Something changed that a call with needs looks at."""
        self.version += 1
        for place in self.places:
            if place.fleet is not None:
                place.fleet.version[place.row] = self.version

    def refresh(self) -> None:
        """Bring all of its places up to date."""
        for place in self.places:
            place.refresh()
        self.changed()


class Place(Window):
    """One slot group of one node.

    Attributes:
        host: The node.
        name: Of the group.
        busy: Calls that are there and occupy a slot or wait for one.
        busy_seen: How many of them the last sample had in it.
        used: A counter of all uses, at its last use; negative, and by its name, before the first.
        value: Its total for a call without needs; see the module.
        rest: `value` without its `resources` part.
        fleet: The table that has it, if some pool is long.
        row: Where.
    """

    __slots__ = (
        "_ahead_step", "_bodies", "_call_share", "_cheap", "_cpu", "_cpu_weight", "_fixed",
        "_latency", "_log_body", "_memory", "_slow", "_step", "busy", "busy_seen", "fleet", "host",
        "name", "rest", "row", "used", "value",
    )  # fmt: skip

    def __init__(self, host: Host, name: str, slots: int) -> None:
        super().__init__(slots)
        self.host = host
        self.name = name
        self.busy = 0
        self.busy_seen = 0
        self._bodies = 0
        self._log_body = 0.0
        # Places that were never used come first, in an order that only their names decide.
        digest = blake2b(f"{host.node_id}\0{name}".encode(), digest_size=7).digest()
        self.used = -1 - int.from_bytes(digest, "big")
        self.fleet: Fleet | None = None
        self.row = -1
        host.places.append(self)
        self.refresh()

    # ---- calls come and go -----------------------------------------------------------------------

    def take(self, uses: int) -> None:
        """A call was given to it, as the `uses`-th of all dispatches; `uses` only grows."""
        self.used = uses
        self.busy += 1
        self._revalue()

    def take_back(self) -> None:
        """A call that had lent its slot needs it again."""
        self.busy += 1
        self._revalue()

    def release(self) -> None:
        """A call has ended, or lends its slot."""
        self.busy -= 1
        self._revalue()

    def reset(self) -> None:
        """Nothing runs there: the node came back."""
        self.busy = self.busy_seen = 0
        self._revalue()

    def learn(self, body_s: float) -> None:
        """Take a measured body time into account."""
        super().learn(body_s)
        if 0.0 <= body_s <= BODY_S_MAX:
            self._bodies = min(BODIES_MAX, self._bodies + 1)
            logarithm = math.log(max(body_s, BODY_S_LEAST))
            self._log_body += (logarithm - self._log_body) / self._bodies
            self.refresh()

    def answered(self, now: float, claimed_s: float, took_s: float = 0.0, behind: int = 0) -> float:
        """A call came to an outcome that is not the node's fault; what it took is measured.

        What the node claims is believed unless the gateway's own clock says otherwise: whoever
        claims short bodies would be given many calls ahead.

        Args:
            now: On the gateway's clock.
            claimed_s: How long the body took, as the node says.
            took_s: From the moment at which the node had all of it; 0.0 if that was not measured.
            behind: Calls beyond the slots when it was given, itself among them.

        Returns: How long its body took, as far as that is believed.
        """
        each_s = took_s / (1.0 + max(0, behind) / self.slots)
        believed_s = each_s if is_late(each_s, claimed_s) else claimed_s
        self.learn(believed_s)
        self.host.succeeded(now, each_s, claimed_s)
        return believed_s

    @property
    def usual_s(self) -> float | None:
        """Return the usual body time: a geometric mean, which a few long bodies hardly move."""
        return math.exp(self._log_body) if self._bodies else None

    def resize(self, slots: int) -> None:
        """The node announced another number of slots."""
        super().resize(slots)
        self.refresh()

    def leave(self) -> None:
        """The group exists no more."""
        self.host.places.remove(self)

    # ---- its value -------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the parts of `value` up to date that do not follow `busy`."""
        host = self.host
        view, policy = host.view, host.policy
        weights = policy.weights
        half = weights.resources / 2.0
        self._step = weights.load / self.slots
        self._ahead_step = weights.ahead / self.slots
        self._memory = half * score.share(view.memory_free)
        self._cpu_weight = half
        self._call_share = view.call_cores / view.cpus
        if view.cpu_used is None:
            self._cpu_weight = 0.0
            self._cpu = 0.0
        else:
            self._cpu = 1.0 - view.cpu_used + self.busy_seen * self._call_share
        self._latency = score.latency(host.rtt_s, self.usual_s, policy.latency_ref_s)
        self._slow = score.slow(score.latency(None, self.usual_s, policy.latency_ref_s))
        self._cheap = score.cheap(host.price)
        self._fixed = (
            weights.latency * self._latency
            - weights.slow * self._slow
            + weights.load
            + weights.capability
            + weights.cheap * self._cheap
            - host.doubt
        )
        if host.shut:
            self._fixed -= SHUT
        self._revalue()

    def _revalue(self) -> None:
        busy = self.busy
        if busy >= self.limit or (busy and self.host.probing):
            self.value = self.rest = NO_ROOM
        else:
            cpu = self._cpu - busy * self._call_share
            if cpu < 0.0:
                cpu = 0.0
            elif cpu > 1.0:
                cpu = 1.0
            if busy < self.slots:
                rest = self._fixed - busy * self._step
            else:
                rest = self._fixed - self.slots * self._step - busy * self._ahead_step
            self.rest = rest
            self.value = rest + self._memory + self._cpu_weight * cpu
        fleet = self.fleet
        if fleet is not None:
            row = self.row
            fleet.value[row] = self.value
            fleet.rest[row] = self.rest
            fleet.used[row] = self.used

    @property
    def cpu_free(self) -> float | None:
        """Return the share of processors that is free, less what was given since the sample."""
        if self.host.view.cpu_used is None:
            return None
        return score.share(self._cpu - self.busy * self._call_share)

    def scores(
        self, needs: Needs = NO_NEEDS, devices: tuple[int, ...] = (), capability: float = 1.0
    ) -> Scores:
        """Return its scores for a call.

        Args:
            needs: What the call reserves.
            devices: What `Ledger.fits` found for it.
            capability: How well the node fits soft preferences.
        """
        host = self.host
        if needs:
            resources = host.ledger.free_after(needs, devices)
        else:
            resources = score.resources(self.cpu_free, host.view.memory_free)
        return Scores(
            resources, self._latency, score.load(self.busy, self.slots), capability, self._cheap,
            score.ahead(self.busy, self.slots), self._slow, host.doubt,
        )  # fmt: skip

    def wait_s(self, waiting: int = 0) -> float:
        """Return how long a call would wait there for a slot, behind `waiting` others."""
        behind = self.busy + waiting + 1 - self.slots
        if behind <= 0:
            return 0.0
        return float("inf") if self.mean_s is None else behind * self.mean_s / self.slots

    def snapshot(self, scores: Scores, total: float) -> NodeSnapshot:
        """Return a frozen view of it, for strategies of users."""
        host = self.host
        known = [one for one in (host.rtt_s, self.usual_s) if one is not None]
        latency_s = sum(known) if known else None
        return NodeSnapshot(
            host.node_id, self.slots, self.busy, self.limit, latency_s, self.cpu_free,
            host.view.memory_free, host.price, host.view.age_s(host.now), scores, total,
        )  # fmt: skip
