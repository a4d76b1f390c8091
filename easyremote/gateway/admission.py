"""Whether a call is taken, and as whose: what is checked before it is placed.

Theory. A call that comes on a client's link is its principal's. One that comes on a node's link is
made by a function that runs there: its ticket names the running call, and it is the call of
whoever called that function, ends before it, and is one level deeper. An id that is known is the
same call submitted again by a caller that lost its link, or a mistake.

Rules of this file. 1) A refusal is raised as `Refused` and has changed nothing outside the new
call. 2) A ticket is good only on the link of the node that has the running call.

Source. decisions.md 7 and 8; promises.md T2 and T10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..log import Log
from ..wire.errors import ErrorCode
from ..wire.message import Call
from . import events
from .calls import CallInput, CallState, GatewayCall
from .demands import HEEDED
from .routing import Refused, check_codec, priority_of

if TYPE_CHECKING:
    from .dispatcher import Dispatcher
    from .pool import NodeRecord
    from .session import Session

_log = Log("gateway")

HEEDED_OPTIONS = HEEDED | {"attempt"}
"""Call options that the gateway acts on."""
IGNORED_MAX = 256
"""Names of other options that are named in the log, once each."""


def admit(dispatcher: Dispatcher, session: Session, call: GatewayCall) -> GatewayCall:
    """Take a call that came on a session's link; return the handler of its stream.

    Raises:
        Refused: It is not taken.
    """
    message = call.message
    now = call.since = call.came_at = session.link.connection.now
    if dispatcher.closing:
        raise Refused(
            ErrorCode.SHUTTING_DOWN, "the gateway is stopping; try again shortly",
            retry_after_s=5.0,
        )  # fmt: skip
    if message.deadline_ms is not None:
        call.deadline = now + message.deadline_ms / 1000.0
    nested = session.node is not None or message.ticket
    if nested:
        delegate(call, session.node, dispatcher.limits.depth_max)
    else:
        call.principal = session.principal
        call.caller = session.caller
    existing = call.caller.calls.get(message.call_id)
    if existing is not None:
        return dispatcher.returning.take_up(existing, call)
    if call.caller.was_over(message.call_id):
        raise Refused(
            ErrorCode.GATEWAY_LOST, "this call has ended and its outcome is no longer kept",
            may_have_run=True,
        )  # fmt: skip
    check_codec(call.principal, message.codec)
    if message.options:
        dispatcher.ignored.look(message)
        call.priority = priority_of(message)
    if call.deadline is not None and call.deadline <= now:
        call.step(CallInput.EXPIRE)
        dispatcher.answer_rejected(call, ErrorCode.DEADLINE, "the deadline passed before the call")
        return call
    if (pool := dispatcher.returning.find_pool(session, call, nested=bool(nested))) is None:
        dispatcher.returning.hold(call)
    else:
        dispatcher.put(call, pool)
    call.caller.calls[message.call_id] = call
    dispatcher.calls_total += 1
    if call.parent is not None:
        dispatcher.placer.lend(call.parent)
    if call.deadline is not None:
        dispatcher.timers.at(call.deadline, call, CallInput.EXPIRE)
    assert call.up is not None
    call.up.accept()
    events.call_accepted(call)
    return call


def delegate(call: GatewayCall, record: NodeRecord | None, depth_max: int) -> None:
    """Take principal and deadline over from the running call that makes this one.

    Args:
        call: The new call.
        record: The node on whose link it came; None for a client.
        depth_max: How deep calls may be nested.

    Raises:
        Refused: The ticket is not good here, or the nesting is too deep.
    """
    parent = None if record is None else record.running.get(call.message.ticket)
    if parent is None or parent.state is CallState.SETTLED:
        raise Refused(
            ErrorCode.FORBIDDEN,
            "the ticket of this nested call names no call that runs on this node now",
        )
    call.parent = parent
    call.depth = parent.depth + 1
    call.principal = parent.principal
    call.caller = parent.caller
    if call.depth > depth_max:
        raise Refused(ErrorCode.OVERLOADED, f"calls are nested more than {depth_max} deep")
    if parent.deadline is not None:
        own = call.deadline
        call.deadline = parent.deadline if own is None else min(own, parent.deadline)


def check_same_call(existing: GatewayCall, call: GatewayCall) -> None:
    """See that a call under a known id is that call again.

    Raises:
        Refused: It is another call.
    """
    mine, theirs = existing.message, call.message
    same = mine.function == theirs.function and mine.body == theirs.body
    if not same or mine.segments != theirs.segments or mine.node_ids != theirs.node_ids:
        raise Refused(ErrorCode.BAD_ARGUMENT, "this call id belongs to another call of yours")


class IgnoredOptions:
    """Names in the log, once each, the call options that have no effect here."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def look(self, message: Call) -> None:
        """Name the options of a call that were not named before."""
        for name in message.options:
            known = name in HEEDED_OPTIONS or name in self._named
            if not known and len(self._named) < IGNORED_MAX:
                self._named.add(name)
                _log.info("a call option has no effect at this gateway yet", option=name)
