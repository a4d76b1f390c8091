"""Quotas: what a user may use of a function in a window of time, and what is left of it.

Theory. A quota is a short list of limits (seconds of execution, calls, bytes) over one window.
A calendar window begins when an hour, day, week or month begins in the time zone of the provider;
`rolling_24h` ends now and began a day ago. A tally counts uses in buckets of five minutes, and
adds up those inside the window, so one kind of bucket serves every window, also after a provider
has changed the quota. A rolling window lets go of a bucket when all of it is a day old: it never
allows more in 24 hours than the limit, and gives back up to five minutes late.

    "2_hours_daily"   =   {"hours": 2, "per": "day"}   =   {"seconds": 7200, "per": "day"}

Seconds count once for each reserved GPU: hours on GPUs are GPU-hours.

Rules of this file. 1) Pure; `now` is an argument, in seconds since the epoch. 2) What a provider
wrote and means nothing is a `ValueError` that says how to write it. 3) A use that was counted is
taken back by adding its negative at the same time.

Source. The IANA time zone database, by the standard library's `zoneinfo`, for when a day begins.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

SECONDS, CALLS, BYTES = "seconds", "calls", "bytes"
Mode = Literal["soft", "hard"]

UNITS: Mapping[str, tuple[str, float]] = {
    "second": (SECONDS, 1.0), "seconds": (SECONDS, 1.0),
    "minute": (SECONDS, 60.0), "minutes": (SECONDS, 60.0),
    "hour": (SECONDS, 3600.0), "hours": (SECONDS, 3600.0),
    "call": (CALLS, 1.0), "calls": (CALLS, 1.0),
    "request": (CALLS, 1.0), "requests": (CALLS, 1.0),
    "bytes": (BYTES, 1.0), "mb": (BYTES, 1e6), "gb": (BYTES, 1e9), "tb": (BYTES, 1e12),
}  # fmt: skip
"""What can be limited, and how much of the base unit each name stands for."""
PERIODS: Mapping[str, str] = {
    "hour": "hour", "hourly": "hour", "day": "day", "daily": "day", "week": "week",
    "weekly": "week", "month": "month", "monthly": "month", "rolling_24h": "rolling_24h",
}  # fmt: skip
BUCKET_S = 300
DAY_S = 86_400.0
AMOUNT_MAX = 1e15

_TEXT = re.compile(r"([0-9]+(?:\.[0-9]+)?)_([a-z]+)_([a-z0-9_]+)", re.ASCII)
_OFFSET = re.compile(r"([+-])([01][0-9]):(00|15|30|45)", re.ASCII)
_HINT = (
    'a quota is "<number>_<unit>_<period>", such as "2_hours_daily" or "100_calls_rolling_24h"; '
    "units: seconds, minutes, hours, calls, requests, gb; "
    "periods: hourly, daily, weekly, monthly, rolling_24h"
)


class Limit(NamedTuple):
    """So much of one unit."""

    unit: str
    """`seconds`, `calls` or `bytes`."""
    amount: float


@dataclass(frozen=True, slots=True)
class Quota:
    """What each user may use of a function.

    Attributes:
        limits: Each of them holds.
        period: hour, day, week, month or rolling_24h.
        zone: Name of the time zone by which the calendar goes, or an offset such as `+02:00`.
        mode: Whether a running call is cut off when its seconds are used up (`hard`).
    """

    limits: tuple[Limit, ...]
    period: str
    zone: str = "UTC"
    mode: Mode = "soft"

    def to_plain(self) -> dict[str, Any]:
        """Return the dict form, which `read_quota` reads."""
        limits: dict[str, Any] = {limit.unit: limit.amount for limit in self.limits}
        return {**limits, "per": self.period, "tz": self.zone, "mode": self.mode}

    def limit_of(self, unit: str) -> float | None:
        """Return how much of a unit it allows, None where it says nothing about it."""
        return next((limit.amount for limit in self.limits if limit.unit == unit), None)


def read_quota(value: str | Mapping[str, Any], *, zone: str = "UTC", mode: Mode = "soft") -> Quota:
    """Return the quota that a provider wrote.

    Args:
        value: Text or dict.
        zone: The time zone, where the dict names none.
        mode: The mode, where the dict names none.

    Raises:
        ValueError: It means nothing; the message says how to write it.
    """
    if isinstance(value, str):
        match = _TEXT.fullmatch(value.strip().lower())
        if match is None:
            raise ValueError(f"{value!r} is no quota: {_HINT}")
        amount, unit, period = match.groups()
        return _checked([(unit, float(amount))], period, zone, mode)
    given = {str(key): entry for key, entry in value.items()}
    written_zone = given.pop("tz", given.pop("timezone", zone))
    written_mode = given.pop("mode", mode)
    period = given.pop("per", given.pop("period", None))
    if "unit" in given:
        given = {str(given.pop("unit")): given.pop("amount", given.pop("limit", None)), **given}
    if period is None:
        raise ValueError(f'a quota needs a period, such as "per": "day"; {_HINT}')
    return _checked(given.items(), str(period), written_zone, written_mode)


def _checked(limits: Iterable[tuple[str, Any]], period: str, zone: Any, mode: Any) -> Quota:
    if period not in PERIODS:
        raise ValueError(f"{period!r} is no period of a quota{_near(period, PERIODS)}; {_HINT}")
    if mode not in ("soft", "hard"):
        raise ValueError(f'the mode of a quota is "soft" or "hard", not {mode!r}')
    zone_of(zone)
    found: dict[str, float] = {}
    for written, amount in limits:
        if written not in UNITS:
            raise ValueError(f"{written!r} is no unit of a quota{_near(written, UNITS)}; {_HINT}")
        unit, factor = UNITS[written]
        if unit in found:
            raise ValueError(f"a quota limits {unit} twice; say it once")
        found[unit] = _amount(written, amount) * factor
        if unit == CALLS and not found[unit].is_integer():
            raise ValueError(f"a quota of {amount} {written}: a call is counted whole")
    if not found:
        raise ValueError(f"a quota without a limit allows everything; {_HINT}")
    return Quota(tuple(Limit(*one) for one in found.items()), PERIODS[period], zone, mode)


def _amount(unit: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 < value <= AMOUNT_MAX):
        raise ValueError(f"{unit} of a quota is a positive number, not {value!r}")
    return float(value)


def _near(text: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(text, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def zone_of(name: Any) -> tzinfo:
    """Return the time zone of a name, such as `Europe/Berlin` or `+02:00`.

    Raises:
        ValueError: There is none of this name.
    """
    if name == "UTC":
        return UTC
    if not isinstance(name, str) or len(name) > 64:
        raise ValueError(f"{name!r} is no name of a time zone")
    offset = _OFFSET.fullmatch(name)
    if offset is not None:
        east = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        return timezone(east if offset[1] == "+" else -east)
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError(
            f"{name!r} is no time zone that is known here; write Europe/Berlin, UTC or +02:00"
        ) from None


# ---- windows -------------------------------------------------------------------------------------


def window(period: str, zone: tzinfo, now: float) -> tuple[float, float]:
    """Return begin and end of the calendar window in which `now` lies.

    Args:
        period: hour, day, week or month.
        zone: By whose calendar.
        now: Seconds since the epoch.
    """
    local = datetime.fromtimestamp(now, zone)
    if period == "hour":
        into = local.minute * 60 + local.second + local.microsecond / 1e6
        begin = round(now - into)
        return float(begin), begin + 3600.0
    first = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if period == "day":
        following = first + timedelta(days=1)
    elif period == "week":
        first -= timedelta(days=first.weekday())
        following = first + timedelta(days=7)
    else:
        assert period == "month", period
        first = first.replace(day=1)
        following = (first + timedelta(days=32)).replace(day=1)
    return first.timestamp(), following.timestamp()


def bucket_of(now: float) -> int:
    """Return the begin of the five minutes in which a use is counted."""
    return int(now // BUCKET_S) * BUCKET_S


class Use(NamedTuple):
    """How much was used."""

    seconds: float = 0.0
    calls: float = 0.0
    bytes: float = 0.0

    def plus(self, other: Use) -> Use:
        """Return both together."""
        return Use(self.seconds + other.seconds, self.calls + other.calls, self.bytes + other.bytes)

    def of(self, unit: str) -> float:
        """Return the use of one unit."""
        return float(getattr(self, unit))


class Tally:
    """What one user has used of one quota.

    Attributes:
        quota: What is allowed.
    """

    __slots__ = ("_buckets", "_from", "_until", "_used", "_zone", "quota")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._zone = zone_of(quota.zone)
        self._buckets: dict[int, Use] = {}
        self._used = Use()
        self._from = self._until = -math.inf

    def since(self, now: float) -> float:
        """Return from when on uses count; what `add` was told of earlier ones is forgotten."""
        if self.quota.period == "rolling_24h":
            begin = float(bucket_of(now - DAY_S))
        elif self._from <= now < self._until:
            return self._from
        else:
            begin, self._until = window(self.quota.period, self._zone, now)
        if begin > self._from:
            self._from = begin
            self._buckets = {at: use for at, use in self._buckets.items() if at >= begin}
            # Anew, so that what was added and taken away leaves no trace of rounding.
            self._used = Use()
            for use in self._buckets.values():
                self._used = self._used.plus(use)
        return self._from

    def add(self, at: float, use: Use) -> None:
        """Count a use that happened at `at`; nothing if that is before the window."""
        bucket = bucket_of(at)
        if bucket < self._from:
            return
        self._buckets[bucket] = self._buckets.get(bucket, Use()).plus(use)
        self._used = self._used.plus(use)

    def used(self, now: float) -> Use:
        """Return what was used in the window that is open now."""
        self.since(now)
        return self._used

    def exhausted(self, now: float, running_s: float = 0.0) -> Limit | None:
        """Return a limit of which nothing is left, None if there is none.

        Args:
            now: Seconds since the epoch.
            running_s: Seconds of calls that still run: they count and are not in the tally.
        """
        used = self.used(now)
        for limit in self.quota.limits:
            amount = used.of(limit.unit) + (running_s if limit.unit == SECONDS else 0.0)
            if amount >= limit.amount:
                return limit
        return None

    def seconds_left(self, now: float, running_s: float = 0.0) -> float:
        """Return how many seconds are left; infinity where they are not limited."""
        allowed = self.quota.limit_of(SECONDS)
        if allowed is None:
            return math.inf
        return max(0.0, allowed - self.used(now).seconds - running_s)

    def resets_at(self, now: float) -> float:
        """Return when there is something left again, at the latest if nothing is used meanwhile."""
        self.since(now)
        if self.quota.period != "rolling_24h":
            return self._until
        oldest = min((at for at, use in self._buckets.items() if any(use)), default=None)
        return now + DAY_S if oldest is None else oldest + BUCKET_S + DAY_S


PIECES_MAX = 300


def spread(begin: float, end: float, seconds: float) -> list[tuple[float, float]]:
    """Split seconds that were used between two times into pieces, each with the time it belongs to.

    What ran over midnight is then counted on both days.

    Args:
        begin: When the use began, in seconds since the epoch.
        end: When it ended.
        seconds: How much was used.
    """
    length = end - begin
    if seconds <= 0:
        return []
    if length <= 0 or bucket_of(begin) == bucket_of(end):
        return [(end, seconds)]
    step = BUCKET_S * math.ceil(length / BUCKET_S / PIECES_MAX)
    found, at = [], begin
    while at < end:
        following = min(end, float(bucket_of(at) + step))
        found.append((at, seconds * (following - at) / length))
        at = following
    return found
