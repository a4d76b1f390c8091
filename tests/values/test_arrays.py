"""Arrays of any layout and library arrive equal, writable, and alone in their memory."""

from __future__ import annotations

import array
import mmap
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from easyremote import values
from easyremote.errors import SerializationError
from easyremote.values import buffers as places

from .helpers import delivered, is_same, there_and_back

MIB = 1 << 20

dtypes = st.sampled_from(["?", "i1", "<i8", ">i4", "u2", "f2", "<f4", ">f8", "c8", "c16", "M8[us]"])
some_arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@given(some_arrays)
def test_any_array_arrives_equal(value: NDArray[Any]) -> None:
    """Shape, element type and every bit; in any byte order and layout, which become ours."""
    for view in (value, value.T, value[..., ::2] if value.ndim else value):
        got = there_and_back([view, {"a": view}])

        expected = view.astype(view.dtype.newbyteorder("<"))
        assert is_same(got, [expected, {"a": expected}])
        assert got[0].flags.writeable
        assert got[0].flags.aligned


def test_what_arrives_is_over_the_memory_it_was_received_into() -> None:
    """No copy on the way in: the array is the buffer, and nothing else refers to it."""
    encoded = values.encode(np.arange(6.0).reshape(2, 3), allow_pickle=False)
    (memory,) = delivered(encoded)

    got = values.decode(encoded.body, [memory], allow_pickle=False)
    got[0, 0] = 42.0
    assert np.frombuffer(memory)[0] == 42.0
    assert np.shares_memory(got, np.frombuffer(memory))


def test_memory_that_may_not_be_written_is_copied() -> None:
    """An array over bytes is writable all the same, and the bytes do not change."""
    encoded = values.encode(np.arange(4), allow_pickle=False)
    raw = bytes(encoded.buffers[0])

    got = values.decode(encoded.body, [raw], allow_pickle=False)
    got[:] = 7
    assert raw == np.arange(4).tobytes()


def test_order_is_kept_if_it_is_fortran_and_becomes_c_otherwise() -> None:
    """A column-major array costs no transposition, and arrives as one."""
    value = np.arange(12).reshape(3, 4)

    assert there_and_back(value.T).flags.f_contiguous
    assert there_and_back(value).flags.c_contiguous
    assert there_and_back(value[:, ::2]).flags.c_contiguous


def test_small_arrays_may_be_changed_at_once_and_large_ones_are_borrowed() -> None:
    """Up to 1 MiB are copied when the call is made; beyond, the memory itself is sent."""
    for size, borrowed in ((MIB, False), (MIB + 1, True)):
        value = np.zeros(size, np.uint8)
        encoded = values.encode_call((value,), {}, allow_pickle=False)
        value[0] = 1

        assert encoded.buffers[0][0] == int(borrowed)


def test_copying_can_be_asked_for() -> None:
    """With a larger limit nothing is borrowed; with none, everything."""
    value = np.zeros(2 * MIB, np.uint8)
    kept = values.encode(value, allow_pickle=False, copy_max=1 << 62)
    call = values.encode_call((value,), {}, allow_pickle=False, copy_max=1 << 62)
    lent = values.encode(value[:9], allow_pickle=False, copy_max=0)
    value[0] = 1

    assert kept.buffers[0][0] == 0
    assert call.buffers[0][0] == 0
    assert lent.buffers[0][0] == 1


def test_arrays_that_had_to_be_copied_are_copied_once() -> None:
    """A large array of another layout is laid out anew: that copy is already ours."""
    value = np.zeros((2 * MIB, 2), np.uint8)
    encoded = values.encode(value[:, 0], allow_pickle=False)
    value[:] = 1

    assert encoded.buffers[0][0] == 0


def test_empty_arrays_need_no_buffer() -> None:
    """There is nothing to send, and the shape and type arrive."""
    value = {"a": np.zeros((0, 3), "f4"), "b": np.zeros((2, 0), "M8[D]")}
    encoded = values.encode(value, allow_pickle=False)

    assert encoded.buffers == []
    got = values.decode(encoded.body, [], allow_pickle=False)
    assert is_same(got, value)
    assert got["a"].flags.writeable


@pytest.mark.parametrize("count", [1, 64, 65, 1500])
@pytest.mark.parametrize("size", [8, 9000])
def test_very_many_arrays_share_a_buffer(count: int, size: int) -> None:
    """A message names few buffers, so beyond the first ones small arrays lie in a common one."""
    value = [np.full(size, index) for index in range(count)]
    value.insert(count // 2, np.arange(10_000.0))
    encoded = values.encode(value, allow_pickle=False)

    assert len(encoded.buffers) <= places.OWN_MAX + 1
    got = values.decode(encoded.body, delivered(encoded), allow_pickle=False)
    assert is_same(got, value)
    assert all(one.flags.writeable and one.flags.aligned for one in got)
    got[-1][:] = -1
    assert is_same(got[:-1], value[:-1])


def test_an_array_that_occurs_twice_arrives_as_two() -> None:
    """Plain data has no identity: what arrives can be changed separately."""
    value = np.zeros(3)

    one, other = there_and_back([value, value])
    one[0] = 1
    assert other[0] == 0


def test_memory_mapped_arrays_and_views_of_buffers_arrive_as_arrays(tmp_path: Any) -> None:
    """What shows its memory is an array on the other side."""
    mapped = np.memmap(tmp_path / "file", np.int16, "w+", shape=(3,))
    mapped[:] = [1, 2, 3]
    grid = np.arange(6, dtype="f4").reshape(2, 3).data

    assert is_same(there_and_back(mapped), np.array([1, 2, 3], np.int16))
    assert is_same(there_and_back(array.array("d", [1.5, 2.5])), np.array([1.5, 2.5]))
    assert is_same(there_and_back(memoryview(b"ab")), np.array([97, 98], np.uint8))
    assert is_same(there_and_back(grid), np.asarray(grid))
    assert is_same(there_and_back(grid[::-1]), np.asarray(grid)[::-1].copy())


class Tensor:
    """A tensor of another library, in its own memory or on a device."""

    def __init__(self, data: NDArray[Any], device: int = 1) -> None:
        self.data = data
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **options: Any) -> Any:
        if self.device != 1:
            raise BufferError("on another device")
        return self.data.__dlpack__(**options)


class TorchLike(Tensor):
    def detach(self) -> TorchLike:
        return self

    def cpu(self) -> TorchLike:
        return TorchLike(self.data, 1)


class CupyLike(Tensor):
    def get(self) -> NDArray[Any]:
        return self.data


class Interface:
    def __init__(self, data: NDArray[Any]) -> None:
        self.data = data

    @property
    def __array_interface__(self) -> Any:
        return self.data.__array_interface__


@pytest.mark.parametrize("make", [Tensor, Interface, lambda data: TorchLike(data, 2),
                                  lambda data: CupyLike(data, 2)])  # fmt: skip
def test_tensors_of_other_libraries_arrive_as_arrays(make: Any) -> None:
    """DLPack and the array interface are understood; a device's memory goes through the host's."""
    data = np.arange(6.0).reshape(2, 3)

    got = there_and_back({"tensor": make(data)})["tensor"]
    assert is_same(got, data)
    got[0, 0] = 5.0
    assert data[0, 0] == 0.0


def test_memory_that_cannot_be_had_is_an_error_with_its_reason() -> None:
    """A tensor that stays on its device, and texts in arrays, are refused where they are."""
    data = np.arange(3.0)
    with pytest.raises(SerializationError, match="another device"):
        values.encode([Tensor(data, 2)], allow_pickle=False)
    with pytest.raises(SerializationError, match="closed list"):
        values.encode([np.array(["text"])], allow_pickle=False)
    with mmap.mmap(-1, 10) as region, pytest.raises(SerializationError, match="mmap"):
        values.encode(region, allow_pickle=False)
