"""Durations on the command line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.cli.duration import duration_text, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("24h", 86_400.0),
        ("90d", 90 * 86_400.0),
        ("15m", 900.0),
        ("90s", 90.0),
        ("2w", 14 * 86_400.0),
        ("1h30m", 5400.0),
        ("1d 12h", None),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        (" 24H ", 86_400.0),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float | None) -> None:
    """Every unit counts what its name says; parts stand side by side, without spaces between."""
    if seconds is None:
        with pytest.raises(ValueError, match="is no duration"):
            parse_duration(text)
    else:
        assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "h", "24", "-1h", "1h-", "30m1h", "1h1h", "1y", "1 hour", "1e9s", "inf", "٣h", "1hx"],
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    """A typo never becomes another time: 24 alone could be hours or seconds."""
    with pytest.raises(ValueError, match="24h"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0s", "0h0m", "0"])
def test_a_duration_lasts(text: str) -> None:
    """A token that lasts no time, or a deadline that has passed already, is a mistake."""
    with pytest.raises(ValueError, match="longer than zero"):
        parse_duration(text, bare_seconds=True)


def test_a_bare_number_counts_seconds_where_that_is_expected() -> None:
    """`--timeout 5` is five seconds, and a unit is still allowed."""
    assert parse_duration("5", bare_seconds=True) == 5.0
    assert parse_duration("0.5", bare_seconds=True) == 0.5
    assert parse_duration("5m", bare_seconds=True) == 300.0


@given(st.text(max_size=30))
def test_any_text_gives_seconds_or_a_sentence(text: str) -> None:
    """Nothing that is typed gives another kind of error, or a time without end."""
    try:
        seconds = parse_duration(text, bare_seconds=True)
    except ValueError as error:
        assert str(error)  # noqa: PT017  # There is no error to expect where it is a duration.
    else:
        assert 0 < seconds < math.inf


@given(st.integers(min_value=1, max_value=10_000_000))
def test_printed_durations_can_be_read_again(seconds: int) -> None:
    """What is shown as a duration is one, off by less than its last unit."""
    shown = duration_text(seconds)
    smallest_s = {"s": 1, "m": 60, "h": 3600, "d": 86_400}[shown[-1]]
    read = parse_duration(shown.replace(" ", ""))

    assert read <= seconds < read + max(1, smallest_s) * (1 if smallest_s == 1 else 60)
