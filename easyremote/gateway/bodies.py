"""Plain values in messages of the gateway's own: registrations, updates and replies.

Theory. What nodes announce and clients ask is an encoded plain value, inside the message if it is
small and in its first raw segment if it is not. The gateway decodes and encodes plain data only;
what users send each other it never looks at.

Rules of this file. 1) No pickle: `values.plain` alone. 2) A body is bounded before memory is made
for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import EasyRemoteError
from ..stream import Stream
from ..values import plain
from ..wire.errors import ErrorCode, RemoteProtocolError
from ..wire.message import INLINE_MAX, Reply

REPLY_UNIT_BYTES = 128 * 1024
"""So much of an answer costs 1 of the abuse budget: it has to be made each time."""
REPLY_COST_MAX = 10.0

BODY_BYTES_MAX = 4 * 1024 * 1024
"""Largest registration: 4,096 functions of one KiB each."""


def send_reply(stream: Stream, value: Any) -> None:
    """Answer a query with a plain value, and end."""
    body = plain.encode(value)
    stream.link.charge(min(len(body) / REPLY_UNIT_BYTES, REPLY_COST_MAX))
    if not stream.is_open:
        return
    if len(body) <= INLINE_MAX:
        stream.send(Reply(body, []), end=True)
    else:
        stream.send(Reply(None, [len(body)]), [memoryview(body)], end=True)


class BodyReader:
    """Takes the body of one message at a time, inline or as a segment."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        """Call `take` with each decoded value."""
        self._take = take
        self._segment: bytearray | None = None

    def begin(self, stream: Stream, body: bytes | None, segments: list[int], more: bool) -> None:
        """Take a message's body, or name where its segment belongs.

        Raises:
            RemoteProtocolError: The body is neither inline nor one segment, or too large.
        """
        if body is not None and not segments and not more:
            self._take(decode_plain(body))
            return
        if body is not None or not more or len(segments) != 1 or segments[0] > BODY_BYTES_MAX:
            raise RemoteProtocolError(
                ErrorCode.TOO_LARGE, f"a body is one segment of at most {BODY_BYTES_MAX} bytes"
            )
        self._segment = bytearray(segments[0])
        stream.fill([memoryview(self._segment)])

    def filled(self) -> None:
        """The segment has its bytes."""
        segment, self._segment = self._segment, None
        assert segment is not None
        self._take(decode_plain(bytes(segment)))


def decode_plain(body: bytes) -> Any:
    """Return the plain value in `body`.

    Raises:
        RemoteProtocolError: It is none; the peer is broken.
    """
    try:
        return plain.decode(body)
    except (EasyRemoteError, ValueError) as error:
        raise RemoteProtocolError(ErrorCode.DECODE, f"a body is no plain value: {error}") from error
