"""Arrays: a header that says what a raw buffer holds, and the array over it without a copy.

Theory. An array is its elements' type, its shape and its bytes. The first two are a few plain
fields; the bytes travel as they lie in memory, little-endian and without gaps, so that the
receiver reads them straight into the memory that the new array owns. There are no strides on the
wire: an array whose elements lie in Fortran order says so by a flag, every other one is laid out
in C order before it leaves.

Rules of this file. 1) The element type comes from a closed list; objects and structures are not
in it, since numpy would take pointers from the wire. 2) `size_bytes == product * itemsize` is
checked in Python integers, which cannot overflow, before anything is allocated. 3) An array over
a buffer is made by `np.frombuffer` only, so it never reads beyond it.

Source. The header of the npy format (numpy.lib.format) and safetensors' checks.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import CodecError

RANK_MAX = 32
"""Most dimensions; numpy 1 can hold no more."""
SIZE_BYTES_MAX = 1 << 62

FORTRAN = 1
"""Flag: the elements lie in Fortran order."""

DTYPES: tuple[str, ...] = (
    "|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8",
    "<f2", "<f4", "<f8", "<c8", "<c16", "<M8", "<m8",
)  # fmt: skip
"""Element types by code. The last two, points in time and durations, need a unit beside them."""

_DTYPE_BY_CODE = tuple(np.dtype(text) for text in DTYPES)
_CODE_BY_KIND = {(dtype.kind, dtype.itemsize): code for code, dtype in enumerate(_DTYPE_BY_CODE)}
_BOOL = 0
_WITH_UNIT = frozenset({DTYPES.index("<M8"), DTYPES.index("<m8")})

_UNIT = re.compile(r"(?:[1-9][0-9]{0,8})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)|generic", re.ASCII)


class Header(NamedTuple):
    """What a raw buffer holds."""

    code: int
    """Index into `DTYPES`."""
    shape: tuple[int, ...]
    flags: int = 0
    unit: str = ""
    """Of a datetime64 or timedelta64: "ns", "25s", "generic"; else empty."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""
        dtype = _DTYPE_BY_CODE[self.code]
        if self.unit and self.unit != "generic":
            return np.dtype(f"{DTYPES[self.code]}[{self.unit}]")
        return dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements together; exact, however large."""
        return prod(self.shape) * _DTYPE_BY_CODE[self.code].itemsize

    def fields(self) -> list[Any]:
        """Return the header as plain fields."""
        plain: list[Any] = [self.code, list(self.shape), self.flags]
        return [*plain, self.unit] if self.unit else plain


def code_of(dtype: np.dtype[Any]) -> int | None:
    """Return the code of an element type in either byte order, or None if it cannot travel."""
    return _CODE_BY_KIND.get((dtype.kind, dtype.itemsize))


def unit_of(dtype: np.dtype[Any]) -> str:
    """Return the unit of a datetime64 or timedelta64 type, and nothing for every other one."""
    if dtype.kind not in "mM":
        return ""
    unit, count = np.datetime_data(dtype)
    return unit if count == 1 else f"{count}{unit}"


def describe(array: NDArray[Any]) -> tuple[Header, NDArray[Any]]:
    """Return the header of `array`, and an array whose memory holds the bytes to send.

    The second is C-contiguous and one-dimensional in bytes (uint8). It shares the memory of
    `array` wherever that is contiguous in either order and little-endian; else it is a copy.

    Raises:
        CodecError: The element type is not in the closed list, or there are too many dimensions.
    """
    code = code_of(array.dtype)
    if code is None:
        raise CodecError(f"arrays of {array.dtype} are not in the closed list")
    if array.ndim > RANK_MAX:
        raise CodecError(f"an array has at most {RANK_MAX} dimensions, not {array.ndim}")
    header = Header(code, array.shape, 0, unit_of(array.dtype))
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        header = header._replace(flags=FORTRAN)
        array = array.T
    array = np.ascontiguousarray(array, header.dtype)
    return header, array.reshape(-1).view(np.uint8)


def parse(fields: Any) -> Header:
    """Return the header in plain `fields`, every one of them checked.

    Raises:
        CodecError: They are not those of a header, or of an array that cannot exist.
    """
    if type(fields) is not list or not 3 <= len(fields) <= 4:
        raise CodecError("an array header has 3 or 4 fields")
    code, shape, flags = fields[:3]
    unit = fields[3] if len(fields) == 4 else ""
    if type(code) is not int or not 0 <= code < len(DTYPES):
        raise CodecError("an element type that is not in the closed list")
    if type(shape) is not list or len(shape) > RANK_MAX:
        raise CodecError(f"a shape is a list of at most {RANK_MAX} lengths")
    if any(type(length) is not int or length < 0 for length in shape):
        raise CodecError("a length is a number that is not negative")
    # Zeros left out: numpy refuses an empty array whose other lengths overflow.
    extent = prod(length for length in shape if length) * _DTYPE_BY_CODE[code].itemsize
    if extent > SIZE_BYTES_MAX:
        raise CodecError("an array is larger than any memory")
    if type(flags) is not int or flags not in {0, FORTRAN}:
        raise CodecError("unknown flags of an array")
    if code in _WITH_UNIT:
        if type(unit) is not str or not _UNIT.fullmatch(unit):
            raise CodecError("times need a unit that is known")
    elif unit != "":
        raise CodecError("only times have a unit")
    return Header(code, tuple(shape), flags, unit)


def view(header: Header, buffer: memoryview | bytes | bytearray) -> NDArray[Any]:
    """Return the array that `buffer` already holds, without copying it.

    Args:
        header: From `parse` or `describe`.
        buffer: Exactly `header.size_bytes` bytes, one-dimensional. Kept alive by the array.

    Returns:
        An array over that memory, writable where the buffer is.

    Raises:
        CodecError: The buffer has another length, or holds bytes that are no elements.
    """
    size_bytes = header.size_bytes
    given = memoryview(buffer).nbytes
    if given != size_bytes:
        raise CodecError(f"an array of {size_bytes} bytes came with {given}")
    try:
        dtype = header.dtype
        flat: NDArray[Any] = (
            np.frombuffer(buffer, dtype) if size_bytes else np.empty(0, dtype)
        )  # frombuffer refuses empty buffers
        array = flat.reshape(header.shape, order="F" if header.flags & FORTRAN else "C")
    except (ValueError, TypeError, OverflowError) as error:
        raise CodecError(f"not an array: {error}") from None
    if header.code == _BOOL and size_bytes and flat.view(np.uint8).max() > 1:
        raise CodecError("a truth value is 0 or 1")
    return array
