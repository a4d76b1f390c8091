"""Targets below the connection: CBOR of both profiles, messages, values, exceptions, arrays."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from pathlib import PurePosixPath
from typing import Any

import cbor2
import numpy as np

from easyremote import values
from easyremote.errors import RemoteExecutionError, SerializationError
from easyremote.wire import array, cbor
from easyremote.wire import message as ms
from easyremote.wire.errors import CodecError

from .mutate import mutate_bytes, mutate_cbor
from .target import Feature, Target, feature_of

CALL = ms.Call(b"i" * 16, "f", ["n"], {"capability": "gpu"}, 5, 0, 0, b"", b"\x82\x81\x01\xa0", [])
PLAIN_TREES: tuple[Any, ...] = (
    [1, "a", {"b": [1.5, None, True]}, b"x"],
    {"key": [0, -1, 24, 256, 1 << 40, -(1 << 63), (1 << 64) - 1], "e": {"f": {"g": []}}},
    ["text", "é\U0001f600", b"\x00\xff" * 8, 3.25, float("inf"), False],
)

# ---- the decoder -----------------------------------------------------------------------------

_TAGS = cbor.TagTable({})


def decoder(data: bytes) -> Feature:
    """Both profiles of the decoder: what either takes survives a round trip."""
    try:
        value = cbor.decode_value(data, _TAGS)
    except CodecError as error:
        value, feature = _REFUSED, feature_of(error)
    else:
        feature = type(value)
    try:
        fields = cbor.decode_frame(data)
    except CodecError:
        if value is not _REFUSED:
            again = cbor.decode_value(cbor.encode_value(value), _TAGS)
            assert _same(again, value), "a value must survive a round trip"
        return feature
    assert value is not _REFUSED, "what frames may hold, values may hold, too"
    again = cbor.decode_frame(cbor.encode_frame(fields))
    assert _same(again, fields), "a decoded frame must survive a round trip"
    return feature


_REFUSED = object()


def _same(one: object, other: object) -> bool:
    # Not-a-number is not equal to itself, and a repr of long integers is refused.
    return one == other or cbor2.dumps(one) == cbor2.dumps(other)


def _decoder_seeds() -> list[bytes]:
    trees = [
        *PLAIN_TREES, 0, "", [1 << 64, -(1 << 70), 1 << 520], _nest(31), [b"x" * 300] * 3,
        {str(n): n for n in range(40)}, [0.0, -0.0, 1.1, 65504.0, 1e300],
    ]  # fmt: skip
    return [cbor2.dumps(tree) for tree in trees]


def _nest(depth: int) -> Any:
    value: Any = "deep"
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


# ---- messages --------------------------------------------------------------------------------


def messages(data: bytes) -> Feature:
    """A payload as the message of two kinds: the first byte says of which, the next is beside it.

    A payload of one kind that is read as another is what a peer sends that confuses them.
    """
    if not data:
        return None
    taken, payload = [], data[1:]
    for number in (data[0], data[0] + 1):
        kind = _KINDS[number % len(_KINDS)]
        cls = ms.BY_KIND[kind]
        try:
            message = ms.decode(cls, payload)
        except CodecError as error:
            taken.append(feature_of(error))
            continue
        taken.append(kind)
        again = ms.decode(cls, ms.encode(message))
        assert _same(again, message), "a message must survive a round trip"
    return tuple(taken)


_KINDS = tuple(ms.BY_KIND)


def _mutate_message(rng: Any, data: bytes) -> bytes:
    kind = data[:1] if rng.random() < 0.9 else bytes([int(rng.random() * 256)])
    return kind + mutate_cbor(rng, data[1:])


def _message_seeds() -> list[bytes]:
    detail = {"type": "KeyError", "message": "m", "traceback": "t"}
    examples = (
        CALL, CALL._replace(body=None, segments=[40_000, 7], deadline_ms=None, node_ids=None),
        ms.Dispatch(
            b"i" * 16, "f", "u", ["member"], 5, 0, 0, b"g" * 16, 1, {"depth": 1}, b"\x01", []
        ),
        ms.Item(0, 0, b"\x01", []), ms.Item(3, 1, None, [9]), ms.ItemsEnd(1, None),
        ms.ItemsEnd(1, detail), ms.Want(0, 16), ms.Progress(0, b"\x01", []),
        ms.Result(0, 0.25, b"\x01", []), ms.Result(1, 1, None, [70_000]),
        ms.Failure(27, "m", True, 1.5, detail), ms.Register(b"\xa0", []),
        ms.Registered({"epoch": 1, "lease_s": 15.0}), ms.Query("nodes", {"fresh": True}),
        ms.Reply(b"\x80", []), ms.Telemetry({"cpu": 0.5}), ms.Update(None, [40_000]),
    )  # fmt: skip
    return [bytes([_KINDS.index(ms.kind_of(message))]) + ms.encode(message) for message in examples]


# ---- values ----------------------------------------------------------------------------------


def user_values(data: bytes) -> Feature:
    """The decoder of user values, with buffers cut from the input; no pickle is allowed."""
    if len(data) < 2:
        return None
    cut, parts = data[0], data[1] % 4
    body = data[2 + cut :]
    feature: Feature = None
    for decode_ in (values.decode, values.decode_call):
        raw = memoryview(bytearray(data[2 : 2 + cut]))
        step = len(raw) // parts if parts else 0
        buffers = [raw[i * step : (i + 1) * step] for i in range(parts)] if step else []
        try:
            value = decode_(body, buffers, allow_pickle=False)
        except SerializationError as error:
            feature = feature_of(error.__cause__ or error)
            continue
        feature = type(value)
        values.encode(value, allow_pickle=False)
    return feature


def _value_seeds() -> list[bytes]:
    utc = dt.UTC
    parts: list[Any] = [
        {"a": (1, 2), "b": {3, 4}, "c": frozenset({5}), 6: bytearray(b"x"), None: 1.5},
        [dt.datetime(2024, 1, 2, 3, 4, 5, 6, utc), dt.date(2024, 1, 2), dt.time(1, 2, 3)],
        [dt.timedelta(1, 2, 3), decimal.Decimal("1.50"), uuid.UUID(int=5), 1 + 2j],
        [PurePosixPath("/a/b"), "\ud800", 1 << 200, -(1 << 99), np.float32(1.5), np.int64(7)],
        np.arange(6, dtype=np.int16).reshape(2, 3),
        [np.zeros(4), np.asfortranarray(np.ones((2, 2), np.float32)), np.array([True, False])],
        np.array(["2024-01-02", "NaT"], "datetime64[D]"),
        ["text " * 30, b"bytes " * 30, bytearray(200)],
    ]
    seeds = []
    for value in parts:
        for encoded in (
            values.encode(value, allow_pickle=False),
            values.encode_call((value,), {"k": value}, allow_pickle=False),
        ):
            raw = b"".join(encoded.buffers)
            if len(raw) < 256:
                count = len(encoded.buffers)
                seeds.append(bytes([len(raw), count]) + raw + encoded.body)
    return seeds


def _mutate_value(rng: Any, data: bytes) -> bytes:
    """Change the body as a tree, or anything as bytes."""
    if len(data) < 2 or rng.random() < 0.2:
        return mutate_bytes(rng, data)
    begin = 2 + data[0]
    return data[:begin] + mutate_cbor(rng, data[begin:])


# ---- exceptions ------------------------------------------------------------------------------


def exceptions(data: bytes) -> Feature:
    """An exception as data, from a hostile node: it becomes one, and can be shown."""
    try:
        detail = cbor.decode_frame(data)
    except CodecError:
        return None
    if type(detail) is not dict:
        return None
    error = values.decode_exception(detail)
    assert isinstance(error, RemoteExecutionError)
    assert type(str(error)) is str
    assert type(repr(error)) is str
    values.encode_exception(error)
    return type(error)


def _exception_seeds() -> list[bytes]:
    raised: list[BaseException] = [
        KeyError("x"), ValueError("m", 1, 2.5), OSError(2, "no such file", "name"), MemoryError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ExceptionGroup("g", [TypeError("t")]),
        decimal.InvalidOperation("d"), StopIteration(3), ImportError("i", name="n"),
        SyntaxError("s", ("file", 1, 2, "text")), AttributeError("a", name="n", obj=None),
    ]  # fmt: skip
    linked = RuntimeError("outer")
    linked.__cause__ = KeyError("inner")
    linked.add_note("a note")
    raised.append(linked)
    return [cbor.encode_frame(values.encode_exception(error)) for error in raised]


# ---- array headers ---------------------------------------------------------------------------


def arrays(data: bytes) -> Feature:
    """An array header, and a buffer that fits it or not."""
    if not data:
        return None
    cut = data[0]
    try:
        header = array.parse(cbor.decode_frame(data[1 + cut :]))
        made = array.view(header, bytearray(data[1 : 1 + cut]))
    except CodecError as error:
        return feature_of(error)
    assert made.nbytes == header.size_bytes == cut
    assert made.shape == header.shape
    again, raw = array.describe(made)
    assert again.dtype == header.dtype and raw.nbytes == made.nbytes
    return (header.code, len(header.shape))


def _array_seeds() -> list[bytes]:
    seeds = []
    for code, text in enumerate(array.DTYPES):
        unit = ["ns"] if text[1] in "mM" else []
        size = np.dtype(text).itemsize
        for shape, flags in (([2, 3], 1), ([0, 5], 0), ([], 0), ([4], 0)):
            raw = bytes(size * int(np.prod(shape, dtype=int)))
            if len(raw) < 256:
                seeds.append(
                    bytes([len(raw)]) + raw + cbor.encode_frame([code, shape, flags, *unit])
                )
    return seeds


def _mutate_array(rng: Any, data: bytes) -> bytes:
    begin = 1 + data[0] if data else 0
    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    return data[:begin] + mutate_cbor(rng, data[begin:])


DECODER = Target(decoder, _decoder_seeds, mutate_cbor)
MESSAGES = Target(messages, _message_seeds, _mutate_message)
VALUES = Target(user_values, _value_seeds, _mutate_value)
EXCEPTIONS = Target(exceptions, _exception_seeds, mutate_cbor)
ARRAYS = Target(arrays, _array_seeds, _mutate_array)
