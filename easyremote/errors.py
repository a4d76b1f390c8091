"""Every error that EasyRemote raises to its users.

Theory. The class answers two questions: whose fault was it, and may I try again? Each class also
derives from the builtin that a caller would expect (`ConnectionError`, `PermissionError`,
`TimeoutError`, `LookupError`), so that code written for local calls keeps working.

Rules of this file. 1) `may_have_run` is honest: it is False only where user code provably did not
start. 2) Every message says what to do next. 3) On the wire an error is a code and data, never a
pickle; `from_wire` is the one place where a code becomes a class.
"""

from __future__ import annotations

import concurrent.futures as cf
from typing import Any

from .wire.errors import ErrorCode, ProtocolError


class EasyRemoteError(Exception):
    """Base of all errors of EasyRemote.

    Attributes:
        code: The kind of error as it travels on the wire.
        may_have_run: Whether user code may have started. False is never wrong.
        retry_after_s: Seconds after which a retry makes sense, if the other side said so.
    """

    code: ErrorCode = ErrorCode.INTERNAL
    may_have_run: bool = False
    retry_after_s: float | None = None


class NotConnectedError(EasyRemoteError):
    """There is no gateway to talk to, because none was named."""


class ProtocolViolationError(EasyRemoteError, ConnectionError):
    """The other side broke the protocol, or the two versions cannot talk to each other."""

    code = ErrorCode.PROTOCOL


class GatewayUnreachableError(EasyRemoteError, ConnectionError):
    """The gateway did not answer, or the link to it was lost."""

    code = ErrorCode.GATEWAY_LOST


class LinkLostError(EasyRemoteError, ConnectionError):
    """A connection between two of our processes ended; whoever owns it says what that means."""

    code = ErrorCode.GATEWAY_LOST


class AuthenticationError(EasyRemoteError, PermissionError):
    """Who you are could not be established: no token, a wrong one, or a wrong gateway key."""

    code = ErrorCode.AUTH_INVALID


class AccessDeniedError(EasyRemoteError, PermissionError):
    """You are known, and not allowed to do this."""

    code = ErrorCode.FORBIDDEN


class QuotaExceededError(EasyRemoteError):
    """A quota is used up.

    Attributes:
        resets_at: Epoch seconds at which there is some of it again.
        remaining: What is left until then.
    """

    code = ErrorCode.QUOTA
    resets_at: float = 0.0
    remaining: float = 0.0


class OverloadedError(EasyRemoteError):
    """A bounded queue is full; the call was not taken."""

    code = ErrorCode.OVERLOADED


class InfeasibleError(EasyRemoteError):
    """No known node could ever run this call."""

    code = ErrorCode.NO_NODE


class NoHealthyNodesError(EasyRemoteError):
    """Nodes that provide this function exist, but none is healthy."""

    code = ErrorCode.NO_NODE


class NoCapableNodeError(EasyRemoteError):
    """No node that provides this function has the wanted capability."""

    code = ErrorCode.NO_NODE


class NodeIdConflictError(EasyRemoteError):
    """The node id belongs to somebody else."""

    code = ErrorCode.FORBIDDEN


class NodeNotFoundError(EasyRemoteError, LookupError):
    """No node of this name is known, or you may not see it."""

    code = ErrorCode.NOT_FOUND


class FunctionNotFoundError(EasyRemoteError, LookupError):
    """No function of this name is known, or you may not see it."""

    code = ErrorCode.NOT_FOUND


class NodeLostError(EasyRemoteError, ConnectionError):
    """The node that had the call went away before it answered."""

    code = ErrorCode.NODE_LOST
    may_have_run = True


class WorkerCrashedError(EasyRemoteError):
    """The process that ran the function ended in the middle of the call.

    Attributes:
        exit_code: Its exit code, where one is known.
        signal: The signal that ended it, where one is known.
    """

    code = ErrorCode.WORKER_DIED
    may_have_run = True
    exit_code: int | None = None
    signal: int | None = None


class ActorDiedError(EasyRemoteError):
    """The actor behind this handle is gone."""

    code = ErrorCode.WORKER_DIED
    may_have_run = True


class ObjectLostError(EasyRemoteError):
    """The object behind this reference is gone."""

    code = ErrorCode.NOT_FOUND


class TaskTimeoutError(EasyRemoteError, TimeoutError):
    """The deadline of the call passed before its outcome."""

    code = ErrorCode.DEADLINE


class TaskCancelledError(EasyRemoteError, cf.CancelledError):
    """The call was cancelled."""

    code = ErrorCode.CANCELLED


class SerializationError(EasyRemoteError):
    """A value cannot travel, or bytes that arrived are not a value."""

    code = ErrorCode.BAD_ARGUMENT


class RemoteExecutionError(EasyRemoteError):
    """The remote function raised.

    It arrives as a class that derives from this one and, where that is possible, from the type
    that was raised, so that `except KeyError` works as it does locally.

    Attributes:
        type_name: Qualified name of the exception's type on the other side.
        remote_traceback: The traceback there, as text.
    """

    code = ErrorCode.REMOTE_ERROR
    may_have_run = True
    type_name: str = ""
    remote_traceback: str = ""


_BY_CODE: dict[ErrorCode, type[EasyRemoteError]] = {
    ErrorCode.PROTOCOL: ProtocolViolationError,
    ErrorCode.VERSION: ProtocolViolationError,
    ErrorCode.FRAME_TOO_LARGE: ProtocolViolationError,
    ErrorCode.DECODE: ProtocolViolationError,
    ErrorCode.FLOW_CONTROL: ProtocolViolationError,
    ErrorCode.STREAM_STATE: ProtocolViolationError,
    ErrorCode.ABUSE: ProtocolViolationError,
    ErrorCode.CLIENT_TOO_OLD: ProtocolViolationError,
    ErrorCode.HANDSHAKE_TIMEOUT: GatewayUnreachableError,
    ErrorCode.AUTH_REQUIRED: AuthenticationError,
    ErrorCode.AUTH_INVALID: AuthenticationError,
    ErrorCode.AUTH_EXPIRED: AuthenticationError,
    ErrorCode.AUTH_REVOKED: AuthenticationError,
    ErrorCode.FORBIDDEN: AccessDeniedError,
    ErrorCode.NOT_FOUND: FunctionNotFoundError,
    ErrorCode.BAD_ARGUMENT: SerializationError,
    ErrorCode.TOO_LARGE: SerializationError,
    ErrorCode.UNSUPPORTED_CODEC: SerializationError,
    ErrorCode.QUOTA: QuotaExceededError,
    ErrorCode.OVERLOADED: OverloadedError,
    ErrorCode.NO_NODE: NoHealthyNodesError,
    ErrorCode.NODE_LOST: NodeLostError,
    ErrorCode.GATEWAY_LOST: GatewayUnreachableError,
    ErrorCode.DEADLINE: TaskTimeoutError,
    ErrorCode.CANCELLED: TaskCancelledError,
    ErrorCode.STALLED: NodeLostError,
    ErrorCode.WORKER_DIED: WorkerCrashedError,
    ErrorCode.REMOTE_ERROR: RemoteExecutionError,
    ErrorCode.SHUTTING_DOWN: OverloadedError,
}

_BY_NAME: dict[str, type[EasyRemoteError]] = {
    cls.__name__: cls
    for cls in (
        InfeasibleError,
        NoCapableNodeError,
        NoHealthyNodesError,
        NodeIdConflictError,
        NodeNotFoundError,
        FunctionNotFoundError,
        ActorDiedError,
        ObjectLostError,
        NotConnectedError,
    )
}
"""Classes that share a code; the wire names them in `detail["class"]`."""

_DETAIL_FIELDS = ("resets_at", "remaining", "exit_code", "signal")


def from_wire(
    code: int,
    reason: str,
    *,
    maybe_executed: bool = False,
    retry_after_s: float | None = None,
    detail: dict[str, Any] | None = None,
) -> EasyRemoteError:
    """Build the exception for an error that a peer reported.

    Args:
        code: An `ErrorCode`; an unknown number (a newer peer) gives the base class.
        reason: What the peer said, already meant for people.
        maybe_executed: Whether user code may have started.
        retry_after_s: When a retry makes sense.
        detail: Plain data: `class` names a class that shares its code with others.

    Returns:
        The exception, not raised.
    """
    detail = detail or {}
    try:
        known = ErrorCode(code)
    except ValueError:
        known = ErrorCode.INTERNAL
    cls = _BY_NAME.get(str(detail.get("class"))) or _BY_CODE.get(known, EasyRemoteError)
    error = cls(reason)
    error.code = known
    error.may_have_run = maybe_executed
    error.retry_after_s = retry_after_s
    for field in _DETAIL_FIELDS:
        if field in detail and hasattr(error, field):
            setattr(error, field, detail[field])
    return error


def detail_of(error: EasyRemoteError) -> dict[str, Any]:
    """Return the `detail` from which `from_wire` builds an equal error."""
    detail: dict[str, Any] = {}
    if type(error).__name__ in _BY_NAME:
        detail["class"] = type(error).__name__
    for field in _DETAIL_FIELDS:
        value = getattr(error, field, None)
        if value is not None:
            detail[field] = value
    return detail


def loss_of_link(
    peer: str,
    error: ProtocolError | None,
    goodbye: tuple[int, str] | None,
    broken: str | None,
    *,
    closed_here: bool,
) -> EasyRemoteError | None:
    """Say why a link ended; None after a goodbye of either side.

    Args:
        peer: Name of the other end.
        error: The rule that was broken, if one was.
        goodbye: What the peer said last, if it did.
        broken: What happened to the bytes below, if something did.
        closed_here: We closed it.
    """
    if error is not None:
        if error.code is ErrorCode.STALLED:
            return LinkLostError(f"{peer} {error.reason}")
        return from_wire(error.code, f"{peer}: {error.reason}")
    if goodbye is not None:
        code, reason = goodbye
        return None if code == ErrorCode.NO_ERROR else from_wire(code, reason)
    if broken is not None:
        return LinkLostError(f"the connection to {peer} broke: {broken}")
    if closed_here:
        return None
    return LinkLostError(f"{peer} closed the connection without a goodbye")
