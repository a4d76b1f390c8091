"""Amounts as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.units import (
    AMOUNT_MAX,
    SHOWN_CHARS,
    Wanted,
    compares,
    quantity,
    read_bytes,
    read_count,
    read_wanted,
    show_bytes,
    shown,
    split_comparison,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0), ("7B", 7), ("1KB", 1000), ("1 kib", 1024), ("1.5MB", 1_500_000),
        ("2MiB", 2 << 20), ("16GB", 16 * 10**9), ("16 GiB", 16 << 30), ("1TB", 10**12),
        ("1TiB", 1 << 40), ("3g", 3 * 10**9), (4096, 4096), (1e3, 1000),
    ],
)  # fmt: skip
def test_sizes_are_read(text: object, size_bytes: int) -> None:
    """Powers of ten and of two, in any case, with or without a space; numbers are bytes."""
    assert read_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1", "1 G B", "1e9", "nan", "inf", "٣", "1.GB", None, True, [], -1, math.nan,
     math.inf, AMOUNT_MAX, "9" * 18 + "TB", "1" * 19],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_how_to_write_one(text: object) -> None:
    """The error names what was read and shows how a size is written."""
    with pytest.raises(ValueError, match=r'^gpu_memory is written as "512MB"'):
        read_bytes(text, "gpu_memory")


def test_a_mistyped_unit_is_guessed() -> None:
    """A unit that does not exist is answered with one that does."""
    with pytest.raises(ValueError, match='did you mean "16GiB"'):
        read_bytes("16GiBs")
    with pytest.raises(ValueError, match="units are B, KB"):
        read_bytes("16 parsecs")


def test_counts_are_numbers() -> None:
    """Fractions and truth values are counts; sizes are not."""
    assert [read_count(one) for one in (2, 0.5, "4", " 0.25 ", True, False)] == [
        2, 0.5, 4, 0.25, 1, 0,
    ]  # fmt: skip
    for wrong in ("2GB", "two", None, -1, ""):
        with pytest.raises(ValueError, match="gpu is a number"):
            read_count(wrong, "gpu")


def test_operators_stand_in_front() -> None:
    """Without one an amount is the least that is enough."""
    assert read_wanted("16GB", read_bytes, "x") == Wanted(">=", 16e9)
    assert read_wanted("= 2", read_count, "x") == Wanted("==", 2)
    assert split_comparison("!= a b ") == ("!=", "a b")
    table = {">=": (0, 1, 1), ">": (0, 0, 1), "==": (0, 1, 0), "!=": (1, 0, 1), "<=": (1, 1, 0),
             "<": (1, 0, 0)}  # fmt: skip
    for compare, expected in table.items():
        wanted = Wanted(compare, 2.0)
        assert tuple(wanted.accepts(found) for found in (1.0, 2.0, 3.0)) == expected


def test_what_a_node_has_is_compared_as_amount_or_as_text() -> None:
    """Amounts of different units compare; text knows equal and unequal only."""
    assert compares("24GB", ">=", "16GiB")
    assert compares(8, "<", "9")
    assert compares("Linux", "==", "linux")
    assert compares("linux", "!=", "macos")
    assert not compares("b", ">", "a")


@given(st.integers(0, 2**60))
def test_a_shown_size_is_about_that_size(size_bytes: int) -> None:
    """What people read is within a thousandth of what is meant, and can be read back."""
    assert read_bytes(show_bytes(size_bytes)) == pytest.approx(size_bytes, rel=1e-3)


def test_shown_sizes_are_short() -> None:
    """The unit is the one in which the size is a short number."""
    assert [show_bytes(n) for n in (0, 999, 1500, 24e9, 20 << 30, 3 << 39)] == [
        "0 B", "999 B", "1.5 KB", "24 GB", "20 GiB", "1.5 TiB",
    ]  # fmt: skip


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.lists(st.integers())))
def test_nothing_breaks_the_reader(value: object) -> None:
    """Whatever somebody writes is an amount or None, and is repeated shortly."""
    amount = quantity(value)

    assert amount is None or 0 <= amount < AMOUNT_MAX
    assert len(shown(value)) <= SHOWN_CHARS
