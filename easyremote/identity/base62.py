"""Base 62: bytes as letters and digits only.

Theory. Text in this alphabet is selected by one double-click, needs no quoting in a shell and
survives every chat program. The bytes are read as one big number; a fixed width keeps leading
zeros, so that each byte string of one length has exactly one text.
"""

from __future__ import annotations

import zlib

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CHECKSUM_CHARS = 6
"""62**6 > 2**32, so six characters hold a CRC-32."""

_VALUES = {char: value for value, char in enumerate(ALPHABET)}


def encode(data: bytes, chars: int | None = None) -> str:
    r"""Return `data` as text of `chars` characters, or of as few as possible.

    >>> encode(b"\xff", 4)
    '0047'
    """
    number = int.from_bytes(data, "big")
    digits: list[str] = []
    while number:
        number, value = divmod(number, 62)
        digits.append(ALPHABET[value])
    text = "".join(reversed(digits))
    assert chars is None or len(text) <= chars
    return text.rjust(chars or 1, "0")


def decode(text: str, size_bytes: int | None = None) -> bytes:
    """Return the bytes that `text` spells, as `size_bytes` bytes or as few as possible.

    The cost grows with the square of the length: bound it before you call.

    Raises:
        ValueError: A character outside the alphabet, or a number too large for `size_bytes`.
    """
    number = 0
    for char in text:
        value = _VALUES.get(char)
        if value is None:
            raise ValueError("a character is neither an ASCII letter nor a digit")
        number = number * 62 + value
    size = (number.bit_length() + 7) // 8
    if size_bytes is not None:
        if size > size_bytes:
            raise ValueError("the number is too large")
        size = size_bytes
    return number.to_bytes(size, "big")


def checksum(text: str) -> str:
    """Return the CRC-32 of `text` as six characters; it finds typos, it stops nobody."""
    return encode(zlib.crc32(text.encode("utf-8")).to_bytes(4, "big"), CHECKSUM_CHARS)
