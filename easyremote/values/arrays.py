"""Arrays of users: numpy's own, and whatever else shows its memory as one.

Theory. A numpy array is described by a header (`wire.array`) and its bytes. Tensors of other
libraries offer the same through DLPack, `__array_interface__` or the buffer protocol; those of
another device are first copied to host memory by their own library. They all arrive as numpy
arrays: the receiver need not have the sender's library.

Rules of this file. 1) No other library is imported: what an object offers decides. 2) Bytes of
arrays of objects never leave. 3) A decoded array is writable, and nobody else refers to its memory.

Source. DLPack (device type 1 is the CPU), the array interface of numpy, PEP 3118.
"""

from __future__ import annotations

import array as stdlib_array
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..wire import array
from ..wire.cbor import tag
from ..wire.errors import CodecError
from . import tags
from .atoms import Unfit
from .buffers import Inlet, Outlet

_CPU = 1
_ORDINARY = frozenset({np.ndarray, np.memmap})
_BUFFERS = frozenset({memoryview, stdlib_array.array})
_NO_ARRAYS = (str, bytes, bytearray, np.generic, np.ndarray)
"""Subclasses of these are no foreign arrays: they would lose what makes them special."""


def lower_array(value: NDArray[Any], outlet: Outlet) -> Any:
    """Return what travels for a numpy array; its bytes go to `outlet`.

    Raises:
        Unfit: Its element type cannot travel.
    """
    try:
        header, flat = array.describe(value)
    except CodecError as error:
        raise Unfit(str(error)) from None
    copied = not np.may_share_memory(flat, value)
    place = outlet.put(flat.data, fresh=copied)
    return tag(tags.ARRAY, [place, *header.fields()])


def build_array(item: Any, inlet: Inlet) -> NDArray[Any]:
    """Return the array that the fields describe, over the memory of its buffer.

    Raises:
        CodecError: The fields or the buffer are not those of an array.
    """
    if type(item) is not list or not item:
        raise CodecError("an array has a place and a header")
    header = array.parse(item[1:])
    return array.view(header, inlet.take(item[0], header.size_bytes))


def lower_scalar(value: np.generic) -> Any:
    """Return what travels for a numpy scalar.

    Raises:
        Unfit: Its type cannot travel.
    """
    try:
        header, flat = array.describe(np.asarray(value))
    except CodecError as error:
        raise Unfit(str(error)) from None
    return tag(tags.SCALAR, [header.code, header.unit, flat.tobytes()])


def build_scalar(item: Any) -> np.generic:
    """Return the numpy scalar that the fields describe.

    Raises:
        CodecError: They describe none.
    """
    if type(item) is not list or len(item) != 3 or type(item[2]) is not bytes:
        raise CodecError("a numpy scalar has a type, a unit and its bytes")
    code, unit, raw = item
    header = array.parse([code, [], 0, unit])
    return cast("np.generic", array.view(header, raw)[()])


def as_array(value: Any) -> NDArray[Any] | None:
    """Return the numpy array over the memory of a foreign array, or None if `value` is none.

    Raises:
        Unfit: It is one, but its memory cannot be had.
    """
    kind = type(value)
    if kind in _ORDINARY:
        return cast("NDArray[Any]", value)
    if isinstance(value, _NO_ARRAYS):
        return None
    try:
        if hasattr(kind, "__dlpack__"):
            return np.from_dlpack(_on_host(value))
        if hasattr(kind, "__array_interface__"):
            return np.asarray(value)
        if kind in _BUFFERS:
            return np.asarray(memoryview(value))
    except (BufferError, TypeError, ValueError, RuntimeError) as error:
        raise Unfit(f"its memory cannot be had ({error})") from None
    return None


def _on_host(value: Any) -> Any:
    """Return the tensor in host memory: itself, or a copy made by its own library."""
    device, _ = value.__dlpack_device__()
    if device == _CPU:
        return value
    for name in ("detach", "cpu", "get"):
        # torch: detach().cpu(); cupy: get().
        method = getattr(value, name, None)
        if method is not None:
            value = method()
    return value
