"""What the tests of values share: a way there and back, and equality that sees types."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from easyremote import values


def delivered(encoded: values.Encoded) -> list[memoryview]:
    """The buffers as a receiver has them: in memory of its own."""
    assert all(buffer.nbytes for buffer in encoded.buffers)
    sizes = [buffer.nbytes for buffer in encoded.buffers]
    arrived = values.allocate(sizes, limit_bytes=1 << 32)
    for destination, source in zip(arrived, encoded.buffers, strict=True):
        destination[:] = source
    return arrived


def there_and_back(value: Any, *, allow_pickle: bool = False) -> Any:
    """Encode, deliver, decode."""
    encoded = values.encode(value, allow_pickle=allow_pickle)
    assert allow_pickle or not encoded.pickled
    return values.decode(encoded.body, delivered(encoded), allow_pickle=allow_pickle)


def _same_array(one: Any, other: Any) -> bool:
    return bool(
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def is_same(one: Any, other: Any) -> bool:
    """Equal in type and value at every depth; floats bit for bit, but one NaN is any NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (
            math.isnan(one) and math.isnan(other)
        )
    if isinstance(one, complex):
        return is_same(one.real, other.real) and is_same(one.imag, other.imag)
    if isinstance(one, np.ndarray | np.generic):
        return _same_array(np.asarray(one), np.asarray(other))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict):
        return is_same(list(one), list(other)) and is_same(list(one.values()), list(other.values()))
    if isinstance(one, set | frozenset):
        found = all(any(is_same(left, right) for right in other) for left in one)
        return len(one) == len(other) and found
    return repr(one) == repr(other)
