"""Amounts as people write them: `"16GB"`, `">=1.5 GiB"`, `2`, `"0.5"`.

Theory. Two kinds of amounts are asked for: sizes in bytes, and counts. A size has a unit: powers of
ten (KB, MB, GB, TB) or of two (KiB, MiB, GiB, TiB), and a number alone is bytes. In front of an
amount may stand a comparison; without one an amount is the least that is enough.

Rules of this file. 1) Pure. 2) What cannot be read is a `ValueError` whose sentence says how it is
written; it repeats at most `SHOWN_CHARS` of what was given. 3) This grammar is the only one, for
whoever writes an amount and whoever checks it.

Source. IEC 80000-13 and the SI brochure for the prefixes.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

AMOUNT_MAX = 2.0**62
"""No machine has more of anything; what is larger is a mistake or an attack."""

SHOWN_CHARS = 60

_FACTORS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "kib": 2**10, "ki": 2**10,
    "m": 10**6, "mb": 10**6, "mib": 2**20, "mi": 2**20,
    "g": 10**9, "gb": 10**9, "gib": 2**30, "gi": 2**30,
    "t": 10**12, "tb": 10**12, "tib": 2**40, "ti": 2**40,
}  # fmt: skip
_UNITS_SHOWN = ("B", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB")
_COMPARES: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON = re.compile(r"\s*(>=|<=|==|!=|=|>|<)\s*(.*?)\s*", re.DOTALL)
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]{0,8})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An amount and how it is compared.

    Attributes:
        compare: `>=`, `>`, `==`, `!=`, `<=` or `<`.
        amount: In bytes where a size is meant.
    """

    compare: str
    amount: float

    def accepts(self, found: float) -> bool:
        """Return whether an amount is as wanted."""
        return _COMPARES[self.compare](found, self.amount)


def read_bytes(value: object, what: str = "a size") -> int:
    """Return a size in bytes.

    Args:
        value: Text such as `"512MB"` or a number of bytes; not negative.
        what: What is read, for the error.

    Raises:
        ValueError: It is no size; the message says how to write one.

    >>> read_bytes("2GiB"), read_bytes("1.5 MB"), read_bytes(4096)
    (2147483648, 1500000, 4096)
    """
    amount = quantity(value)
    if amount is None:
        raise ValueError(_no_size(value, what))
    return int(amount)


def read_count(value: object, what: str = "a count") -> float:
    """Return a count, which may be a fraction.

    Args:
        value: A number, text that is one, or True and False for 1 and 0.
        what: What is read, for the error.

    Raises:
        ValueError: It is no count.

    >>> read_count(2), read_count("0.5"), read_count(True)
    (2.0, 0.5, 1.0)
    """
    if isinstance(value, bool):
        return float(value)
    amount = quantity(value)
    if amount is None or (isinstance(value, str) and not value.strip()[-1:].isdigit()):
        raise ValueError(f"{what} is a number such as 1, 0.5 or True, not {shown(value)}")
    return amount


def read_wanted(value: object, read: Callable[[object, str], float], what: str) -> Wanted:
    """Return a comparison with an amount; without an operator, the amount is the least.

    Args:
        value: As the user wrote it.
        read: `read_bytes` or `read_count`.
        what: What is read, for the error.

    Raises:
        ValueError: It is no amount.

    >>> read_wanted(">=16GB", read_bytes, "gpu_memory")
    Wanted(compare='>=', amount=16000000000)
    """
    compare, rest = split_comparison(value)
    return Wanted(compare or ">=", read(rest, what))


def split_comparison(value: object) -> tuple[str, object]:
    """Return the operator in front of a text ("" if there is none), and what follows it.

    >>> split_comparison("> 8"), split_comparison("linux"), split_comparison(3)
    (('>', '8'), ('', 'linux'), ('', 3))
    """
    found = _COMPARISON.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return "", value
    return ("==" if found[1] == "=" else found[1]), found[2]


def quantity(value: object) -> float | None:
    """Return a number, or a size such as `24GB` in bytes; None if it is neither.

    >>> quantity("24GB"), quantity(7), quantity("seven"), quantity(float("nan"))
    (24000000000.0, 7.0, None, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if 0 <= value < AMOUNT_MAX else None
    found = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or (factor := _FACTORS.get(found[2].lower())) is None:
        return None
    amount = float(found[1]) * factor
    return amount if amount < AMOUNT_MAX else None


def compares(found: object, compare: str, wanted: object) -> bool:
    """Return whether what a node has compares with what is wanted, as amounts or as text.

    Text knows only `==` and `!=`, and upper and lower case are the same.

    >>> compares("24GB", ">=", "16GiB"), compares("Linux", "==", "linux"), compares("a", "<", "b")
    (True, True, False)
    """
    mine, theirs = quantity(found), quantity(wanted)
    if mine is not None and theirs is not None:
        return _COMPARES[compare](mine, theirs)
    if compare not in {"==", "!="}:
        return False
    same = str(found).lower() == str(wanted).lower()
    return same == (compare == "==")


def show_bytes(size_bytes: float) -> str:
    """Write a size for people, in the unit in which it is short.

    >>> show_bytes(16e9), show_bytes(20 * 2**30), show_bytes(999)
    ('16 GB', '20 GiB', '999 B')
    """
    size = math.ceil(size_bytes)
    for power, (binary, decimal) in enumerate(
        (("TiB", "TB"), ("GiB", "GB"), ("MiB", "MB"), ("KiB", "KB"))
    ):
        two, ten = 2 ** (40 - 10 * power), 10 ** (12 - 3 * power)
        if size >= two and size % (two // 4 or 1) == 0:
            return f"{_plain(size / two)} {binary}"
        if size >= ten:
            return f"{_plain(size / ten)} {decimal}"
    return f"{size} B"


def _plain(number: float) -> str:
    return f"{number:.3f}".rstrip("0").rstrip(".")


def shown(value: object) -> str:
    """Return what somebody wrote, short enough to be repeated to them."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."


def _no_size(value: object, what: str) -> str:
    hint = ""
    found = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        close = difflib.get_close_matches(found[2].upper(), [u.upper() for u in _UNITS_SHOWN], n=1)
        units = [unit for unit in _UNITS_SHOWN if unit.upper() in close]
        hint = f'; did you mean "{found[1]}{units[0]}"?' if units else ""
        hint = hint or f"; units are {', '.join(_UNITS_SHOWN)}"
    return f'{what} is written as "512MB", "16GiB" or a number of bytes, not {shown(value)}{hint}'
