"""One call at the gateway: where it is, and what may happen to it next.

Theory. A call has exactly one outcome, and it never changes. That is a state machine, and the
machine is the table below: whatever may happen to a call is an input, and an input that the table
does not have for a state is a bug of ours, not a case to be handled.

    SUBMITTED --> QUEUED --> DISPATCHED --> STARTED
        |           |  ^        |   |          |
        |           |  +-REFUSE-+   +--CANCEL--+--> CANCELLING
        |           |           |              |        |
        +-----------+-----------+--------------+--------+--> SETTLED

A call from before a restart of the gateway is HELD until it is known whether a node has it, and so
is one whose node lost its link a moment ago (`returning.py`); then it is DISPATCHED again.

Whether user code may have run follows from the state alone (`MAY_HAVE_RUN`): it is False until
the call was written to a node's link, and True from then on, whatever the node says later, unless
the node itself says that the body never began.

The outcome and the work are two things. A call whose deadline passed is SETTLED for its caller
while the body still runs; the node's slot is free when the node says so, not before.

Rules of this file. 1) No I/O, no clock. 2) The state changes in `Call.step` alone. 3) What must
be done about a change is the dispatcher's business.

Source. promises.md, section 3, "Call life" and the outcome table.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from ..errors import EasyRemoteError
from ..identity.role import Operation
from ..relay import Relay
from ..wire.errors import ErrorCode
from ..wire.message import (
    CODEC_PLAIN,
    FLAG_ATTACH,
    FLAG_DETACHED,
    FLAG_STREAM,
    Call,
    Item,
    Kind,
    decode,
)
from . import events

if TYPE_CHECKING:
    from ..identity.role import Principal
    from ..scheduler.pending import Level
    from ..scheduler.reserve import Reservation
    from ..scheduler.shares import Share
    from ..stream import Stream
    from .callers import Caller
    from .charge import Charge
    from .dispatcher import Dispatcher
    from .pool import Offer, Pool


class CallState(IntEnum):
    """Where a call is."""

    SUBMITTED = 0
    """It came; nothing was promised yet."""
    QUEUED = 1
    """Accepted, and waiting for a node."""
    DISPATCHED = 2
    """Written to a node's link."""
    STARTED = 3
    """The node said that the body runs."""
    CANCELLING = 4
    """The node was asked to stop it."""
    SETTLED = 5
    """It has its outcome."""
    HELD = 6
    """Nodes that may have it or could run it are not back yet, after a loss or a restart."""


class CallInput(IntEnum):
    """What may happen to a call."""

    ENQUEUE = 0
    """It must wait."""
    DISPATCH = 1
    """It is given to a node."""
    START = 2
    """The node says that the body runs."""
    REFUSE = 3
    """The node gives it back: the body never began and never will."""
    OUTCOME = 4
    """The node says how it ended."""
    CANCEL = 5
    """The caller wants it stopped, or is gone for good."""
    GIVE_UP = 6
    """The node did not stop it within the grace."""
    EXPIRE = 7
    """The deadline passed."""
    LOSE = 8
    """The node, or the last node that could have run it, is gone."""
    REJECT = 9
    """The gateway does not take it, or no longer: unknown, forbidden or overloaded."""
    HOLD = 10
    """It is not known yet which node has it or could run it."""
    ATTACH = 11
    """A node has it, from before the loss or the restart."""
    DRIFT = 12
    """Its node lost the link, and may be back in a moment."""


_S, _I = CallState, CallInput
TRANSITIONS: dict[tuple[CallState, CallInput], CallState] = {
    (_S.SUBMITTED, _I.ENQUEUE): _S.QUEUED,
    (_S.SUBMITTED, _I.DISPATCH): _S.DISPATCHED,
    (_S.SUBMITTED, _I.EXPIRE): _S.SETTLED,
    (_S.SUBMITTED, _I.REJECT): _S.SETTLED,
    (_S.SUBMITTED, _I.HOLD): _S.HELD,
    (_S.SUBMITTED, _I.ATTACH): _S.DISPATCHED,
    (_S.DISPATCHED, _I.DRIFT): _S.HELD,
    (_S.STARTED, _I.DRIFT): _S.HELD,
    (_S.HELD, _I.ATTACH): _S.DISPATCHED,
    (_S.HELD, _I.ENQUEUE): _S.QUEUED,
    (_S.HELD, _I.DISPATCH): _S.DISPATCHED,
    (_S.HELD, _I.CANCEL): _S.SETTLED,
    (_S.HELD, _I.EXPIRE): _S.SETTLED,
    (_S.HELD, _I.LOSE): _S.SETTLED,
    (_S.HELD, _I.REJECT): _S.SETTLED,
    (_S.QUEUED, _I.DISPATCH): _S.DISPATCHED,
    (_S.QUEUED, _I.HOLD): _S.HELD,
    (_S.QUEUED, _I.CANCEL): _S.SETTLED,
    (_S.QUEUED, _I.EXPIRE): _S.SETTLED,
    (_S.QUEUED, _I.LOSE): _S.SETTLED,
    (_S.QUEUED, _I.REJECT): _S.SETTLED,
    (_S.DISPATCHED, _I.START): _S.STARTED,
    (_S.DISPATCHED, _I.REFUSE): _S.QUEUED,
    (_S.DISPATCHED, _I.OUTCOME): _S.SETTLED,
    (_S.DISPATCHED, _I.CANCEL): _S.CANCELLING,
    (_S.DISPATCHED, _I.EXPIRE): _S.SETTLED,
    (_S.DISPATCHED, _I.LOSE): _S.SETTLED,
    (_S.DISPATCHED, _I.REJECT): _S.SETTLED,
    (_S.STARTED, _I.START): _S.STARTED,
    (_S.STARTED, _I.OUTCOME): _S.SETTLED,
    (_S.STARTED, _I.CANCEL): _S.CANCELLING,
    (_S.STARTED, _I.EXPIRE): _S.SETTLED,
    (_S.STARTED, _I.LOSE): _S.SETTLED,
    (_S.STARTED, _I.REJECT): _S.SETTLED,
    (_S.CANCELLING, _I.START): _S.CANCELLING,
    (_S.CANCELLING, _I.OUTCOME): _S.SETTLED,
    (_S.CANCELLING, _I.CANCEL): _S.CANCELLING,
    (_S.CANCELLING, _I.GIVE_UP): _S.SETTLED,
    (_S.CANCELLING, _I.EXPIRE): _S.SETTLED,
    (_S.CANCELLING, _I.LOSE): _S.SETTLED,
    (_S.CANCELLING, _I.REJECT): _S.SETTLED,
}
"""The whole life of a call. SETTLED has no way out."""

_NEXT: list[list[CallState | None]] = [
    [TRANSITIONS.get((state, what)) for what in CallInput] for state in CallState
]
"""The same table as arrays: the hot path looks it up twice per call."""

MAY_HAVE_RUN: dict[CallState, bool] = {
    CallState.SUBMITTED: False,
    CallState.QUEUED: False,
    CallState.DISPATCHED: True,
    CallState.STARTED: True,
    CallState.CANCELLING: True,
    CallState.HELD: True,
}
"""Whether user code may have started when a call is settled from this state."""

STATE_NAMES: dict[CallState, str] = {
    CallState.SUBMITTED: "submitted",
    CallState.QUEUED: "queued",
    CallState.DISPATCHED: "queued",
    CallState.STARTED: "running",
    CallState.CANCELLING: "running",
    CallState.SETTLED: "done",
    CallState.HELD: "queued",
}
"""What a caller is told (api.md, `Future.state`): given to a node is not yet running."""


class GatewayCall(Relay):
    """One call, and the relay of its two streams.

    Attributes:
        message: What the caller sent, kept until the outcome so that it can be sent again.
        principal: Whose call it is.
        caller: What the gateway knows of that user's calls.
        state: Where it is; changed by `step` alone.
        offer: The function on the node that has the call, None while or when no node has.
        pool: Where it waits or waited.
        level: Its place in the queue of its pool, None unless it waits there.
        share: What its user has used, set when it is placed.
        priority: Which of its user's calls goes first; higher is earlier.
        reservation: What is reserved for it on its node.
        gpus_there: The devices that it has on a node that came back with it.
        behind: Calls beyond the slots of its node when it was given, itself among them.
        cost_s: Slot-seconds that its user was charged for it, at `charged_at`.
        deadline: When it expires, on trio's clock; None for never.
        parent: The running call that made this one.
        depth: How many calls are above it.
        children: Calls made by this one that are not settled.
        attempt: How often it was given to a node.
        refused_by: Ids of nodes that gave it back.
        node_owner: The user who owns the node that it was last given to.
        node_id: That node.
        sequence: Its place in the order of arrival.
        opened_on: The caller's stream, until its stream credit was returned.
        left_on: A stream that its caller gave up, and whose credit returns when the work is gone.
        adopted: It came from its node after a restart; `message` holds no arguments.
        wanted: Somebody may still ask for the outcome.
        over: It has its outcome and nobody will ask for it again.
        moved_before: Bytes that its caller had taken when that was last looked at.
        came_at: When it came to this gateway, on trio's clock.
        since: When it came to where it is, on trio's clock: waits, is at a node, runs.
        moved_at: When that number last changed, or nothing waited.
        charge: Its part in quotas and bills, None if it has none.
    """

    principal: Principal
    caller: Caller
    offer: Offer | None = None
    pool: Pool | None = None
    level: Level[GatewayCall] | None = None
    share: Share
    priority = 0
    reservation: Reservation | None = None
    gpus_there: tuple[int, ...] = ()
    behind = 0
    cost_s = 0.0
    charged_at = 0.0
    deadline: float | None = None
    parent: GatewayCall | None = None
    depth = 0
    children = 0
    attempt = 0
    sequence = 0
    refused_by: frozenset[str] = frozenset()
    node_owner: str | None = None
    node_id: str | None = None
    left_on: Stream | None = None
    adopted = False
    wanted = True
    over = False
    moved_before = 0
    came_at = 0.0
    since = 0.0
    moved_at = 0.0
    charge: Charge | None = None

    def __init__(
        self, dispatcher: Dispatcher, message: Call, up: Stream | None, more: bool, end: bool
    ) -> None:
        Relay.__init__(self, up, dispatcher.buffers, more=more, end=end)
        self.dispatcher = dispatcher
        self.message = message
        self.opened_more = more
        self.opened_end = end
        self.opened_on: Stream | None = up
        self.state = CallState.SUBMITTED

    def step(self, what: CallInput) -> CallState:
        """Move along the table and return the state that was left."""
        before = self.state
        after = _NEXT[before][what]
        assert after is not None, f"{what.name} in {before.name}"
        self.state = after
        return before

    def can(self, what: CallInput) -> bool:
        """Return whether the table has this input for the present state."""
        return _NEXT[self.state][what] is not None

    @property
    def may_have_run(self) -> bool:
        """Whether user code may have started, should it be settled now."""
        held_before_it_ran = self.state is _S.HELD and not self.was_sent_before and not self.attempt
        return MAY_HAVE_RUN[self.state] and not held_before_it_ran

    @property
    def was_sent_before(self) -> bool:
        """Whether its caller says that it was sent before: it may have run then."""
        return self.message.since != 0 or bool(self.message.flags & FLAG_ATTACH)

    @property
    def goes_on_without_caller(self) -> bool:
        """Whether its caller may lose its link and come back: nothing is lost halfway."""
        whole = self.up_ended and not self.up_mid
        return whole and not self.down_mid and self.state is not _S.SETTLED

    @property
    def node_left(self) -> bool:
        """Whether the node that has it said goodbye."""
        return self.down is not None and said_goodbye(self.down)

    @property
    def goes_on_without_link(self) -> bool:
        """Whether its node may lose its link and come back with it."""
        whole = self.up_ended and not self.up_mid and not self.down_mid and not self.outcome_seen
        return whole and self.can(_I.DRIFT) and not self.message.flags & FLAG_STREAM

    @property
    def detached(self) -> bool:
        """Whether it goes on without its caller."""
        return bool(self.message.flags & FLAG_DETACHED)

    @property
    def body_bytes(self) -> int:
        """Bytes of its inline body, which wait with it."""
        body = self.message.body
        return 0 if body is None else len(body)

    @property
    def can_be_sent_again(self) -> bool:
        """Whether all that its caller has said is in `message`."""
        return not self.opened_more and not self.caller_spoke and not self.adopted

    def stuck_since(self, now: float, stall_s: float) -> bool:
        """Return whether bytes have waited for the caller for `stall_s` and none was taken."""
        stream, (owed, moved) = self.opened_on, self.stuck_bytes
        waiting = owed or (stream is not None and stream.pending_bytes)
        if not waiting or moved != self.moved_before:
            self.moved_before, self.moved_at = moved, now
            return False
        return now - self.moved_at >= stall_s

    def leave_stream(self) -> None:
        """Its caller is gone and it goes on: what it held of the caller's credit, it still holds.

        Else whoever gives up the streams of detached calls could have any number of them.
        """
        self.return_left()
        stream, self.opened_on = self.opened_on, None
        if stream is not None and stream.link.ready:
            self.left_on = stream

    def return_left(self) -> None:
        """Return the credit of a stream that its caller gave up."""
        stream, self.left_on = self.left_on, None
        if stream is not None and stream.link.ready:
            stream.release()

    # ---- what the streams report; the dispatcher decides ---------------------------------------

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """Relay a message; an item is looked at if its caller may send plain data only."""
        if kind == Kind.ITEM and self.charge is not None:
            self.charge.passed(payload, outwards=stream is self.down)
        if (
            kind == Kind.ITEM
            and stream is self.up
            and not self.muted
            and not self.principal.may(Operation.SHIP)
            and decode(Item, payload).codec != CODEC_PLAIN
        ):
            stream.consumed(len(payload))
            self.up_mid = more
            self.dispatcher.refuse_pickle(self)
            return
        Relay.on_message(self, stream, kind, payload, more, end)

    def on_outcome(self, kind: int, payload: bytes, more: bool) -> bool:
        """The node says how the call ended."""
        kept = self.dispatcher.outcome(self, kind, payload)
        if kind == Kind.FAILURE and not kept:
            events.call_failed(self, payload)
        return kept

    def on_callee_done(self) -> None:
        """The node has nothing more to say."""
        self.dispatcher.work_gone(self)

    def on_callee_gone(self, code: int, reason: str, error: EasyRemoteError | None) -> None:
        """The node gave the call up or was lost."""
        self.dispatcher.node_gone(self, reason, error)

    def on_caller_gone(self, code: int, reason: str, error: EasyRemoteError | None) -> None:
        """The caller gave the call up, said goodbye, or was lost."""
        assert self.up is not None
        self.dispatcher.caller_gone(self, for_good=error is None or said_goodbye(self.up))

    def on_drained(self, stream: Stream, size_bytes: int) -> None:
        """Bytes have left us."""
        Relay.on_drained(self, stream, size_bytes)
        if self.over:
            self.dispatcher.drained(self)

    def on_started(self, stream: Stream) -> None:
        """The body runs."""
        if stream is self.down and self.can(CallInput.START):
            self.step(CallInput.START)
            self.since = stream.link.connection.now
            if self.charge is not None:
                self.charge.started(self.since)
            Relay.on_started(self, stream)

    def on_cancel(self, stream: Stream, strength: int, grace_ms: int) -> None:
        """The caller wants the call stopped."""
        if stream is self.up:
            self.dispatcher.cancel(self, strength, grace_ms)


def said_goodbye(stream: Stream) -> bool:
    """Return whether the peer of a lost stream left on purpose."""
    goodbye = stream.link.goodbye
    return goodbye is not None and goodbye[0] == ErrorCode.NO_ERROR
