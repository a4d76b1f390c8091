"""The strict CBOR profile: what frames and values may hold, and what nobody may send."""

from __future__ import annotations

import math
import struct
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyremote.wire import cbor
from easyremote.wire.cbor import TagTable
from easyremote.wire.errors import CodecError

PLAIN_VECTORS: list[tuple[str, Any]] = [
    ("00", 0), ("01", 1), ("0a", 10), ("17", 23), ("1818", 24), ("1819", 25), ("1864", 100),
    ("1903e8", 1000), ("1a000f4240", 1000000), ("1b000000e8d4a51000", 1000000000000),
    ("1bffffffffffffffff", 18446744073709551615), ("20", -1), ("29", -10), ("3863", -100),
    ("3903e7", -1000), ("f90000", 0.0), ("f98000", -0.0), ("f93c00", 1.0),
    ("fb3ff199999999999a", 1.1), ("f93e00", 1.5), ("f97bff", 65504.0), ("fa47c35000", 100000.0),
    ("fa7f7fffff", 3.4028234663852886e38), ("fb7e37e43c8800759c", 1.0e300),
    ("f90001", 5.960464477539063e-8), ("f90400", 0.00006103515625), ("f9c400", -4.0),
    ("fbc010666666666666", -4.1), ("f97c00", math.inf), ("f9fc00", -math.inf),
    ("fa7f800000", math.inf), ("fb7ff0000000000000", math.inf), ("f4", False), ("f5", True),
    ("f6", None), ("40", b""), ("4401020304", b"\x01\x02\x03\x04"), ("60", ""), ("6161", "a"),
    ("6449455446", "IETF"), ("62225c", '"\\'), ("62c3bc", "\u00fc"), ("63e6b0b4", "\u6c34"),
    ("64f0908591", "\U00010151"), ("80", []), ("83010203", [1, 2, 3]),
    ("8301820203820405", [1, [2, 3], [4, 5]]),
    ("98190102030405060708090a0b0c0d0e0f101112131415161718181819", list(range(1, 26))),
    ("a0", {}), ("a26161016162820203", {"a": 1, "b": [2, 3]}),
    ("826161a161626163", ["a", {"b": "c"}]),
    ("a56161614161626142616361436164614461656145",
     {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"}),
]  # fmt: skip
"""RFC 8949, appendix A: what is inside the profile."""

FOREIGN_VECTORS = [
    "c249010000000000000000", "c349010000000000000000", "3bffffffffffffffff",
    "f7", "f0", "f8ff", "c074323031332d30332d32315432303a30343a30305a", "c11a514b67b0",
    "c1fb41d452d9e8200000", "d74401020304", "d818456449455446",
    "d82076687474703a2f2f7777772e6578616d706c652e636f6d", "a201020304",
    "5f42010243030405ff", "7f657374726561646d696e67ff", "9fff", "9f018202039f0405ffff",
    "9f01820203820405ff", "83018202039f0405ff", "83019f0203ff820405",
    "9f0102030405060708090a0b0c0d0e0f101112131415161718181819ff",
    "bf61610161629f0203ffff", "826161bf61626163ff", "bf6346756ef563416d7421ff",
]  # fmt: skip
"""RFC 8949, appendix A: what is outside the profile of frames."""

ILL_FORMED = [
    "", "18", "19", "1a", "1b", "1901", "1a0102", "1b01020304050607", "38", "58", "78", "98",
    "9a01ff00", "b8", "d8", "f8", "f900", "fa0000", "fb000000", "41", "61", "5affffffff00",
    "5bffffffffffffffff010203", "7affffffff00", "7b7fffffffffffffff010203", "81", "818181818181",
    "8200", "a1", "a20102", "a100", "a2000000", "c0", "1c", "1d", "1e", "1f", "3c", "3f", "5c",
    "5f00", "7c", "9c", "bc", "bf6100", "dc", "df", "fc", "fd", "fe", "ff", "f800", "f81f",
    "61ff", "62c328", "63eda080", "64f4908080",
]  # fmt: skip
"""RFC 8949, appendix F: not well-formed; and text that is not UTF-8."""


def refused(payload: bytes) -> str:
    with pytest.raises(CodecError) as caught:
        cbor.decode_frame(payload)
    return str(caught.value)


def same(one: Any, other: Any) -> bool:
    """Equal in type and value; a NaN equals a NaN, and 0.0 is not -0.0."""
    return repr(one) == repr(other)


frames = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.parametrize(("text", "value"), PLAIN_VECTORS, ids=lambda v: str(v)[:24])
def test_rfc_examples_inside_the_profile_decode_to_their_values(text: str, value: Any) -> None:
    """Every example of RFC 8949 appendix A that the profile has is understood, in any width."""
    payload = bytes.fromhex(text)

    assert same(cbor.decode_frame(payload), value)
    assert same(cbor.decode_value(payload, TagTable({})), value)
    assert same(cbor.decode_frame(cbor.encode_frame(value)), value)


@pytest.mark.parametrize("text", ["f97e00", "fa7fc00000", "fb7ff8000000000000"])
def test_every_width_of_nan_decodes(text: str) -> None:
    """Not-a-number arrives as a float, whatever its width."""
    value = cbor.decode_frame(bytes.fromhex(text))

    assert type(value) is float
    assert math.isnan(value)


@pytest.mark.parametrize("text", FOREIGN_VECTORS + ILL_FORMED)
def test_what_is_outside_the_profile_is_a_codec_error(text: str) -> None:
    """Tags, indefinite lengths, undefined, simple values and broken bytes end as one error type."""
    payload = bytes.fromhex(text)

    assert refused(payload)
    assert refused(b"\x81" + payload)
    assert refused(b"\xa1\x61a" + payload)


@given(frames)
def test_frames_round_trip(value: Any) -> None:
    """Whatever the profile can express arrives unchanged."""
    assert same(cbor.decode_frame(cbor.encode_frame(value)), value)


@settings(max_examples=300)
@given(st.binary(max_size=64))
def test_any_bytes_give_a_value_or_a_codec_error(payload: bytes) -> None:
    """No input raises anything else, as a frame or as a value."""
    table = TagTable({})
    for decode in (cbor.decode_frame, lambda data: cbor.decode_value(data, table)):
        try:
            value = decode(payload)
        except CodecError:
            continue
        assert type(value) in {type(None), bool, int, float, str, bytes, list, dict}


@given(frames, st.binary(min_size=1, max_size=12))
def test_nothing_may_follow_the_item(value: Any, tail: bytes) -> None:
    """A payload ends where its item ends, whatever the bytes behind it are."""
    payload = cbor.encode_frame(value)

    refused(payload + tail)


@pytest.mark.parametrize(
    "tail",
    [cbor._END, cbor._END + cbor._END, cbor._END[:1], cbor._END[:-1], b"\x00" + cbor._END,
     cbor._END + b"\x00"],
)  # fmt: skip
def test_the_end_mark_cannot_be_forged(tail: bytes) -> None:
    """The mark that finds trailing bytes is no secret, and may stand in a payload as a value."""
    refused(b"\x00" + tail)
    refused(cbor._END + tail)
    mark = int.from_bytes(cbor._END[1:], "big")
    assert cbor.decode_frame(cbor._END) == mark
    assert cbor.decode_frame(b"\x81" + cbor._END) == [mark]
    assert cbor.decode_frame(cbor.encode_frame([cbor._END, "x"])) == [cbor._END, "x"]


def test_every_truncation_is_an_error() -> None:
    """A payload that was cut anywhere is never taken for a shorter one."""
    payload = cbor.encode_frame([1, "text", b"bytes", {"key": [1.5, None, 2**40]}, cbor._END])

    for end in range(len(payload)):
        refused(payload[:end])


@pytest.mark.parametrize("number", [*range(300), 1004, 1040, 43000, 55799, 65535, 2**32, 2**64 - 1])
def test_every_tag_is_refused_in_frames_and_every_unnamed_one_in_values(number: int) -> None:
    """No decoder of cbor2's own is ever reached, whatever is inside the tag."""
    table = TagTable({1: lambda item: ("one", item)})
    for inside in (0, "2000-01-01", b"\x01", [1, 2], {"a": 1}, None):
        payload = cbor2.dumps(cbor2.CBORTag(number, inside))

        assert "tag" in refused(payload)
        if number == 1:
            assert cbor.decode_value(payload, table) == ("one", inside)
        elif number not in {2, 3}:
            with pytest.raises(CodecError, match="closed list"):
                cbor.decode_value(payload, table)


@pytest.mark.parametrize("unit", ["81", "a16161", "d880", "d88081"])
def test_depth_is_bounded(unit: str) -> None:
    """Thirty-two levels of lists, maps and tags pass; deeper ones end early, however deep."""
    table = TagTable({128: lambda item: item})
    levels = 2 if len(unit) == 6 and unit.startswith("d8") else 1

    for depth, fits in ((31 // levels, True), (32 // levels, True), (33, False), (100_000, False)):
        payload = bytes.fromhex(unit) * depth + b"\x00"
        if fits:
            cbor.decode_value(payload, table)
            if not unit.startswith("d8"):
                cbor.decode_frame(payload)
        else:
            refused(payload)
            with pytest.raises(CodecError):
                cbor.decode_value(payload, table)


def test_frames_that_are_too_deep_or_endless_do_not_leave() -> None:
    """A list that contains itself, and one level too many, are errors before a byte is made."""
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 0
    for _ in range(cbor.DEPTH_MAX):
        deep = [deep]

    assert cbor.decode_frame(cbor.encode_frame(deep)) == deep
    for value in (endless, [deep], {"a": deep}):
        with pytest.raises(CodecError, match="deeper"):
            cbor.encode_frame(value)


@pytest.mark.parametrize(
    "value",
    [{1: 2}, {None: 1}, {"k" * 257: 1}, [2**64], 2**64, -(2**63) - 1, [[-(2**64)]], {1},
     memoryview(b"x"),
     object(), [1j], "\ud800", ["\ud800"], {"\ud800": 1}, [{1, 2}], [cbor2.undefined]],
    ids=repr,
)  # fmt: skip
def test_what_frames_cannot_express_does_not_leave(value: Any) -> None:
    """The sender of a value outside the profile gets the error, not the receiver."""
    with pytest.raises(CodecError):
        cbor.encode_frame(value)


def test_named_tuples_and_subclasses_of_plain_types_leave_as_plain_ones() -> None:
    """Messages are named tuples, and codes are IntEnums; on the wire they are lists and numbers."""

    class Number(int):
        pass

    class Text(str):
        __slots__ = ()

    class Table(dict[str, int]):
        pass

    value = (Number(5), Text("x"), bytearray(b"y"), (1, (2,)), Table(a=1))

    assert cbor.decode_frame(cbor.encode_frame(value)) == [5, "x", b"y", [1, [2]], {"a": 1}]
    assert cbor.decode_frame(cbor.encode_frame(Number(7))) == 7


@pytest.mark.parametrize(
    "text", ["a201000100", "a26161006161 00", "a2616100616101", "a2410100410101"]
)
def test_no_key_comes_twice(text: str) -> None:
    """A map that says a key twice means two things, so it means nothing."""
    payload = bytes.fromhex(text)

    refused(payload)
    with pytest.raises(CodecError):
        cbor.decode_value(payload, TagTable({}))


def test_colliding_integer_keys_are_refused_before_a_map_is_built() -> None:
    """Keys with hashes that a peer can choose reach no map; the first one ends the decoding."""
    count = 20_000
    keys = b"".join(b"\x1b" + struct.pack(">Q", index << 40) + b"\x00" for index in range(count))
    payload = b"\xb9" + struct.pack(">H", count) + keys

    assert "text" in refused(payload)
    with pytest.raises(CodecError, match="text"):
        cbor.decode_value(payload, TagTable({}))


def test_values_may_have_byte_strings_as_keys_and_frames_may_not() -> None:
    """Hashes of byte strings are keyed, too; frames have no use for them."""
    payload = bytes.fromhex("a1410100")

    assert cbor.decode_value(payload, TagTable({})) == {b"\x01": 0}
    refused(payload)


def test_values_have_integers_of_any_size_up_to_a_bound() -> None:
    """Bignums go both ways up to 64 KiB, and not one bit beyond."""
    table = TagTable({})
    largest = (1 << 8 * cbor.BIGNUM_BYTES_MAX) - 1

    for value in (2**64, -(2**64) - 1, 2**100, -(2**1000), largest, -largest, [1, {"a": largest}]):
        assert cbor.decode_value(cbor.encode_value(value), table) == value
    too_large: list[Any] = [largest + 1, -largest - 2, [{"a": (largest + 1,)}]]
    for value in (*too_large, cbor.tag(1, largest + 1)):
        with pytest.raises(CodecError, match="bits"):
            cbor.encode_value(value)
        with pytest.raises(CodecError, match=r"bytes|closed"):
            cbor.decode_value(cbor2.dumps(value), table)


def test_long_bodies_that_only_look_like_bignums_pass() -> None:
    """Bytes that look like the head of a huge integer cost a second look, and nothing else."""
    value = [b"\xc2\x5a" * 40_000, 1, True, "x", {"a": [b"\xc3\x5b"]}, cbor.tag(2, b"\x01")]

    assert cbor.decode_value(cbor.encode_value(value), TagTable({})) == [*value[:-1], 1]


@pytest.mark.parametrize("inside", ["01", "6161", "80", "f6", "a0"])
def test_a_bignum_is_bytes(inside: str) -> None:
    """The tag of a large integer around anything else is refused."""
    for number in ("c2", "c3"):
        with pytest.raises(CodecError, match="integer"):
            cbor.decode_value(bytes.fromhex(number + inside), TagTable({}))


@pytest.mark.parametrize("simple", ["f7", "f0", "e0", "f3", "f820", "f8ff"])
@pytest.mark.parametrize(
    "around",
    ["{}", "81{}", "8200{}", "a16161{}", "a161618100{}", "d88081{}", "8181a1616181{}", "d88181{}",
     "d88281{}", "d8808161{}"],
)  # fmt: skip
def test_simple_values_are_found_wherever_they_hide(simple: str, around: str) -> None:
    """`undefined` and its like never reach a user: not in lists, maps, tuples or sets."""
    table = TagTable({128: tuple, 129: set, 130: frozenset})

    with pytest.raises(CodecError):
        cbor.decode_value(bytes.fromhex(around.format(simple)), table)


def test_bytes_that_look_like_simple_values_pass() -> None:
    """Numbers, text and bytes may contain any byte."""
    table = TagTable({128: tuple, 129: set, 130: frozenset})
    value = [b"\xf7\xe0", "\u00f7", 0.1, {"\u00e0": [b"\xf7", {"a": None}]}, 0xF7E0]

    assert cbor.decode_value(cbor.encode_value(value), table) == value
    assert cbor.decode_value(cbor.encode_value(cbor.tag(128, [b"\xf7", [1]])), table) == (
        b"\xf7",
        [1],
    )


def test_a_text_with_surrogates_is_told_apart() -> None:
    """Values have a tag for such a text, so their encoder gets to know."""
    with pytest.raises(UnicodeEncodeError):
        cbor.encode_value(["\ud800"])


@pytest.mark.parametrize("value", [object(), [object()], {"a": object()}])
def test_values_that_cbor_does_not_know_are_codec_errors(value: Any) -> None:
    """What was not brought into the profile is an error of the encoder."""
    with pytest.raises(CodecError):
        cbor.encode_value(value)


def test_reasons_of_tag_decoders_are_told() -> None:
    """A decoder says what is wrong; other mistakes in it become codec errors as well."""

    def wrong(_item: Any) -> Any:
        raise CodecError("too large a hat")

    table = TagTable({200: wrong, 201: lambda item: item["key"]})

    with pytest.raises(CodecError, match="too large a hat"):
        cbor.decode_value(bytes.fromhex("81d8c800"), table)
    with pytest.raises(CodecError, match="not CBOR of this profile"):
        cbor.decode_value(bytes.fromhex("d8c9a0"), table)


def test_an_interrupt_inside_a_tag_decoder_stays_one() -> None:
    """Ctrl-C in the middle of a value is not mistaken for bad bytes."""

    def interrupted(_item: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cbor.decode_value(bytes.fromhex("d8c800"), TagTable({200: interrupted}))


def test_an_extended_table_knows_more_and_leaves_the_first_alone() -> None:
    """Decoders of one value do not leak into the next."""
    table = TagTable({128: tuple})
    more = table.extended({200: lambda item: ("more", item)})
    payload = bytes.fromhex("d8c8d88080")

    assert cbor.decode_value(payload, more) == ("more", ())
    with pytest.raises(CodecError, match="closed list"):
        cbor.decode_value(payload, table)
    with pytest.raises(CodecError, match="closed list"):
        cbor.decode_value(bytes.fromhex("da0001000000"), more)


@pytest.mark.parametrize(
    "head",
    [
        "9b7fffffffffffffff",
        "bb7fffffffffffffff",
        "9affffffff",
        "5b7fffffffffffffff",
        "7b7fffffffffffffff",
    ],
)
def test_a_huge_length_costs_nothing(head: str) -> None:
    """A header that promises more than there is reserves no memory for it."""
    refused(bytes.fromhex(head))
    refused(bytes.fromhex(head) + bytes(100))


def test_a_shared_reference_builds_nothing() -> None:
    """The list that contains itself, in six bytes, is refused."""
    payload = bytes.fromhex("d81c81d81d00")

    refused(payload)
    with pytest.raises(CodecError, match="closed list"):
        cbor.decode_value(payload, TagTable({}))


def test_a_decimal_in_eight_bytes_costs_nothing() -> None:
    """The tag that would compute ten to the power of four billion is refused unseen."""
    payload = bytes.fromhex("c4821affffffff01")

    refused(payload)
    with pytest.raises(CodecError, match="closed list"):
        cbor.decode_value(payload, TagTable({}))
