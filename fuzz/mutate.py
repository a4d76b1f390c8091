"""Mutations: from inputs that are valid to inputs that are nearly valid.

Theory. Random bytes die at the first check. What finds bugs is an input that is right but for one
thing, so each mutator knows one shape: bytes, a CBOR tree, a row of frames, a text. The last three
put lengths and checksums right again after a change, most of the time.

Rules of this file. 1) All chance comes from the `Random` that is given; the same seed makes the
same inputs. 2) Nothing here is slow: a mutation costs a few microseconds, about as much as what it
feeds.

Source. The mutators of libFuzzer, and its advice on structure-aware fuzzing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import cbor2

from easyremote.wire.frame import HEADER, HEADER_SIZE, FrameType

Mutate = Callable[[random.Random, bytes], bytes]

SIZE_MAX = 4096
"""Longest input in bytes; what is longer is cut."""

_EDGES = bytes([0, 1, 0x17, 0x18, 0x1B, 0x1F, 0x3B, 0x5B, 0x7F, 0x80, 0x9F, 0xBF, 0xDB, 0xFB, 0xFF])
_LENGTHS = (0, 1, 15, 16, 255, 256, 4095, 16_385, 65_536, 65_537, 262_145, (1 << 32) - 1)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return `data` changed in one to four places: bits, cuts, repeats, lengths."""
    chance = rng.random
    out = bytearray(data)
    for _ in range(1 + int(chance() * chance() * 4)):
        size = len(out)
        at = int(chance() * (size + 1))
        what = int(chance() * 8)
        if what < 2 and size:
            out[at % size] ^= 1 << int(chance() * 8)
        elif what == 2 and size:
            out[at % size] = _EDGES[int(chance() * len(_EDGES))]
        elif what == 3 and size:
            out[at % size] = int(chance() * 256)
        elif what == 4:
            out[at:at] = rng.getrandbits(32).to_bytes(4, "big")[: 1 + int(chance() * 4)]
        elif what == 5:
            del out[at : at + 1 + int(chance() * 8)]
        elif what == 6:
            begin = int(chance() * (size + 1))
            out[at:at] = out[begin : begin + int(chance() * 32)]
        else:
            length = _LENGTHS[int(chance() * len(_LENGTHS))]
            out[at : at + 4] = length.to_bytes(4, "big")
    return bytes(out[:SIZE_MAX]) if len(out) > SIZE_MAX else bytes(out)


# ---- trees -----------------------------------------------------------------------------------


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 23, 24, 255, 1 << 31, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 63),
    -(1 << 64), 1 << 200, 10**5000, 0.0, -0.0, 1.5, float("inf"), float("nan"), 1e308, "", "a",
    "a" * 70, "\0", "\n", "\u202e", "\U0001f600", "é" * 300, "../x", "__class__", b"", b"\0" * 16,
    b"\xff" * 40, [], {}, [[]], {"": 0}, [0] * 40, {"a": {"a": {}}}, _nested(20), _nested(34),
    cbor2.undefined, cbor2.CBORSimpleValue(99), cbor2.CBORTag(2, b"\xff" * 9),
    cbor2.CBORTag(4, [1, 2]), cbor2.CBORTag(30, [1, 0]), cbor2.CBORTag(0, "x"),
    cbor2.CBORTag(258, [1, 1]), cbor2.CBORTag(28, [cbor2.CBORTag(29, 0)]),
)  # fmt: skip
"""Values at which readers stumble."""


def odd(rng: random.Random) -> Any:
    """Return a value at which readers stumble."""
    return _ODD[int(rng.random() * len(_ODD))]


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """Return a copy of a tree that differs in one place."""
    chance = rng.random
    kind = type(tree)
    if kind is cbor2.CBORTag:
        if chance() < 0.8:
            return cbor2.CBORTag(tree.tag, mutate_tree(rng, tree.value))
        return cbor2.CBORTag(int(chance() * 300), tree.value)
    if kind is list and tree:
        return _mutate_list(rng, list(tree))
    if kind is dict and tree:
        return _mutate_dict(rng, dict(tree))
    if chance() < 0.4:
        return odd(rng)
    if kind is str:
        changed = mutate_bytes(rng, tree.encode("utf-8", "surrogatepass"))
        return changed.decode("utf-8", "replace")
    if kind is bytes:
        return mutate_bytes(rng, tree)
    if kind is int:
        return tree + int(chance() * 9) - 4
    return odd(rng)


def _mutate_list(rng: random.Random, items: list[Any]) -> list[Any]:
    chance = rng.random
    at = int(chance() * len(items))
    what = chance()
    if what < 0.75:
        items[at] = mutate_tree(rng, items[at])
    elif what < 0.83:
        del items[at]
    elif what < 0.9:
        items.insert(at, odd(rng))
    elif what < 0.97:
        items.insert(at, items[int(chance() * len(items))])
    else:
        items = items * (2 + int(chance() * 40))
    return items


def _mutate_dict(rng: random.Random, items: dict[Any, Any]) -> dict[Any, Any]:
    chance = rng.random
    key = list(items)[int(chance() * len(items))]
    what = chance()
    if what < 0.8:
        items[key] = mutate_tree(rng, items[key])
    elif what < 0.87:
        del items[key]
    elif what < 0.94:
        items["x" * int(chance() * 300)] = odd(rng)
    else:
        items[int(chance() * 9) - 4] = items[key]
    return items


def mutate_cbor(rng: random.Random, data: bytes) -> bytes:
    """Return CBOR with another value somewhere, or with other bytes."""
    if rng.random() < 0.5:
        return mutate_bytes(rng, data)
    try:
        tree = cbor2.loads(data, tag_hook=_keep, semantic_decoders=_AS_TAGS)
        return cbor2.dumps(mutate_tree(rng, tree))[:SIZE_MAX]
    except (cbor2.CBORError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return mutate_bytes(rng, data)


def _keep(tag: cbor2.CBORTag, _immutable: bool = False) -> cbor2.CBORTag:
    return tag


class _AsTags(dict[int, Any]):
    """Decodes every tag as itself, so that it is written back as it was."""

    def __missing__(self, number: int) -> Any:
        decoder = self[number] = lambda item, _immutable: cbor2.CBORTag(number, item)
        return decoder


_AS_TAGS = _AsTags()
for _number in (*range(64), 100, 256, 258, 260, 261, 1004, 43000, 55799):
    _ = _AS_TAGS[_number]


# ---- frames ----------------------------------------------------------------------------------


def split(data: bytes) -> list[bytes]:
    """Return the frames in `data`; what is no whole frame comes last."""
    frames: list[bytes] = []
    at, size = 0, len(data)
    while at + HEADER_SIZE <= size:
        stop = at + HEADER_SIZE + int.from_bytes(data[at : at + 4], "big")
        if stop > size:
            break
        frames.append(data[at:stop])
        at = stop
    if at < size:
        frames.append(data[at:])
    return frames


def mutate_frames(rng: random.Random, data: bytes) -> bytes:
    """Return a conversation with one to three frames changed, moved, repeated or left out."""
    chance = rng.random
    if chance() < 0.1:
        return mutate_bytes(rng, data)
    frames = split(data)
    for _ in range(1 + int(chance() * 3)):
        if not frames:
            frames = [HEADER.pack(0, FrameType.PING, 0, 0, 0)]
        at = int(chance() * len(frames))
        what = chance()
        if what < 0.6:
            frames[at] = mutate_frame(rng, frames[at])
        elif what < 0.7:
            del frames[at]
        elif what < 0.85:
            frames.insert(at, frames[int(chance() * len(frames))])
        elif what < 0.95:
            other = int(chance() * len(frames))
            frames[at], frames[other] = frames[other], frames[at]
        else:
            frames = frames[:at] + [frames[at]] * int(chance() * 120) + frames[at:]
    return b"".join(frames)[:SIZE_MAX]


_TYPES = tuple(int(type_) for type_ in FrameType)


def mutate_frame(rng: random.Random, frame: bytes) -> bytes:
    """Return a frame with another header or payload; its length is right most of the time."""
    chance = rng.random
    if len(frame) < HEADER_SIZE:
        return mutate_bytes(rng, frame)
    length, type_, flags, kind, stream_id = HEADER.unpack_from(frame)
    payload = frame[HEADER_SIZE:]
    what = int(chance() * 8)
    if what < 3:
        payload = mutate_cbor(rng, payload)
        length = len(payload)
    elif what == 3:
        type_ = _TYPES[int(chance() * len(_TYPES))] if chance() < 0.8 else int(chance() * 256)
    elif what == 4:
        flags = int(chance() * 8) if chance() < 0.8 else int(chance() * 256)
    elif what == 5:
        kind = int(chance() * 20)
    elif what == 6:
        stream_id = int(chance() * 9) if chance() < 0.8 else rng.getrandbits(64)
    else:
        length = _LENGTHS[int(chance() * len(_LENGTHS))]
    return HEADER.pack(length & 0xFFFFFFFF, type_, flags, kind & 0xFFFF, stream_id) + payload


# ---- texts -----------------------------------------------------------------------------------


def mutate_text(rng: random.Random, data: bytes) -> bytes:
    """Return a text with other characters: of the same alphabet, or of none."""
    chance = rng.random
    if chance() < 0.3 or not data:
        return mutate_bytes(rng, data)
    out = bytearray(data)
    at = int(chance() * len(out))
    what = int(chance() * 4)
    if what == 0:
        out[at] = b"0Oo1lIzZ_ \t-:"[int(chance() * 13)]
    elif what == 1:
        out[at:at] = b"\xe2\x80\xae" if chance() < 0.2 else bytes([out[at]])
    elif what == 2:
        del out[at]
    else:
        other = int(chance() * len(out))
        out[at], out[other] = out[other], out[at]
    return bytes(out[:SIZE_MAX])
