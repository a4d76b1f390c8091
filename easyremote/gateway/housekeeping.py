"""What is looked at now and then: calls that nobody fetches, takes, or could run.

Rules of this file. 1) What is found is settled by the dispatcher. 2) Time is an argument.

Source. decisions.md 15; promises.md `STALL_TIMEOUT`, `RESULT_TTL`, `CLIENT_GRACE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..wire.errors import ErrorCode
from .routing import Refused, route

if TYPE_CHECKING:
    from .calls import GatewayCall
    from .dispatcher import Dispatcher
    from .pool import Pool


def keep_house(dispatcher: Dispatcher, now: float) -> None:
    """Give up what has waited long enough.

    Args:
        dispatcher: All calls.
        now: On trio's clock.
    """
    for call in dispatcher.parking.expired(now):
        dispatcher.drop(call)
    _drop_stalled(dispatcher, now)
    _drop_stranded(dispatcher, now)
    dispatcher.returning.forget_kept(now)
    dispatcher.accounting.keep_house(now)


def _drop_stalled(dispatcher: Dispatcher, now: float) -> None:
    """Give up the calls whose callers leave bytes untouched, or that somebody has half said."""
    running = [c for caller in dispatcher.callers.values() for c in caller.calls.values()]
    for call in [*running, *dispatcher.leaving]:
        if call.stuck_since(now, dispatcher.limits.stall_s) and call.opened_on is not None:
            dispatcher.give_up_stalled(call)
    for call in running:
        side = None if call.over else call.half_said(now, dispatcher.limits.stall_s)
        if side is not None and side is call.up:
            dispatcher.give_up_stalled(call, "the caller stopped in the middle of a message")
        elif side is not None:
            call.give_callee_up(ErrorCode.STALLED, "it stopped in the middle of a message")


def _drop_stranded(dispatcher: Dispatcher, now: float) -> None:
    """Give up the calls that wait while no connected node could run them."""
    for pool in dispatcher.registry.stranded():
        since = pool.stranded_since
        if since is None:
            pool.stranded_since = now
        elif now - since >= dispatcher.limits.offline_grace_s:
            for call in list(pool.queue.calls(now)):
                dispatcher.lose_held(call, _why_stranded(dispatcher, call, pool))


def _why_stranded(dispatcher: Dispatcher, call: GatewayCall, pool: Pool) -> Refused:
    """Say why nobody can run a call that was taken: nodes may have left, or have less by now."""
    try:
        route(dispatcher.registry, call.principal, call.message)
    except Refused as refused:
        if "class" in refused.detail:
            return refused
    why = f"No healthy nodes for {pool.name}: every node that provides it is gone"
    return Refused(ErrorCode.NO_NODE, why, cls="NoHealthyNodesError")
