"""Which nodes there are, what they offer, and where a call could run.

Theory. The registry is rebuilt from what connected nodes announce; nothing of it is stored. A
*pool* is a set of places where one kind of call could run: every offer of one function name on
the nodes of one owner, or the offers on the nodes that a caller named. Calls wait at their pool,
and a pool knows its places by slot group, so that finding a place is one look over few numbers.

A function name alone never reaches a stranger's node. Calls without a node id go to the nodes of
one owner: the caller's own if they offer the name, else those of the owner who offered it first
and still does. A node that turns up later with somebody else's function name gets no such call.

Rules of this file. 1) No I/O; time is an argument. 2) Only calls that the caller may see are
found: a name outside its scopes is a name that does not exist. 3) Places are kept up to date when
a node changes, never searched for on the hot path.

Source. promises.md T14; features.md G5, G10, G11.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..identity.role import Principal
from ..scheduler.window import Window
from .grants import NodeGrants
from .offer import FunctionEntry, NodeOffer
from .queue import CallQueue

if TYPE_CHECKING:
    from ..link import Link
    from .calls import GatewayCall

NODES_MAX = 10_000
"""Nodes that the registry remembers, connected or not."""
PINNED_MAX = 4096
"""Pools of named nodes that are kept while nobody waits at them."""
OFFLINE_KEEP_S = 3600.0
"""How long a node that went away is still shown as offline."""


class SlotGroup(Window):
    """Functions of one node that share execution slots.

    Attributes:
        busy: Calls that were given to the node and occupy a slot or wait for one. A call whose
            body waits for a nested call has lent its slot and is not counted.
        used: When it was used last, as a count of all uses.
        pools: Pools at which calls wait that could run here.
    """

    __slots__ = ("busy", "name", "node", "pools", "used")

    def __init__(self, node: NodeRecord, name: str, slots: int) -> None:
        super().__init__(slots)
        self.node = node
        self.name = name
        self.busy = 0
        self.used = 0
        self.pools: dict[Pool, None] = {}


class Offer:
    """One function on one node.

    Attributes:
        record: The node.
        group: Where its calls count.
        entry: What the node said about it.
        registered_at: When, in UTC.
    """

    __slots__ = ("entry", "group", "name", "record", "registered_at")

    def __init__(self, record: NodeRecord, group: SlotGroup, entry: FunctionEntry) -> None:
        self.record = record
        self.group = group
        self.entry = entry
        self.name = entry.name
        self.registered_at = datetime.now(UTC)

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
        link: Its link, None while it is away.
        epoch: Number of this boot of the node's agent; grants of an earlier one are void.
        grants: Makes the grants of this boot.
        running: Calls given to it that it has not done with, by call id.
        since: When it connected, in UTC.
        last_seen: When it was connected last, on trio's clock.
        online: The disk says that it may hold calls.
        same_boot: It had been here before, also before this start of the gateway.
    """

    def __init__(self, node_id: str, principal: Principal) -> None:
        self.node_id = node_id
        self.principal = principal
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
        self.paused = False
        self.draining = False
        self.since = datetime.now(UTC)
        self.last_seen = 0.0
        self.online = True
        self.same_boot = False

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
        """`healthy`, `draining`, `paused` or `offline`."""
        if self.link is None:
            return "offline"
        if self.draining:
            return "draining"
        return "paused" if self.paused else "healthy"


class Pool:
    """A set of places where one kind of call could run, and the calls that wait for one.

    Attributes:
        owner: Whose nodes it covers, or None if `node_ids` says which.
        node_ids: The nodes that the caller named, or None.
        places: Groups that take calls now, with the offer that runs there.
        queue: The calls that wait.
        guarded: Some of its functions want a level or an individual of their callers.
        has_terms: Some of its functions have a quota or a price.
        stranded_since: Since when calls wait here that no connected node could run.
    """

    __slots__ = (
        "guarded", "has_terms", "name", "node_ids", "owner", "places", "queue", "stranded_since",
    )  # fmt: skip

    def __init__(self, name: str, owner: str | None, node_ids: frozenset[str] | None) -> None:
        self.name = name
        self.owner = owner
        self.node_ids = node_ids
        self.places: dict[SlotGroup, Offer] = {}
        self.queue = CallQueue()
        self.guarded = self.has_terms = False
        self.stranded_since: float | None = None

    def add(self, offer: Offer) -> None:
        """Take a place in, or the new description of one."""
        self.places[offer.group] = offer
        self.stranded_since = None
        if offer.entry.access_level is not None or offer.entry.auth_required:
            self.guarded = True
        if offer.entry.terms is not None:
            self.has_terms = True
        if self.queue.waiting:
            offer.group.pools[self] = None

    def remove(self, group: SlotGroup) -> None:
        """Give a place up."""
        if self.places.pop(group, None) is not None:
            group.pools.pop(self, None)

    def covers(self, record: NodeRecord) -> bool:
        """Return whether a node belongs to this pool."""
        if self.node_ids is not None:
            return record.node_id in self.node_ids
        return record.owner == self.owner


class Registry:
    """All nodes and pools of a gateway.

    Attributes:
        version: Grows with every change after which a call may have to go elsewhere.
    """

    def __init__(self) -> None:
        self.version = 0
        self.nodes: dict[str, NodeRecord] = {}
        self._offers: dict[str, dict[str, Offer]] = {}  # By name, then by node id.
        self._pools: dict[str, list[Pool]] = {}  # By name.
        self._by_owner: dict[tuple[str, str], Pool] = {}
        self._pinned: dict[tuple[str, frozenset[str]], Pool] = {}
        self._first_owner: dict[str, str] = {}

    # ---- nodes come, change and go ---------------------------------------------------------

    def connect(
        self, node_id: str, principal: Principal, link: Link, epoch: int, grants: NodeGrants
    ) -> NodeRecord | None:
        """Take a node in that was authenticated; None if no more nodes can be remembered."""
        record = self.nodes.get(node_id)
        if record is None or record.owner != principal.user:
            if record is None and len(self.nodes) >= NODES_MAX:
                return None
            if record is not None:
                self.forget(record)
            record = self.nodes[node_id] = NodeRecord(node_id, principal)
        assert record.link is None and not record.running
        record.principal = principal
        record.link = link
        record.online = True
        record.epoch = epoch
        record.grants = grants
        record.since = datetime.now(UTC)
        record.paused = record.draining = False
        for group in record.groups.values():
            group.busy = 0
        return record

    def announce(self, record: NodeRecord, offer: NodeOffer, *, whole: bool) -> list[Pool]:
        """Take over what a node says it offers; return the pools that may have new places.

        Args:
            record: The node, connected.
            offer: What it said, checked.
            whole: It is everything that the node offers, not a change.
        """
        if offer.capabilities is not None:
            record.capabilities = offer.capabilities
        if whole or offer.labels:
            record.labels = offer.labels
        record.facts.update(offer.facts)
        if offer.paused is not None:
            record.paused = offer.paused
        if offer.draining is not None:
            record.draining = offer.draining
        kept = {entry.name for entry in offer.functions}
        gone = set(record.offers) - kept if whole else set(offer.removed)
        for name in gone & set(record.offers):
            self._withdraw(record.offers.pop(name))
        for entry in offer.functions:
            self._add(record, entry)
        return self.refresh(record)

    def _add(self, record: NodeRecord, entry: FunctionEntry) -> None:
        old = record.offers.get(entry.name)
        group = record.groups.get(entry.group)
        if group is None:
            group = record.groups[entry.group] = SlotGroup(record, entry.group, entry.slots)
        elif group.slots != entry.slots:
            group.resize(entry.slots)
        if old is not None and old.group is not group:
            self._withdraw(old)
        offer = Offer(record, group, entry)
        if old is not None:
            offer.registered_at = old.registered_at
        record.offers[entry.name] = offer
        self._offers.setdefault(entry.name, {})[record.node_id] = offer
        self._first_owner.setdefault(entry.name, record.owner)

    def _withdraw(self, offer: Offer) -> None:
        self.version += 1
        by_node = self._offers[offer.name]
        del by_node[offer.record.node_id]
        for pool in self._pools.get(offer.name, ()):
            if pool.covers(offer.record):
                pool.remove(offer.group)
        if not by_node:
            del self._offers[offer.name]
            self._first_owner.pop(offer.name, None)
        elif self._first_owner.get(offer.name) not in {o.record.owner for o in by_node.values()}:
            self._first_owner[offer.name] = next(iter(by_node.values())).record.owner

    def refresh(self, record: NodeRecord) -> list[Pool]:
        """Bring the places of a node up to date; return the pools that it now serves."""
        self.version += 1
        served: list[Pool] = []
        takes = record.takes_calls
        for offer in record.offers.values():
            for pool in self._pools.get(offer.name, ()):
                if not pool.covers(record):
                    continue
                if takes:
                    pool.add(offer)
                    served.append(pool)
                else:
                    pool.remove(offer.group)
        return served

    def disconnect(self, record: NodeRecord, now: float) -> None:
        """A node's link is gone; what it offered stays known for a while."""
        record.link = None
        record.last_seen = now
        record.running = {}
        self.refresh(record)

    def forget(self, record: NodeRecord) -> None:
        """Remove a node that is away, with all that it offered."""
        assert record.link is None
        for offer in record.offers.values():
            self._withdraw(offer)
        record.offers.clear()
        del self.nodes[record.node_id]

    def away_since(self, when: float) -> list[NodeRecord]:
        """Return the nodes that have been away since before `when` and count as online."""
        return [
            record
            for record in self.nodes.values()
            if record.link is None and record.online and record.last_seen <= when
        ]

    def forget_old(self, now: float) -> None:
        """Remove the nodes that have been away for long, and pools that nobody uses."""
        for record in list(self.nodes.values()):
            if record.link is None and now - record.last_seen > OFFLINE_KEEP_S:
                self.forget(record)
        self._forget_pools()

    def _forget_pools(self) -> None:
        pinned = [pool for pool in self._pinned.values() if not pool.queue.waiting]
        gone = (pool for pool in self._by_owner.values() if pool.name not in self._offers)
        unused = [pool for pool in gone if not pool.queue.waiting]
        for pool in pinned + unused:
            self._drop(pool)

    def _drop(self, pool: Pool) -> None:
        self.version += 1
        pools = self._pools[pool.name]
        pools.remove(pool)
        if not pools:
            del self._pools[pool.name]
        for group in pool.places:
            group.pools.pop(pool, None)
        if pool.node_ids is not None:
            del self._pinned[pool.name, pool.node_ids]
        else:
            assert pool.owner is not None
            del self._by_owner[pool.name, pool.owner]

    # ---- where a call could run --------------------------------------------------------------

    def providers(self, name: str, principal: Principal) -> list[Offer]:
        """Return every offer of a function name that the principal may see, online or not."""
        return [offer for offer in self._offers.get(name, {}).values() if visible(offer, principal)]

    def pool_by_name(self, name: str, principal: Principal) -> Pool | None:
        """Return the pool for a call that names no node; None if the caller sees no such name."""
        offers = self._offers.get(name)
        if not offers:
            return None
        owner = self._first_owner[name]
        if owner != principal.user and any(
            offer.record.owner == principal.user for offer in offers.values()
        ):
            owner = principal.user
        if principal.scopes.nodes or principal.scopes.functions:
            seen = [offer for offer in offers.values() if visible(offer, principal)]
            if not seen:
                return None
            own = [offer for offer in seen if offer.record.owner == owner]
            chosen = own or [o for o in seen if o.record.owner == seen[0].record.owner]
            return self.pool_of_nodes(name, frozenset(o.record.node_id for o in chosen))
        pool = self._by_owner.get((name, owner))
        if pool is None:
            pool = self._by_owner[name, owner] = self._new_pool(name, owner, None)
        return pool

    def pool_of_nodes(self, name: str, node_ids: frozenset[str]) -> Pool:
        """Return the pool for a call that may run on the named nodes."""
        pool = self._pinned.get((name, node_ids))
        if pool is None:
            if len(self._pinned) >= PINNED_MAX:
                self._forget_pools()
            pool = self._pinned[name, node_ids] = self._new_pool(name, None, node_ids)
        return pool

    def _new_pool(self, name: str, owner: str | None, node_ids: frozenset[str] | None) -> Pool:
        pool = Pool(name, owner, node_ids)
        self._pools.setdefault(name, []).append(pool)
        for offer in self._offers.get(name, {}).values():
            if offer.record.takes_calls and pool.covers(offer.record):
                pool.add(offer)
        return pool

    def named(self, names: list[str], principal: Principal) -> list[NodeRecord]:
        """Return the nodes that ids or labels name, as far as the principal may see them."""
        found: dict[str, NodeRecord] = {}
        for name in names:
            record = self.nodes.get(name)
            labelled = [] if record else [o for o in self.nodes.values() if name in o.labels]
            for one in [record] if record else labelled:
                if sees_node(one, principal):
                    found[one.node_id] = one
        return list(found.values())

    def stranded(self) -> list[Pool]:
        """Return the pools at which calls wait and no connected node could run them."""
        return [
            pool
            for pools in self._pools.values()
            for pool in pools
            if pool.queue.waiting and not self._has_provider(pool)
        ]

    def _has_provider(self, pool: Pool) -> bool:
        return any(
            offer.record.link is not None and pool.covers(offer.record)
            for offer in self._offers.get(pool.name, {}).values()
        )

    def offer_count(self) -> int:
        """Return how many functions are offered by connected nodes."""
        return sum(len(record.offers) for record in self.nodes.values() if record.link is not None)


def visible(offer: Offer, principal: Principal) -> bool:
    """Return whether a principal may know of a function (it may still lack a level)."""
    return principal.scopes.allow(offer.name, offer.record.node_id)


def sees_node(record: NodeRecord, principal: Principal) -> bool:
    """Return whether a principal may know of a node."""
    scopes = principal.scopes
    if not scopes.nodes and not scopes.functions:
        return True
    if not record.offers:
        return not scopes.functions and scopes.allow("", record.node_id)
    return any(visible(offer, principal) for offer in record.offers.values())
