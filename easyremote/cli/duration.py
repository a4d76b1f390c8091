"""Durations as people write them on a command line: `24h`, `90d`, `1h30m`.

Rules of this file. 1) Pure. 2) A number without a unit is refused where it could be read in two
ways, and counts seconds where everybody expects them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import click

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|[smhdw])", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)


def parse_duration(text: str, *, bare_seconds: bool = False) -> float:
    """Read a duration.

    Args:
        text: Numbers with units, largest first: `90s`, `15m`, `24h`, `7d`, `2w`, `1h30m`, `250ms`.
        bare_seconds: A number alone counts seconds.

    Returns:
        Seconds, more than zero.

    Raises:
        ValueError: It is no duration, or none that lasts.

    >>> parse_duration("24h"), parse_duration("1h30m")
    (86400.0, 5400.0)
    """
    given = text.strip()
    if bare_seconds and _NUMBER.fullmatch(given):
        return _positive(text, float(given))
    total_s, at, smaller_than = 0.0, 0, math.inf
    for part in _PART.finditer(given):
        unit_s = _UNIT_S[part[2].lower()]
        if part.start() != at or unit_s >= smaller_than:
            raise _wrong(text)
        total_s += float(part[1]) * unit_s
        at, smaller_than = part.end(), unit_s
    if at != len(given) or not at:
        raise _wrong(text)
    return _positive(text, total_s)


def _positive(text: str, seconds: float) -> float:
    if seconds <= 0:
        raise ValueError(f"{text[:40]!r} is no time at all; a duration is longer than zero")
    return seconds


def _wrong(text: str) -> ValueError:
    return ValueError(
        f"{text[:40]!r} is no duration; write a number with its unit, "
        "for example 90s, 15m, 24h, 7d or 1h30m"
    )


def duration_text(seconds: float) -> str:
    """Return a duration for people, in its two largest units.

    >>> duration_text(5400), duration_text(0.25), duration_text(200_000)
    ('1h 30m', '250ms', '2d 7h')
    """
    if seconds < 0:
        return f"-{duration_text(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    left = round(seconds)
    parts: list[tuple[int, str]] = []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, round(_UNIT_S[unit]))
        if count or parts:
            parts.append((count, unit))
        if len(parts) == 2:
            break
    return " ".join(f"{count}{unit}" for count, unit in parts if count)


def duration_option(
    *, bare_seconds: bool = False, never: bool = False
) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    """Return the callback of an option that takes a duration and gives seconds.

    Args:
        bare_seconds: A number alone counts seconds.
        never: The word `never` is allowed and gives infinity.
    """

    def convert(
        _context: click.Context, _option: click.Parameter, text: str | None
    ) -> float | None:
        if text is None:
            return None
        if never and text.strip().lower() == "never":
            return math.inf
        try:
            return parse_duration(text, bare_seconds=bare_seconds)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return convert
