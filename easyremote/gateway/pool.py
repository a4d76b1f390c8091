"""What the registry is made of: nodes, the slot groups of their functions, and pools of places.

Theory. A *pool* is a set of places where one kind of call could run: every offer of one function
name on the nodes of one owner, or on the nodes that a caller named, for calls that ask for the
same. Calls wait at their pool, and a pool knows its places by slot group, so that finding a place
is one look over few numbers. Calls of one function that reserve different things wait at different
pools: one that needs two GPUs must not stand in the way of one that needs none.

Rules of this file. 1) No I/O; time is an argument. 2) A node that could never run the calls of a
pool is no place of it.

Source. promises.md T14; features.md G5, G11; issue of the scheduler: "requirement class".
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from ..identity.role import Principal
from ..scheduler.capability import Effort, TooMuch, Wishes, degree
from ..scheduler.host import Host, Place
from ..scheduler.model import NO_NEEDS, Needs, Rejection
from ..scheduler.needs import read_needs
from ..scheduler.pending import PendingQueue
from ..scheduler.place import Places
from ..scheduler.policy import Policy
from ..scheduler.scaling import Replicas, Scaling, read_scaling
from ..scheduler.window import LONG_BODY_S, WEIGHT
from .demands import PRIORITY_MAX, Demand
from .grants import NodeGrants
from .offer import FunctionEntry
from .strategies import for_pool

if TYPE_CHECKING:
    from ..link import Link
    from .calls import GatewayCall
    from .registry import Cluster


MANY = 8
"""With more queues at a place, those whose calls do not fit there are left out in one go."""


class SlotGroup(Place):
    """Functions of one node that share execution slots.

    A call whose body waits for a nested call has lent its slot and does not count as busy.

    Attributes:
        node: The node.
        pools: Pools at which calls wait that could run here.
    """

    __slots__ = ("node", "pools")

    def __init__(self, node: NodeRecord, name: str, slots: int) -> None:
        super().__init__(node.host, name, slots)
        self.node = node
        self.pools: dict[Pool, None] = {}


class Offer:
    """One function on one node.

    Attributes:
        record: The node.
        group: Where its calls count.
        entry: What the node said about it.
        requirements: What each call of it reserves, as its provider wrote it.
        body_s: Mean time of its bodies, None before the first was measured.
        scaling: Within which bounds its replicas are many or few; None if they are not counted.
        registered_at: When, in UTC.
    """

    __slots__ = (
        "body_s", "entry", "group", "name", "record", "registered_at", "requirements", "scaling",
    )  # fmt: skip

    def __init__(self, record: NodeRecord, group: SlotGroup, entry: FunctionEntry) -> None:
        self.record = record
        self.group = group
        self.entry = entry
        self.name = entry.name
        requirements = entry.facts.get("requirements")
        self.requirements: Mapping[str, Any] = requirements if type(requirements) is dict else {}
        self.scaling = _scaling(entry.facts.get("scaling"))
        self.body_s: float | None = None
        self.registered_at = datetime.now(UTC)

    def learn(self, body_s: float) -> None:
        """Take a measured body time into account."""
        known = self.body_s
        self.body_s = body_s if known is None else known + (body_s - known) * WEIGHT

    def may_take(self, call: GatewayCall) -> bool:
        """Return whether a call may go to its group now: to a free slot, or ahead of one.

        Ahead of a slot a call cannot be given to anybody else any more. So that is for calls that
        are known to be short, whatever else runs in the group.
        """
        group = self.group
        if call.charge is not None and not call.charge.covers(self):
            return False
        if group.busy < group.slots:
            return True
        if self.body_s is None or self.body_s > LONG_BODY_S:
            return False
        return call.charge is None or not call.charge.strict

    def needs(self, asks: tuple[tuple[str, float | str], ...] = ()) -> Needs | Rejection:
        """Return what a call reserves here, or why what it asks for makes no sense here.

        Args:
            asks: Amounts that the call asks for itself; of both, the larger counts.
        """
        if not asks and not self.requirements:
            return NO_NEEDS
        try:
            return read_needs(self.requirements, {"resources": dict(asks)} if asks else None)
        except ValueError as error:
            return Rejection(str(error), never=True)

    @property
    def path(self) -> str:
        """`node_id.function`, the name under which everyone finds it."""
        return f"{self.record.node_id}.{self.name}"

    @property
    def loss_detail(self) -> dict[str, Any]:
        """What is said about calls that were lost with the node: whether they may run twice."""
        return {"idempotent": True} if self.entry.idempotent else {}


class NodeRecord:
    """A node, connected or not.

    Attributes:
        principal: Who enrolled it; its owner.
        host: What the scheduler knows of it.
        link: Its link, None while it is away.
        epoch: Number of this boot of the node's agent; grants of an earlier one are void.
        grants: Makes the grants of this boot.
        running: Calls given to it that it has not done with, by call id.
        replicas: How many replicas are wanted of functions that scale, by name.
        surplus: Of those that have more: their last use, and since when that is known.
        since: When it connected, in UTC.
        last_seen: When it was connected last, on trio's clock.
        online: The disk says that it may hold calls.
        was_here: This boot of it was here before this start of the gateway.
    """

    def __init__(self, node_id: str, principal: Principal, policy: Policy) -> None:
        self.node_id = node_id
        self.principal = principal
        self.host = Host(node_id, policy)
        self.link: Link | None = None
        self.epoch = 0
        self.grants: NodeGrants | None = None
        self.offers: dict[str, Offer] = {}
        self.groups: dict[str, SlotGroup] = {}
        self.running: dict[bytes, GatewayCall] = {}
        self.capabilities: dict[str, Any] = {}
        self.labels: list[str] = []
        self.facts: dict[str, Any] = {}
        self.sample: dict[str, Any] = {}
        self.replicas: dict[str, Replicas] = {}
        self.surplus: dict[str, tuple[int, float]] = {}
        self.paused = False
        self.draining = False
        self.since = datetime.now(UTC)
        self.last_seen = 0.0
        self.online = True
        self.was_here = False

    @property
    def owner(self) -> str:
        """The user whose node it is."""
        return self.principal.user

    @property
    def takes_calls(self) -> bool:
        """Whether calls may be given to it now."""
        return self.link is not None and not self.paused and not self.draining

    @property
    def health(self) -> str:
        """`healthy`, `degraded`, `unhealthy`, `draining`, `paused` or `offline`."""
        if self.link is None:
            return "offline"
        if self.draining:
            return "draining"
        return "paused" if self.paused else self.host.health


class Class(NamedTuple):
    """What tells the calls of one pool from those of another one of the same function."""

    asks: tuple[tuple[str, float | str], ...] = ()
    """Amounts that each call reserves beyond what the function requires."""
    prefers: Wishes = ()
    """What a node should have."""
    policy: Policy | None = None
    """By which places are compared; None for the gateway's own."""


ORDINARY = Class()


def class_of(demand: Demand | None) -> Class:
    """Return the class of calls to which one with these options belongs."""
    if demand is None:
        return ORDINARY
    return Class(demand.asks, demand.prefers, demand.policy)


class Pool:
    """A set of places where one kind of call could run, and the calls that wait for one.

    Attributes:
        owner: Whose nodes it covers, or None if `node_ids` says which.
        node_ids: The nodes that the caller named, or None.
        kind: The class of its calls.
        places: Groups that take calls now, with the offer that runs there.
        ranked: The same groups, for choosing one.
        queue: The calls that wait.
        guarded: Some of its functions want a level or an individual of their callers.
        has_terms: Some of its functions have a quota or a price.
        needy: Its calls reserve something at some place.
        priority: Of its calls that ask for none, as their provider said.
        stranded_since: Since when calls wait here that no connected node could run.
    """

    __slots__ = (
        "guarded", "has_terms", "kind", "name", "needy", "node_ids", "owner", "places",
        "priority", "queue", "ranked", "stranded_since",
    )  # fmt: skip

    def __init__(
        self, name: str, owner: str | None, node_ids: frozenset[str] | None, kind: Class,
        cluster: Cluster,
    ) -> None:  # fmt: skip
        self.name = name
        self.owner = owner
        self.node_ids = node_ids
        self.kind = kind
        self.places: dict[Place, Offer] = {}
        self.ranked = Places(
            cluster.fleet, for_pool(kind.policy or cluster.policy, self),
            capability=self._liking if kind.prefers else None, lots=cluster.lots,
        )  # fmt: skip
        self.queue: PendingQueue[GatewayCall] = PendingQueue(cluster.shares, cluster.queued_max)
        self.guarded = self.has_terms = False
        self.priority = 0
        self.needy = bool(kind.asks)
        self.stranded_since: float | None = None

    def add(self, offer: Offer) -> None:
        """Take a place in, or the new description of one, if its node could ever run the calls."""
        needs = offer.needs(self.kind.asks)
        if isinstance(needs, Rejection) or offer.record.host.ledger.ever(needs) is not None:
            self.needy = True
            self.remove(offer.group)
            return
        if needs:
            self.needy = True
        self.places[offer.group] = offer
        self.ranked.add(offer.group, needs)
        self.stranded_since = None
        if offer.entry.access_level is not None or offer.entry.auth_required:
            self.guarded = True
        if offer.entry.terms is not None:
            self.has_terms = True
        priority = offer.entry.facts.get("priority")
        if type(priority) is int and abs(priority) <= PRIORITY_MAX:
            self.priority = priority
        if self.queue.waiting:
            offer.group.pools[self] = None

    def remove(self, group: SlotGroup) -> None:
        """Give a place up."""
        if self.places.pop(group, None) is not None:
            self.ranked.discard(group)
            group.pools.pop(self, None)

    def covers(self, record: NodeRecord) -> bool:
        """Return whether a node belongs to this pool."""
        if self.node_ids is not None:
            return record.node_id in self.node_ids
        return record.owner == self.owner

    def misfit(self, offer: Offer) -> Rejection | None:
        """Return why a node could not run a call of this pool, even if it were empty."""
        needs = offer.needs(self.kind.asks)
        if isinstance(needs, Rejection):
            return needs
        return offer.record.host.ledger.ever(needs) if needs else None

    def unable(self, call: GatewayCall) -> frozenset[str]:
        """Return the nodes that are not to be given a call now, whatever room they have."""
        return frozenset(
            offer.record.node_id
            for offer in self.places.values()
            if (link := offer.record.link) is None
            or link.streams_available <= 0
            or call.message.call_id in offer.record.running
            or not offer.may_take(call)
            or (offer.group.busy >= offer.group.slots and bool(offer.group.pools))
        )

    def comes_to(self, record: NodeRecord) -> bool:
        """Return whether the end of calls on a node could give the next call here its place there.

        What other programs on it use, the end of no call gives back.
        """
        group = next((one for one in record.groups.values() if one in self.places), None)
        if group is None:
            return False
        needs, ledger = self.ranked.needs_at(group), record.host.ledger
        if not isinstance(ledger.fits(needs), Rejection):
            return True
        return ledger.reservations > 0 and ledger.could(needs)

    def _liking(self, host: Host) -> float:
        """Return how well a node fits what the calls of this pool prefer."""
        for place, offer in reversed(self.places.items()):  # It is asked of the latest.
            if place.host is host:
                try:
                    return degree(
                        self.kind.prefers, offer.record.capabilities, tags_of(offer), Effort()
                    )
                except TooMuch:
                    return 0.0
        return 0.0


def waits_for(call: GatewayCall, record: NodeRecord) -> bool:
    """Return whether it is of use to a call that a node is kept for it."""
    return call.level is not None and call.pool is not None and call.pool.comes_to(record)


def without_room(group: SlotGroup, now: float, patient_s: float) -> set[Pool]:
    """Return the queues of a place whose calls do not fit there now, found in one look at each.

    One of them is left out: the first of those whose next call has waited for `patient_s` and could
    have its place there, for the node may be kept for it.
    """
    ledger = group.host.ledger
    found: set[Pool] = set()
    first: Pool | None = None
    first_rank = (0.0, 0.0, 0)
    for pool in group.pools:
        needs = pool.ranked.needs_at(group)
        if not needs or not isinstance(ledger.fits(needs), Rejection):
            continue
        found.add(pool)
        head = pool.queue.head(now)
        if head is not None and now - head.since >= patient_s and waits_for(head, group.node):
            rank = pool.queue.rank(now)
            if first is None or rank < first_rank:
                first, first_rank = pool, rank
    if first is not None:
        found.remove(first)
    return found


def _scaling(given: object) -> Scaling | None:
    """Return what a node says of the replicas of a function, as far as it can be read."""
    try:
        return None if given is None else read_scaling(given)
    except ValueError:
        return None


def tags_of(offer: Offer) -> list[str]:
    """Return the labels of a node and the tags of a function on it."""
    return offer.record.labels + function_tags(offer)


def function_tags(offer: Offer) -> list[str]:
    """Return the tags of a function."""
    tags = offer.entry.facts.get("tags")
    return [tag for tag in tags if type(tag) is str] if type(tags) is list else []
