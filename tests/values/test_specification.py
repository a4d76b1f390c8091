"""The specification of values in wire/README.md is true: its examples and tables are replayed."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from easyremote import values
from easyremote.values import tags
from easyremote.wire import array

from .helpers import is_same

TEXT = (Path(__file__).parents[2] / "wire" / "README.md").read_text()
EXAMPLES = re.findall(
    r"^(.+?) {2,}(\S.*)$", TEXT.split("```values\n")[1].split("```")[0], re.MULTILINE
)

MEANINGS: dict[str, Any] = {
    '[1, (2, "a")]': [1, (2, "a")],
    '{1: "a"}': {1: "a"},
    "{3}": {3},
    "2**64": 2**64,
    "UUID(int=1)": uuid.UUID(int=1),
    "timedelta(1, 2, 3)": dt.timedelta(1, 2, 3),
    "1 + 2j": 1 + 2j,
    "float32(1.5)": np.float32(1.5),
    "int16([[0, 1, 2]])": np.array([[0, 1, 2]], "i2"),
    'call(1, "a", k=(2,))': [[1, "a"], {"k": (2,)}],
}


@pytest.mark.parametrize(("encoded", "meaning"), EXAMPLES)
def test_examples_mean_what_they_say_and_are_what_we_send(encoded: str, meaning: str) -> None:
    """Each line of the example, there and back."""
    body, *buffers = (bytes.fromhex(part) for part in encoded.split())
    value = MEANINGS[meaning]

    assert is_same(values.decode(body, buffers, allow_pickle=False), value)
    ours = values.encode(value, allow_pickle=False)
    assert (ours.body, [bytes(buffer) for buffer in ours.buffers]) == (body, buffers)


def test_every_meaning_is_in_the_specification() -> None:
    """None of the examples was dropped."""
    assert [meaning for _, meaning in EXAMPLES] == list(MEANINGS)


def test_the_table_of_tags_is_the_one_in_the_code() -> None:
    """A tag that is not specified does not exist, and the other way round."""
    section = TEXT.split("## 11. Values of users")[1]
    listed: set[int] = set()
    for row in re.findall(r"^\| ([0-9, ]+) \|", section, re.MULTILINE):
        listed.update(int(number) for number in row.split(","))

    assert listed == {value for name, value in vars(tags).items() if name.isupper()}


def test_the_list_of_element_types_is_the_one_in_the_code() -> None:
    """Names and order, since a type is its index."""
    match = re.search(r"index into `([^`]+)`", TEXT)
    assert match is not None
    kinds = {"b": "bool", "i": "i", "u": "u", "f": "f", "c": "c"}
    names = [
        {"M": "datetime64", "m": "timedelta64", "b": "bool"}.get(
            dtype.kind, f"{kinds.get(dtype.kind)}{8 * dtype.itemsize}"
        )
        for dtype in map(np.dtype, array.DTYPES)
    ]

    assert match.group(1).split() == names
