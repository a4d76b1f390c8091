"""Which nodes there are, what they offer, and where a call could run.

Theory. The registry is rebuilt from what connected nodes announce; nothing of it is stored. Where
calls of one kind could run is a pool (`pool.py`), made when such a call comes first.

A function name alone never reaches a stranger's node. Calls without a node id go to the nodes of
one owner: the caller's own if they offer the name, else those of the owner who offered it first
and still does. A node that turns up later with somebody else's function name gets no such call.

Rules of this file. 1) No I/O; time is an argument. 2) Only calls that the caller may see are
found: a name outside its scopes is a name that does not exist. 3) Places are kept up to date when
a node changes, never searched for on the hot path.

Source. promises.md T14; features.md G5, G10, G11.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..identity.role import Principal
from ..scheduler.fleet import Fleet
from ..scheduler.policy import DEFAULT, Lots, Policy
from ..scheduler.shares import Shares
from .grants import NodeGrants
from .offer import FunctionEntry, NodeOffer
from .pool import ORDINARY, Class, NodeRecord, Offer, Pool, SlotGroup

if TYPE_CHECKING:
    from ..link import Link

NODES_MAX = 10_000
"""Nodes that the registry remembers, connected or not."""
PINNED_MAX = 4096
"""Pools of named nodes, and of calls that ask for something, that are kept while nobody waits."""
OFFLINE_KEEP_S = 3600.0
"""How long a node that went away is still shown as offline."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What all pools have in common.

    Attributes:
        policy: By which places are compared.
        fleet: The table of places in long pools.
        shares: What each user has used lately.
        lots: Draws for the strategy `random`.
        queued_max: Calls that may wait.
    """

    policy: Policy = DEFAULT
    fleet: Fleet = field(default_factory=Fleet)
    shares: Shares = field(default_factory=Shares)
    lots: Lots = field(default_factory=random.Random)
    queued_max: int = 10_000


class Registry:
    """All nodes and pools of a gateway.

    Attributes:
        cluster: What all pools have in common.
        version: Grows with every change after which a call may have to go elsewhere.
    """

    def __init__(self, cluster: Cluster | None = None) -> None:
        self.cluster = cluster or Cluster()
        self.version = 0
        self.nodes: dict[str, NodeRecord] = {}
        self._offers: dict[str, dict[str, Offer]] = {}  # By name, then by node id.
        self._pools: dict[str, list[Pool]] = {}  # By name.
        self._by_owner: dict[tuple[str, str], Pool] = {}
        self._special: dict[tuple[str, str | frozenset[str], Class], Pool] = {}
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
            record = self.nodes[node_id] = NodeRecord(node_id, principal, self.cluster.policy)
        assert record.link is None and not record.running
        record.principal = principal
        record.link = link
        record.online = True
        record.epoch = epoch
        record.grants = grants
        record.since = datetime.now(UTC)
        record.paused = record.draining = False
        record.host.restarted()
        record.replicas.clear()
        record.surplus.clear()
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
            record.host.declare(offer.capabilities)
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
            offer.registered_at, offer.body_s = old.registered_at, old.body_s
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
        special = [pool for pool in self._special.values() if not pool.queue.waiting]
        unused = [
            pool
            for pool in self._by_owner.values()
            if not pool.queue.waiting and pool.name not in self._offers
        ]
        for pool in special + unused:
            self._drop(pool)

    def _drop(self, pool: Pool) -> None:
        self.version += 1
        pools = self._pools[pool.name]
        pools.remove(pool)
        if not pools:
            del self._pools[pool.name]
        for offer in list(pool.places.values()):
            pool.remove(offer.group)
        pool.queue.close()
        where = pool.node_ids if pool.owner is None else pool.owner
        assert where is not None
        if self._special.pop((pool.name, where, pool.kind), None) is None:
            assert pool.owner is not None
            del self._by_owner[pool.name, pool.owner]

    # ---- where a call could run --------------------------------------------------------------

    def providers(self, name: str, principal: Principal) -> list[Offer]:
        """Return every offer of a function name that the principal may see, online or not."""
        return [offer for offer in self._offers.get(name, {}).values() if visible(offer, principal)]

    def pool_by_name(self, name: str, principal: Principal, kind: Class = ORDINARY) -> Pool | None:
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
            return self.pool_of_nodes(name, frozenset(o.record.node_id for o in chosen), kind)
        if kind != ORDINARY:
            return self._special_pool(name, owner, kind)
        pool = self._by_owner.get((name, owner))
        if pool is None:
            pool = self._by_owner[name, owner] = self._new_pool(name, owner, None, kind)
        return pool

    def pool_of_nodes(self, name: str, node_ids: frozenset[str], kind: Class = ORDINARY) -> Pool:
        """Return the pool for a call that may run on the named nodes."""
        return self._special_pool(name, node_ids, kind)

    def _special_pool(self, name: str, where: str | frozenset[str], kind: Class) -> Pool:
        pool = self._special.get((name, where, kind))
        if pool is None:
            if len(self._special) >= PINNED_MAX:
                self._forget_pools()
            owner = where if isinstance(where, str) else None
            node_ids = None if isinstance(where, str) else where
            pool = self._special[name, where, kind] = self._new_pool(name, owner, node_ids, kind)
        return pool

    def _new_pool(
        self, name: str, owner: str | None, node_ids: frozenset[str] | None, kind: Class
    ) -> Pool:
        pool = Pool(name, owner, node_ids, kind, self.cluster)
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
            records = (
                [record]
                if record is not None
                else [other for other in self.nodes.values() if name in other.labels]
            )
            for one in records:
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
        return bool(pool.places) or any(
            offer.record.link is not None
            and pool.covers(offer.record)
            and pool.misfit(offer) is None
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
