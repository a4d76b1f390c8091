"""Array headers: a closed list of element types, checked before a byte is allocated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from easyremote.wire import array
from easyremote.wire.array import Header
from easyremote.wire.errors import CodecError

TYPES = [np.dtype(text) for text in array.DTYPES[:-2]]
TIMES = [
    np.dtype(text)
    for text in ("<M8[ns]", "<M8[25s]", "<M8[D]", "<m8[us]", "<m8[7W]", "<m8[as]", "<M8", "<m8")
]

arrays = st.one_of(
    hnp.arrays(
        dtype=st.sampled_from(TYPES + TIMES).flatmap(
            lambda dtype: st.sampled_from([dtype, dtype.newbyteorder(">")])
        ),
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements=None,
        fill=st.nothing(),
    )
)


def there_and_back(value: NDArray[Any]) -> NDArray[Any]:
    header, flat = array.describe(value)
    assert flat.dtype == np.uint8
    assert flat.ndim == 1
    assert flat.flags.c_contiguous
    assert flat.nbytes == header.size_bytes == value.nbytes
    return array.view(array.parse(header.fields()), bytearray(flat.tobytes()))


def is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return (
        one.shape == other.shape
        and one.dtype == other.dtype.newbyteorder("<")
        and one.tobytes() == other.astype(other.dtype.newbyteorder("<")).tobytes()
    )


@given(arrays)
def test_arrays_arrive_equal_and_writable(value: NDArray[Any]) -> None:
    """Any element type of the list, byte order and shape comes back bit for bit, little-endian."""
    for view in (
        value,
        value.T,
        value[..., ::-1] if value.ndim else value,
        np.asfortranarray(value),
    ):
        arrived = there_and_back(view)

        assert is_same(arrived, view)
        assert arrived.flags.writeable


@pytest.mark.parametrize("dtype", TYPES + TIMES, ids=str)
def test_every_element_type_has_a_code(dtype: np.dtype[Any]) -> None:
    """The list is closed: sixteen types, each with a number of its own."""
    value = np.zeros((2, 3), dtype)

    assert is_same(there_and_back(value), value)
    assert len(array.DTYPES) == len(set(array.DTYPES)) == 16


def test_fortran_order_is_kept_and_every_other_layout_becomes_c() -> None:
    """What arrives has the layout that it had, if that was one of the two contiguous ones."""
    value = np.arange(24.0).reshape(2, 3, 4)

    fortran = there_and_back(np.asfortranarray(value))
    assert fortran.flags.f_contiguous
    assert not fortran.flags.c_contiguous
    assert np.array_equal(fortran, value)
    for other in (value, value[:, ::2], value[::-1], value.transpose(1, 0, 2), value[:, :, 1:3]):
        arrived = there_and_back(other)
        assert arrived.flags.c_contiguous
        assert np.array_equal(arrived, other)


def test_contiguous_arrays_are_described_without_a_copy() -> None:
    """The bytes to send are the memory of the array itself, in either order."""
    value = np.arange(12.0).reshape(3, 4)

    for contiguous in (value, value.T, value.reshape(12), value[1:]):
        assert np.shares_memory(array.describe(contiguous)[1], contiguous)
    for other in (value[:, ::2], value.astype(">f8")):
        assert not np.shares_memory(array.describe(other)[1], other)


def test_a_view_is_over_the_very_memory_of_its_buffer() -> None:
    """What is received into a buffer is the array, without a copy; it writes through."""
    memory = bytearray(np.arange(4, dtype="<i4").tobytes())

    view = array.view(Header(array.DTYPES.index("<i4"), (2, 2)), memory)

    view[0, 0] = 99
    assert memory[0] == 99


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 5), (5, 0, 2), (1,) * 32])
def test_scalars_empty_arrays_and_many_dimensions_have_headers(shape: tuple[int, ...]) -> None:
    """Shapes at the edges of what there is come back as they were."""
    value = np.ones(shape)

    assert there_and_back(value).shape == shape


@pytest.mark.parametrize(
    "value",
    [np.array([object()]), np.array(["text"]), np.array([b"bytes"]), np.zeros(2, "V8"),
     np.zeros(2, [("a", "i4")]), np.zeros(2, np.longdouble), np.zeros(2, np.clongdouble)],
    ids=lambda v: str(v.dtype),
)  # fmt: skip
def test_other_element_types_do_not_leave(value: NDArray[Any]) -> None:
    """Objects, texts, structures and platform types are refused where they are."""
    assert array.code_of(value.dtype) is None
    with pytest.raises(CodecError, match="closed list"):
        array.describe(value)


def test_too_many_dimensions_do_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that the oldest numpy cannot hold is refused by both sides."""
    monkeypatch.setattr(array, "RANK_MAX", 3)

    with pytest.raises(CodecError, match="dimensions"):
        array.describe(np.zeros((1, 1, 1, 1)))
    with pytest.raises(CodecError, match="shape"):
        array.parse([0, [1, 1, 1, 1], 0])


BIG = 1 << 62
F8 = array.DTYPES.index("<f8")
M8 = array.DTYPES.index("<M8")


@pytest.mark.parametrize(
    "fields",
    [
        None, 7, "x", {}, (), [], [F8], [F8, [1]], [F8, [1], 0, "", 0],
        ["<f8", [1], 0], [-1, [1], 0], [16, [1], 0], [True, [1], 0], [None, [1], 0],
        [1.0, [1], 0], ["O", [1], 0], ["|O", [1], 0],
        [F8, None, 0], [F8, 3, 0], [F8, "12", 0], [F8, (1,), 0], [F8, [1] * 33, 0],
        [F8, [-1], 0], [F8, [1.0], 0], [F8, [True], 0], [F8, ["1"], 0], [F8, [None], 0],
        [F8, [2**63], 0], [F8, [BIG], 0], [F8, [2**40, 2**40], 0], [F8, [2**32, 2**32, 2**32], 0],
        [F8, [0, BIG], 0], [F8, [BIG, 0, BIG], 0], [F8, [2] * 32 + [2], 0],
        [F8, [1], 2], [F8, [1], -1], [F8, [1], True], [F8, [1], None], [F8, [1], 1.0],
        [F8, [1], 0, "ns"], [F8, [1], 0, None],
        [M8, [1], 0], [M8, [1], 0, ""], [M8, [1], 0, "hour"], [M8, [1], 0, "0s"],
        [M8, [1], 0, "9999999999s"], [M8, [1], 0, "s]"], [M8, [1], 0, "ns\n"], [M8, [1], 0, 3],
        [M8, [1], 0, "\u0661s"],
    ],
    ids=repr,
)  # fmt: skip
def test_headers_that_describe_no_array_are_refused(fields: Any) -> None:
    """Wrong types, unknown codes, flags or units, and shapes whose product overflows."""
    with pytest.raises(CodecError):
        array.parse(fields)


@given(
    st.lists(
        st.none() | st.booleans() | st.integers(-2, 2**70) | st.text(max_size=3)
        | st.lists(st.integers(-2, 2**70), max_size=4),
        max_size=5,
    )
)  # fmt: skip
def test_any_header_is_an_array_or_a_codec_error(fields: list[Any]) -> None:
    """Nothing else is raised, and a header that passes can exist."""
    try:
        header = array.parse(fields)
    except CodecError:
        return
    assert 0 <= header.size_bytes <= array.SIZE_BYTES_MAX
    assert header.fields()[: len(fields)] == fields[: len(header.fields())]


@pytest.mark.parametrize("extra", [-8, -1, 1, 8])
def test_a_buffer_has_exactly_the_bytes_of_its_array(extra: int) -> None:
    """One byte too few or too many is an error, so that an array never reads beyond its memory."""
    header = array.parse([F8, [2, 3], 0])

    assert array.view(header, bytes(48)).shape == (2, 3)
    with pytest.raises(CodecError, match="48 bytes"):
        array.view(header, bytes(48 + extra))


def test_a_huge_shape_over_a_small_buffer_is_refused() -> None:
    """A view with more elements than its buffer is never made, however the shape is put."""
    for shape in ([2**40], [2**20, 2**20], [2**31, 1, 2]):
        with pytest.raises(CodecError, match="bytes"):
            array.view(array.parse([F8, shape, 0]), bytes(64))


def test_truth_values_are_zero_or_one() -> None:
    """Other bytes under the truth type would be values that numpy never makes."""
    header = array.parse([0, [3], 0])

    assert array.view(header, b"\x00\x01\x01").tolist() == [False, True, True]
    with pytest.raises(CodecError, match="truth"):
        array.view(header, b"\x00\x01\x02")


def test_a_shape_that_numpy_refuses_is_a_codec_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of the installed numpy that are tighter than ours end as the same error."""
    monkeypatch.setattr(array, "RANK_MAX", 1000)

    with pytest.raises(CodecError, match="not an array"):
        array.view(array.parse([F8, [1] * 100, 0]), bytes(8))


@pytest.mark.parametrize("dtype", TIMES, ids=str)
def test_units_of_times_travel(dtype: np.dtype[Any]) -> None:
    """A point in time and a duration keep their unit, a missing one included."""
    value = np.array([0, 1, -5], "<i8").view(dtype)
    header, _ = array.describe(value)

    assert header.unit == array.unit_of(dtype)
    assert there_and_back(value).dtype == dtype
