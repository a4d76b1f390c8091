"""Calls that the agent gives back: they have not begun here, or may have begun here before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..handlers import StreamHandler
from ..wire.errors import ErrorCode
from ..wire.message import Dispatch, Failure

if TYPE_CHECKING:
    from ..stream import Stream


def refuse(stream: Stream, message: Dispatch, *, unknown: bool) -> StreamHandler:
    """Give a call back that did not begin; the gateway may place it elsewhere."""
    if unknown:
        code, reason = ErrorCode.NOT_FOUND, f"this node offers no {message.function!r}"
    else:
        code, reason = ErrorCode.SHUTTING_DOWN, "this node is stopping"
    stream.send(Failure(int(code), reason, False, None, {}), end=True)
    stream.release()
    return StreamHandler()


def refuse_again(stream: Stream, message: Dispatch) -> StreamHandler:
    """Refuse a call that was begun here before: whether it has run is known to nobody."""
    reason = (
        f"the call of {message.function} was given to this node before its gateway was lost; "
        "whether it ran to its end is not known"
    )
    stream.send(Failure(int(ErrorCode.GATEWAY_LOST), reason, True, None, {}), end=True)
    stream.release()
    return StreamHandler()
