"""Plain data: values of users as CBOR with a closed list of tags, and back. No pickle is near.

Theory. Encoding has two steps. `lower` turns a value into a tree of what cbor2 writes natively,
tags around the rest, by a table from *exact* types: a subclass would silently arrive as its base,
so it is not plain. Lists and dicts that hold nothing special are passed on as they are, so that
the common call costs little more than `cbor2.dumps`. Decoding is one `cbor2.loads`, with a decoder
of ours for each tag.

Rules of this file. 1) Exact types only. 2) What arrives equals what was sent, in type and value.
3) A value that cannot travel raises `NotPlain` with the culprit; `places.py` finds its path.
4) Nothing here imports pickle, directly or not: the gateway uses this module.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import SerializationError
from ..wire.cbor import DEPTH_MAX, TagTable, decode_value, encode_value, tag
from ..wire.errors import CodecError
from . import arrays, atoms, registry, tags
from .atoms import Unfit
from .buffers import COPY_MAX, OUT_OF_BAND_MIN, Bytes, Inlet, Outlet
from .collisions import build_dict, build_set

_NUMBERS = frozenset({type(None), bool, int, float})
_SHORT = _NUMBERS | {str, bytes}
_TEXT = frozenset({str})
_SURELY_SHORT = OUT_OF_BAND_MIN // 4
"""A text of fewer characters has fewer bytes than OUT_OF_BAND_MIN."""
_LEAF_LEVELS_MAX = 2
"""Lists inside the tag of a value without parts: an array has its fields, and in them a shape."""


class NotPlain(Exception):
    """A value is not plain data.

    Attributes:
        culprit: The innermost value that is not.
    """

    def __init__(self, culprit: Any, reason: str) -> None:
        super().__init__(reason)
        self.culprit = culprit


class StreamArgument(NamedTuple):
    """Stands for a streamed argument in an encoded call; its items come on a channel."""

    channel: int


def _check_depth(value: Any, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise NotPlain(value, f"is nested deeper than {DEPTH_MAX} levels of lists and tags")


class Lowering:
    """One walk over one value."""

    __slots__ = ("_careful", "outlet")

    def __init__(self, outlet: Outlet | None, *, careful: bool = False) -> None:
        """Lower for an encoding.

        Args:
            outlet: Takes the buffers; None keeps everything in the body, and refuses arrays.
            careful: Look at every text for lone surrogates.
        """
        self.outlet = outlet
        self._careful = careful

    def lower(self, value: Any, depth: int) -> Any:
        """Return the tree for `value`, which `depth` containers and tags are around.

        Raises:
            NotPlain: It, or something in it, is not plain data.
        """
        kind = type(value)
        if kind in _NUMBERS:
            return value
        method = _METHODS.get(kind)
        if method is not None:
            return method(self, value, depth)
        _check_depth(value, depth + _LEAF_LEVELS_MAX)
        atom = atoms.LOWER.get(kind)
        try:
            return self._other(value, depth) if atom is None else atom(value)
        except Unfit as error:
            raise NotPlain(value, f"is {error}") from None

    def _is_simple(self, items: Any) -> bool:
        """Whether cbor2 writes all `items` as they are to be."""
        kinds = set(map(type, items))
        if kinds <= _NUMBERS:
            return True
        if not kinds <= _SHORT or self._careful:
            return False
        return all(
            len(item) < _SURELY_SHORT for item in items if type(item) is str or type(item) is bytes
        )

    def _items(self, items: Sequence[Any], depth: int) -> list[Any]:
        if self._is_simple(items):
            return list(items)
        lower = self.lower
        return [lower(item, depth) for item in items]

    def lower_list(self, value: list[Any], depth: int) -> Any:
        """Lower a list; one that holds nothing special is passed on as it is."""
        _check_depth(value, depth)
        return value if self._is_simple(value) else self._items(value, depth + 1)

    def lower_tuple(self, value: tuple[Any, ...], depth: int) -> Any:
        """Lower a tuple."""
        _check_depth(value, depth + 1)
        return tag(tags.TUPLE, self._items(value, depth + 2))

    def lower_set(self, value: set[Any], depth: int) -> Any:
        """Lower a set."""
        _check_depth(value, depth + 1)
        return tag(tags.SET, self._items(list(value), depth + 2))

    def lower_frozenset(self, value: frozenset[Any], depth: int) -> Any:
        """Lower a frozenset."""
        _check_depth(value, depth + 1)
        return tag(tags.FROZENSET, self._items(list(value), depth + 2))

    def lower_dict(self, value: dict[Any, Any], depth: int) -> Any:
        """Lower a dict: to a map if its keys are text, else to pairs."""
        _check_depth(value, depth)
        if not value or (set(map(type, value)) == _TEXT and not self._careful):
            if self._is_simple(value.values()):
                return value
            lower = self.lower
            return {key: lower(item, depth + 1) for key, item in value.items()}
        _check_depth(value, depth + 1)
        flat: list[Any] = []
        for key, item in value.items():
            flat.append(self.lower(key, depth + 2))
            flat.append(self.lower(item, depth + 2))
        return tag(tags.DICT, flat)

    def lower_str(self, value: str, depth: int) -> Any:
        """Lower a text: out of band if it is long."""
        if len(value) < _SURELY_SHORT and not self._careful:
            return value
        _check_depth(value, depth + 1)
        try:
            raw = value.encode()
        except UnicodeEncodeError:
            return tag(tags.SURROGATES, value.encode("utf-8", "surrogatepass"))
        if len(raw) < OUT_OF_BAND_MIN or self.outlet is None:
            return value
        return self._long(tags.LONG_TEXT, memoryview(raw), fresh=True)

    def lower_bytes(self, value: bytes, depth: int) -> Any:
        """Lower bytes: out of band if they are long."""
        if len(value) < OUT_OF_BAND_MIN or self.outlet is None:
            return value
        _check_depth(value, depth + 1)
        return self._long(tags.LONG_BYTES, memoryview(value), fresh=True)

    def lower_bytearray(self, value: bytearray, depth: int) -> Any:
        """Lower a bytearray."""
        _check_depth(value, depth + 1)
        if len(value) < OUT_OF_BAND_MIN or self.outlet is None:
            return tag(tags.BYTEARRAY, bytes(value))
        # A view of a bytearray forbids its owner to resize it, so it is copied, however large.
        return self._long(tags.LONG_BYTEARRAY, memoryview(bytes(value)), fresh=True)

    def _long(self, number: int, data: memoryview, *, fresh: bool) -> Any:
        assert self.outlet is not None
        return tag(number, [self.outlet.put(data, fresh=fresh), data.nbytes])

    def lower_stream(self, value: StreamArgument, depth: int) -> Any:
        """Lower the marker of a streamed argument."""
        _check_depth(value, depth)
        return tag(tags.STREAM, value.channel)

    def _other(self, value: Any, depth: int) -> Any:
        """Lower what has no exact type in a table: numpy, registered types, foreign arrays."""
        kind = type(value)
        if isinstance(value, np.generic):
            return arrays.lower_scalar(value)
        name = registry.name_of(kind)
        if name is not None:
            if isinstance(value, enum.Enum):
                return tag(tags.ENUM, registry.enum_fields(value, name))
            values = registry.field_values(value)
            return tag(tags.DATACLASS, [name, self.lower_dict(values, depth + 2)])
        found = arrays.as_array(value)
        if found is not None:
            if self.outlet is None:
                raise Unfit("an array, and this message carries none")
            return arrays.lower_array(found, self.outlet)
        what = f"an instance of {kind.__module__}.{kind.__qualname__}"
        if isinstance(value, type) or callable(value):
            what = f"a {kind.__name__}"
        elif dataclasses.is_dataclass(kind) or isinstance(value, enum.Enum):
            what += ", which is not registered here (easyremote.register_type),"
        raise Unfit(f"{what} and not plain data")


_METHODS: dict[type[Any], Callable[[Lowering, Any, int], Any]] = {
    list: Lowering.lower_list,
    dict: Lowering.lower_dict,
    tuple: Lowering.lower_tuple,
    str: Lowering.lower_str,
    bytes: Lowering.lower_bytes,
    bytearray: Lowering.lower_bytearray,
    set: Lowering.lower_set,
    frozenset: Lowering.lower_frozenset,
    StreamArgument: Lowering.lower_stream,
}


def lowered(value: Any, outlet_of: Callable[[], Outlet | None]) -> tuple[bytes, Outlet | None]:
    """Return the body for `value`, and the outlet that took its buffers.

    Raises:
        NotPlain: It is not plain data.
    """
    outlet = outlet_of()
    try:
        try:
            return encode_value(Lowering(outlet).lower(value, 1)), outlet
        except UnicodeEncodeError:
            outlet = outlet_of()  # Begun anew: the first may have taken buffers already.
            return encode_value(Lowering(outlet, careful=True).lower(value, 1)), outlet
    except CodecError as error:
        raise NotPlain(value, f"is not plain data: {error}") from None


# ---- decoding ----------------------------------------------------------------------------------


def _build_tuple(item: Any) -> tuple[Any, ...]:
    if type(item) is not list:
        raise CodecError("a tuple is a list of its items")
    return tuple(item)


def _build_frozenset(item: Any) -> frozenset[Any]:
    return frozenset(build_set(item))


def _build_bytearray(item: Any) -> bytearray:
    if type(item) is not bytes:
        raise CodecError("a bytearray is bytes")
    return bytearray(item)


def _build_surrogates(item: Any) -> str:
    if type(item) is not bytes:
        raise CodecError("a text with surrogates is bytes")
    return item.decode("utf-8", "surrogatepass")


def _build_stream(item: Any) -> StreamArgument:
    if type(item) is not int or item < 1:
        raise CodecError("a channel is a positive number")
    return StreamArgument(item)


_BUILD: dict[int, Callable[[Any], Any]] = {
    **atoms.BUILD,
    tags.TUPLE: _build_tuple,
    tags.SET: build_set,
    tags.FROZENSET: _build_frozenset,
    tags.DICT: build_dict,
    tags.BYTEARRAY: _build_bytearray,
    tags.SURROGATES: _build_surrogates,
    tags.SCALAR: arrays.build_scalar,
    tags.ENUM: registry.build_enum,
    tags.DATACLASS: registry.build_dataclass,
    tags.STREAM: _build_stream,
}


_PARTLESS = TagTable(_BUILD)


def _table(inlet: Inlet) -> TagTable:
    def take(item: Any) -> memoryview:
        if type(item) is not list or len(item) != 2 or type(item[1]) is not int:
            raise CodecError("long text or bytes have a place and a size")
        return inlet.take(item[0], item[1])

    return _PARTLESS.extended(
        {
            tags.ARRAY: lambda item: arrays.build_array(item, inlet),
            tags.LONG_TEXT: lambda item: str(take(item), "utf-8"),
            tags.LONG_BYTES: lambda item: bytes(take(item)),
            tags.LONG_BYTEARRAY: lambda item: bytearray(take(item)),
        }
    )


_WITHOUT_BUFFERS = _table(Inlet(()))
"""For values that came without buffers: most calls. Arrays of no elements need none, either."""


def decode(body: Bytes, buffers: Sequence[Bytes] = ()) -> Any:
    """Return the plain value in `body`; its arrays own the memory in `buffers`.

    Raises:
        SerializationError: It is none.
    """
    if type(body) is not bytes:
        body = bytes(body)
    try:
        if not buffers:
            return decode_value(body, _WITHOUT_BUFFERS)
        inlet = Inlet(buffers)
        value = decode_value(body, _table(inlet))
        inlet.finish()
    except CodecError as error:
        raise SerializationError(f"what arrived is not a value: {error}") from error
    return value


def encode(value: Any) -> bytes:
    """Return the body of a plain value without arrays, all in one piece.

    Raises:
        SerializationError: It is not plain data, or holds an array.
    """
    try:
        return lowered(value, lambda: None)[0]
    except NotPlain as error:
        raise SerializationError(f"a value in a message of ours {error}") from error


def new_outlet(copy_max: int = COPY_MAX) -> Callable[[], Outlet]:
    """Return what makes outlets that copy up to `copy_max` bytes."""
    return lambda: Outlet(copy_max)
