"""The frames that belong to the connection itself: their payloads, written and checked.

Theory. HELLO carries what the dialer is and what it grants; WELCOME what the other side grants.
Either may be answered by GOAWAY. The version is the newest that both speak: HELLO names the range
of the dialer, WELCOME the choice.

Rules of this file. 1) A payload is a list whose length and types are checked before use; longer
lists of a newer peer are cut. 2) Reasons are cut, never refused.

Source. wire/README.md, "Handshake" and "Frames".
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

from . import cbor
from .credit import TOTAL_MAX
from .errors import CodecError, ErrorCode, RemoteProtocolError
from .frame import FrameType, pack
from .settings import VERSION, VERSION_MIN, Settings

if TYPE_CHECKING:
    from .connection import Connection


class Phase(IntEnum):
    """How far a connection has come."""

    NEW = 0
    GREETING = 1
    READY = 2
    OVER = 3


REASON_BYTES_MAX = 4096
ROLES = frozenset({"client", "node", "worker"})


def checked(payload: bytes, *types: Any) -> list[Any]:
    """Return the fields of a payload, the leading ones of these types.

    Raises:
        CodecError: There are too few fields, or one has another type.
    """
    fields = cbor.decode_frame(payload)
    if type(fields) is not list or len(fields) < len(types):
        raise CodecError(f"a list of {len(types)} fields or more is needed")
    for value, wanted in zip(fields, types, strict=False):
        if type(value) is not wanted:
            raise CodecError("a field has the wrong type")
    return fields


def hello_frame(
    settings: Settings, role: str, credential: dict[str, Any], info: dict[str, Any]
) -> bytes:
    """Return HELLO: [oldest, newest, role, credential, info, credit, stream credit, streams]."""
    fields = [
        VERSION_MIN,
        VERSION,
        role,
        credential,
        info,
        settings.window_connection_bytes,
        settings.window_stream_bytes,
        settings.streams_credit,
    ]
    return pack(FrameType.HELLO, 0, 0, 0, cbor.encode_frame(fields))


def read_hello(connection: Connection, payload: bytes) -> tuple[int, str, Any, Any]:
    """Check HELLO, take over what it grants, and return (version, role, credential, info)."""
    fields = checked(payload, int, int, str, dict, dict, int, int, int)
    oldest, newest, role, credential, info = fields[:5]
    version = min(newest, VERSION)
    if not oldest <= newest or version < max(oldest, VERSION_MIN):
        raise RemoteProtocolError(
            ErrorCode.VERSION,
            f"you speak versions {oldest} to {newest}, this side {VERSION_MIN} to {VERSION}: "
            "update the older one",
        )
    if role not in ROLES:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "HELLO names an unknown role")
    _take_grants(connection, *fields[5:8])
    return version, role, credential, info


def welcome_frame(settings: Settings, version: int, info: dict[str, Any]) -> bytes:
    """Return WELCOME: [version, info, credit, stream credit, streams]."""
    fields = [
        version,
        info,
        settings.window_connection_bytes,
        settings.window_stream_bytes,
        settings.streams_credit,
    ]
    return pack(FrameType.WELCOME, 0, 0, 0, cbor.encode_frame(fields))


def read_welcome(connection: Connection, payload: bytes) -> tuple[int, Any]:
    """Check WELCOME, take over what it grants, and return (version, info)."""
    fields = checked(payload, int, dict, int, int, int)
    version, info = fields[:2]
    if not VERSION_MIN <= version <= VERSION:
        raise RemoteProtocolError(ErrorCode.VERSION, "WELCOME names a version that nobody offered")
    _take_grants(connection, *fields[2:5])
    return version, info


def _take_grants(connection: Connection, total: int, per_stream: int, streams: int) -> None:
    least = 2 * connection.settings.frame_control_bytes_max
    if not least <= total <= TOTAL_MAX or not least <= per_stream <= TOTAL_MAX:
        # A grant may wait until half of the window is used, and the other half must hold a message.
        raise RemoteProtocolError(
            ErrorCode.FLOW_CONTROL, f"a window must hold two messages: {least} bytes or more"
        )
    if not 0 <= streams <= TOTAL_MAX:
        raise RemoteProtocolError(ErrorCode.FLOW_CONTROL, "stream credit out of range")
    connection.out.outflow.granted = total
    connection.peer_window_stream = per_stream
    connection.streams_out = streams


def cut(reason: str) -> str:
    """Return a reason as it may be said: short, and without what UTF-8 cannot express."""
    said = reason.encode("utf-8", "replace")[:REASON_BYTES_MAX]
    return said.decode("utf-8", "ignore")


def goaway_frame(code: ErrorCode, reason: str) -> bytes:
    """Return GOAWAY: [code, reason]."""
    return pack(FrameType.GOAWAY, 0, 0, 0, cbor.encode_frame([int(code), cut(reason)]))


def drain_frame(reason: str) -> bytes:
    """Return DRAIN: [reason]."""
    return pack(FrameType.DRAIN, 0, 0, 0, cbor.encode_frame([cut(reason)]))


def reset_frame(stream_id: int, code: ErrorCode, reason: str) -> bytes:
    """Return RESET: [code, reason]."""
    payload = cbor.encode_frame([int(code), cut(reason)])
    return pack(FrameType.RESET, 0, 0, stream_id, payload)


def credit_frame(stream_id: int, total: int) -> bytes:
    """Return CREDIT: [total bytes]; stream 0 is the connection."""
    return pack(FrameType.CREDIT, 0, 0, stream_id, cbor.encode_frame([total]))


def streams_frame(total: int) -> bytes:
    """Return STREAMS: [total streams]."""
    return pack(FrameType.STREAMS, 0, 0, 0, cbor.encode_frame([total]))
