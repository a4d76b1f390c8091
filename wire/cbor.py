"""The strict CBOR profile of frames, on top of cbor2.

Theory. A decoder that takes everything that CBOR can express is an attack surface: an 8-byte
decimal tag keeps a processor busy for half a minute, a shared reference builds a list that
contains itself. Frames need none of it: they are lists of numbers, text, bytes and small maps.

Rules of this file. 1) Whatever the profile does not name is a `CodecError` before an object is
built. 2) An item ends where the payload ends.

Source. RFC 8949 sections 5 and 10; wire/README.md, "CBOR".
"""

from __future__ import annotations

import io
from typing import Any

import cbor2

from .errors import CodecError

DEPTH_MAX = 32
KEY_BYTES_MAX = 256

_END = b"\x1b\x45\x52\x45\x4e\x44\x2e\x2e\x2e"
"""Written behind every payload before it is decoded: an item that does not end there is caught."""
_END_VALUE = int.from_bytes(_END[1:], "big")

_TAGS = (*range(41), 43, 100, 256, 258, 260, 261, 1004, 43000, 55799)
"""Every tag for which cbor2 has a decoder of its own, and some more."""

_SCALARS = frozenset({int, str, bytes, bool, type(None), float})


def _refuse(*_: object) -> Any:
    raise CodecError("a tag is not allowed in a frame")


_REFUSED = dict.fromkeys(_TAGS, _refuse)


def encode_frame(fields: Any) -> bytes:
    """Return a list or tuple of plain fields as one CBOR list."""
    return cbor2.dumps(fields)


def decode_frame(payload: bytes) -> Any:
    """Return the one CBOR item in `payload`, checked against the profile.

    Raises:
        CodecError: It is no CBOR, or CBOR outside the profile.
    """
    try:
        if payload.endswith(_END):
            value = _decode_slowly(payload)
        else:
            wrapped = cbor2.loads(
                b"\x82" + payload + _END, semantic_decoders=_REFUSED, tag_hook=_refuse,
                max_depth=DEPTH_MAX + 1, allow_indefinite=False, allow_duplicate_keys=False,
                strict_hashable_types=True,
            )  # fmt: skip
            value = wrapped[0]
            if wrapped[1] != _END_VALUE:
                raise CodecError("bytes follow the end of the item")
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CodecError(f"not the CBOR of a frame: {error}") from None
    check(value)
    return value


def _decode_slowly(payload: bytes) -> Any:
    stream = io.BytesIO(payload)
    decoder = cbor2.CBORDecoder(
        stream, semantic_decoders=_REFUSED, tag_hook=_refuse, max_depth=DEPTH_MAX,
        allow_indefinite=False, allow_duplicate_keys=False, strict_hashable_types=True,
    )  # fmt: skip
    value = decoder.decode()
    if stream.read(1):
        raise CodecError("bytes follow the end of the item")
    return value


def check(value: Any) -> None:
    """Check that a decoded value holds nothing but what the profile names.

    Raises:
        CodecError: It holds `undefined`, another simple value, or a key that is no short text.
    """
    kind = type(value)
    if kind is list:
        for item in value:
            if type(item) not in _SCALARS:
                check(item)
            elif type(item) is int and not -(1 << 63) <= item < 1 << 64:
                raise CodecError("an integer of more than 64 bits")
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str or len(key) > KEY_BYTES_MAX:
                raise CodecError("a key is a text of at most 256 characters")
            check(item)
    elif kind not in _SCALARS:
        raise CodecError(f"a {kind.__name__} is not allowed in a frame")
    elif kind is int and not -(1 << 63) <= value < 1 << 64:
        raise CodecError("an integer of more than 64 bits")
