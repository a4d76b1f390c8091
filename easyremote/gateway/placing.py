"""Give calls to nodes: at once to the best place with room, else to whoever has room first.

Theory. A call is written to a node's link as soon as some slot group that could run it holds less
than its window: to the one with the best score (`scheduler/place.py`). Otherwise it waits at its
pool. Whenever a place becomes free, the group takes the call whose user has used least lately,
among all pools that it serves (`scheduler/pending.py`). So no call waits at a slow or busy node
while a fast one idles.

What a call needs is reserved on the node's ledger before it is written to the link, and given back
when the node has done with it. A call that does not fit now waits, and others that do may pass it,
for `PASS_S`. Then a node is kept for it: no other call that reserves something is given to that
node until the one has its place, as long as the end of calls there can give it that.

A running body that waits for a nested call occupies a slot without using it. Its slot is lent:
while a call has calls of its own that are not settled, it does not count in its group. Without
that, a node with one slot whose function calls another one of its own would wait for ever.

Rules of this file. 1) No I/O but opening streams. 2) A group's `busy` and `pools`, and a call's
`offer`, `level` and `reservation`, change here alone. 3) A call that expired is never dispatched.

Source. decisions.md 8; scheduler/README.md; EASY backfilling (Lifka, 1995) for keeping a node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from ..flow import Buffers
from ..scheduler.host import NO_ROOM
from ..scheduler.model import NO_NEEDS, Rejection
from ..scheduler.pending import COST_S
from ..scheduler.shares import Shares
from ..scheduler.transfer import LARGE_BYTES, Large
from ..wire.message import Dispatch, Kind, encode
from . import events, refusals
from .calls import CallInput, CallState, GatewayCall
from .limits import GatewayLimits
from .pool import MANY, NodeRecord, Offer, Pool, SlotGroup, waits_for, without_room
from .routing import Refused
from .traces import Traces

if TYPE_CHECKING:
    from ..stream import Stream

PASS_S = 5.0
"""How long others may pass a waiting call that a node has not enough left for."""


class Placer:
    """Everything between a call that was admitted and its stream to a node.

    Attributes:
        queued: Calls that wait, over all callers.
        uses: Counts dispatches; the age of a group's last use.
        traces: Why calls went where they went.
        kept: Nodes that are kept for a waiting call.
    """

    def __init__(
        self,
        limits: GatewayLimits,
        buffers: Buffers,
        expire: Callable[[GatewayCall], None],
        refuse: Callable[[GatewayCall, Refused], None],
        released: Callable[[GatewayCall], None],
        count: Callable[[GatewayCall, Pool], None],
        shares: Shares,
    ) -> None:
        """Begin without calls.

        Args:
            limits: How many calls may wait.
            buffers: What waiting calls hold counts there.
            expire: Settles a waiting call whose deadline has passed.
            refuse: Settles a waiting call that no node can be given.
            released: Is told when no node has a call with a quota or a price any more.
            count: Writes a call down that waited before there was a quota or a price for it.
            shares: What each user has used.
        """
        self.count = count
        self.released = released
        self.expire = expire
        self.refuse = refuse
        self.buffers = buffers
        self.limits = limits
        self.queued = 0
        self.uses = 0
        self.traces = Traces()
        self.kept: dict[NodeRecord, GatewayCall] = {}
        self._shares = shares
        self._sequence = 0

    def place(self, call: GatewayCall, pool: Pool) -> None:
        """Dispatch a call that came in, or let it wait.

        Raises:
            Refused: Too many calls wait already.
        """
        call.buffers = call.caller.buffers
        now = trio.current_time()
        if call.charge is not None and (why := call.charge.refusal(now)):
            raise why
        self._sequence += 1
        call.sequence = self._sequence
        call.pool = pool
        call.share = self._shares.of(call.principal.user, now)
        call.priority = call.priority or pool.priority
        if not pool.queue.waiting:
            offer = self._choose(call, pool)
            if offer is not None:
                if not _passes_by(offer.group):
                    if _is_reused(call, offer.group):
                        raise refusals.reused_id()
                    if self._dispatch(call, pool, offer, now):
                        return
                other = self._choose(call, pool, pool.unable(call))  # It may be idle.
                if other is not None and self._dispatch(call, pool, other, now):
                    return
        if self.queued >= self.limits.queued_max:
            raise refusals.too_many(self.queued)
        if call.caller.queued >= self.limits.queued_user_max:
            raise refusals.too_many_of_yours(call.caller.queued)
        if call.buffers.is_full:
            raise refusals.too_many_bytes()
        call.step(CallInput.ENQUEUE)
        self._enqueue(call, pool, now)

    def place_again(self, call: GatewayCall, pool: Pool) -> None:
        """Place a call that a node gave back; it keeps its place in the order of arrival."""
        assert call.state is CallState.QUEUED
        now = trio.current_time()
        call.pool = pool
        offer = self._choose(call, pool, call.refused_by)
        why = None if call.charge is None else call.charge.refusal(now)
        if why is not None or offer is None or _is_reused(call, offer.group):
            given = False
        else:
            given = self._dispatch(call, pool, offer, now)
        if given:
            return
        self._enqueue(call, pool, now)
        if why is not None:
            self.refuse(call, why)

    def _choose(
        self, call: GatewayCall, pool: Pool, exclude: frozenset[str] = frozenset()
    ) -> Offer | None:
        """Return the best place that has room now."""
        large = None
        if pool.needy and self.kept:
            self.kept = {r: one for r, one in self.kept.items() if waits_for(one, r)}
            exclude |= {r.node_id for r, one in self.kept.items() if one is not call}
        if call.opened_more and (size := sum(call.message.segments)) >= LARGE_BYTES:
            large = Large(size, waiting=pool.queue.waiting)
        chosen = pool.ranked.choose(exclude, large)
        return None if chosen is None else pool.places[chosen]

    def _enqueue(self, call: GatewayCall, pool: Pool, now: float) -> None:
        call.buffers.add(call.body_bytes, call.body_bytes)
        pool.queue.add(call, now)
        self.queued += 1
        call.caller.queued += 1
        if pool.queue.waiting == 1:
            for offer in pool.places.values():
                offer.group.pools[pool] = None

    def leave(self, call: GatewayCall) -> None:
        """A waiting call waits no longer."""
        pool = call.pool
        assert pool is not None
        call.buffers.add(-call.body_bytes, -call.body_bytes)
        pool.queue.leave(call)
        if self.kept:
            self.kept = {record: one for record, one in self.kept.items() if one is not call}
        self.queued -= 1
        call.caller.queued -= 1
        if not pool.queue.waiting:
            for offer in pool.places.values():
                offer.group.pools.pop(pool, None)

    def _dispatch(self, call: GatewayCall, pool: Pool, offer: Offer, now: float) -> bool:
        """Write a call to a node's link; False if the node has no stream or resources for it."""
        record = offer.record
        link = record.link
        message = call.message
        if link is None or link.streams_available <= 0 or not offer.may_take(call):
            return False
        deadline = call.deadline
        if (charge := call.charge) is None:
            if offer.entry.terms is not None:
                return False  # It must be written down first.
        else:
            deadline = charge.cut(deadline, now)
        assert message.call_id not in record.running
        assert record.grants is not None
        needs = pool.ranked.needs_at(offer.group) if pool.needy else NO_NEEDS
        scores = pool.ranked.judged(offer.group).scores if needs else None
        if needs:
            call.reservation = record.host.reserve(needs)
            if call.reservation is None:
                return False  # It is not there now.
        self.traces.keep(call, pool, offer.group, scores, now)
        deadline_ms = None if deadline is None else max(1, int((deadline - now) * 1000.0))
        call.attempt += 1
        principal = call.principal
        context: dict[str, object] = {
            "owner": principal.user == record.owner,
            "depth": call.depth,
            "token": principal.token_id,
        }
        if type(made_before := message.options.get("attempt")) is int:
            context["attempt"] = made_before
        if principal.levels:
            context["levels"] = sorted(principal.levels)
        if principal.shared:
            context["shared"] = True
        if call.reservation is not None and call.reservation.devices:
            context["gpus"] = list(call.reservation.devices)
        payload = encode(
            Dispatch(
                message.call_id,
                offer.name,
                principal.user,
                [principal.role.value],
                deadline_ms,
                message.codec,
                message.flags,
                record.grants.make(message.call_id, call.attempt, call.depth, principal.token_id),
                call.attempt,
                context,
                message.body,
                message.segments,
            )
        )
        down = link.open_encoded(
            Kind.DISPATCH, payload, handler=call, more=call.opened_more, end=call.opened_end
        )
        self.given(call, offer, down, CallInput.DISPATCH)
        return True

    def given(self, call: GatewayCall, offer: Offer, down: Stream, what: CallInput) -> None:
        """A node has a call, on the stream `down`."""
        record, group = offer.record, offer.group
        self.uses += 1
        group.take(self.uses)
        call.behind = max(0, group.busy - group.slots)
        if call.children:
            group.release()
        record.running[call.message.call_id] = call
        call.offer = offer
        # By the caller's word or by that of a node that has room again: the later one was just now.
        now = call.since = max(call.since, down.link.connection.now)
        call.node_owner, call.node_id = record.owner, record.node_id
        if what is CallInput.ATTACH:
            self._take_over(call, offer, now)
        self._charge(call, offer, now)
        if call.charge is not None:
            reserved = call.reservation
            gpus = 0.0 if reserved is None else reserved.needs.gpus
            call.charge.given(offer, trio.current_time(), gpus)
        call.step(what)
        call.attach_down(down)
        events.call_given(call)

    def _take_over(self, call: GatewayCall, offer: Offer, now: float) -> None:
        """A node came back with a call: what it needs is reserved again, if it can be."""
        call.share = self._shares.of(call.principal.user, now)
        needs = offer.needs(() if call.pool is None else call.pool.kind.asks)
        if isinstance(needs, Rejection) or not needs or call.reservation is not None:
            return
        call.reservation = offer.record.host.holds(needs, call.gpus_there)

    def _charge(self, call: GatewayCall, offer: Offer, now: float) -> None:
        """Count what a call will probably use against its user."""
        cost_s, pool = offer.body_s, call.pool
        if cost_s is None:
            known = None if pool is None else pool.queue.cost_s
            cost_s = COST_S if known is None else known
        if call.reservation is not None and len(call.reservation.devices) > 1:
            cost_s *= len(call.reservation.devices)
        call.cost_s, call.charged_at = cost_s, now
        if pool is None:
            self._shares.charge(call.share, cost_s, now)
        else:
            pool.queue.served(call.share, cost_s, now)

    def _settle(self, call: GatewayCall, offer: Offer) -> None:
        """Count what a call has really used instead."""
        now = trio.current_time()
        used_s = now - call.charged_at
        if call.state is CallState.QUEUED:
            used_s = 0.0  # The node gave it back.
        elif call.behind and offer.body_s is not None:
            used_s = offer.body_s  # The rest of the time it waited there.
        if call.reservation is not None and len(call.reservation.devices) > 1:
            used_s *= len(call.reservation.devices)
        self._shares.settle(call.share, call.cost_s, call.charged_at, used_s, now)

    def pump(self, group: SlotGroup) -> None:
        """Fill a group that has room with the calls of those who have used least."""
        pools, link = group.pools, group.node.link
        if link is None or link.streams_available <= 0:
            return  # It is lost, or takes no more streams: nobody is taken out of a queue for it.
        passed: set[Pool] = set()
        look = True
        while pools and group.value != NO_ROOM:
            now = trio.current_time()
            if look and len(pools) > MANY:
                passed |= without_room(group, now, PASS_S)
            look = False
            pool = _first(group, passed, now)
            if pool is None:
                return
            call = pool.queue.head(now)
            assert call is not None
            if call.deadline is not None and call.deadline <= now:
                self.expire(call)
                continue
            if _is_reused(call, group):
                self.refuse(
                    call, refusals.reused_id()
                )  # Else it would hold up all calls behind it.
                continue
            if call.charge is not None and (why := call.charge.refusal(now)):
                self.refuse(call, why)
                continue
            offer = pool.places[group]
            if call.charge is not None and not call.charge.covers(offer):
                if not any(call.charge.covers(one) for one in pool.places.values()):
                    self.refuse(call, refusals.another_quota(pool.name))
                passed.add(pool)
                continue
            if not offer.may_take(call):
                return
            if pool.needy and not self._fits(call, pool, group, now):
                passed.add(pool)
                continue
            self.leave(call)
            if call.charge is None and offer.entry.terms is not None:
                self.count(call, pool)  # It came before this place, or before its terms.
                continue
            if not self._dispatch(call, pool, offer, now):
                self._enqueue(call, pool, now)
                return
            look = True

    def _fits(self, call: GatewayCall, pool: Pool, group: SlotGroup, now: float) -> bool:
        """Return whether a waiting call may be given what it needs at a place now."""
        needs = pool.ranked.needs_at(group)
        if not needs:
            return True
        record = group.node
        kept_for = self.kept.get(record)
        if kept_for is not None and not waits_for(kept_for, record):
            del self.kept[record]
            kept_for = None
        fits = not isinstance(record.host.ledger.fits(needs), Rejection)
        if kept_for is not None and kept_for is not call:
            if kept_for.pool is not pool and not (fits and call in self.kept.values()):
                return False  # Whoever has a node kept elsewhere, and fits here, frees that one.
            # It is another user's turn there now, for the same: else both would wait.
            kept_for = self.kept[record] = call
        if fits:
            return True
        patient = kept_for is None and now - call.since >= PASS_S
        if patient and call not in self.kept.values() and waits_for(call, record):
            self.kept[record] = call
        return False

    def pump_node(self, record: NodeRecord) -> None:
        """Fill every group of a node: it came, or it takes more streams."""
        for group in record.groups.values():
            if group.pools:
                self.pump(group)

    def free(self, call: GatewayCall) -> None:
        """A node has no more work with a call: its place is free."""
        offer = call.offer
        assert offer is not None
        call.offer = None
        record, group = offer.record, offer.group
        if not call.children:
            group.release()
        record.running.pop(call.message.call_id, None)
        self._settle(call, offer)
        if call.charge is not None:
            self.released(call)
        reservation, call.reservation = call.reservation, None
        if reservation is not None:
            record.host.give_back(reservation)
            self.pump_node(record)
        elif group.pools and group.value != NO_ROOM:
            self.pump(group)

    def lend(self, call: GatewayCall) -> None:
        """A call made a call of its own: its slot may be used meanwhile, never what it reserved."""
        call.children += 1
        if call.children == 1 and call.offer is not None:
            group = call.offer.group
            group.release()
            self.pump(group)

    def take_back(self, call: GatewayCall) -> None:
        """A call that a call made is settled."""
        call.children -= 1
        if call.children == 0 and call.offer is not None:
            call.offer.group.take_back()


def _first(group: SlotGroup, passed: set[Pool], now: float) -> Pool | None:
    """Return the pool whose next call a group should take; None if there is none for it."""
    best: Pool | None = None
    best_rank = (0.0, 0.0, 0)
    shut = group.host.shut
    for pool in group.pools:
        if pool in passed or (shut and not pool.ranked.desperate):
            continue
        if len(group.pools) == 1:
            return pool
        rank = pool.queue.rank(now)
        if best is None or rank < best_rank:
            best, best_rank = pool, rank
    return best


def _passes_by(group: SlotGroup) -> bool:
    """Return whether a call held ahead of a free slot would pass by one that waits for the slot."""
    return bool(group.pools) and group.busy >= group.slots


def _is_reused(call: GatewayCall, group: SlotGroup) -> bool:
    """Return whether a node has another call of the same id."""
    return call.message.call_id in group.node.running
