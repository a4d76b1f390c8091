"""The log of calls and callers: one line an event, with the call's id, whose it is, and its node.

Theory. An operator who hears "my call hangs" or "my call failed" searches the log for an id. So
whatever does not end well is a line by itself, and what goes well is one at level debug:

    client connected, client gone      info
    call accepted, call given          debug    `easyremote.gateway.calls`, to be set apart
    call refused, call failed          info     an outcome that is the caller's or its code's own
    call lost                          warning  one that is the system's: a node, a worker, room

A function that raises may be called ten thousand times a second. Lines of outcomes are therefore
limited; how many were left out is a line, too.

Rules of this file. 1) No payload: of an exception its type is logged, not its text. 2) What a peer
chose goes through `Log`, which cuts and cleans it. 3) A line that is not wanted costs one question
to the logger.

Source. promises.md T8, T25 and P5.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from ..errors import EasyRemoteError
from ..log import Log
from ..wire.errors import CodecError, ErrorCode
from ..wire.message import Failure, decode

if TYPE_CHECKING:
    from .calls import GatewayCall
    from .routing import Refused
    from .session import Session

_log = Log("gateway")
_calls = Log("gateway.calls")
_calls_logger = logging.getLogger("easyremote.gateway.calls")

OUTCOMES_PER_S = 50
"""Lines of outcomes in a second; the rest is counted."""

SYSTEMS_FAULT = frozenset(
    {
        ErrorCode.NODE_LOST,
        ErrorCode.GATEWAY_LOST,
        ErrorCode.NO_NODE,
        ErrorCode.OVERLOADED,
        ErrorCode.STALLED,
        ErrorCode.WORKER_DIED,
        ErrorCode.INTERNAL,
    }
)


class Faucet:
    """Lets some lines a second pass, and tells how many did not."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._second = -1
        self._passed = 0
        self.left_out = 0

    def passes(self, now: float) -> bool:
        """Return whether one more line may be written."""
        second = int(now)
        if second != self._second:
            left_out, self.left_out = self.left_out, 0
            self._second, self._passed = second, 0
            if left_out:
                _calls.warning("outcomes were not logged, there are too many", count=left_out)
        self._passed += 1
        if self._passed <= self._per_s:
            return True
        self.left_out += 1
        return False


_faucet = Faucet(OUTCOMES_PER_S)


# ---- callers -------------------------------------------------------------------------------------


def client_connected(session: Session) -> None:
    """A client was let in."""
    principal = session.principal
    _log.info(
        "client connected", principal=principal.user, role=principal.role.value,
        token=principal.token_id, peer=session.address,
    )  # fmt: skip


def client_gone(session: Session, error: EasyRemoteError | None) -> None:
    """The link of a client is over."""
    _log.info(
        "client gone", principal=session.principal.user, peer=session.address,
        reason=error or "goodbye",
    )  # fmt: skip


# ---- calls ---------------------------------------------------------------------------------------


def call_accepted(call: GatewayCall) -> None:
    """The gateway is responsible for a call now."""
    if _calls_logger.isEnabledFor(logging.DEBUG):
        _calls.debug("call accepted", **_about(call), waits=call.level is not None)


def call_given(call: GatewayCall) -> None:
    """A node has a call."""
    if _calls_logger.isEnabledFor(logging.DEBUG):
        _calls.debug("call given to a node", **_about(call), attempt=call.attempt)


def call_refused(session: Session, call: GatewayCall, refused: Refused) -> None:
    """A call was not taken; one that is not for its caller is an entry of the audit, too."""
    if refused.code is ErrorCode.FORBIDDEN:
        session.gateway.audited.denied(
            session.principal.user, session.principal.token_id, call.message.function[:256],
            refused.reason, trio.current_time(),
        )  # fmt: skip
    if _faucet.passes(trio.current_time()):
        _calls.info(
            "call refused", call_id=call.message.call_id, function=call.message.function,
            principal=session.principal.user, code=refused.code.name, reason=refused.reason,
        )  # fmt: skip


def call_settled(call: GatewayCall, code: ErrorCode, reason: str, *, may_have_run: bool) -> None:
    """The gateway itself gave a call its outcome."""
    _outcome(call, code, reason=reason, may_have_run=may_have_run, by="gateway")


def call_failed(call: GatewayCall, payload: bytes) -> None:
    """A node has said that a call failed."""
    try:
        failure = decode(Failure, payload)
        code = ErrorCode(failure.code)
    except (CodecError, ValueError):
        return  # The caller will say what it thinks of that.
    if code is ErrorCode.REMOTE_ERROR:
        kind = failure.detail.get("type")
        _outcome(call, code, error=kind if type(kind) is str else "?", by="function")
    else:
        _outcome(call, code, reason=failure.reason, may_have_run=failure.maybe_executed, by="node")


def _outcome(call: GatewayCall, code: ErrorCode, **fields: Any) -> None:
    if not _faucet.passes(trio.current_time()):
        return
    if code in SYSTEMS_FAULT:
        _calls.warning("call lost", **_about(call), code=code.name, **fields)
    else:
        _calls.info("call failed", **_about(call), code=code.name, **fields)


def _about(call: GatewayCall) -> dict[str, Any]:
    """Return which call it is, whose, and where."""
    about: dict[str, Any] = {
        "call_id": call.message.call_id,
        "function": call.message.function,
        "principal": call.principal.user,
    }
    if call.offer is not None:
        about["node_id"] = call.offer.record.node_id
    return about
