"""The life of calls: admitted, placed, relayed, and settled with exactly one outcome.

Theory. Everything that can happen to a call comes here: from its caller (the call itself, cancel,
reset, goodbye, silence), from its node (started, refused, outcome, loss) and from the clock
(deadline, grace). What is legal stands in the table of `calls.py`; what follows from it stands
here. Between its placement and its outcome a call is relayed verbatim and nobody looks at it.

Rules of this file. 1) `_settle` and `outcome` are the only places where a call gets its outcome.
2) `may_have_run` follows from the state that was left, never from a guess. 3) A stream of a caller
is released once: when the work is gone, or when the outcome was settled without it. 4) On the way
of an ordinary call there is no task, no channel, no cancel scope, and no decoding of its result.

Source. promises.md section 3; decisions.md 7 to 15.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import trio

from ..errors import EasyRemoteError
from ..flow import Buffers
from ..wire.errors import ErrorCode
from ..wire.message import Call, Failure, Kind, Result, decode, encode
from . import events
from .accounting import Accounting
from .accounts import Accounts
from .admission import IgnoredOptions, admit
from .callers import Caller
from .calls import CallInput, CallState, GatewayCall
from .gauges import bytes_buffered
from .limits import GatewayLimits
from .meter import Meter
from .parking import Parking
from .placing import Placer
from .pool import Pool, SlotGroup
from .recovery import Recovery
from .registry import Registry
from .returning import Returning
from .routing import Refused, route
from .timers import Timers

if TYPE_CHECKING:
    from ..identity.role import Principal
    from ..stream import Stream
    from .session import Session

INTERRUPT, KILL = 1, 2
"""Strengths of a cancel that the gateway sends by itself."""
GRACE_MS = 5000
GRACE_MS_MAX = 3_600_000
WAITING = frozenset({CallState.QUEUED, CallState.HELD})
REFUSALS = frozenset({ErrorCode.OVERLOADED, ErrorCode.SHUTTING_DOWN})
"""Codes by which a node gives a call back that never began."""


class Dispatcher:
    """All calls of a gateway.

    Attributes:
        closing: No new call is taken: the gateway drains.
        leaving: Calls that are over and whose callers have not taken all of the outcome.
        calls_total: Calls that were admitted since the start.
        failures_total: Calls that the gateway itself had to settle.
        meter: Counts outcomes, and measures how long calls take.
        ignored: Names options that have no effect here in the log.
    """

    def __init__(
        self, registry: Registry, limits: GatewayLimits, recovery: Recovery,
        principal_of: Callable[[str], Principal | None], accounts: Accounts,
    ) -> None:  # fmt: skip
        """Begin without calls; see `Returning` for `recovery` and `principal_of`."""
        self.registry = registry
        self.limits = limits
        self.timers = Timers(self.on_time)
        self.parking = Parking(limits)
        self.buffers = Buffers(limits.buffered_bytes_max)
        self.accounting = Accounting(self, accounts)
        self.placer = Placer(
            limits, self.buffers, self._expire, self._refuse_waiting, self.accounting.released,
            self.accounting.put_late, registry.cluster.shares,
        )  # fmt: skip
        self.returning = Returning(self, recovery, principal_of)
        self.callers: dict[str, Caller] = {}
        self.leaving: dict[GatewayCall, float] = {}
        self.closing = False
        self.calls_total = 0
        self.failures_total = 0
        self.meter = Meter()
        self.ignored = IgnoredOptions()

    def caller(self, user: str) -> Caller:
        """Return what is kept about a user's calls."""
        found = self.callers.get(user)
        if found is None:
            share = self.buffers.share(self.limits.user_bytes_max)
            found = self.callers[user] = Caller(user, share)
        return found

    @property
    def pending(self) -> int:
        """Calls that have no outcome yet."""
        return sum(len(caller.calls) for caller in self.callers.values())

    @property
    def awaited(self) -> bool:
        """Whether the caller of any call is here and waits for its outcome."""
        return any(c.up for caller in self.callers.values() for c in caller.calls.values())

    def bytes_buffered(self) -> int:
        """Return how many bytes of calls are in our memory: held, or not yet taken by a link."""
        return bytes_buffered(self)

    # ---- a call comes ------------------------------------------------------------------------

    def submit(
        self, session: Session, up: Stream, payload: bytes, more: bool, end: bool
    ) -> GatewayCall:
        """Take a call that a peer opened a stream for; return the handler of that stream.

        Raises:
            CodecError: It is no call; the link must end.
        """
        came = perf_counter() if self.meter.wants_routing() else 0.0
        message = decode(Call, payload)
        call = GatewayCall(self, message, up, more, end)
        try:
            taken = admit(self, session, call)
        except Refused as refused:
            events.call_refused(session, call, refused)
            call.step(CallInput.REJECT)
            self.answer_rejected(
                call, refused.code, refused.reason, refused.may_have_run,
                refused.retry_after_s, refused.detail,
            )  # fmt: skip
            return call
        if came and call.state is CallState.DISPATCHED:  # What waits is not being routed.
            self.meter.routing_s.append(perf_counter() - came)
        return taken

    def put(self, call: GatewayCall, pool: Pool) -> None:
        """Place a call; first see to its quota and bill, if it has any.

        Raises:
            Refused: It cannot be taken.
        """
        if pool.has_terms:
            self.accounting.put(call, pool)
        else:
            self.placer.place(call, pool)

    def answer_rejected(
        self, call: GatewayCall, code: ErrorCode, reason: str, may_have_run: bool = False,
        retry_after_s: float | None = None, detail: dict[str, object] | None = None,
    ) -> None:  # fmt: skip
        """Say to the caller that its call is not taken."""
        assert call.up is not None
        call.mute()
        maybe = may_have_run or call.was_sent_before
        failure = Failure(int(code), reason, maybe, retry_after_s, detail or {})
        call.up.send(failure, end=True)
        call.over = True
        self._release(call)

    # ---- what the node says ------------------------------------------------------------------

    def outcome(self, call: GatewayCall, kind: int, payload: bytes) -> bool:
        """Take the outcome that a node sent; True if it is kept from the caller."""
        assert call.offer is not None
        if kind == Kind.RESULT:
            group = call.offer.group
            if group.wants_sample():
                self._learn(call, group, decode(Result, payload).seconds)
        elif call.state is CallState.DISPATCHED and self._given_back(call, payload):
            return True
        if call.charge is not None:
            call.charge.ended(kind, payload, trio.current_time())
        call.step(CallInput.OUTCOME)
        assert call.down is not None
        now = call.down.link.connection.now
        self.meter.finished(now, now - call.came_at, failed=kind != Kind.RESULT)
        return False

    def _learn(self, call: GatewayCall, group: SlotGroup, seconds: float) -> None:
        """See how long a body took, as its node says, and whether that can be."""
        now = trio.current_time()
        assert call.offer is not None
        if call.state is CallState.STARTED:
            body_s = group.answered(now, seconds, now - call.since)
        else:  # Its node did not say when it began, as it need not of a short body.
            body_s = group.answered(now, seconds, now - call.charged_at, call.behind)
        call.offer.learn(body_s)

    def _given_back(self, call: GatewayCall, payload: bytes) -> bool:
        """Place a call again that its node refused before it began; False if that cannot be."""
        failure = decode(Failure, payload)
        offer = call.offer
        assert offer is not None
        if failure.maybe_executed or failure.code not in REFUSALS or not call.can_be_sent_again:
            return False
        if call.attempt >= self.limits.attempts_max:
            return False
        refused_by = call.refused_by | {offer.record.node_id}
        try:
            pool = route(self.registry, call.principal, call.message)
        except Refused:
            return False
        if not any(place.host.node_id not in refused_by for place in pool.places):
            return False
        call.refused_by = refused_by
        call.detach_down()
        call.step(CallInput.REFUSE)
        self.placer.free(call)
        self.placer.place_again(call, pool)
        return True

    def work_gone(self, call: GatewayCall) -> None:
        """A node has said its last word on a call: the place is free."""
        if call.state is not CallState.SETTLED:
            call.step(CallInput.OUTCOME)
        if not call.over:
            self.finish(call)
        if call.offer is not None:
            self.placer.free(call)

    def node_gone(self, call: GatewayCall, reason: str, error: EasyRemoteError | None) -> None:
        """A node was lost with a call, or gave its stream up."""
        offer = call.offer
        assert offer is not None
        node_id = offer.record.node_id
        if call.state is CallState.SETTLED:
            if not call.over:
                if call.up is not None:
                    call.up.reset(ErrorCode.NODE_LOST, f"{node_id} was lost inside its answer")
                call.mute()
                self.finish(call)
        elif error is not None and call.goes_on_without_link and not call.node_left:
            self.returning.drift(call, offer, f"node {node_id} was lost: {reason}")
        else:
            what = "gave the call up" if error is None else "was lost before it answered"
            why = f"node {node_id} {what}: {reason}"
            self._settle(call, CallInput.LOSE, ErrorCode.NODE_LOST, why, offer.loss_detail)
        self.placer.free(call)

    # ---- what the caller does ----------------------------------------------------------------

    def cancel(self, call: GatewayCall, strength: int, grace_ms: int) -> None:
        """The caller wants a call stopped."""
        if call.state in WAITING:
            self._settle(call, CallInput.CANCEL, ErrorCode.CANCELLED, "cancelled while it waited")
        elif call.can(CallInput.CANCEL):
            self._cancel(call, min(max(strength, 0), KILL), min(grace_ms, GRACE_MS_MAX))

    def caller_gone(self, call: GatewayCall, for_good: bool) -> None:
        """A caller gave its stream up or said goodbye (`for_good`), or lost its link."""
        if call.over:
            return
        if not call.goes_on_without_caller or (for_good and not call.detached):
            self.drop(call)
            return
        call.detach_up()
        call.leave_stream()
        self.parking.away(call, trio.current_time())

    def forsake(self, session: Session) -> None:
        """A caller may not stay: stop all that it has asked for on this link."""
        for call in list(session.caller.calls.values()):
            if call.up is not None and call.up.link is session.link:
                self.drop(call)

    def drop(self, call: GatewayCall) -> None:
        """Nobody wants the outcome of a call any more: stop its work and forget it."""
        incomplete = call.up_mid or not call.up_ended
        call.wanted = False
        self.parking.leave(call)
        call.mute()
        call.up = None
        if call.state in WAITING:
            self._waits_no_more(call.step(CallInput.CANCEL), call)
            self.finish(call)
        elif call.down is None or call.down_ended:
            self.finish(call)
        elif incomplete or call.down_mid or call.state is CallState.SETTLED:
            call.down.reset(ErrorCode.CANCELLED, "the caller is gone")
            call.down_ended = True
            self.work_gone(call)
        else:
            self._cancel(call, INTERRUPT, GRACE_MS)

    def _cancel(self, call: GatewayCall, strength: int, grace_ms: int) -> None:
        """Ask the node to stop, and see that there is an outcome in time."""
        call.step(CallInput.CANCEL)
        assert call.down is not None
        call.down.cancel(strength, grace_ms)
        when = trio.current_time() + grace_ms / 1000.0 + self.limits.cancel_slack_s
        self.timers.at(when, call, CallInput.GIVE_UP)

    def refuse_pickle(self, call: GatewayCall) -> None:
        """A caller that may not ship pickles has put one into a stream."""
        self._settle(
            call, CallInput.REJECT, ErrorCode.UNSUPPORTED_CODEC,
            f"a {call.principal.role.value} may stream plain data and arrays only",
        )  # fmt: skip

    # ---- time --------------------------------------------------------------------------------

    def on_time(self, call: GatewayCall, what: CallInput) -> None:
        """A timer of a call that is not settled has run out."""
        if what is CallInput.EXPIRE:
            self._expire(call)
        elif what is CallInput.GIVE_UP and call.state is CallState.CANCELLING:
            why = "the body did not stop within the grace of the cancel"
            self._settle(call, what, ErrorCode.CANCELLED, why)
        elif what is CallInput.LOSE:
            self.returning.drifted_too_long(call)

    def _expire(self, call: GatewayCall) -> None:
        self._settle(call, CallInput.EXPIRE, ErrorCode.DEADLINE, "the deadline passed")

    def give_up_stalled(self, call: GatewayCall, why: str = "the caller takes no bytes") -> None:
        """A caller leaves bytes of its call untouched, or stopped inside a message."""
        assert call.opened_on is not None
        call.opened_on.reset(ErrorCode.STALLED, why)
        self.leaving.pop(call, None)
        if call.over:
            call.mute()
            self._release(call)
        else:
            self.drop(call)

    def _refuse_waiting(self, call: GatewayCall, refused: Refused) -> None:
        self._settle(
            call, CallInput.REJECT, refused.code, refused.reason, refused.detail,
            refused.retry_after_s,
        )  # fmt: skip

    # ---- the outcome -------------------------------------------------------------------------

    def _settle(
        self, call: GatewayCall, what: CallInput, code: ErrorCode, reason: str,
        detail: dict[str, object] | None = None, retry_after_s: float | None = None,
        may_have_run: bool = False,
    ) -> None:  # fmt: skip
        """Give a call the outcome that the gateway decided; its node may still be working."""
        if call.up is not None and call.up.hear_loss() and call.over:
            return  # Its caller is gone, and that was the end of it.
        may_have_run = may_have_run or call.may_have_run
        if call.charge is not None:
            call.charge.decided(code, may_have_run=may_have_run)
        self._waits_no_more(call.step(what), call)
        self.failures_total += 1
        now = trio.current_time()
        self.meter.finished(now, now - call.came_at, failed=True)
        events.call_settled(call, code, reason, may_have_run=may_have_run)
        failure = Failure(int(code), reason, may_have_run, retry_after_s, detail or {})
        broken = call.down_mid
        call.mute()
        if call.wanted and not broken:
            call.say_up(Kind.FAILURE, encode(failure))
        elif call.wanted and call.up is not None:
            call.up.reset(code, reason)
        if call.down is not None and not call.down_ended and what is not CallInput.LOSE:
            if call.up_mid:
                call.down.reset(code, reason)
                call.down_ended = True
                self.placer.free(call)
            elif what is CallInput.EXPIRE:
                call.down.cancel(INTERRUPT, GRACE_MS)
            else:
                call.down.cancel(KILL, 0)
        self.finish(call)

    def _waits_no_more(self, before: CallState, call: GatewayCall) -> None:
        if before is CallState.QUEUED:
            self.placer.leave(call)
        elif before is CallState.HELD:
            self.returning.forget(call)
            self.accounting.forget(call)
        if call.charge is not None and call.offer is None:
            self.accounting.released(call)

    def lose_held(self, call: GatewayCall, refused: Refused) -> None:
        """Nobody has a call that was held, or nobody can run it."""
        self._settle(
            call, CallInput.LOSE, refused.code, refused.reason, refused.detail,
            refused.retry_after_s, refused.may_have_run,
        )  # fmt: skip

    def finish(self, call: GatewayCall) -> None:
        """A call has its outcome: forget it, unless it waits for its caller to come back."""
        call.return_left()
        if call.holds_for_caller and self.parking.keep(call, trio.current_time()):
            self._children_done(call)
            return
        call.over = True
        self.parking.leave(call)
        now = trio.current_time()
        call.caller.over(call.message.call_id, call.node_owner, now, call.node_id)
        self._children_done(call)
        if call.deadline is not None:
            self.timers.settled()
        self._release(call)

    def _children_done(self, call: GatewayCall) -> None:
        parent, call.parent = call.parent, None
        if parent is not None:
            self.placer.take_back(parent)

    def _release(self, call: GatewayCall) -> None:
        """Return the stream credit of the caller, once, when it has taken all that it was sent."""
        stream = call.opened_on
        if stream is None:
            return
        if not stream.link.ready:
            call.opened_on = None
        elif stream.pending_bytes:
            self.leaving[call] = trio.current_time()
            stream.watch_drained()
        else:
            call.opened_on = None
            self.leaving.pop(call, None)
            stream.release()

    def drained(self, call: GatewayCall) -> None:
        """A caller has taken bytes of a call that is over."""
        if call in self.leaving:
            self._release(call)
