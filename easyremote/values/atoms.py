"""Values without parts: times, decimals, UUIDs, paths, complex numbers; both directions.

Theory. Each type is one pair of functions: what it is on the wire, and back. The second gets
anything that a peer cares to send under the tag, and either returns a value of exactly that type
or raises `CodecError`.

Rules of this file. 1) Only exact types: a subclass would arrive as something else. A value that
cannot be restored exactly (a foreign tzinfo, a decimal with a million digits) is refused where it
is born. 2) Every number from the wire is bounded before it is computed with.

Source. ISO 8601 as `datetime` writes and reads it; RFC 8949 section 3.4 for what a bignum is.
"""

from __future__ import annotations

import datetime as dt
import decimal
import pathlib
import re
import sys
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any

from ..wire.cbor import tag
from ..wire.errors import CodecError
from . import tags

DECIMAL_CHARS_MAX = 4096
"""Longest text of a decimal."""
DECIMAL_EXPONENT_MAX = 10_000
"""Largest exponent of a decimal: `int()` of it takes 0.01 s; with 999,999, more than a minute."""

_ZONE_NAME = re.compile(r"[A-Za-z0-9_+\-]{1,32}(?:/[A-Za-z0-9_+\-]{1,32}){0,3}", re.ASCII)
_MICROSECOND = dt.timedelta(microseconds=1)
_DAY_US = 86_400_000_000

_PATHS: tuple[type[pathlib.PurePath], ...] = (
    pathlib.PosixPath,
    pathlib.WindowsPath,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
)
_PATH_CODES: dict[type[pathlib.PurePath], int] = {cls: code for code, cls in enumerate(_PATHS)}
_FOREIGN_PATH = 0 if sys.platform == "win32" else 1
"""The concrete kind that this system cannot have; it arrives as its pure counterpart."""


class Unfit(Exception):
    """This very value cannot travel as plain data; the message says why."""


# ---- to the wire -------------------------------------------------------------------------------


def _zone(zone: dt.tzinfo | None) -> Any:
    if zone is None:
        return None
    if type(zone) is zoneinfo.ZoneInfo and _ZONE_NAME.fullmatch(zone.key or ""):
        return zone.key
    if type(zone) is dt.timezone:
        offset_us = zone.utcoffset(None) // _MICROSECOND
        name = zone.tzname(None)
        plain = name == dt.timezone(zone.utcoffset(None)).tzname(None)
        return offset_us if plain else [offset_us, name]
    raise Unfit(f"a time zone of type {type(zone).__module__}.{type(zone).__qualname__}")


def _datetime(value: dt.datetime) -> Any:
    wall = value.replace(tzinfo=None).isoformat()
    return tag(tags.DATETIME, [wall, value.fold, _zone(value.tzinfo)])


def _date(value: dt.date) -> Any:
    return tag(tags.DATE, value.isoformat())


def _time(value: dt.time) -> Any:
    wall = value.replace(tzinfo=None).isoformat()
    return tag(tags.TIME, [wall, value.fold, _zone(value.tzinfo)])


def _timedelta(value: dt.timedelta) -> Any:
    return tag(tags.TIMEDELTA, [value.days, value.seconds, value.microseconds])


def _decimal(value: decimal.Decimal) -> Any:
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and abs(exponent) > DECIMAL_EXPONENT_MAX:
        raise Unfit(f"a decimal with an exponent beyond {DECIMAL_EXPONENT_MAX:,}")
    text = str(value)
    if len(text) > DECIMAL_CHARS_MAX:
        raise Unfit(f"a decimal of more than {DECIMAL_CHARS_MAX:,} characters")
    return tag(tags.DECIMAL, text)


def _uuid(value: uuid.UUID) -> Any:
    return tag(tags.UUID, value.bytes)


def _complex(value: complex) -> Any:
    return tag(tags.COMPLEX, [value.real, value.imag])


def _path(value: pathlib.PurePath) -> Any:
    # As bytes: names of files need not be Unicode.
    return tag(tags.PATH, [_PATH_CODES[type(value)], str(value).encode("utf-8", "surrogatepass")])


LOWER: dict[type[Any], Callable[[Any], Any]] = {
    dt.datetime: _datetime,
    dt.date: _date,
    dt.time: _time,
    dt.timedelta: _timedelta,
    decimal.Decimal: _decimal,
    uuid.UUID: _uuid,
    complex: _complex,
    **dict.fromkeys(_PATHS, _path),
}
"""By exact type: from a value to what travels. May raise `Unfit`."""


# ---- from the wire -----------------------------------------------------------------------------


def _build_zone(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    if type(zone) is str:
        if not _ZONE_NAME.fullmatch(zone):
            raise CodecError("not the name of a time zone")
        try:
            return zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise CodecError(f"the time zone {zone} is not known here") from None
    name = None
    if type(zone) is list and len(zone) == 2:
        zone, name = zone
        if type(name) is not str:
            raise CodecError("the name of a time zone is a text")
    if type(zone) is not int or not -_DAY_US < zone < _DAY_US:
        raise CodecError("a time zone is less than a day away from UTC")
    if zone == 0 and name is None:
        return dt.UTC
    offset = dt.timedelta(microseconds=zone)
    return dt.timezone(offset) if name is None else dt.timezone(offset, name)


def _wall(item: Any) -> tuple[str, int, dt.tzinfo | None]:
    if type(item) is not list or len(item) != 3:
        raise CodecError("a time has three fields")
    text, fold, zone = item
    if type(text) is not str or type(fold) is not int or fold not in {0, 1}:
        raise CodecError("not a time")
    return text, fold, _build_zone(zone)


def _build_datetime(item: Any) -> dt.datetime:
    text, fold, zone = _wall(item)
    value = dt.datetime.fromisoformat(text)
    if value.tzinfo is not None:
        raise CodecError("a time zone has a field of its own")
    return value.replace(tzinfo=zone, fold=fold)


def _build_time(item: Any) -> dt.time:
    text, fold, zone = _wall(item)
    value = dt.time.fromisoformat(text)
    if value.tzinfo is not None:
        raise CodecError("a time zone has a field of its own")
    return value.replace(tzinfo=zone, fold=fold)


def _build_date(item: Any) -> dt.date:
    if type(item) is not str:
        raise CodecError("a date is a text")
    return dt.date.fromisoformat(item)


def _build_timedelta(item: Any) -> dt.timedelta:
    if type(item) is not list or len(item) != 3 or {type(part) for part in item} != {int}:
        raise CodecError("a duration has three numbers")
    return dt.timedelta(days=item[0], seconds=item[1], microseconds=item[2])


def _build_decimal(item: Any) -> decimal.Decimal:
    if type(item) is not str or len(item) > DECIMAL_CHARS_MAX:
        raise CodecError(f"a decimal is a text of at most {DECIMAL_CHARS_MAX} characters")
    try:
        value = decimal.Decimal(item)
    except decimal.InvalidOperation:
        raise CodecError("not a decimal") from None
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and abs(exponent) > DECIMAL_EXPONENT_MAX:
        raise CodecError(f"the exponent of a decimal is at most {DECIMAL_EXPONENT_MAX}")
    return value


def _build_uuid(item: Any) -> uuid.UUID:
    if type(item) is not bytes or len(item) != 16:
        raise CodecError("a UUID has 16 bytes")
    return uuid.UUID(bytes=item)


def _build_complex(item: Any) -> complex:
    if type(item) is not list or len(item) != 2 or {type(part) for part in item} != {float}:
        raise CodecError("a complex number has two floats")
    return complex(item[0], item[1])


def _build_path(item: Any) -> pathlib.PurePath:
    if type(item) is not list or len(item) != 2 or type(item[0]) is not int:
        raise CodecError("a path has a kind and a text")
    code, raw = item
    if not 0 <= code < len(_PATHS) or type(raw) is not bytes:
        raise CodecError("a path has a kind and a text")
    if code == _FOREIGN_PATH:
        code += 2
    return _PATHS[code](raw.decode("utf-8", "surrogatepass"))


BUILD: dict[int, Callable[[Any], Any]] = {
    tags.DATETIME: _build_datetime,
    tags.DATE: _build_date,
    tags.TIME: _build_time,
    tags.TIMEDELTA: _build_timedelta,
    tags.DECIMAL: _build_decimal,
    tags.UUID: _build_uuid,
    tags.COMPLEX: _build_complex,
    tags.PATH: _build_path,
}
"""By tag: from what travelled to the value. May raise `CodecError` or `ValueError`."""
