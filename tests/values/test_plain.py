"""Plain data arrives unchanged, in type and value; what is not plain is named with its path."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import pathlib
import re
import uuid
import zoneinfo
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyremote import values
from easyremote.errors import SerializationError
from easyremote.values import plain
from easyremote.values.buffers import OUT_OF_BAND_MIN
from easyremote.wire.cbor import BIGNUM_BYTES_MAX

from .helpers import delivered, is_same, there_and_back

ZONES = [
    None, dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=30)), dt.timezone.min,
    dt.timezone(dt.timedelta(microseconds=-1)), dt.timezone(dt.timedelta(hours=1), "CET"),
    dt.timezone(dt.timedelta(0), "Z"), zoneinfo.ZoneInfo("UTC"),
]  # fmt: skip

EXAMPLES: list[Any] = [
    None, True, False, 0, -1, 2**63, 2**64, -(2**63), -(2**64) - 1, 10**4000, -(10**4000), 0.0,
    -0.0, 1e-300, float("inf"), float("nan"), "", "text", "\u6c34\U0001f600", "\ud800 lone",
    ["\udfff"], {"\ud800": "\ud800"}, "x" * OUT_OF_BAND_MIN, "\u6c34" * 30_000, b"", b"bytes",
    bytes(OUT_OF_BAND_MIN), bytearray(), bytearray(b"own"), bytearray(OUT_OF_BAND_MIN), [], [[]],
    (), (1,), ((), [()]), {}, {"a": 1}, {1: "a", "1": "b", None: 3, (1, 2): 4, b"x": 5, 2.5: 6},
    {True: 1, False: 0}, {float("nan"): 1}, set(), {1, "a", (2, b"c")}, frozenset(),
    frozenset({frozenset({1}), 2}), 1 + 2j, complex("nan-infj"), dt.date.min, dt.date(2024, 2, 29),
    dt.timedelta.max, dt.timedelta.min, dt.timedelta(microseconds=-1),
    *(dt.datetime(2024, 10, 27, 2, 30, 0, 1, zone, fold=1) for zone in ZONES),
    *(dt.time(23, 59, 59, 999_999, zone, fold=1) for zone in ZONES),
    dt.datetime.combine(dt.date.min, dt.time()),
    dt.time.max, dt.datetime.combine(dt.date.max, dt.time.max),
    decimal.Decimal("1.10"), decimal.Decimal("-0"),
    decimal.Decimal("NaN"), decimal.Decimal("sNaN123"), decimal.Decimal("-Infinity"),
    decimal.Decimal("1E+10000"), decimal.Decimal("1E-10000"), uuid.UUID(int=2**128 - 1),
    pathlib.Path("a/b.txt"), pathlib.PurePosixPath("/a"), pathlib.PureWindowsPath("C:\\a\\b"),
    pathlib.Path("odd\udcff"), pathlib.Path(), np.float64(0.1), np.float32("nan"), np.int8(-1),
    np.uint64(2**64 - 1), np.bool_(True), np.complex64(1j), np.float16(1.5),
    np.datetime64("2024-02-29T12", "h"), np.datetime64("NaT"), np.timedelta64(5, ("s", 25)),
    [1, (2, {"three": {4: [5.0, {6}]}})],
]  # fmt: skip

atoms = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**200), 2**200) | st.floats()
    | st.text(st.characters()) | st.binary() | st.complex_numbers() | st.dates() | st.timedeltas()
    | st.datetimes(timezones=st.sampled_from(ZONES)) | st.times() | st.uuids()
    | st.decimals(allow_nan=True)
    | st.text(st.characters(exclude_characters="\0")).map(pathlib.PurePosixPath)
)  # fmt: skip
keys = st.recursive(
    st.none() | st.integers() | st.text() | st.binary() | st.dates() | st.uuids(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=3,
)
anything = st.recursive(
    atoms | st.binary().map(bytearray),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(keys, inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
    | st.sets(keys, max_size=4) | st.frozensets(keys, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda v: f"{type(v).__name__}-{str(v)[:20]!a}")
def test_plain_data_arrives_in_type_and_value(value: Any) -> None:
    """Each plain type has its way, alone and as a part of every container."""
    assert is_same(there_and_back(value), value)
    around = [value, (value,), {"key": value}, {1: value}]

    assert is_same(there_and_back(around), around)


@settings(max_examples=300)
@given(anything)
def test_any_plain_value_arrives_unchanged(value: Any) -> None:
    """Whatever containers and values are combined, what arrives is what was sent."""
    assert is_same(there_and_back(value), value)


@given(st.lists(anything, max_size=3), st.dictionaries(st.text(), anything, max_size=3))
def test_any_plain_arguments_arrive_unchanged(args: list[Any], kwargs: dict[str, Any]) -> None:
    """A call's arguments keep their places and names, however it is encoded."""
    encoded = values.encode_call(tuple(args), kwargs, allow_pickle=False)

    got = values.decode_call(encoded.body, delivered(encoded), allow_pickle=False)
    assert is_same(got, (tuple(args), kwargs))
    assert not encoded.pickled


def test_order_of_dicts_is_kept() -> None:
    """Keys come back in the order in which they were put in, text or not."""
    for value in ({"b": 1, "a": 2}, {2: "b", 1: "a", "x": 0}):
        assert list(there_and_back(value)) == list(value)


def test_a_datetime_with_a_named_zone_keeps_it() -> None:
    """Not the offset travels but the name, so that arithmetic stays right over a clock change."""
    try:
        zone = zoneinfo.ZoneInfo("Europe/Berlin")
    except zoneinfo.ZoneInfoNotFoundError:
        zone = zoneinfo.ZoneInfo("UTC")
    value = dt.datetime(2024, 10, 27, 2, 30, tzinfo=zone, fold=1)

    arrived = there_and_back(value)
    assert arrived.tzinfo is zone
    assert arrived.utcoffset() == value.utcoffset()


@pytest.mark.parametrize("kind", [bytes, bytearray, str])
def test_long_text_and_bytes_travel_beside_the_body(kind: Any) -> None:
    """From 64 KiB on they are raw buffers; below, they are part of the body."""
    for size, count in ((OUT_OF_BAND_MIN - 1, 0), (OUT_OF_BAND_MIN, 1)):
        value = "x" * size if kind is str else kind(size)
        encoded = values.encode([value, {"k": value}], allow_pickle=False)

        assert len(encoded.buffers) == 2 * count
        assert (len(encoded.body) < 200) is bool(count)
        assert is_same(there_and_back(value), value)


def test_a_text_counts_by_its_bytes() -> None:
    """A text of few characters can still have 64 KiB."""
    value = "\u6c34" * (OUT_OF_BAND_MIN // 3 + 1)

    assert len(values.encode(value, allow_pickle=False).buffers) == 1
    assert there_and_back(value) == value


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.StrEnum):
    FAST = "fast"


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - this is what users have


class Opaque:
    pass


NOT_PLAIN: list[Any] = [
    Text("x"), Number(3), Level.LOW, Mode.FAST, Point(1, 2), collections.OrderedDict(a=1),
    collections.defaultdict(int), collections.deque([1]), collections.Counter("a"), range(3),
    fractions.Fraction(1, 3), ipaddress.ip_address("::1"), re.compile("x"), Opaque(), Opaque, len,
    lambda: 1, object(), {"a": 1}.keys(), iter([1]), np.str_("x"), np.array([object()]),
    np.ma.masked_array([1]), Ellipsis, slice(1), NotImplemented, 1 << (8 * BIGNUM_BYTES_MAX),
    decimal.Decimal("1E+10001"), decimal.Decimal("1E-10001"), decimal.Decimal("1" * 5000),
    np.longdouble(1), type(None), ValueError("x"),
]  # fmt: skip


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda v: type(v).__name__)
def test_what_would_arrive_as_something_else_does_not_leave(value: Any) -> None:
    """Subclasses, and types that cbor2 would have taken by itself, are errors at the sender."""
    for around in (value, [value], (value,), {"k": value}, {1: value}):
        with pytest.raises(SerializationError):
            values.encode(around, allow_pickle=False)
        with pytest.raises(SerializationError):
            plain.encode(around)


class Zone(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(0)

    def dst(self, when: dt.datetime | None) -> None:
        return None

    def tzname(self, when: dt.datetime | None) -> str:
        return "odd"


def test_foreign_time_zones_do_not_leave() -> None:
    """A tzinfo of users is code; it cannot be restored from data."""
    for value in (dt.datetime(2024, 1, 1, tzinfo=Zone()), dt.time(1, tzinfo=Zone())):
        with pytest.raises(SerializationError, match="time zone"):
            values.encode(value, allow_pickle=False)


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((Opaque(),), {}, "args[0] is"),
        ((1, [2, (3, Opaque())]), {}, "args[1][1][1] is"),
        ((1,), {"data": {"deep": [0, 1, 2, Opaque()]}}, "kwargs['data']['deep'][3] is"),
        (({1: {2.5: Opaque()}},), {}, "args[0][1][2.5] is"),
        (({Opaque(): 1},), {}, "args[0] (its key <Opaque>) is"),
        (({"x": {frozenset({Opaque})}},), {}, "args[0]['x'] (its entry <frozenset>) (its entry"),
        (({"x" * 100: Opaque()},), {}, "args[0]['xxxx"),
    ],
)
def test_errors_name_the_path_of_the_culprit(
    args: tuple[Any, ...], kwargs: dict[str, Any], path: str
) -> None:
    """The user is told where, what, and what to do."""
    with pytest.raises(SerializationError) as caught:
        values.encode_call(args, kwargs, allow_pickle=False)

    assert str(caught.value).startswith(path)
    assert "test_plain.Opaque" in str(caught.value) or "a type" in str(caught.value)
    assert "accept_code" in str(caught.value)
    assert "register_type" in str(caught.value)


def test_errors_of_a_value_begin_with_what_it_is_called() -> None:
    """A result is called result, an item of a stream by its number."""
    with pytest.raises(SerializationError, match=r"^result\['a'\] is an instance of "):
        values.encode({"a": Opaque()}, allow_pickle=False, root="result")


def test_values_that_are_too_deep_or_endless_are_named() -> None:
    """Thirty-two levels is the limit; a list that contains itself has no bottom."""
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 1
    for _ in range(32):
        deep = [deep]

    assert there_and_back(deep) == deep
    for value in (endless, [deep], {"a": deep}, (deep,)):
        with pytest.raises(SerializationError, match="nested deeper than 32"):
            values.encode(value, allow_pickle=False)


def test_arguments_that_fit_alone_but_not_in_a_call_are_refused() -> None:
    """The list of arguments is a level of its own."""
    deep: Any = 1
    for _ in range(32):
        deep = [deep]

    for args, name in (((deep,), r"args\[0\]"), ((1, deep), "one of the arguments")):
        with pytest.raises(SerializationError, match=f"^{name} is nested deeper"):
            values.encode_call(args, {}, allow_pickle=False)


@pytest.mark.parametrize("value", [(), set(), frozenset(), {1: 2}, {}, [], bytearray(), "\ud800",
                                   bytes(70_000), "x" * 70_000, bytearray(70_000), 1j,
                                   dt.datetime(1, 1, 1, tzinfo=ZONES[5]), np.ones(3), np.int8(1),
                                   values.StreamArgument(1)],
                         ids=lambda v: type(v).__name__)  # fmt: skip
def test_what_leaves_is_never_too_deep_to_arrive(value: Any) -> None:
    """At whatever depth a value is refused, the sender refuses it, never the receiver."""
    sent = 0
    for depth in range(26, 33):
        nested = value
        for _ in range(depth):
            nested = [nested]
        try:
            encoded = values.encode(nested, allow_pickle=False)
        except SerializationError:
            continue
        values.decode(encoded.body, delivered(encoded), allow_pickle=False)
        sent += 1

    assert sent >= 3


def test_messages_of_our_own_are_one_piece() -> None:
    """What the gateway sends and reads has no buffers: long texts stay inside, arrays are none."""
    value = {"functions": [{"name": "f", "doc": "x" * 100_000}], "raw": bytes(100_000)}

    assert plain.decode(plain.encode(value)) == value
    assert plain.decode(bytearray(plain.encode(value))) == value
    assert plain.decode(plain.encode(bytearray(100_000))) == bytearray(100_000)
    with pytest.raises(SerializationError, match="carries none"):
        plain.encode(np.zeros(3))
    with pytest.raises(SerializationError, match="not a value"):
        plain.decode(b"\x18")


def test_arguments_that_look_simple_and_are_not_take_the_long_way() -> None:
    """Lone surrogates and enormous integers among short arguments are seen."""
    encoded = values.encode_call(("\ud800",), {"k": "\udfff"}, allow_pickle=False)

    got = values.decode_call(encoded.body, [], allow_pickle=False)
    assert got == (("\ud800",), {"k": "\udfff"})
    with pytest.raises(SerializationError, match="bits"):
        values.encode_call((1 << (8 * BIGNUM_BYTES_MAX),), {}, allow_pickle=False)


def test_a_stream_marker_travels_in_a_call() -> None:
    """A streamed argument is a channel number where it stands."""
    marker = values.StreamArgument(3)
    encoded = values.encode_call(
        (1, marker), {"more": values.StreamArgument(4)}, allow_pickle=False
    )

    args, kwargs = values.decode_call(encoded.body, [], allow_pickle=False)
    assert type(args[1]) is values.StreamArgument
    assert (args, kwargs) == ((1, marker), {"more": values.StreamArgument(4)})


@pytest.mark.parametrize(
    "value",
    [1, [], [[1]], [[1], 2], [1, {}], [{}, {}], [[1], {}, 3], [[1], {1: 2}], [[1], {"a": 1, 2: 3}]],
)
def test_what_is_no_call_is_refused(value: Any) -> None:
    """Arguments are a list and named values, and nothing else."""
    encoded = values.encode(value, allow_pickle=False)

    with pytest.raises(SerializationError, match="arguments"):
        values.decode_call(encoded.body, [], allow_pickle=False)


def test_memory_for_buffers_is_bounded_before_it_is_made() -> None:
    """The receiver's own limit counts over all buffers of a value; so does what the system has."""
    assert [view.nbytes for view in values.allocate([3, 5], limit_bytes=8)] == [3, 5]
    for sizes, limit in (([4, 5], 8), ([1 << 61], 8), ([1 << 61], 1 << 62)):
        with pytest.raises(SerializationError, match="parts") as caught:
            values.allocate(sizes, limit_bytes=limit)
        assert caught.value.code.name == "TOO_LARGE"
