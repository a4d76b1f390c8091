"""What a TLS client asks for, read before TLS itself looks at it.

Theory. One port serves the native protocol and HTTP; ALPN decides which parser sees the bytes. A
client that offers no ALPN speaks HTTP/1.1, one that offers only names that we do not know must
get neither parser, or a cross-protocol attack could feed one protocol's bytes to the other. The
`ssl` module reports both cases alike (nothing was selected), so the offer is read from the
ClientHello, which is sent in the clear and can be looked at without being consumed.

Rules of this file. 1) Bytes in, answer out. 2) The bytes come from anybody: every length is checked
and "I cannot tell" is an answer, on which the caller must not conclude that there was no offer.

Source. RFC 8446 section 4.1.2 (ClientHello) and 5.1 (records), RFC 7301 section 3.1 (ALPN).
"""

from __future__ import annotations

RECORD_HEADER_BYTES = 5
RECORD_BYTES_MAX = RECORD_HEADER_BYTES + (1 << 14)
"""Largest plaintext record with its header."""

HANDSHAKE_RECORD = 0x16
"""First byte of every TLS connection; no text protocol begins with it."""
_CLIENT_HELLO = 1
_ALPN_EXTENSION = 16

NO_PROTOCOL_ALERT = bytes((0x15, 3, 3, 0, 2, 2, 120))
"""The fatal alert `no_application_protocol` (RFC 7301 section 3.2) as a record."""


def record_size(data: bytes) -> int:
    """Return the size of the record that begins with `data`, header included.

    As long as the header is incomplete that is the size of the header. A length that no record
    has counts as the largest: TLS will refuse it.
    """
    if len(data) < RECORD_HEADER_BYTES:
        return RECORD_HEADER_BYTES
    size = RECORD_HEADER_BYTES + int.from_bytes(data[3:5], "big")
    return min(size, RECORD_BYTES_MAX)


def alpn_offered(record: bytes) -> tuple[str, ...] | None:
    """Return the protocol names that a ClientHello offers.

    Args:
        record: The first record of the connection, whole.

    Returns:
        The names in the client's order, empty if it offers none; None if the record does not
        hold one whole, well-formed ClientHello (it may be spread over several records).
    """
    try:
        hello = _Reader(record[RECORD_HEADER_BYTES:])
        if record[0] != HANDSHAKE_RECORD or hello.number(1) != _CLIENT_HELLO:
            return None
        body = _Reader(hello.vector(3))
        body.take(2 + 32)  # The version and the random bytes.
        body.vector(1)  # The session id.
        body.vector(2)  # The cipher suites.
        body.vector(1)  # The compression methods.
        if body.is_empty:
            return ()
        extensions = _Reader(body.vector(2))
        names: tuple[str, ...] = ()
        while not extensions.is_empty:
            kind, content = extensions.number(2), extensions.vector(2)
            if kind == _ALPN_EXTENSION:
                names = _names(content)
    except (_TooShort, IndexError):
        return None
    return names


def _names(content: bytes) -> tuple[str, ...]:
    listed = _Reader(_Reader(content).vector(2))
    names = []
    while not listed.is_empty:
        names.append(listed.vector(1).decode("latin-1"))
    if not names:
        raise _TooShort
    return tuple(names)


class _TooShort(Exception):
    """A length points beyond the end."""


class _Reader:
    """Takes fields off the front of some bytes."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def is_empty(self) -> bool:
        return self._position == len(self._data)

    def take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise _TooShort
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_size: int) -> bytes:
        """Take bytes that are preceded by their length."""
        return self.take(self.number(length_size))
