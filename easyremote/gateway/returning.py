"""Calls that are taken up again: by a caller or a node that lost its link, and after a restart.

Theory. A caller that comes back submits its call under the same id and gets the very call that it
had; if its old link still looks open, the new stream takes that one's place, for a peer that
lost its link knows so before we do. After a restart the calls themselves come back, with their
nodes: each one that a node lists with a valid grant is a call again, parked for its caller as if
that had just lost its link. What is submitted before it is known whether some node has it is held
until that is known (`recovery.py`). So are calls of functions that nobody offers yet: their nodes
are on their way.

A node that loses its link without a goodbye may be back in a moment, with all that it had: its
calls are adrift for that long, and lost after it. What it does not list when it is back, it has
not.

Rules of this file. 1) A grant decides whether a node has a call; the token in the grant, whose it
is. 2) What a node still runs and nobody may ask for any more is stopped there.

Source. decisions.md 9 and 15.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from ..handlers import StreamHandler
from ..log import Log
from ..wire.errors import ErrorCode, RemoteProtocolError
from ..wire.message import CODEC_PLAIN, FLAG_ATTACH, FLAG_STREAM, Call, Dispatch, Kind, encode
from .admission import check_same_call
from .calls import CallInput, CallState, GatewayCall
from .recovery import ASKED_S, HeldCall, Recovery, Told, Verdict
from .routing import Refused, route

if TYPE_CHECKING:
    from ..identity.role import Principal
    from ..stream import Stream
    from .dispatcher import Dispatcher
    from .pool import NodeRecord, Offer, Pool
    from .session import Session

_log = Log("gateway")

INTERRUPT, GRACE_MS = 1, 5000
KEPT_S = 120.0
"""How long outcomes that nodes have kept are asked for: as long as they keep them."""
KEPT_MAX = 100_000
VOID_GRANTS_MAX = 10
"""Held calls with void grants after which a node's link is ended."""
ADRIFT_S = 1.2
"""How long a node whose link broke may be away before its calls are lost. A node dials again within
a fraction of a second; whoever waits for a call of a dead node must not wait for two."""
AWAY_CODES = frozenset({ErrorCode.NOT_FOUND, ErrorCode.NO_NODE})
"""Refusals that may be wrong while nodes are on their way back."""


class Returning:
    """The calls that are taken up again.

    Attributes:
        held: Calls that wait until it is known whether a node has them.
        kept: Where outcomes are kept that nodes have written and that may have reached nobody.
        adrift: Calls whose nodes lost the link: where they were, until when, and what to say then.
    """

    def __init__(
        self, dispatcher: Dispatcher, recovery: Recovery,
        principal_of: Callable[[str], Principal | None],
    ) -> None:  # fmt: skip
        """Take calls up for a dispatcher.

        Args:
            dispatcher: All calls.
            recovery: What is known of calls from before this start.
            principal_of: Says whose token an id names, None if it is not good.
        """
        self._dispatcher = dispatcher
        self._recovery = recovery
        self._principal_of = principal_of
        self.held: dict[GatewayCall, None] = {}
        self.adrift: dict[GatewayCall, tuple[Offer, float, str]] = {}
        self.kept: dict[bytes, tuple[NodeRecord, float, str]] = {}

    def forget_kept(self, now: float) -> None:
        """Nodes do not keep outcomes for ever."""
        for call_id in [one for one, (_, until, _) in self.kept.items() if until <= now]:
            del self.kept[call_id]

    def forget(self, call: GatewayCall) -> None:
        """A call waits no longer."""
        self.adrift.pop(call, None)
        if call in self.held:
            del self.held[call]
            call.caller.queued -= 1
            call.buffers.add(-call.body_bytes, -call.body_bytes)

    # ---- a caller comes back -----------------------------------------------------------------

    def take_up(self, existing: GatewayCall, call: GatewayCall) -> GatewayCall:
        """Let the stream of a call that was submitted again have the call that is there.

        Raises:
            Refused: It is another call, or cannot be taken up.
        """
        dispatcher, up = self._dispatcher, call.up
        assert up is not None
        if not existing.adopted and not call.message.flags & FLAG_ATTACH:
            if not existing.message.flags & FLAG_ATTACH:
                check_same_call(existing, call)
            elif existing in self.held and call.up_ended and not call.up_mid:
                self._becomes(existing, call.message, call.deadline)
        if not existing.wanted:
            raise Refused(
                ErrorCode.GATEWAY_LOST, "its caller was away for too long: it was stopped",
                may_have_run=True,
            )  # fmt: skip
        if existing.message.flags & FLAG_STREAM:
            raise Refused(
                ErrorCode.GATEWAY_LOST, "items of this stream were lost with the old link",
                may_have_run=True,
            )  # fmt: skip
        old = existing.up
        if old is not None:
            if old.link is up.link:
                raise Refused(ErrorCode.BAD_ARGUMENT, "this call id is in use on another stream")
            if not existing.goes_on_without_caller:
                raise Refused(
                    ErrorCode.GATEWAY_LOST, "part of the outcome was lost with the old link",
                    may_have_run=True,
                )  # fmt: skip
            existing.detach_up()
            existing.opened_on = None
            old.reset(ErrorCode.GATEWAY_LOST, "its caller came back on another link")
            old.release()
        call.up = None
        dispatcher.parking.leave(existing)
        existing.opened_on = up
        existing.attach_up(up)
        if existing.state is CallState.SETTLED and existing.offer is None:
            dispatcher.finish(existing)
        else:
            self._made_by(existing, call.parent)
            up.accept()
            if existing.state is CallState.STARTED:
                up.started()
        return existing

    def _made_by(self, call: GatewayCall, parent: GatewayCall | None) -> None:
        """A call that came back by itself turns out to be a nested one: its parent waits for it."""
        known = call.parent is not None or call.state is CallState.SETTLED
        if parent is not None and parent is not call and not known:
            call.parent = parent
            self._dispatcher.placer.lend(parent)

    def _becomes(self, call: GatewayCall, message: Call, deadline: float | None) -> None:
        """A call that was asked for by its id alone turns out to be this one."""
        if call in self.held:
            more = len(message.body or b"") - call.body_bytes
            call.buffers.add(more, more)
        call.message = message
        if deadline is not None and call.deadline is None:
            call.deadline = deadline
            self._dispatcher.timers.at(deadline, call, CallInput.EXPIRE)

    # ---- a call comes before its node ----------------------------------------------------------

    def find_pool(self, session: Session, call: GatewayCall, *, nested: bool) -> Pool | None:
        """Return where a call may run; None if that is not known yet, after a restart.

        Raises:
            Refused: Nowhere.
        """
        message = call.message
        if (message.since or message.flags & FLAG_ATTACH) and self.must_wait(call):
            return None
        try:
            if nested:
                return route(self._dispatcher.registry, call.principal, message)
            return session.routes.find(message)
        except Refused as refused:
            if self.may_be_on_its_way(refused):
                return None
            raise

    def must_wait(self, call: GatewayCall) -> bool:
        """Return whether a call is of an earlier start and it is not known whether a node has it.

        Raises:
            Refused: It is known that its outcome will not come.
        """
        message, recovery = call.message, self._recovery
        if self._keeper(call) is not None:
            return True
        if message.flags & FLAG_ATTACH:
            if not recovery.waiting:
                raise no_such_call()
            return True
        now = trio.current_time()
        if message.since in (0, recovery.incarnation):
            if message.since and call.caller.forgot_until >= now - ASKED_S:
                raise lost_call()  # It may have been over among so many that it was forgotten.
            return False
        verdict = recovery.judge(message.call_id, message.since, now)
        if verdict is Verdict.LOST:
            raise lost_call()
        return verdict is Verdict.WAIT

    def may_be_on_its_way(self, refused: Refused) -> bool:
        """Return whether a refusal may be wrong because nodes have not come back yet."""
        return self._recovery.waiting and refused.code in AWAY_CODES

    def hold(self, call: GatewayCall) -> None:
        """Let a call wait until it is known who has it, or who could run it.

        Raises:
            Refused: Too many calls wait.
        """
        limits, caller = self._dispatcher.limits, call.caller
        call.buffers = caller.buffers
        mine = caller.queued >= limits.queued_user_max or call.buffers.is_full
        if mine or len(self.held) >= limits.queued_max:
            whose = "many of your calls wait" if mine else "it was just restarted"
            raise Refused(
                ErrorCode.OVERLOADED, f"the gateway holds no more calls, for {whose}; try later",
                retry_after_s=5.0, may_have_run=call.was_sent_before,
            )  # fmt: skip
        call.step(CallInput.HOLD)
        self.held[call] = None
        caller.queued += 1
        call.buffers.add(call.body_bytes, call.body_bytes)
        self._fetch(call)

    def judge_held(self) -> None:
        """Somebody has spoken, or nobody will: decide about the calls that wait."""
        for call in list(self.held):
            if call.state is CallState.HELD and not self._fetch(call):
                self._judge(call)

    def _keeper(self, call: GatewayCall) -> NodeRecord | None:
        """Return the node that has kept the outcome of a call and can be asked for it now."""
        message = call.message
        if message.flags & FLAG_STREAM:  # Without its items, it would look like a short success.
            return None
        record, _, user = self.kept.get(message.call_id, (None, 0.0, ""))
        if user != call.principal.user:
            return None
        if record is None or record.link is None or not record.offers:
            return None
        return record if record.link.streams_available > 0 else None

    def _fetch(self, call: GatewayCall) -> bool:
        """Have the outcome of a call said once more by the node that has kept it."""
        record = self._keeper(call)
        if record is None:
            return False
        assert record.link is not None
        del self.kept[call.message.call_id]
        # It counts for the place of its function, or of any other if that is gone, for a moment.
        offer = record.offers.get(call.message.function) or next(iter(record.offers.values()))
        payload = _attach(call.message.call_id, offer.name)
        down = record.link.open_encoded(Kind.DISPATCH, payload, handler=call, end=True)
        self._attached(call, offer, down)
        return True

    def _attached(self, call: GatewayCall, offer: Offer, down: Stream) -> None:
        self.forget(call)
        call.hear_no_more()
        if call.charge is None:
            self._dispatcher.accounting.take_up(call, offer)
        self._dispatcher.placer.given(call, offer, down, CallInput.ATTACH)

    def _judge(self, call: GatewayCall) -> None:
        dispatcher = self._dispatcher
        try:
            if self.must_wait(call):
                return
            pool = route(dispatcher.registry, call.principal, call.message)
            self.forget(call)
            dispatcher.put(call, pool)
        except Refused as refused:
            if not self.may_be_on_its_way(refused):
                dispatcher.lose_held(call, refused)

    # ---- a node is gone for a moment -----------------------------------------------------------

    def drift(self, call: GatewayCall, offer: Offer, why: str) -> None:
        """The node of a call lost its link: it may come back with the call."""
        until = trio.current_time() + ADRIFT_S
        call.detach_down()
        call.step(CallInput.DRIFT)
        self.adrift[call] = offer, until, why
        self._dispatcher.timers.at(until, call, CallInput.LOSE)

    def drifted_too_long(self, call: GatewayCall) -> None:
        """A time is over for a call: lose it, if it is that time which it was given last."""
        drifting = self.adrift.get(call)
        if drifting is not None and drifting[1] <= trio.current_time():
            self._lose(call)

    def _lose(self, call: GatewayCall) -> None:
        offer, _, why = self.adrift.pop(call)
        refused = Refused(ErrorCode.NODE_LOST, why, may_have_run=True)
        refused.detail = offer.loss_detail
        self._dispatcher.lose_held(call, refused)

    # ---- a node comes back ---------------------------------------------------------------------

    def node_spoke(self, record: NodeRecord, told: Told) -> None:
        """A node has registered, and says which calls it has and has had.

        Raises:
            RemoteProtocolError: It claims calls that it was not given.
        """
        grants = record.grants
        assert grants is not None
        void = 0
        for one in told.held:
            if grants.good(one.grant, one.call_id, one.attempt, one.depth, one.token):
                self._adopt(record, one)
            else:
                void += 1
        if void:
            _log.warning("a node claims calls without a grant", node_id=record.node_id, calls=void)
            if void >= VOID_GRANTS_MAX:
                raise RemoteProtocolError(ErrorCode.ABUSE, "held calls need a valid grant")
        until = trio.current_time() + KEPT_S
        for one in told.kept:
            owner = self._principal_of(one.token)
            good = grants.good(one.grant, one.call_id, one.attempt, one.depth, one.token)
            if good and owner is not None and len(self.kept) < KEPT_MAX:
                self.kept[one.call_id] = record, until, owner.user
                self._close_account(record, owner, one)
        for call in [c for c, (offer, _, _) in self.adrift.items() if offer.record is record]:
            if not self._fetch(call):
                self._lose(call)
        # What it has and could not be taken up is no call that never began.
        had = told.spent + b"".join(one.call_id for one in told.held)
        remembers = record.was_here and not told.forgot
        self._recovery.spoke(record.node_id, had, remembers=remembers)
        self.judge_held()

    def _close_account(self, record: NodeRecord, principal: Principal, one: HeldCall) -> None:
        """Have an outcome said again that a quota or a bill waits for; its caller may get it, too.

        The last outcomes before a crash may have reached their callers and not the disk.
        """
        accounts, link = self._dispatcher.accounting.accounts, record.link
        if one.flags & FLAG_STREAM or not accounts.awaits(principal.user, one.call_id):
            return
        if record.offers and link is not None and link.streams_available > 0:
            call = self._call_for(principal, one)
            if call is not None:
                self._fetch(call)

    def _adopt(self, record: NodeRecord, one: HeldCall) -> None:
        """Make a call of what a node still has."""
        link = record.link
        assert link is not None
        if one.call_id in record.running:
            return
        if link.streams_available <= 0:
            _log.warning("no room to take a call up again", call_id=one.call_id.hex())
            return
        principal = self._principal_of(one.token)
        offer = record.offers.get(one.function)
        call = None
        if principal is not None and offer is not None:
            call = self._call_for(principal, one)
        payload = _attach(one.call_id, one.function, one)
        if call is None or offer is None:
            # Its caller is gone for good, or has an outcome already.
            down = link.open_encoded(Kind.DISPATCH, payload, handler=StreamHandler(), end=True)
            down.cancel(INTERRUPT, GRACE_MS)
            return
        down = link.open_encoded(Kind.DISPATCH, payload, handler=call, end=True)
        call.attempt, call.gpus_there = one.attempt, tuple(one.gpus)
        self._attached(call, offer, down)
        _log.info(
            "call taken up again", call_id=one.call_id.hex(),
            function=one.function, node_id=record.node_id, principal=call.principal.user,
        )  # fmt: skip

    def _call_for(self, principal: Principal, one: HeldCall) -> GatewayCall | None:
        """Return the call that a node has: one that waits for it, or a new one without a caller."""
        dispatcher, now = self._dispatcher, trio.current_time()
        caller = dispatcher.caller(principal.user)
        message = Call(
            one.call_id, one.function, None, {}, None, CODEC_PLAIN, one.flags, b"", None, []
        )
        deadline = None if one.deadline_ms is None else now + one.deadline_ms / 1000.0
        call = caller.calls.get(one.call_id)
        if call is not None:
            if call.state is not CallState.HELD or call.attempt not in (0, one.attempt):
                return None
            if not call.message.flags & FLAG_ATTACH:
                return call
        elif caller.was_over(one.call_id):
            return None
        else:
            call = GatewayCall(dispatcher, message, None, more=False, end=True)
            call.principal, call.caller, call.came_at = principal, caller, now
            caller.calls[one.call_id] = call
            dispatcher.calls_total += 1
            dispatcher.parking.away(call, now)
        call.adopted, call.depth = True, one.depth
        self._becomes(call, message, deadline)
        return call


def _attach(call_id: bytes, function: str, one: HeldCall | None = None) -> bytes:
    """Return the message that takes a call up again at its node."""
    grant, attempt, flags = (b"", 0, 0) if one is None else (one.grant, one.attempt, one.flags)
    return encode(
        Dispatch(
            call_id, function, "", [], None, CODEC_PLAIN, flags | FLAG_ATTACH, grant, attempt, {},
            None, [],
        )
    )  # fmt: skip


def lost_call() -> Refused:
    """Return the refusal of a call whose outcome was lost with an earlier start."""
    return Refused(
        ErrorCode.GATEWAY_LOST,
        "the gateway was restarted, and the outcome of this call was lost; it may have run. If it "
        "may run twice, call it again (or declare it idempotent=True, then that is done for you)",
        may_have_run=True,
    )


def no_such_call() -> Refused:
    """Return the refusal to attach to a call that is not there."""
    return Refused(
        ErrorCode.NOT_FOUND,
        "No call of yours has this id: it has ended and its result was fetched or given up, or it "
        "was made by another user",
    )
