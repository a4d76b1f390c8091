"""Between values and messages: an encoded value laid out, and a value taken out of a message.

Rules of this file. A small body travels inside its message, a large one is its first segment.
"""

from __future__ import annotations

from typing import Any

from .. import values
from ..errors import ProtocolViolationError
from ..wire.message import CODEC_PICKLE, CODEC_PLAIN, INLINE_MAX


def open_body(body: bytes | None, buffers: list[memoryview], allow_pickle: bool) -> Any:
    """Decode the value of a message.

    Raises:
        EasyRemoteError: There is none, or it cannot be decoded here.
    """
    if body is not None:
        return values.decode(body, buffers, allow_pickle=allow_pickle)
    if not buffers:
        raise ProtocolViolationError("a value came without its body; update the other side")
    return values.decode(buffers[0], buffers[1:], allow_pickle=allow_pickle)


def pack(encoded: values.Encoded) -> tuple[int, bytes | None, list[int], list[memoryview]]:
    """Lay an encoded value out as (codec, body, segments, buffers) of a message."""
    codec = CODEC_PICKLE if encoded.pickled else CODEC_PLAIN
    body, buffers = encoded.body, encoded.buffers
    if len(body) <= INLINE_MAX:
        return codec, body, [buffer.nbytes for buffer in buffers] if buffers else [], buffers
    buffers = [memoryview(body), *buffers]
    return codec, None, [buffer.nbytes for buffer in buffers], buffers
