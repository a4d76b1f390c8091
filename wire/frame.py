"""Frames: one length-prefixed unit on the wire, and its fixed 16-byte header.

Theory. Everything between two peers is a frame: a header of fixed layout, then a payload of the
length that the header names. The header alone tells a relay where a frame belongs (stream id),
what it is (type and message kind) and whether the stream ends, so that a relay never decodes a
body. The payload of a DATA frame is raw bytes; every other payload is one CBOR list.

    0               4       5       6               8                               16
    +---------------+-------+-------+---------------+-------------------------------+
    | payload bytes | type  | flags | message kind  | stream id                     |
    +---------------+-------+-------+---------------+-------------------------------+

All numbers are unsigned and big-endian.

Rules of this file. 1) No state. 2) A type or a flag is never renumbered.

Source. RFC 9113 section 4.1; the layout is wider so that one `struct` call reads it all.
"""

from __future__ import annotations

import struct
from enum import IntEnum

HEADER = struct.Struct(">IBBHQ")
HEADER_SIZE = HEADER.size
STREAM_ID_MAX = (1 << 62) - 1

PREAMBLE = b"\x89ER1\r\n\x1a\n"
"""First bytes of each direction. No HTTP parser takes them, and a transfer that changes line
ends or strips the eighth bit breaks them."""


class FrameType(IntEnum):
    """What a frame is. Types below 16 belong to the connection (stream id 0)."""

    HELLO = 1
    WELCOME = 2
    PING = 3
    PONG = 4
    GOAWAY = 5
    DRAIN = 6
    STREAMS = 7
    ACCEPT = 8
    STARTED = 9
    CANCEL = 10
    OPEN = 16
    MESSAGE = 17
    DATA = 18
    RESET = 19
    CREDIT = 20


END = 0x01
"""The sender says nothing more on this stream."""
MORE = 0x02
"""Raw segments follow this message as DATA frames."""
LAST = 0x04
"""This DATA frame completes the segments of its message."""
SEALED = 0x10
"""Reserved: the body is sealed end to end. Not spoken in version 1."""
DESCRIPTORS = 0x20
"""Reserved: file descriptors travel beside this frame. Not spoken in version 1."""

FLAGS_ALLOWED: dict[int, int] = {
    FrameType.HELLO: 0,
    FrameType.WELCOME: 0,
    FrameType.PING: 0,
    FrameType.PONG: 0,
    FrameType.GOAWAY: 0,
    FrameType.DRAIN: 0,
    FrameType.STREAMS: 0,
    FrameType.ACCEPT: 0,
    FrameType.STARTED: 0,
    FrameType.CANCEL: 0,
    FrameType.OPEN: END | MORE,
    FrameType.MESSAGE: END | MORE,
    FrameType.DATA: END | LAST,
    FrameType.RESET: 0,
    FrameType.CREDIT: 0,
}
"""Flags that each type may carry; any other is a broken rule."""


def pack(type_: int, flags: int, kind: int, stream_id: int, payload: bytes) -> bytes:
    """Return the whole frame as bytes."""
    return HEADER.pack(len(payload), type_, flags, kind, stream_id) + payload


def pack_header(size_bytes: int, flags: int, stream_id: int) -> bytes:
    """Return the header of a DATA frame whose payload has `size_bytes` bytes."""
    return HEADER.pack(size_bytes, FrameType.DATA, flags, 0, stream_id)
