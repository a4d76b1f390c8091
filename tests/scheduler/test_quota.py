"""Quotas: what providers may write, when windows begin, and that a tally forgets nothing too early.

The windows are checked against plain calendar arithmetic, the tally against a list of all uses.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.quota import (
    BUCKET_S,
    DAY_S,
    PIECES_MAX,
    Limit,
    Quota,
    Tally,
    Use,
    bucket_of,
    read_quota,
    spread,
    window,
    zone_of,
)

NOW = datetime(2026, 3, 4, 15, 16, 17, tzinfo=UTC).timestamp()
ZONES = ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Australia/Lord_Howe"]


@pytest.mark.parametrize(
    ("text", "unit", "amount", "period"),
    [
        ("2_hours_daily", "seconds", 7200, "day"),
        ("90_seconds_hourly", "seconds", 90, "hour"),
        ("1.5_minutes_weekly", "seconds", 90, "week"),
        ("100_calls_monthly", "calls", 100, "month"),
        ("10_requests_rolling_24h", "calls", 10, "rolling_24h"),
        ("0.5_gb_daily", "bytes", 5e8, "day"),
        (" 1_Call_Daily ", "calls", 1, "day"),
    ],
)
def test_text_says_number_unit_and_period(text: str, unit: str, amount: float, period: str) -> None:
    """Every unit and period of the grammar is understood, and stands for base units."""
    assert read_quota(text) == Quota((Limit(unit, amount),), period)


@pytest.mark.parametrize(
    "value",
    [
        {"hours": 2, "per": "day", "tz": "Europe/Berlin", "mode": "hard"},
        {"seconds": 7200.0, "period": "daily", "timezone": "Europe/Berlin", "mode": "hard"},
        {"amount": 120, "unit": "minutes", "per": "day", "tz": "Europe/Berlin", "mode": "hard"},
        {"limit": 2, "unit": "hours", "per": "day", "tz": "Europe/Berlin", "mode": "hard"},
    ],
)
def test_dict_forms_are_equivalent(value: dict[str, Any]) -> None:
    """All ways to write a dict mean the same quota, and its plain form is read back as it."""
    quota = read_quota(value)

    assert quota == read_quota("2_hours_daily", zone="Europe/Berlin", mode="hard")
    assert read_quota(quota.to_plain()) == quota


def test_dict_may_limit_several_units() -> None:
    """One window may have a limit for each unit; what is not limited is said to be None."""
    quota = read_quota({"calls": 3, "gb": 1, "per": "hourly"})

    assert quota.limits == (Limit("calls", 3), Limit("bytes", 1e9))
    assert quota.limit_of("calls") == 3
    assert quota.limit_of("seconds") is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("lots", "<number>_<unit>_<period>"),
        ("2_hours", "<number>_<unit>_<period>"),
        ("-2_hours_daily", "<number>_<unit>_<period>"),
        ("2_hous_daily", "did you mean 'hours'"),
        ("2_hours_dayly", "did you mean 'daily'"),
        ("2_x_daily", "'x' is no unit"),
        ("0_calls_daily", "positive"),
        ("1.5_calls_daily", "counted whole"),
        ("9999999999999999999_calls_daily", "positive"),
        ({"calls": 3}, "needs a period"),
        ({"per": "day"}, "without a limit"),
        ({"calls": True, "per": "day"}, "positive number"),
        ({"calls": "3", "per": "day"}, "positive number"),
        ({"calls": math.nan, "per": "day"}, "positive number"),
        ({"unit": "calls", "per": "day"}, "positive number"),
        ({"calls": 3, "requests": 4, "per": "day"}, "twice"),
        ({"calls": 3, "per": 7}, "no period"),
        ({"calls": 3, "per": "day", "mode": "medium"}, '"soft" or "hard"'),
        ({"calls": 3, "per": "day", "tz": "Mars/Olympus"}, "no time zone"),
        ({"calls": 3, "per": "day", "tz": "../etc/passwd"}, "no time zone"),
        ({"calls": 3, "per": "day", "tz": 3}, "no name of a time zone"),
        ({"calls": 3, "per": "day", "colour": 1}, "'colour' is no unit"),
    ],
)
def test_what_means_nothing_is_refused_with_a_hint(value: Any, said: str) -> None:
    """A quota that nobody understands is an error where it is written, and says what to write."""
    with pytest.raises(ValueError, match=said):
        read_quota(value)


def test_offsets_are_zones() -> None:
    """A fixed offset of whole quarters of an hour stands for a zone, both ways."""
    assert zone_of("+05:45") == timezone(timedelta(hours=5, minutes=45))
    assert zone_of("-03:00") == timezone(-timedelta(hours=3))
    assert zone_of("Europe/Berlin") == ZoneInfo("Europe/Berlin")
    with pytest.raises(ValueError, match="no time zone"):
        zone_of("+05:07")


@pytest.mark.parametrize(
    ("period", "begin", "end"),
    [
        ("hour", (2026, 3, 4, 15), (2026, 3, 4, 16)),
        ("day", (2026, 3, 4), (2026, 3, 5)),
        ("week", (2026, 3, 2), (2026, 3, 9)),
        ("month", (2026, 3, 1), (2026, 4, 1)),
    ],
)
def test_calendar_windows(period: str, begin: tuple[int, ...], end: tuple[int, ...]) -> None:
    """Hours, days, weeks from Monday, and months begin where the calendar says."""
    assert window(period, UTC, NOW) == (_epoch(*begin), _epoch(*end))


def _epoch(year: int, month: int, day: int, hour: int = 0) -> float:
    return datetime(year, month, day, hour, tzinfo=UTC).timestamp()


def test_days_have_the_length_that_the_zone_gives_them() -> None:
    """The days of the clock change have 23 and 25 hours; December is followed by January."""
    berlin = ZoneInfo("Europe/Berlin")
    for day, hours in (((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2026, 6, 1), 24)):
        noon = datetime(*day, 12, tzinfo=berlin).timestamp()
        begin, end = window("day", berlin, noon)
        assert end - begin == hours * 3600
    begin, end = window("month", UTC, datetime(2026, 12, 31, 23, tzinfo=UTC).timestamp())
    assert datetime.fromtimestamp(end, UTC) == datetime(2027, 1, 1, tzinfo=UTC)


@given(
    st.sampled_from(ZONES), st.sampled_from(["hour", "day", "week", "month"]),
    st.floats(1.6e9, 2.2e9),
)  # fmt: skip
def test_now_lies_in_its_window_and_windows_follow_each_other(
    zone: str, period: str, now: float
) -> None:
    """In every zone a window holds its time, begins a bucket, and ends where the next begins."""
    tz = zone_of(zone)
    begin, end = window(period, tz, now)

    assert begin <= now < end
    assert begin % BUCKET_S == 0
    assert window(period, tz, begin)[0] == begin
    if period != "hour":
        assert window(period, tz, end)[0] == end


def test_tally_begins_anew_with_each_window() -> None:
    """What was used yesterday does not count today, and what happened before is not taken in."""
    tally = Tally(read_quota("3_calls_daily"))
    midnight = window("day", UTC, NOW)[1]
    tally.add(NOW, Use(calls=2))
    assert tally.used(NOW) == Use(calls=2)  # Added before the window was known.
    tally.add(NOW, Use(calls=1))

    assert tally.exhausted(NOW) == Limit("calls", 3)
    assert tally.resets_at(NOW) == midnight
    assert tally.exhausted(midnight) is None
    tally.add(midnight - 1, Use(calls=9))
    assert tally.used(midnight) == Use()
    assert tally.since(midnight) == midnight


def test_a_clock_that_is_set_back_forgets_nothing() -> None:
    """The window that was open stays the one that counts."""
    tally = Tally(read_quota("3_calls_daily"))
    tally.used(NOW)
    tally.add(NOW, Use(calls=3))

    assert tally.used(NOW - 2 * DAY_S) == Use(calls=3)


def test_taking_back_undoes_a_use() -> None:
    """A call that never ran leaves nothing behind."""
    tally = Tally(read_quota({"calls": 1, "gb": 1, "per": "day"}))
    tally.used(NOW)
    tally.add(NOW, Use(0, 1, 5e8))
    assert tally.exhausted(NOW) == Limit("calls", 1)
    tally.add(NOW, Use(0, -1, -5e8))

    assert tally.used(NOW) == Use()
    assert tally.exhausted(NOW) is None


def test_running_calls_count_before_they_end() -> None:
    """Seconds of running calls are part of what is used; other units know nothing of them."""
    tally = Tally(read_quota({"seconds": 10, "calls": 5, "per": "day"}))
    tally.used(NOW)
    tally.add(NOW, Use(seconds=4))

    assert tally.seconds_left(NOW, 2.0) == 4.0
    assert tally.exhausted(NOW, 5.9) is None
    assert tally.exhausted(NOW, 6.0) == Limit("seconds", 10)
    assert tally.seconds_left(NOW, 7.0) == 0.0
    assert Tally(read_quota("5_calls_daily")).seconds_left(NOW, 7.0) == math.inf


def test_rolling_window_says_when_the_oldest_use_leaves() -> None:
    """There is something again when the oldest use is a day old, at most five minutes later."""
    tally = Tally(read_quota("2_calls_rolling_24h"))
    assert tally.resets_at(NOW) == NOW + DAY_S
    tally.add(NOW, Use(calls=1))
    tally.add(NOW + 3600, Use(calls=1))
    at = tally.resets_at(NOW + 3600)

    assert NOW + DAY_S <= at <= NOW + DAY_S + BUCKET_S
    assert tally.exhausted(at - 1) == Limit("calls", 2)
    assert tally.exhausted(at) is None


@given(
    st.sampled_from(["5_calls_rolling_24h", "5_calls_daily", "5_calls_hourly"]),
    st.lists(st.floats(0.0, 20_000.0), max_size=60),
)
def test_no_window_ever_holds_more_than_the_limit(text: str, steps: list[float]) -> None:
    """Whoever is let through only while something is left never exceeds the quota in any window."""
    quota = read_quota(text)
    tally, now, taken = Tally(quota), NOW, list[float]()
    for step in steps:
        now += step
        if tally.exhausted(now) is None:
            tally.add(now, Use(calls=1))
            taken.append(now)
        if quota.period == "rolling_24h":
            inside = [at for at in taken if now - DAY_S < at]
            lately = [at for at in taken if now - DAY_S - BUCKET_S < at]
        else:
            inside = lately = [at for at in taken if at >= window(quota.period, UTC, now)[0]]
        assert len(inside) <= 5
        assert len(inside) <= tally.used(now).calls <= len(lately)


@given(st.floats(0, 1e6), st.floats(0, 4e6), st.floats(0, 1e6))
def test_spread_loses_nothing(begin: float, length: float, seconds: float) -> None:
    """The pieces of a use add up to it, lie inside it, and are few."""
    end = begin + length
    pieces = spread(begin, end, seconds)

    assert math.isclose(sum(piece for _, piece in pieces), seconds, abs_tol=1e-6)
    assert all(begin <= at <= end and piece >= 0 for at, piece in pieces)
    assert len(pieces) <= PIECES_MAX + 2


def test_spread_over_midnight_counts_on_both_days() -> None:
    """An hour before midnight and two after it are one and two hours."""
    midnight = window("day", UTC, NOW)[1]
    today, tomorrow = Tally(read_quota("9_hours_daily")), Tally(read_quota("9_hours_daily"))
    today.used(NOW)
    tomorrow.used(midnight)
    for at, seconds in spread(midnight - 3600, midnight + 7200, 10_800):
        today.add(at, Use(seconds=seconds))
        tomorrow.add(at, Use(seconds=seconds))

    assert math.isclose(tomorrow.used(midnight).seconds, 7200)
    assert math.isclose(today.used(NOW).seconds, 10_800)
    assert math.isclose(today.used(midnight).seconds, 7200)
    assert bucket_of(midnight) == midnight
