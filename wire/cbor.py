"""The strict CBOR profile, on top of cbor2: frames without tags, values with a closed list of them.

Theory. A decoder that takes everything that CBOR can express is an attack surface: an 8-byte
decimal tag keeps a processor busy for half a minute, colliding integer keys make a map quadratic,
a shared reference builds a list that contains itself. Frames need none of it: they are lists of
numbers, text, bytes and small maps. Values of users need more types, so they are given tags, each
with a decoder of ours that checks its bounds; a tag without one ends the decoding.

Rules of this file. 1) Whatever the profile does not name is a `CodecError`, before an object of it
is built. 2) An item ends where the payload ends. 3) Nothing that cbor2 knows by itself beyond the
plain types is ever reached: every tag that the caller did not name is refused, by number where
cbor2 has a decoder and by default elsewhere. 4) Map keys are text (in values also byte strings):
their hashes are keyed, so that no peer can make them collide.

Source. RFC 8949 sections 3, 5 and 10; wire/README.md, "CBOR".
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import cbor2

from .errors import CodecError

DEPTH_MAX = 32
"""Arrays, maps and tags inside each other; a tag around an array counts twice."""
KEY_BYTES_MAX = 256
"""Longest key of a map in a frame."""
BIGNUM_BYTES_MAX = 64 * 1024
"""Longest magnitude of an integer beyond 64 bits: 524,288 bits, or 157,826 digits."""

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1

_END = b"\x1b\x45\x52\x45\x4e\x44\x2e\x2e\x2e"
"""An integer written behind a payload before it is decoded, as the second entry of a list whose
first is the payload: if it does not come back, the payload did not end where its item ends. Its
first byte occurs in it once, so it cannot begin inside a payload that does not contain it whole."""
_END_VALUE = int.from_bytes(_END[1:], "big")

_KNOWN_TAGS = (*range(64), 100, 256, 258, 260, 261, 1004, 43000, 55799)
"""Every tag for which cbor2 has a decoder of its own, and some more."""

_SCALARS = frozenset({int, str, bytes, bool, type(None), float})
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_FORBIDDEN = frozenset({type(cbor2.undefined), cbor2.CBORSimpleValue, cbor2.CBORTag})

_SIMPLE_BYTE = re.compile(rb"[\xe0-\xf3\xf7\xf8]")
"""First bytes of simple values but false, true and null. Where none occurs, there is none."""
_LONG_BIGNUM = re.compile(rb"[\xc2\xc3][\x5a\x5b]")
"""How an integer of 64 KiB or more begins. Where this does not occur, there is none."""

_MISTAKES = (
    cbor2.CBORError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""What bytes that are not of the profile, or values that it cannot express, may raise."""

TagDecoder = Callable[[Any], Any]
"""From the item inside a tag to its value; raises CodecError where that is out of bounds."""


def _refuse(*_: object) -> Any:
    raise CodecError("a tag that is not in the closed list")


class TagTable(dict[int, Callable[[Any, bool], Any]]):
    """Decoders by tag number, as cbor2 wants them; it has one that refuses for every other tag."""

    def __init__(self, decoders: Mapping[int, TagDecoder]) -> None:
        """Take the closed list: bignums (2 and 3), and `decoders`."""
        super().__init__(dict.fromkeys(_KNOWN_TAGS, _refuse))
        self[2] = _positive_bignum
        self[3] = _negative_bignum
        for tag, decoder in decoders.items():
            self[tag] = _adapted(decoder)

    def extended(self, decoders: Mapping[int, TagDecoder]) -> TagTable:
        """Return a table that knows some more tags."""
        table = TagTable.__new__(TagTable)
        table.update(self)
        for tag, decoder in decoders.items():
            table[tag] = _adapted(decoder)
        return table

    def __missing__(self, tag: int) -> Callable[[Any, bool], Any]:
        """Refuse a tag that nobody named."""
        return _refuse


def _adapted(decoder: TagDecoder) -> Callable[[Any, bool], Any]:
    def decode(item: Any, _immutable: bool) -> Any:
        return decoder(item)

    return decode


def _positive_bignum(item: Any, _immutable: bool) -> int:
    if type(item) is not bytes or len(item) > BIGNUM_BYTES_MAX:
        raise CodecError(f"an integer has at most {BIGNUM_BYTES_MAX} bytes")
    return int.from_bytes(item, "big")


def _negative_bignum(item: Any, immutable: bool) -> int:
    return -1 - _positive_bignum(item, immutable)


_NO_TAGS = dict.fromkeys(_KNOWN_TAGS, _refuse)


class _Frames(TagTable):
    """The table of frames: no tag at all."""

    def __init__(self) -> None:
        super().__init__({})
        self.update(_NO_TAGS)


_FRAMES = _Frames()


# ---- frames ------------------------------------------------------------------------------------


def encode_frame(fields: Any) -> bytes:
    """Return plain fields as one CBOR item; tuples become lists.

    Raises:
        CodecError: A field is not of the profile.
    """
    check(fields)
    try:
        return _dumps(fields)
    except UnicodeEncodeError as error:
        raise CodecError(f"a text is not Unicode: {error.reason}") from None


def dump_frame(fields: Any) -> bytes:
    """As `encode_frame`, for fields that our own code has typed: nothing is checked."""
    return _dumps(fields)


def load_frame(payload: bytes) -> Any:
    """As `decode_frame`, for a reader that checks the type of every scalar itself.

    The reader must `check` each container in it.

    Raises:
        CodecError: It is no CBOR, or CBOR with a tag.
    """
    return _loads(payload, _FRAMES)


def decode_frame(payload: bytes) -> Any:
    """Return the one CBOR item in `payload`, checked against the profile.

    Raises:
        CodecError: It is no CBOR, or CBOR outside the profile.
    """
    value = _loads(payload, _FRAMES)
    check(value)
    return value


def check(value: Any, depth: int = 0) -> None:
    """Check that a value holds nothing but what the profile of frames names.

    Raises:
        CodecError: It holds another type, an integer of more than 64 bits, or a key that is no
            short text, or it is nested too deeply.
    """
    kind = type(value)
    if kind is dict or (kind is not list and isinstance(value, dict)):
        items = value.values()
        for key in value:
            if not isinstance(key, str) or len(key) > KEY_BYTES_MAX:
                raise CodecError(f"a key is a text of at most {KEY_BYTES_MAX} characters")
    elif kind is list or isinstance(value, list | tuple):
        items = value
    else:
        _check_scalar(value)
        return
    if depth == DEPTH_MAX:
        raise CodecError(f"nested deeper than {DEPTH_MAX}")
    for item in items:
        kind = type(item)
        if kind is int:
            if not _INT_MIN <= item <= _INT_MAX:
                raise CodecError("an integer of more than 64 bits")
        elif kind not in _SCALARS:
            check(item, depth + 1)


def _check_scalar(value: Any) -> None:
    if isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise CodecError("an integer of more than 64 bits")
    elif not isinstance(value, str | bytes | bytearray | float | None):
        raise CodecError(f"a {type(value).__name__} is not allowed in a frame")


# ---- values ------------------------------------------------------------------------------------


def tag(number: int, item: Any) -> Any:
    """Return `item` under a tag, for `encode_value`."""
    return cbor2.CBORTag(number, item)


def encode_value(tree: Any) -> bytes:
    """Return a tree of exact plain types and tags as one CBOR item.

    The caller has brought the value into the profile: None, bool, int, float, str, bytes, lists,
    dicts with text keys, and what `tag` returns.

    Raises:
        CodecError: It holds an integer that is too large, or something that cannot be expressed.
        UnicodeEncodeError: A text has lone surrogates.
    """
    body = _dumps(tree)
    if len(body) > BIGNUM_BYTES_MAX and _LONG_BIGNUM.search(body):
        _check_bignums(tree)
    return body


def decode_value(body: bytes, tags: TagTable) -> Any:
    """Return the one CBOR item in `body`, its tags decoded by `tags`.

    Raises:
        CodecError: It is no CBOR, or CBOR outside the profile.
    """
    value = _loads(body, tags)
    if _SIMPLE_BYTE.search(body):
        check_value(value)
    return value


def check_value(value: Any) -> None:
    """Check that no `undefined` and no unknown simple value is left in a decoded value.

    It looks into the builtin containers; a tag decoder that hides its items in anything else
    checks them itself.

    Raises:
        CodecError: There is one.
    """
    if type(value) in _FORBIDDEN:
        raise CodecError("undefined and unknown simple values are not allowed")
    todo = [value] if type(value) in _CONTAINERS else []
    while todo:
        container = todo.pop()
        parts = (container, container.values()) if type(container) is dict else (container,)
        for part in parts:
            kinds = set(map(type, part))
            if not kinds.isdisjoint(_FORBIDDEN):
                raise CodecError("undefined and unknown simple values are not allowed")
            if not kinds.isdisjoint(_CONTAINERS):
                todo.extend(item for item in part if type(item) in _CONTAINERS)


def _check_bignums(tree: Any) -> None:
    todo = [tree]
    while todo:
        item = todo.pop()
        if isinstance(item, int):
            if item.bit_length() > 8 * BIGNUM_BYTES_MAX:
                raise CodecError(f"an integer of more than {8 * BIGNUM_BYTES_MAX} bits")
        elif isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, list | tuple):
            todo.extend(item)
        elif isinstance(item, cbor2.CBORTag):
            todo.append(item.value)


# ---- cbor2 -------------------------------------------------------------------------------------


def _dumps(tree: Any) -> bytes:
    try:
        return cbor2.dumps(tree)
    except UnicodeEncodeError:
        raise
    except _MISTAKES as error:
        raise CodecError(f"not expressible: {error}") from None


def _loads(payload: bytes, tags: TagTable) -> Any:
    try:
        if _END in payload:
            return _loads_exactly(payload, tags)
        value, end = cbor2.loads(
            b"\x82" + payload + _END, semantic_decoders=tags, tag_hook=_refuse,
            max_depth=DEPTH_MAX + 1, allow_indefinite=False, allow_duplicate_keys=False,
            strict_hashable_types=True,
        )  # fmt: skip
    except _MISTAKES as error:
        raise _explained(error) from None
    if type(end) is not int or end != _END_VALUE:  # An array answers != with an array.
        raise CodecError("bytes follow the end of the item")
    return value


def _loads_exactly(payload: bytes, tags: TagTable) -> Any:
    """Decode a payload that happens to contain the end mark; slower."""
    stream = io.BytesIO(payload)
    decoder = cbor2.CBORDecoder(
        stream, semantic_decoders=tags, tag_hook=_refuse, max_depth=DEPTH_MAX,
        allow_indefinite=False, allow_duplicate_keys=False, strict_hashable_types=True,
    )  # fmt: skip
    value = decoder.decode()
    if stream.tell() != len(payload):
        raise CodecError("bytes follow the end of the item")
    return value


def _explained(error: BaseException) -> CodecError:
    """Return our error for one of cbor2's; what a tag decoder raised is the reason of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, CodecError):
        return error
    if not isinstance(error, Exception):
        raise error  # Ctrl-C in a tag decoder: cbor2 wraps that, too.
    return CodecError(f"not CBOR of this profile: {error}")
