"""Values of users: encoded once, where they are born, and decoded once, where they are used.

Plain data is CBOR with a closed list of tags (`plain.py`), arrays travel as raw buffers beside it
(`arrays.py`), everything else as a pickle, where that is allowed (`pickled.py`). Exceptions are
data (`exceptions.py`). This module is what the rest of the package uses; the gateway, which never
unpickles, uses `plain.py` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SerializationError
from ..wire.cbor import encode_value
from ..wire.errors import ErrorCode
from . import places, plain
from .buffers import COPY_MAX, Bytes, Outlet, fresh, object_bytes_max
from .exceptions import decode_exception, encode_exception
from .plain import NotPlain, StreamArgument
from .registry import register_type

__all__ = [
    "COPY_MAX",
    "Encoded",
    "StreamArgument",
    "allocate",
    "decode",
    "decode_call",
    "decode_exception",
    "encode",
    "encode_call",
    "encode_exception",
    "object_bytes_max",
    "register_type",
]

_PICKLE = b"\xff"
"""First byte of a body that is a pickle. In CBOR it ends what has not begun, so no item has it."""

_QUICK = frozenset({type(None), bool, int, float})
_TEXT_MAX = 1024
"""Texts up to this length take the quick way."""


@dataclass(slots=True)
class Encoded:
    """A value on its way."""

    body: bytes
    buffers: list[memoryview]
    """Raw bytes that travel beside the body, in order; none is empty. Larger ones are borrowed."""
    pickled: bool
    """Whether decoding needs an unpickler."""


def encode(
    value: Any, *, allow_pickle: bool, copy_max: int = COPY_MAX, root: str = "value"
) -> Encoded:
    """Encode a value.

    Args:
        value: Anything.
        allow_pickle: Whether the other side takes pickles; without, only plain data travels.
        copy_max: Buffers up to this many bytes are copied, so that the caller may change them at
            once; larger ones are borrowed until they are sent.
        root: What errors call the value.

    Raises:
        SerializationError: A part of it cannot travel; the message names its path.
    """
    outlets = plain.new_outlet(copy_max)
    try:
        body, outlet = plain.lowered(value, outlets)
    except NotPlain as error:
        return _encode_pickled(value, error, allow_pickle, outlets(), [(root, value)])
    assert outlet is not None
    return Encoded(body, outlet.buffers(), pickled=False)


def encode_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, allow_pickle: bool, copy_max: int = COPY_MAX
) -> Encoded:
    """Encode the arguments of a call; `StreamArgument` marks the streamed ones.

    As `encode` otherwise.

    Raises:
        SerializationError: One cannot travel; the message names it, as in `args[0].model`.
    """
    if _is_quick(args) and (not kwargs or _is_quick(kwargs.values())):
        try:
            if kwargs:
                return Encoded(encode_value((args, kwargs)), [], pickled=False)
            return Encoded(b"\x82" + encode_value(args) + b"\xa0", [], pickled=False)
        except ValueError:  # Lone surrogates, or an enormous integer.
            pass
    outlets = plain.new_outlet(copy_max)
    try:
        body, outlet = plain.lowered([list(args), kwargs], outlets)
    except NotPlain as error:
        roots = [(f"args[{index}]", value) for index, value in enumerate(args)]
        roots += [(f"kwargs[{key!r}]", value) for key, value in kwargs.items()]
        return _encode_pickled((args, kwargs), error, allow_pickle, outlets(), roots)
    assert outlet is not None
    return Encoded(body, outlet.buffers(), pickled=False)


def _is_quick(values: Iterable[Any]) -> bool:
    """Whether cbor2 writes all `values` as they are to be: the arguments of most calls."""
    for value in values:
        kind = type(value)
        if kind not in _QUICK and not (kind is str and len(value) < _TEXT_MAX):
            return False
    return True


def _encode_pickled(
    value: Any, error: NotPlain, allow_pickle: bool, outlet: Outlet, roots: list[tuple[str, Any]]
) -> Encoded:
    if not allow_pickle:
        raise SerializationError(
            f"{_path(roots, _is_plain)} {error}, and pickles are not allowed on this way: pass "
            "plain data or arrays, register the type on both sides (easyremote.register_type), or "
            "have the owner of the other side allow pickles (accept_code on a node, trust_nodes "
            "in a client)"
        ) from None
    from . import pickled

    try:
        return Encoded(_PICKLE + pickled.dumps(value, outlet), outlet.buffers(), pickled=True)
    except SerializationError as failure:
        path = _path(roots, pickled.is_picklable)
        raise SerializationError(f"{path} {failure}") from failure


def _path(roots: list[tuple[str, Any]], is_fit: Callable[[Any], bool]) -> str:
    for root, value in roots:
        if not is_fit(value):
            return places.find(value, root, is_fit)[0]
    return roots[0][0] if len(roots) == 1 else "one of the arguments"


def _is_plain(value: Any) -> bool:
    try:
        plain.lowered(value, plain.new_outlet(0))
    except NotPlain:
        return False
    return True


def decode(body: Bytes, buffers: Sequence[Bytes], *, allow_pickle: bool) -> Any:
    """Decode a value. Its arrays own the memory of `buffers`, and are writable.

    Args:
        body: What `encode` returned as the body.
        buffers: The raw bytes, in order; from `allocate`, or copied if they cannot be written to.
        allow_pickle: Whether the sender may run code here.

    Raises:
        SerializationError: It is no value, or a pickle that is not allowed.
    """
    if body[:1] != _PICKLE:
        return plain.decode(body, buffers)
    if not allow_pickle:
        error = SerializationError(
            "what arrived is a pickle, and this side takes none from there: allow it "
            "(accept_code on a node, trust_nodes in a client) or have plain data sent"
        )
        error.code = ErrorCode.UNSUPPORTED_CODEC
        raise error
    from . import pickled

    return pickled.loads(memoryview(body)[1:], buffers)


def decode_call(
    body: Bytes, buffers: Sequence[Bytes], *, allow_pickle: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Decode the arguments of a call.

    Raises:
        SerializationError: They are none, or a pickle that is not allowed.
    """
    call = decode(body, buffers, allow_pickle=allow_pickle)
    if type(call) in {list, tuple} and len(call) == 2:
        args, kwargs = call
        named = type(kwargs) is dict and (not kwargs or set(map(type, kwargs)) == {str})
        if named and type(args) in {list, tuple}:
            return tuple(args), kwargs
    raise SerializationError("what arrived are not the arguments of a call")


def allocate(sizes: Sequence[int], *, limit_bytes: int) -> list[memoryview]:
    """Return memory for raw buffers that are about to arrive: writable, not cleared.

    Args:
        sizes: Bytes of each.
        limit_bytes: Most bytes in all, by the receiver's own setting.

    Raises:
        SerializationError: They are more than that, or than there is memory.
    """
    total = sum(sizes)
    if total <= limit_bytes:
        try:
            return [fresh(size) for size in sizes]
        except MemoryError:
            pass
    error = SerializationError(
        f"a value with {total:,} bytes of arrays is larger than this side takes "
        f"({limit_bytes:,} bytes at most): send it in parts"
    )
    error.code = ErrorCode.TOO_LARGE
    raise error
