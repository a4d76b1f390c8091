"""Dicts and sets from the wire cost what their size allows, whoever chose the keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from easyremote import values
from easyremote.errors import SerializationError
from easyremote.values import collisions, tags
from easyremote.wire.cbor import encode_value, tag
from easyremote.wire.errors import CodecError

from .helpers import there_and_back

PRIME = (1 << 61) - 1
COUNT = 28_000
COLLIDING = [index * PRIME for index in range(1, COUNT)]
"""Integers of one hash, in 400 KB: a dict of them takes seconds."""


def test_colliding_keys_end_soon() -> None:
    """Keys whose hashes are equal are refused long before they are all in."""
    assert len({hash(key) for key in COLLIDING}) == 1
    attacks: list[tuple[Callable[[Any], Any], Any]] = [
        (collisions.build_dict, [part for key in COLLIDING for part in (key, 0)]),
        (collisions.build_set, COLLIDING),
        (collisions.build_set, [(key,) for key in COLLIDING]),
    ]

    for build, flat in attacks:
        started = time.thread_time()
        with pytest.raises(CodecError, match="collide"):
            build(flat)
        # An honest build takes 0.01 s, this attack without a defence more than 2 s.
        assert time.thread_time() - started < 1.0


@pytest.mark.parametrize("number", [tags.DICT, tags.SET, tags.FROZENSET])
def test_colliding_keys_on_the_wire_are_a_typed_error(number: int) -> None:
    """Every tag that builds something with hashes has the defence."""
    flat = [part for key in COLLIDING for part in (key, 0)] if number == tags.DICT else COLLIDING

    with pytest.raises(SerializationError, match="collide"):
        values.decode(encode_value(tag(number, flat)), [], allow_pickle=False)


@pytest.mark.parametrize(
    "keys",
    [range(50_000), range(0, 50_000 << 20, 1 << 20), range(-25_000, 25_000),
     [(index, str(index)) for index in range(20_000)], [index / 7 for index in range(30_000)],
     [frozenset({index, -index}) for index in range(5_000)],
     [f"{index}" for index in range(50_000)]],
    ids=["dense", "spaced", "negative", "tuples", "floats", "sets", "text"],
)  # fmt: skip
def test_honest_keys_pass_in_any_number(keys: Any) -> None:
    """Large dicts and sets of numbers, tuples and text arrive as they are."""
    assert there_and_back(dict.fromkeys(keys, 1)) == dict.fromkeys(keys, 1)
    assert there_and_back(set(keys)) == set(keys)


@pytest.mark.parametrize("flat", [None, 1, {}, "ab", (1, 2), [1], [1, 2, 3], [[], 1], [{}, 1],
                                  [1, 0, 1, 0], [1, 0, 1.0, 0], [1, 0, True, 0]])  # fmt: skip
def test_what_is_no_dict_is_refused(flat: Any) -> None:
    """A key without a value, one that is not hashable, and one that is there twice."""
    with pytest.raises(CodecError):
        collisions.build_dict(flat)


@pytest.mark.parametrize(
    "flat", [None, 1, {}, "ab", (1, 2), [[]], [{}], [1, 1], [1, True], [0, 0.0]]
)
def test_what_is_no_set_is_refused(flat: Any) -> None:
    """The same for the entries of a set."""
    with pytest.raises(CodecError):
        collisions.build_set(flat)
