"""What can go wrong on the wire, and whose fault it is.

Theory. Two questions decide the class of an error: which layer noticed it (the codec or the
protocol), and who broke the rule (our own code or the peer). Everything that an application may
be told about a failed call is an `ErrorCode`: a closed list, so that each side can map every
code to one exception class and one HTTP status.

Rules of this file. 1) No code is ever renumbered or reused. 2) A code says what happened, never
how it was implemented.

Source. RFC 9113 section 7 (error codes of HTTP/2), h11's split into local and remote errors.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class ErrorCode(IntEnum):
    """The closed list of error kinds that travel between peers."""

    NO_ERROR = 0
    PROTOCOL = 1
    VERSION = 2
    FRAME_TOO_LARGE = 3
    DECODE = 4
    FLOW_CONTROL = 5
    STREAM_STATE = 6
    ABUSE = 7
    HANDSHAKE_TIMEOUT = 8
    AUTH_REQUIRED = 9
    AUTH_INVALID = 10
    AUTH_EXPIRED = 11
    AUTH_REVOKED = 12
    FORBIDDEN = 13
    NOT_FOUND = 14
    BAD_ARGUMENT = 15
    TOO_LARGE = 16
    UNSUPPORTED_CODEC = 17
    QUOTA = 18
    OVERLOADED = 19
    NO_NODE = 20
    NODE_LOST = 21
    GATEWAY_LOST = 22
    DEADLINE = 23
    CANCELLED = 24
    STALLED = 25
    WORKER_DIED = 26
    REMOTE_ERROR = 27
    SHUTTING_DOWN = 28
    CLIENT_TOO_OLD = 29
    INTERNAL = 30


class CodeInfo(NamedTuple):
    """What a code means outside the native protocol."""

    http_status: int
    """The status that the REST side answers with."""
    may_follow_dispatch: bool
    """Whether user code may have run, so that `maybe_executed` must be said with it."""


CODES: dict[ErrorCode, CodeInfo] = {
    ErrorCode.NO_ERROR: CodeInfo(200, False),
    ErrorCode.PROTOCOL: CodeInfo(400, False),
    ErrorCode.VERSION: CodeInfo(400, False),
    ErrorCode.FRAME_TOO_LARGE: CodeInfo(413, False),
    ErrorCode.DECODE: CodeInfo(400, False),
    ErrorCode.FLOW_CONTROL: CodeInfo(400, False),
    ErrorCode.STREAM_STATE: CodeInfo(400, False),
    ErrorCode.ABUSE: CodeInfo(429, False),
    ErrorCode.HANDSHAKE_TIMEOUT: CodeInfo(408, False),
    ErrorCode.AUTH_REQUIRED: CodeInfo(401, False),
    ErrorCode.AUTH_INVALID: CodeInfo(401, False),
    ErrorCode.AUTH_EXPIRED: CodeInfo(401, False),
    ErrorCode.AUTH_REVOKED: CodeInfo(401, False),
    ErrorCode.FORBIDDEN: CodeInfo(403, False),
    ErrorCode.NOT_FOUND: CodeInfo(404, False),
    ErrorCode.BAD_ARGUMENT: CodeInfo(422, False),
    ErrorCode.TOO_LARGE: CodeInfo(413, False),
    ErrorCode.UNSUPPORTED_CODEC: CodeInfo(415, False),
    ErrorCode.QUOTA: CodeInfo(429, False),
    ErrorCode.OVERLOADED: CodeInfo(503, False),
    ErrorCode.NO_NODE: CodeInfo(503, False),
    ErrorCode.NODE_LOST: CodeInfo(502, True),
    ErrorCode.GATEWAY_LOST: CodeInfo(502, True),
    ErrorCode.DEADLINE: CodeInfo(504, True),
    ErrorCode.CANCELLED: CodeInfo(499, True),
    ErrorCode.STALLED: CodeInfo(408, True),
    ErrorCode.WORKER_DIED: CodeInfo(502, True),
    ErrorCode.REMOTE_ERROR: CodeInfo(500, True),
    ErrorCode.SHUTTING_DOWN: CodeInfo(503, False),
    ErrorCode.CLIENT_TOO_OLD: CodeInfo(400, False),
    ErrorCode.INTERNAL: CodeInfo(500, True),
}
"""Meaning of every code; `tests/wire` checks that none is missing."""


class WireError(Exception):
    """Base of everything that this package raises."""


class CodecError(WireError, ValueError):
    """Bytes that are not what the strict profile allows, or a value that it cannot express."""


class ProtocolError(WireError):
    """A rule of the protocol was broken.

    Attributes:
        code: Which rule, as it is said to the peer.
        reason: One sentence, without secrets.
    """

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


class LocalProtocolError(ProtocolError):
    """Our own code misused the connection; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; the connection is closed."""
