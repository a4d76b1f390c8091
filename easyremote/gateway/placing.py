"""Give calls to nodes: at once where there is room, in order of arrival where there is not.

Theory. A call is written to a node's link as soon as some slot group that could run it holds less
than its window; otherwise it waits at its pool. Whenever a place becomes free, the group takes the
call that has waited longest among all pools that it serves.

A running body that waits for a nested call occupies a slot without using it. Its slot is lent:
while a call has calls of its own that are not settled, it does not count in its group. Without
that, a node with one slot whose function calls another function of the same node would wait for
ever.

Rules of this file. 1) No I/O but opening streams. 2) A group's `busy` and `pools`, and a call's
`offer` and `queue`, change here alone. 3) A call that expired is never dispatched.

Source. decisions.md 8; scheduler/window.py for how much a node may hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from ..flow import Buffers
from ..scheduler.place import choose
from ..wire.errors import ErrorCode
from ..wire.message import Dispatch, Kind, encode
from . import events
from .calls import CallInput, CallState, GatewayCall
from .limits import GatewayLimits
from .registry import NodeRecord, Offer, Pool, SlotGroup
from .routing import Refused

if TYPE_CHECKING:
    from ..stream import Stream


class Placer:
    """Everything between a call that was admitted and its stream to a node.

    Attributes:
        queued: Calls that wait, over all callers.
        uses: Counts dispatches; the age of a group's last use.
    """

    def __init__(
        self,
        limits: GatewayLimits,
        buffers: Buffers,
        expire: Callable[[GatewayCall], None],
        refuse: Callable[[GatewayCall, Refused], None],
        released: Callable[[GatewayCall], None],
    ) -> None:
        """Place by windows alone.

        Args:
            limits: How many calls may wait.
            buffers: What waiting calls hold counts there.
            expire: Settles a waiting call whose deadline has passed.
            refuse: Settles a waiting call that no node can be given.
            released: Is told when no node has a call with a quota or a price any more.
        """
        self.released = released
        self.expire = expire
        self.refuse = refuse
        self.buffers = buffers
        self.limits = limits
        self.queued = 0
        self.uses = 0
        self._sequence = 0

    def place(self, call: GatewayCall, pool: Pool) -> None:
        """Dispatch a call that came in, or let it wait.

        Raises:
            Refused: Too many calls wait already.
        """
        call.buffers = call.caller.buffers
        if call.charge is not None and (why := call.charge.refusal(trio.current_time())):
            raise why
        self._sequence += 1
        call.sequence = self._sequence
        if not pool.queue.waiting:
            group = choose(pool.places)
            if group is not None:
                if _is_reused(call, group):
                    raise _reused()
                if self._dispatch(call, pool.places[group]):
                    return
        if self.queued >= self.limits.queued_max:
            raise Refused(
                ErrorCode.OVERLOADED,
                f"{self.queued} calls wait at the gateway; try again later",
                retry_after_s=5.0,
            )
        if call.caller.queued >= self.limits.queued_user_max:
            raise Refused(
                ErrorCode.OVERLOADED,
                f"{call.caller.queued} of your calls wait at the gateway; try again when some "
                "are done",
                retry_after_s=1.0,
            )
        if call.buffers.is_full:
            raise Refused(
                ErrorCode.OVERLOADED, "the gateway holds too many bytes of yours or of all",
                retry_after_s=5.0,
            )  # fmt: skip
        call.step(CallInput.ENQUEUE)
        self._enqueue(call, pool)

    def place_again(self, call: GatewayCall, pool: Pool) -> None:
        """Place a call that a node gave back; it keeps its place in the order of arrival."""
        assert call.state is CallState.QUEUED
        others = [
            group
            for group in pool.places
            if group.node.node_id not in call.refused_by and not _is_reused(call, group)
        ]
        group = choose(others)
        why = None if call.charge is None else call.charge.refusal(trio.current_time())
        if why is not None or group is None or not self._dispatch(call, pool.places[group]):
            self._enqueue(call, pool)
            if why is not None:
                self.refuse(call, why)

    def _enqueue(self, call: GatewayCall, pool: Pool) -> None:
        call.pool = pool
        call.buffers.add(call.body_bytes, call.body_bytes)
        pool.queue.add(call)
        self.queued += 1
        call.caller.queued += 1
        if pool.queue.waiting == 1:
            for group in pool.places:
                group.pools[pool] = None

    def leave(self, call: GatewayCall) -> None:
        """A waiting call waits no longer."""
        pool = call.pool
        assert pool is not None
        call.buffers.add(-call.body_bytes, -call.body_bytes)
        pool.queue.leave(call)
        self.queued -= 1
        call.caller.queued -= 1
        if not pool.queue.waiting:
            for group in pool.places:
                group.pools.pop(pool, None)

    def _dispatch(self, call: GatewayCall, offer: Offer) -> bool:
        """Write a call to a node's link; False if the node takes no more streams now."""
        record = offer.record
        link = record.link
        message = call.message
        if link is None or link.streams_available <= 0:
            return False
        deadline = call.deadline
        if (charge := call.charge) is not None:
            if charge.strict and offer.group.busy >= offer.group.slots:
                return False  # Held ahead of a free slot, it would start nobody knows when.
            deadline = charge.cut(deadline, trio.current_time())
        assert message.call_id not in record.running
        assert record.grants is not None
        deadline_ms = None
        if deadline is not None:
            left_s = deadline - trio.current_time()
            deadline_ms = max(1, int(left_s * 1000.0))
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
        group.used = self.uses
        if not call.children:
            group.busy += 1
        record.running[call.message.call_id] = call
        call.offer = offer
        # By the caller's word or by that of a node that has room again: the later one was just now.
        call.since = max(call.since, down.link.connection.now)
        call.node_owner, call.node_id = record.owner, record.node_id
        if call.charge is not None:
            call.charge.given(offer, trio.current_time())
        call.step(what)
        call.attach_down(down)
        events.call_given(call)

    def pump(self, group: SlotGroup) -> None:
        """Fill a group that has room with the calls that have waited longest."""
        pools, link = group.pools, group.node.link
        if link is None or link.streams_available <= 0:
            return  # It is lost, or takes no more streams: nobody is taken out of a queue for it.
        while pools and group.busy < group.limit:
            best: GatewayCall | None = None
            best_pool: Pool | None = None
            for pool in pools:
                head = pool.queue.head()
                assert head is not None
                if best is None or head.sequence < best.sequence:
                    best, best_pool = head, pool
            assert best is not None and best_pool is not None
            if best.deadline is not None and best.deadline <= trio.current_time():
                self.expire(best)
                continue
            if _is_reused(best, group):
                # It cannot wait here, or it would hold up all calls behind it.
                self.refuse(best, _reused())
                continue
            if best.charge is not None and (why := best.charge.refusal(trio.current_time())):
                self.refuse(best, why)
                continue
            self.leave(best)
            if not self._dispatch(best, best_pool.places[group]):
                self._enqueue(best, best_pool)
                return

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
        group = offer.group
        if not call.children:
            group.busy -= 1
        offer.record.running.pop(call.message.call_id, None)
        if call.charge is not None:
            self.released(call)
        if group.pools and group.busy < group.limit:
            self.pump(group)

    def lend(self, call: GatewayCall) -> None:
        """A call made a call of its own: its slot may be used meanwhile."""
        call.children += 1
        if call.children == 1 and call.offer is not None:
            group = call.offer.group
            group.busy -= 1
            self.pump(group)

    def take_back(self, call: GatewayCall) -> None:
        """A call that a call made is settled."""
        call.children -= 1
        if call.children == 0 and call.offer is not None:
            call.offer.group.busy += 1


def _is_reused(call: GatewayCall, group: SlotGroup) -> bool:
    """Return whether a node has another call of the same id."""
    return call.message.call_id in group.node.running


def _reused() -> Refused:
    return Refused(
        ErrorCode.BAD_ARGUMENT,
        "another call with this id is running; ids are 128 random bits, made anew for each call",
    )
