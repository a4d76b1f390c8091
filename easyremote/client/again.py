"""A call that goes out once more: under its own id after a loss, as a new attempt after a failure.

Theory. These are two things. A call whose link was lost is still the same call: it is submitted
again under its id, and the gateway knows it, or finds out which node has it. An attempt that has
failed is over, and what is made again is another call, with an id of its own, for the same future.

Rules of this file. Io thread only. Whether, is decided in `retry.py`; what is sent, in `call.py`.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from .. import alive
from ..errors import EasyRemoteError, GatewayUnreachableError, TaskCancelledError
from ..wire.message import Call, decode
from .ids import new_id
from .retry import NEVER, REGISTERED_IDEMPOTENT, pause_s

if TYPE_CHECKING:
    from .call import OutgoingCall


SENT_PATIENCE_S = 120.0
"""How long calls that were sent may be submitted again after a loss: as long as gateway and nodes
keep them for us. They count from when they last heard of us, and do not know that we slept."""


def too_late(lost_at: float | None) -> bool:
    """Return whether a call that did not run since it was lost may be forgotten by now.

    Args:
        lost_at: When its link was last known to be alive, on the clock of `alive`.
    """
    return lost_at is not None and alive.clock() - lost_at > SENT_PATIENCE_S


def settle_or_repeat(call: OutgoingCall, error: BaseException, *, idempotent: bool = False) -> None:
    """An attempt has failed: make another one if that is allowed, else that was the outcome.

    Args:
        call: The call.
        error: How it failed.
        idempotent: Whoever registered the function says that it may run twice.
    """
    if call.tried and isinstance(error, EasyRemoteError):
        error.may_have_run = True  # An attempt before may have, whatever became of this one.
    policy = call.retry
    if policy is None:
        policy = REGISTERED_IDEMPOTENT if idempotent else NEVER
    session = call.session
    once = policy.attempts_max == 1 or call.speaks_on or call.cancelling or session.closed
    if once or not policy.allows(error, call.attempts, idempotent=idempotent):
        call.settle(error=error)
        return
    pause = pause_s(error, call.attempts, session.rng)
    too_late = call.deadline is not None and time.monotonic() + pause >= call.deadline
    if too_late or not session.throttle.failed():
        call.settle(error=error)
        return
    call.begin_again(new_id(), may_have_run=getattr(error, "may_have_run", True))
    session.timers.after(pause, partial(_go, call, error))


def _go(call: OutgoingCall, error: BaseException) -> None:
    if call.future is None:
        return
    if call.cancelling:
        call.settle(error=error)
    else:
        call.session.hold(call)


def next_attempt(message: Call | bytes, call_id: bytes, attempts: int) -> Call:
    """Return a call as it is made again: under another id, and with the number of the attempt.

    Args:
        message: The call, perhaps encoded.
        call_id: Its new id.
        attempts: How often it was made with this time.
    """
    call = message if isinstance(message, Call) else decode(Call, message)
    options = {**call.options, "attempt": attempts - 1}
    return call._replace(call_id=call_id, since=0, options=options)


def lost_for_good(call: OutgoingCall, error: EasyRemoteError) -> EasyRemoteError:
    """Return the error of a call whose link did not come back."""
    cls: type[EasyRemoteError] = GatewayUnreachableError
    if call.cancelling:
        cls = TaskCancelledError
    lost = cls(f"{call.function}: the link was lost: {error}")
    lost.may_have_run = call.may_have_run()
    return lost
