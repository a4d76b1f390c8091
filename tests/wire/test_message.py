"""Messages: every field is checked, newer fields are ignored."""

from __future__ import annotations

from typing import Any

import pytest

from easyremote.wire import cbor
from easyremote.wire import message as ms
from easyremote.wire.errors import CODES, CodecError, ErrorCode

EXAMPLES: list[ms.Message] = [
    ms.Call(b"i" * 16, "f", None, {"priority": 1}, 10, 0, 1, b"", b"\x80", []),
    ms.Call(b"i" * 16, "f", ["a", "b"], {}, None, 1, 0, b"t" * 16, None, [5, 7], 3),
    ms.Dispatch(b"i" * 16, "f", "alice", ["member"], 10, 0, 0, b"g", 1, {"depth": 1}, b"", []),
    ms.Item(0, 0, b"\x01", []),
    ms.ItemsEnd(1, None),
    ms.ItemsEnd(1, {"type": "ValueError"}),
    ms.Want(0, 256),
    ms.Progress(0, b"\x01", []),
    ms.Result(0, 0.25, None, [9]),
    ms.Result(0, 1, b"", []),
    ms.Failure(24, "cancelled", True, None, {}),
    ms.Failure(19, "full", False, 1.5, {"class": "x"}),
    ms.Register(b"\xa0", []),
    ms.Registered({"epoch": 1}),
    ms.Query("nodes", {}),
    ms.Reply(None, [70_000]),
    ms.Telemetry({"cpu": 0.5}),
    ms.Update(b"\xa0", []),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_messages_arrive_as_they_were_said(message: Any) -> None:
    """Encoding and decoding are inverse, and a newer peer's extra fields do no harm."""
    payload = ms.encode(message)

    assert ms.decode(type(message), payload) == message
    longer = cbor.encode_frame([*message, "new", 1])
    assert ms.decode(type(message), longer) == message
    assert ms.BY_KIND[ms.kind_of(message)] is type(message)
    defaults = type(message)._field_defaults
    older = cbor.encode_frame(list(message)[: len(message) - len(defaults)])
    assert ms.decode(type(message), older) == message._replace(**defaults)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_field_is_checked(message: Any) -> None:
    """A field of another type, or one too few, is a decode error."""
    for index in range(len(message)):
        fields = list(message)
        fields[index] = (
            [[]] if isinstance(fields[index], dict) or fields[index] is None else {"": 0}
        )
        if isinstance(message[index], list) or message[index] is None:
            fields[index] = 1.5 if not isinstance(message, ms.Failure) else "x"
        with pytest.raises(CodecError):
            ms.decode(type(message), cbor.encode_frame(fields))
    required = len(message) - len(type(message)._field_defaults)
    with pytest.raises(CodecError):
        ms.decode(type(message), cbor.encode_frame(list(message)[: required - 1]))
    with pytest.raises(CodecError):
        ms.decode(type(message), cbor.encode_frame([[]])[1:] + b"\x01")


@pytest.mark.parametrize(
    "message",
    [
        EXAMPLES[0]._replace(call_id=b"short"),  # type: ignore[call-arg]
        EXAMPLES[0]._replace(deadline_ms=-1),  # type: ignore[call-arg]
        EXAMPLES[0]._replace(since=-1),  # type: ignore[call-arg]
        EXAMPLES[0]._replace(node_ids=[1]),  # type: ignore[call-arg, list-item]
        EXAMPLES[0]._replace(segments=[0]),  # type: ignore[call-arg]
        EXAMPLES[0]._replace(segments=[1 << 62]),  # type: ignore[call-arg]
        EXAMPLES[0]._replace(segments=["1"]),  # type: ignore[call-arg, list-item]
        EXAMPLES[0]._replace(segments=[1] * (ms.SEGMENTS_MAX + 1)),  # type: ignore[call-arg]
        EXAMPLES[2]._replace(roles=[None]),  # type: ignore[call-arg, list-item]
        ms.Want(-1, 0),
        ms.Item(-1, 0, None, []),
        ms.ItemsEnd(-1, None),
    ],
    ids=str,
)
def test_fields_out_of_range_are_refused(message: Any) -> None:
    """Types are not enough: ids, deadlines, channels and sizes have ranges."""
    with pytest.raises(CodecError):
        ms.decode(type(message), cbor.encode_frame(list(message)))


def test_every_code_has_a_meaning() -> None:
    """The closed list of error kinds is complete, numbered without gaps, and never reused."""
    assert set(CODES) == set(ErrorCode)
    assert [int(code) for code in ErrorCode] == list(range(len(ErrorCode)))


@pytest.mark.parametrize("seconds", [0.0, 0.5, 0.1, 3600.25])
def test_time_of_a_body_is_read_without_decoding(seconds: float) -> None:
    """A relay can look at the time of any result, inline or with segments, as it was written."""
    for result in (ms.Result(0, seconds, b"x", []), ms.Result(1, seconds, None, [7])):
        assert ms.body_seconds(ms.encode(result)) == seconds


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\x84\x00\xfb", ms.encode(ms.Failure(1, "a reason that is long", True, None, {})),
        b"\xa4\x00\xfb" + bytes(9), b"\x84\x18\xfb" + bytes(9), b"\x84\x00\xfa" + bytes(9),
        b"\x84\x00\xfb\x7f\xf8" + bytes(7), b"\x84\x00\xfb\xbf\xf0" + bytes(7),
        b"\x84\x00\xfb\x7f\xf0" + bytes(7),
    ],
)  # fmt: skip
def test_other_payloads_have_no_time(payload: bytes) -> None:
    """What is laid out otherwise, or is no time, is unknown and never an error."""
    assert ms.body_seconds(payload) is None
