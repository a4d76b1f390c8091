"""Places of raw buffers: each byte is taken once, in order, by exactly one value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from easyremote import values
from easyremote.errors import SerializationError
from easyremote.values import tags
from easyremote.values.buffers import SHARED, Inlet, Outlet
from easyremote.wire import array
from easyremote.wire.cbor import encode_value, tag
from easyremote.wire.errors import CodecError

U1 = array.DTYPES.index("|u1")


def decoded(tree: Any, *buffers: bytes | memoryview) -> Any:
    return values.decode(encode_value(tree), buffers, allow_pickle=False)


def an_array(place: Any, size: int = 4) -> Any:
    return tag(tags.ARRAY, [place, U1, [size], 0])


@pytest.mark.parametrize(
    ("tree", "sizes"),
    [
        (an_array(0), []), (an_array(0), [3]), (an_array(0), [5]), (an_array(0), [0]),
        (an_array(0), [4, 4]), (an_array(1), [4, 4]), (an_array(1), [4]), (an_array(-2), [4]),
        (an_array(2**70), [4]), (an_array(None), [4]), (an_array(None), []), (an_array("0"), [4]),
        (an_array(0.0), [4]), (an_array(False), [4]), (an_array(0, 0), [4]), (an_array(0, 0), [0]),
        ([an_array(0), an_array(0)], [4]), ([an_array(0), an_array(0)], [4, 4]),
        ([an_array(1), an_array(0)], [4, 4]), ([an_array(0), an_array(2)], [4, 4, 4]),
        (1, [4]), ([an_array(0), 1], [4, 1]),
        (an_array(SHARED), []), (an_array(SHARED), [3]), (an_array(SHARED), [5]),
        (an_array(SHARED, 0), [4]), ([an_array(0), an_array(SHARED)], [4]),
        ([an_array(SHARED), an_array(0)], [4]), ([an_array(SHARED), an_array(SHARED)], [7]),
        ([an_array(SHARED), an_array(SHARED)], [9]), ([an_array(0), an_array(SHARED)], [4, 4, 4]),
        (tag(tags.LONG_TEXT, [0, 3]), [4]), (tag(tags.LONG_TEXT, [0]), [4]),
        (tag(tags.LONG_BYTES, 0), [4]), (tag(tags.LONG_BYTES, [0, 4.0]), [4]),
        (tag(tags.LONG_BYTES, [0, -1]), [4]), (tag(tags.LONG_BYTEARRAY, [0, True]), [1]),
        ([tag(tags.LONG_BYTES, [0, 4]), tag(tags.LONG_BYTES, [0, 4])], [4]),
        (tag(tags.ARRAY, []), [4]), (tag(tags.ARRAY, 0), [4]), (tag(tags.ARRAY, None), [4]),
    ],
    ids=lambda v: repr(v)[:60],
)  # fmt: skip
def test_wrong_counts_sizes_and_orders_of_buffers_are_refused(tree: Any, sizes: list[int]) -> None:
    """A buffer named twice, left out, of another size or out of order is a typed error."""
    with pytest.raises(SerializationError):
        decoded(tree, *(bytes(size) for size in sizes))


def test_buffers_that_fit_are_taken() -> None:
    """The same values with the right buffers, so that the refusals above mean something."""
    one = an_array(0)

    assert decoded(one, b"abcd").tobytes() == b"abcd"
    assert decoded(an_array(None, 0)).shape == (0,)
    got = decoded(
        [one, an_array(1), an_array(SHARED), an_array(SHARED)], b"abcd", b"efgh", bytes(8)
    )
    assert [part.tobytes() for part in got] == [b"abcd", b"efgh", bytes(4), bytes(4)]
    assert decoded(tag(tags.LONG_TEXT, [0, 4]), b"abcd") == "abcd"
    assert decoded(tag(tags.LONG_BYTES, [None, 0])) == b""


def test_long_text_must_be_unicode() -> None:
    """Bytes that are no UTF-8 are no text."""
    with pytest.raises(SerializationError):
        decoded(tag(tags.LONG_TEXT, [0, 2]), b"\xc3\x28")


def test_shared_bytes_are_copied_out() -> None:
    """Two arrays from one buffer do not share memory, nor do they keep the buffer."""
    memory = bytearray(8)
    first, second = decoded([an_array(SHARED), an_array(SHARED)], memoryview(memory))

    first[:] = 1
    assert second.tolist() == [0, 0, 0, 0]
    assert memory == bytes(8)


def test_an_outlet_copies_what_may_change_and_keeps_what_is_fresh() -> None:
    """Only memory that somebody else might write to is copied."""
    memory = bytearray(b"abc")
    outlet = Outlet(3)

    assert outlet.put(memoryview(memory)) == 0
    assert outlet.put(memoryview(memory), fresh=True) == 1
    assert outlet.put(memoryview(b"")) is None
    memory[0] = 0
    assert [bytes(buffer) for buffer in outlet.buffers()] == [b"abc", b"\0bc"]


def test_an_inlet_takes_buffers_of_any_format() -> None:
    """A buffer is its bytes, whatever its owner calls them."""
    inlet = Inlet([np.arange(2, dtype="<i4").data])

    assert bytes(inlet.take(0, 8)) == b"\0\0\0\0\1\0\0\0"
    inlet.finish()
    with pytest.raises(CodecError, match="next"):
        inlet.take(0, 8)
