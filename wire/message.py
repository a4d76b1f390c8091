"""What is said inside streams: typed, validated, and encoded as CBOR lists.

Theory. A frame header carries the *kind* of a message, so that a relay forwards what it does not
need to understand without decoding it. The payload is a CBOR list under the strict profile, one
element per field, in the order of the fields below. A value that belongs to users (arguments,
results, items) is opaque here: `body` holds its encoded bytes if they are small, otherwise the
body is the first raw segment that follows the message.

Rules of this file. 1) A field is only ever appended, with a default for peers that do not say it;
a decoder ignores elements that it does not know. 2) Every field is checked for type and range
before anybody sees it. 3) No user value is decoded here.

Source. wire/README.md, "Messages".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from . import cbor
from .errors import CodecError

INLINE_MAX = 32 * 1024
"""Largest encoded body that travels inside the message; a bigger one is segment 0."""

SEGMENTS_MAX = 4096
"""Most raw segments behind one message."""

CODEC_PLAIN = 0
CODEC_PICKLE = 1

FLAG_STREAM = 1
"""The caller expects items, not one result."""
FLAG_DETACHED = 2
"""The call outlives its caller."""
FLAG_IDEMPOTENT = 4
"""The call may be started again after a loss."""
FLAG_ATTACH = 8
"""No new run is meant: the opener wants the outcome of the call that has this id already."""

TAKE_OPTIONAL_BYTES = (bytes, type(None))


class Kind:
    """Message kinds, as the frame header carries them."""

    CALL = 1
    DISPATCH = 2
    ITEM = 3
    ITEMS_END = 4
    WANT = 5
    PROGRESS = 6
    RESULT = 7
    FAILURE = 8
    REGISTER = 9
    REGISTERED = 10
    QUERY = 11
    REPLY = 12
    TELEMETRY = 13
    UPDATE = 14


class Call(NamedTuple):
    """A client asks for one run of a function. Opens a stream."""

    call_id: bytes
    """128 random bits, made by the caller; the identity of the call everywhere."""
    function: str
    node_ids: list[str] | None
    """Nodes or groups that it may run on; None leaves the choice to the gateway."""
    options: dict[str, Any]
    """Call options that matter to placement: capability, prefer, priority, resources."""
    deadline_ms: int | None
    """Time that remains, in ms; None is no deadline."""
    codec: int
    flags: int
    ticket: bytes
    """Call id of the running call that makes this one, or empty."""
    body: bytes | None
    segments: list[int]
    since: int = 0
    """Incarnation of the gateway to which this call was first sent; 0 the first time."""


class Dispatch(NamedTuple):
    """The gateway gives a call to a node, and an agent to a worker. Opens a stream."""

    call_id: bytes
    function: str
    principal: str
    roles: list[str]
    deadline_ms: int | None
    codec: int
    flags: int
    grant: bytes
    """Right to answer: a MAC by the gateway over call id, node id, boot epoch and attempt."""
    attempt: int
    context: dict[str, Any]
    """What the body may ask for in `context()`: levels, depth, submit options."""
    body: bytes | None
    segments: list[int]


class Item(NamedTuple):
    """One item of a stream; channel 0 is what the callee yields, 1.. are streamed arguments."""

    channel: int
    codec: int
    body: bytes | None
    segments: list[int]


class ItemsEnd(NamedTuple):
    """A streamed argument is over; `error` is an exception as data if its producer failed."""

    channel: int
    error: dict[str, Any] | None


class Want(NamedTuple):
    """The consumer of a channel allows its producer `total` items since the beginning."""

    channel: int
    total: int


class Progress(NamedTuple):
    """The running body reports how far it is."""

    codec: int
    body: bytes | None
    segments: list[int]


class Result(NamedTuple):
    """The call returned. Ends the stream."""

    codec: int
    seconds: float
    """Wall time of the body on the worker."""
    body: bytes | None
    segments: list[int]


class Failure(NamedTuple):
    """The call has an error for an outcome. Ends the stream."""

    code: int
    """An `errors.ErrorCode`."""
    reason: str
    maybe_executed: bool
    retry_after_s: float | None
    detail: dict[str, Any]
    """Plain data; of a REMOTE_ERROR, the exception as data."""


class Register(NamedTuple):
    """A node says what it offers. Opens a stream that stays open as long as the node serves."""

    info: bytes | None
    """Plain value: node description and functions."""
    segments: list[int]


class Registered(NamedTuple):
    """The gateway took the registration; `info` carries epoch and lease."""

    info: dict[str, Any]


class Query(NamedTuple):
    """A question or an administrative order by name. Opens a stream."""

    name: str
    args: dict[str, Any]


class Reply(NamedTuple):
    """The answer to a query. Ends the stream. The value may be large, so it is a body."""

    body: bytes | None
    segments: list[int]


class Telemetry(NamedTuple):
    """One sample of a node's load, on its registration stream."""

    sample: dict[str, Any]


class Update(NamedTuple):
    """A node changes its offer: functions added or removed, paused, draining."""

    info: bytes | None
    segments: list[int]


Message = (
    Call
    | Dispatch
    | Item
    | ItemsEnd
    | Want
    | Progress
    | Result
    | Failure
    | Register
    | Registered
    | Query
    | Reply
    | Telemetry
    | Update
)

_Check = Any
_INT = int
_OPT_BYTES = (bytes, type(None))
_OPT_INT = (int, type(None))
_OPT_NUMBER = (float, int, type(None))
_NUMBER = (float, int)
_OPT_DICT = (dict, type(None))
_OPT_LIST = (list, type(None))

_FIELDS: dict[type[Any], tuple[_Check, ...]] = {
    Call: (bytes, str, _OPT_LIST, dict, _OPT_INT, int, int, bytes, _OPT_BYTES, list, int),
    Dispatch: (bytes, str, str, list, _OPT_INT, int, int, bytes, int, dict, _OPT_BYTES, list),
    Item: (int, int, _OPT_BYTES, list),
    ItemsEnd: (int, _OPT_DICT),
    Want: (int, int),
    Progress: (int, _OPT_BYTES, list),
    Result: (int, _NUMBER, _OPT_BYTES, list),
    Failure: (int, str, bool, _OPT_NUMBER, dict),
    Register: (_OPT_BYTES, list),
    Registered: (dict,),
    Query: (str, dict),
    Reply: (_OPT_BYTES, list),
    Telemetry: (dict,),
    Update: (_OPT_BYTES, list),
}

BY_KIND: dict[int, type[Any]] = {
    Kind.CALL: Call,
    Kind.DISPATCH: Dispatch,
    Kind.ITEM: Item,
    Kind.ITEMS_END: ItemsEnd,
    Kind.WANT: Want,
    Kind.PROGRESS: Progress,
    Kind.RESULT: Result,
    Kind.FAILURE: Failure,
    Kind.REGISTER: Register,
    Kind.REGISTERED: Registered,
    Kind.QUERY: Query,
    Kind.REPLY: Reply,
    Kind.TELEMETRY: Telemetry,
    Kind.UPDATE: Update,
}

_KINDS = {cls: kind for kind, cls in BY_KIND.items()}

OPENING = frozenset({Kind.CALL, Kind.DISPATCH, Kind.REGISTER, Kind.QUERY})
"""Kinds that open a stream; every other kind is said inside one."""

TERMINAL = frozenset({Kind.RESULT, Kind.FAILURE, Kind.REPLY})
"""Kinds that end the answering side of a stream."""

M = TypeVar("M")

_LIST, _LIST_MASK, _DOUBLE = 0x80, 0xE0, 0xFB
_SECONDS = struct.Struct(">BBBd")
_CODEC_MAX = 23


def body_seconds(payload: bytes) -> float | None:
    """Return `seconds` of an encoded `Result`, without decoding the rest; None if it is not there.

    A relay that keeps books looks at every outcome, and needs no more of it than this.
    """
    if len(payload) < _SECONDS.size:
        return None
    head, codec, mark, seconds = _SECONDS.unpack_from(payload)
    if head & _LIST_MASK != _LIST or codec > _CODEC_MAX or mark != _DOUBLE:
        return None
    return float(seconds) if 0.0 <= seconds < math.inf else None


def kind_of(message: Message) -> int:
    """Return the kind that the frame header of `message` carries."""
    return _KINDS[type(message)]


def encode(message: Message) -> bytes:
    """Return the payload of `message`: one CBOR list."""
    return cbor.dump_frame(message)


def decode(cls: type[M], payload: bytes) -> M:
    """Return the message of class `cls` in `payload`, every field checked.

    Raises:
        CodecError: The payload is not such a message.
    """
    fields = cbor.load_frame(payload)
    checks = _FIELDS[cls]
    if type(fields) is not list or len(fields) < _REQUIRED[cls]:
        raise CodecError(f"a {cls.__name__} message has {_REQUIRED[cls]} fields at least")
    if len(fields) > len(checks):
        del fields[len(checks) :]
    kinds = tuple(map(type, fields))
    if kinds not in _SEEN[cls]:
        for kind, check in zip(kinds, checks, strict=False):
            if kind is not check and not (type(check) is tuple and kind in check):
                raise CodecError(f"a field of a {cls.__name__} message has the wrong type")
        _SEEN[cls].add(kinds)
    for field in fields:
        if field and type(field) in _CONTAINERS:
            cbor.check(field)
    message = cls(*fields)
    check_ranges = _RANGES.get(cls)
    if check_ranges is not None:
        check_ranges(message)
    return message


_CONTAINERS = frozenset({list, dict})

_REQUIRED: dict[type[Any], int] = {
    cls: len(checks) - len(cls._field_defaults) for cls, checks in _FIELDS.items()
}
"""Fields that a message must have; those that were appended later may be missing."""

_SEEN: dict[type[Any], set[tuple[type[Any], ...]]] = {cls: set() for cls in _FIELDS}
"""Combinations of field types that were found good: as many as a class has optional fields."""


def _check_segments(message: Any) -> None:
    segments = message.segments
    if segments:
        if len(segments) > SEGMENTS_MAX:
            raise CodecError(f"a message names {len(segments)} segments, {SEGMENTS_MAX} at most")
        for size in segments:
            if type(size) is not int or not 0 < size < 1 << 62:
                raise CodecError("a segment size is a positive integer")


def _check_call(message: Any) -> None:
    _check_segments(message)
    if len(message.call_id) != 16:
        raise CodecError("a call id has 16 bytes")
    deadline_ms = message.deadline_ms
    if deadline_ms is not None and deadline_ms < 0:
        raise CodecError("a deadline is not negative")
    if type(message) is Call:
        names = message.node_ids
        if message.since < 0:
            raise CodecError("an incarnation is not negative")
    else:
        names = message.roles
    if names and not all(type(name) is str for name in names):
        raise CodecError("node ids and roles are strings")


def _check_channel(message: Any) -> None:
    if message.channel < 0:
        raise CodecError("a channel is not negative")
    if type(message) is Item:
        _check_segments(message)


_RANGES: dict[type[Any], Callable[[Any], None]] = {
    Call: _check_call,
    Dispatch: _check_call,
    Item: _check_channel,
    ItemsEnd: _check_channel,
    Want: _check_channel,
    Progress: _check_segments,
    Result: _check_segments,
    Register: _check_segments,
    Reply: _check_segments,
    Update: _check_segments,
}
