"""What a peer may do wrong for a while before it is shut out.

Theory. Some frames are legal and still cost us: pings, resets, frames that crossed our own reset.
Each draws on the peer's abuse budget, whichever side sent the reset, so that neither Rapid Reset
(CVE-2023-44487) nor MadeYouReset (CVE-2025-8671) is cheaper for the peer than for us.

Rules of this file. 1) What an honest peer may do is free: a message for a stream that we gave up
may have crossed our news; a reset of what we accepted, or of what we opened ourselves, is paid for
by stream credit; a grant by what we sent. 2) A frame that needs no credit and has no effect may
have crossed something, too, but not without end: it costs little. 3) A frame for a stream that
never was is no mischief but a broken rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ErrorCode, RemoteProtocolError

if TYPE_CHECKING:
    from .connection import Connection


IDLE_PARTS = 64
"""A frame that needs no credit and has no effect costs one of so many parts, so that some 2,000 a
second are free, and another part for each KiB of it, for it takes time to read."""

CANCELS_FREE = 8
"""For one stream: three strengths, and some changes of mind about the grace."""

GRANTS_PER_CONTROL_MAX = 4
"""Free grants for as many bytes sent as the largest control frame has: an honest receiver grants
when half of a window is used, and a window holds two of those frames."""


def late(connection: Connection, stream_id: int) -> None:
    """A frame came for a stream that is not open, and is not one that may come late.

    Raises:
        RemoteProtocolError: The stream never was, or the abuse budget is used up.
    """
    if stream_id not in connection.given_up:
        once_was(connection, stream_id)
        charge(connection, 1.0)


def once_was(connection: Connection, stream_id: int) -> None:
    """Check that a stream that is not open was open before.

    Raises:
        RemoteProtocolError: It never was.
    """
    if stream_id == 0:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "the frame is on the wrong stream")
    ours = stream_id % 2 == connection.next_stream_id % 2
    never = (
        stream_id >= connection.next_stream_id if ours else stream_id > connection.peer_stream_id
    )
    if never:
        raise RemoteProtocolError(ErrorCode.STREAM_STATE, f"stream {stream_id} never was")


def late_control(connection: Connection, stream_id: int, size_bytes: int) -> None:
    """A frame that needs no credit came for a stream that is not open.

    Raises:
        RemoteProtocolError: The stream never was, or the abuse budget is used up.
    """
    once_was(connection, stream_id)
    idle(connection, size_bytes)


def idle(connection: Connection, size_bytes: int) -> None:
    """A frame that needs no credit had no effect.

    Raises:
        RemoteProtocolError: The abuse budget is used up.
    """
    charge(connection, (1 + size_bytes // 1024) / IDLE_PARTS)


def crumbs(connection: Connection, grants: int, sent: int) -> None:
    """The peer has granted credit so many times, and we have sent so much.

    Raises:
        RemoteProtocolError: It grants crumbs, and its abuse budget is used up.
    """
    quantum = connection.settings.frame_control_bytes_max // GRANTS_PER_CONTROL_MAX
    if (grants - 1) * quantum > sent:
        charge(connection, 1.0)


def charge(connection: Connection, cost: float) -> None:
    """Draw on the peer's abuse budget.

    Raises:
        RemoteProtocolError: It is used up.
    """
    if not connection.budget.charge(cost, connection.now):
        raise RemoteProtocolError(ErrorCode.ABUSE, "too many resets, pings or stray frames")
