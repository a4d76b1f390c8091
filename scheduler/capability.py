"""Does a node have what is wanted? The filter behind `capability=`, and the grade behind `prefer=`.

Theory. Capabilities are a free tree that a node's owner declared, and tags are words beside it. A
caller says what it wants in one of three ways, which may be nested:

    "gpu_training"                        a tag, an entry of `specialization`, or a top-level key
    "gpu.model"                           there is something at this path
    "gpu.model:A100"                      there is this value at this path
    ["training", "gpu"]                   all of these
    {"gpu": {"memory": ">=16GB"}}         each path has such a value
    {"gpu": True}, {"battery": False}     there is one; there is none

A value is compared as text without case, as a number, or as a quantity with a unit; with an
operator in front (`>=`, `<=`, `>`, `<`, `==`, `!=`) it is a bound. A list in the tree holds what
one of its entries holds, a map that stands in a list must do so whole.

Wishes are read once (`read_wishes`), for they are looked for on many nodes. What was read can be
compared and hashed: it is part of what tells requests apart.

As a filter a wish is fulfilled or not. As a preference it is graded: a node that offers exactly
what is named comes before one that offers that among other things, or more of it.

Rules of this file. 1) What a caller cannot have meant is a `ValueError` in `read_wishes`; what a
node declared is never an error, it does not match. 2) Node and caller may be the same stranger, who
fits long lists to long lists: comparisons are counted, over all nodes of one call, and each costs
no more than a bounded text does.

Source. features.md C3, I8, and R4 for units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .units import quantity, shown, split_comparison

WISHES_MAX = 256
"""Parts of what one caller wants, all together."""
DEPTH_MAX = 8
TEXT_CHARS_MAX = 256
"""Of a text that is wanted, and of one that is compared with it."""

COMPARISONS_MAX = 50_000
"""For one call: some 20 ms. A thousand nodes of fifty values each are within it."""

EXACT, MORE, NOTHING = 1.0, 0.75, 0.0
"""Grades: exactly what was named; that and more; not that."""

_MISSING = object()
_ABSENT: tuple[Any, ...] = (_MISSING, None, False, "", [])
"""What counts as nothing, 0 among it."""
_EQUAL = frozenset({"", "==", "!="})


class TooMuch(Exception):
    """Finding out would take too long."""


class Effort:
    """Counts the comparisons that are made for one call."""

    __slots__ = ("left",)

    def __init__(self, comparisons_max: int = COMPARISONS_MAX) -> None:
        self.left = comparisons_max

    def spend(self, comparisons: int) -> None:
        """Count some more.

        Raises:
            TooMuch: There were too many.
        """
        self.left -= comparisons
        if self.left < 0:
            raise TooMuch


class Value(NamedTuple):
    """A value that is wanted.

    Attributes:
        said: What the caller wrote, with the sign.
        sign: Of a comparison, "" for none.
        text: What to compare with, in lower case.
        number: The same as a number, None if it is none.
        flag: Only whether there is something counts, or that there is not.
    """

    said: str
    sign: str
    text: str
    number: float | None
    flag: bool | None = None


class Wish(NamedTuple):
    """Something that is wanted.

    Attributes:
        key: Where it is looked for, a key or a dotted path; empty for a word.
        word: A word that a tag, an entry of `specialization` or a key may be; empty for a path.
        values: What must be there, each of them. With a word, what may be at the path in it.
        inner: What must be in the map that is there.
    """

    key: str
    word: str = ""
    values: tuple[Value, ...] = ()
    inner: tuple[Wish, ...] = ()


Wishes = tuple[Wish, ...]
"""All that is wanted of a node; nothing if it is empty."""


# ---- reading -------------------------------------------------------------------------------------


def read_wishes(value: Any) -> Wishes:
    """Read what a caller wants.

    Raises:
        ValueError: Nothing can be that; the message says how to write it.

    >>> read_wishes("training") == read_wishes(["training"])
    True
    """
    reader = _Reader()
    return reader.wishes(value, 0)


class _Reader:
    """Reads one caller's wishes and counts them."""

    def __init__(self) -> None:
        self.left = WISHES_MAX

    def wishes(self, value: Any, depth: int) -> Wishes:
        if isinstance(value, str):
            return (self._word(value),)
        if depth > DEPTH_MAX:
            raise ValueError(f"a capability is nested more than {DEPTH_MAX} deep")
        if isinstance(value, Mapping):
            return tuple(self._entry(key, one, depth) for key, one in value.items())
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
            return tuple(wish for one in value for wish in self.wishes(one, depth + 1))
        raise ValueError(
            "a capability is a text, a list of texts, or a map of constraints such as "
            f'{{"gpu": {{"memory": ">=16GB"}}}}, not {shown(value)}'
        )

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"a capability has more than {WISHES_MAX} parts; name fewer")

    def _word(self, value: str) -> Wish:
        self._count()
        word = _bounded(value.strip())
        if not word:
            raise ValueError('a capability that is wanted is not empty; write "gpu", say')
        key, colon, wanted = word.partition(":")
        return Wish(key.strip(), word, (_value(wanted.strip()),) if colon else ())

    def _entry(self, key: Any, value: Any, depth: int) -> Wish:
        self._count()
        if not isinstance(key, str) or not key:
            raise ValueError(
                f"a constraint on a capability has a text as its key, not {shown(key)}"
            )
        key = _bounded(key)
        if isinstance(value, Mapping):
            return Wish(key, inner=self.wishes(value, depth + 1))
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            for _ in value:
                self._count()
            return Wish(key, values=tuple(_value(one) for one in value))
        return Wish(key, values=(_value(value),))


def _value(value: Any) -> Value:
    if value is None or isinstance(value, bool):
        return Value(str(value), "", "", None, bool(value))
    if isinstance(value, int | float):
        number = _number(value)
        if number is None:
            raise ValueError(f"a capability is compared with a finite number, not {shown(value)}")
        return Value(f"{value:g}", "", "", number)
    if not isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - whatever is wrong, it was written so
            f"a capability is compared with a text or a number, not {shown(value)}"
        )
    sign, rest = split_comparison(_bounded(value))
    text = str(rest).strip().lower()
    number = _number(text)
    twice = bool(sign) and text.startswith(("<", ">", "=", "!"))  # "=>16GB"
    if twice or (number is None and sign not in _EQUAL):
        raise ValueError(f'{shown(value)} compares with no number; write ">=16GB", ">8" or "<0.5"')
    return Value(value.strip(), sign, text, number)


def _bounded(text: str) -> str:
    if len(text) > TEXT_CHARS_MAX:
        raise ValueError(f"a text in a capability has at most {TEXT_CHARS_MAX} characters")
    return text


def _number(value: Any) -> float | None:
    """Return a number or a quantity as a float; None if it is neither."""
    kind = type(value)
    if kind is str:
        text = value.lstrip()
        amount = quantity(text.removeprefix("-"))
        return -amount if amount is not None and text.startswith("-") else amount
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is int and value.bit_length() < 1000:
        return float(value)
    return None


# ---- looking -------------------------------------------------------------------------------------


def matches(
    wishes: Wishes, capabilities: dict[str, Any], tags: Sequence[str] = (),
    effort: Effort | None = None,
) -> bool:  # fmt: skip
    """Return whether a node has all that is wanted.

    Args:
        wishes: As `read_wishes` returns them.
        capabilities: What the node declared: plain data.
        tags: Its labels, and those of the function.
        effort: What was spent for the same call on other nodes.

    Raises:
        TooMuch: Finding out would take too long.

    >>> node = {"gpu": {"memory": "24GB"}, "specialization": ["training"]}
    >>> matches(read_wishes("training"), node), matches(read_wishes({"gpu.memory": ">1TB"}), node)
    (True, False)
    """
    effort = effort or Effort()
    return all(_grade(wish, capabilities, tags, effort) > NOTHING for wish in wishes)


def degree(
    wishes: Wishes, capabilities: dict[str, Any], tags: Sequence[str] = (),
    effort: Effort | None = None,
) -> float:  # fmt: skip
    """Return how much of what is preferred a node has, in [0, 1]; 1.0 if nothing is.

    It is the mean over the wishes, of which each counts 1 if the node has exactly that, 0.75 if it
    has that among other things or more of it, and 0 if it has not.

    Raises:
        TooMuch: Finding out would take too long.
    """
    if not wishes:
        return EXACT
    effort = effort or Effort()
    return sum(_grade(wish, capabilities, tags, effort) for wish in wishes) / len(wishes)


def lacks(
    wishes: Wishes, capabilities: dict[str, Any], tags: Sequence[str] = (),
    effort: Effort | None = None,
) -> list[str]:  # fmt: skip
    """Return what a node lacks of what is wanted, in words: its near miss.

    Raises:
        TooMuch: Finding out would take too long.

    >>> lacks(read_wishes({"gpu.memory": ">=16GB"}), {"gpu": {"memory": "8GB"}})
    ["gpu.memory is '8GB', not >=16GB"]
    """
    effort = effort or Effort()
    missing: list[str] = []
    for wish in wishes:
        if _grade(wish, capabilities, tags, effort) == NOTHING:
            missing += _missing(wish, capabilities, "", effort)
    return missing


def _grade(wish: Wish, tree: Any, tags: Sequence[str], effort: Effort) -> float:
    """Grade one wish against a map."""
    effort.spend(1)
    if wish.word:
        return _grade_word(wish, tree, tags, effort)
    found = _at(tree, wish.key)
    if wish.inner:
        return _grade_inner(wish.inner, found, effort)
    if not wish.values:
        return EXACT if found not in _ABSENT else NOTHING
    return min(_holds(found, value, effort) for value in wish.values)


def _grade_word(wish: Wish, tree: Any, tags: Sequence[str], effort: Effort) -> float:
    effort.spend(len(tags))
    if wish.word in tags or _at(tree, wish.word) not in _ABSENT:
        return EXACT
    special = _at(tree, "specialization")
    grade = _holds(special, Value(wish.word, "", wish.word.lower(), None), effort)
    if grade > NOTHING or not wish.values:
        return grade
    return _holds(_at(tree, wish.key), wish.values[0], effort)


def _grade_inner(inner: Wishes, found: Any, effort: Effort) -> float:
    """Grade a map of wishes; of a list of maps, one must fulfil them all."""
    if type(found) is list:
        effort.spend(len(found))
        return _best(_grade_inner(inner, one, effort) for one in found)
    if type(found) is not dict:
        return NOTHING
    return min(_grade(wish, found, (), effort) for wish in inner)


def _best(grades: Iterator[float]) -> float:
    """Return the highest grade, without looking further than the highest there is."""
    best = NOTHING
    for grade in grades:
        if grade == EXACT:
            return EXACT
        best = max(best, grade)
    return best


def _at(tree: Any, path: str) -> Any:
    """Return what lies at a path; its keys are searched for, so that costs its length."""
    if path in tree:
        return tree[path]
    for key in path.split("."):
        if type(tree) is not dict or key not in tree:
            return _MISSING
        tree = tree[key]
    return tree


def _holds(found: Any, value: Value, effort: Effort) -> float:
    """Grade what lies at a path against one value."""
    effort.spend(1)
    if value.flag is not None:
        there = found not in _ABSENT
        return EXACT if there is value.flag else NOTHING
    if type(found) is list:
        grade = _best(_holds(one, value, effort) for one in found)
        return min(grade, EXACT if len(found) == 1 else MORE)
    if found is _MISSING or found is None or type(found) is dict:
        return NOTHING
    return _compare(found, value)


def _compare(found: Any, value: Value) -> float:
    sign, wanted = value.sign, value.number
    number = None if wanted is None else _number(found)
    if wanted is None or number is None:
        if sign not in _EQUAL:
            return NOTHING
        return EXACT if _is_text(found, value.text) is (sign != "!=") else NOTHING
    if sign in _EQUAL:
        return EXACT if (number == wanted) is (sign != "!=") else NOTHING
    if number == wanted:
        return EXACT if sign in {">=", "<="} else NOTHING
    return MORE if (number > wanted) is (sign[0] == ">") else NOTHING


def _is_text(found: Any, text: str) -> bool:
    """Return whether a value is a text, but for the case; numbers too long to write are none."""
    if type(found) is str:
        return len(found) <= TEXT_CHARS_MAX and found.lower() == text
    return type(found) is bool and str(found).lower() == text


# ---- saying --------------------------------------------------------------------------------------


def _missing(wish: Wish, tree: Any, where: str, effort: Effort) -> list[str]:
    """Say in words which parts of a wish a tree does not fulfil."""
    if wish.word and not wish.values:
        return [f"no {shown(wish.word)}"]
    path = f"{where}{wish.key}"
    found = _at(tree, wish.key)
    if wish.inner and type(found) is dict:
        return [
            line
            for one in wish.inner
            if _grade(one, found, (), effort) == NOTHING
            for line in _missing(one, found, f"{path}.", effort)
        ]
    if wish.inner and found not in _ABSENT:
        return [f"{path} is {shown(found)}, without {', '.join(map(_said, wish.inner))}"]
    if found is _MISSING or not wish.values:
        return [f"no {path}"]
    failed = [v for v in wish.values if _holds(found, v, effort) == NOTHING]
    return [f"{path} is {shown(found)}, not {value.said}" for value in failed]


def _said(wish: Wish) -> str:
    values = " and ".join(value.said for value in wish.values)
    return " ".join(filter(None, [wish.key, values or ", ".join(map(_said, wish.inner))]))
