"""The closed list of tags under which values of users travel.

Rules of this file. 1) A number is never reused. 2) Numbers 128 to 191 have the meaning given here
in this protocol only; 2, 3 and 37 are those of RFC 8949 and its registry.
"""

from __future__ import annotations

UUID = 37
"""16 bytes."""

TUPLE = 128
"""A list."""
SET = 129
"""A list; no two entries are equal."""
FROZENSET = 130
DICT = 131
"""A flat list: key, value, key, value, ... For every dict whose keys are not all text."""
BYTEARRAY = 132
"""Bytes."""
COMPLEX = 133
"""[real, imaginary]"""
DATETIME = 134
"""[ISO 8601 text of the wall clock, fold, zone]; zone: null, microseconds east of UTC, a name of
the time zone database, or [microseconds, name]."""
DATE = 135
"""ISO 8601 text."""
TIME = 136
"""As DATETIME."""
TIMEDELTA = 137
"""[days, seconds, microseconds]"""
DECIMAL = 138
"""Text."""
PATH = 139
"""[kind, text]; kinds 0 to 3: PosixPath, WindowsPath, PurePosixPath, PureWindowsPath."""
ENUM = 140
"""[registered name, name of the member, or the number of a flag]"""
DATACLASS = 141
"""[registered name, {field: value}]"""
SCALAR = 142
"""A numpy scalar: [element type, unit, bytes]."""
ARRAY = 143
"""[place, header...]; place: the number of a raw buffer, -1: the next bytes of the last buffer,
which is then shared by small ones and copied from; null: there are no bytes."""
LONG_TEXT = 144
"""[place, size in bytes]: UTF-8 in a raw buffer."""
LONG_BYTES = 145
"""[place, size in bytes]"""
LONG_BYTEARRAY = 146
SURROGATES = 147
"""Bytes: UTF-8, lone surrogates encoded like other characters. File names have them."""
STREAM = 148
"""The number of a channel, on which the items of a streamed argument come."""
