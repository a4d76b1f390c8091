"""Does a node have a capability? The client's own look at what the gateway lists.

Theory. The same three ways to say what is wanted as in `remote(capability=...)`: text (a tag of
`specialization`, a label, a top-level key, `key:value`, `path.to.key`), a list (all of them), or a
map of constraints. Here a constraint may also compare: `">=16GB"`, `"<0.5"`, `"!=linux"`.

Rules of this file. 1) Pure. 2) What cannot be understood does not match.

Source. features.md C3 and R4 (units).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_MISSING = object()
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONSTRAINT = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*", re.DOTALL)
_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([kKMGT]i?)?(B?)", re.ASCII)
_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"ki": 2**10, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def matches(capabilities: Mapping[str, Any], labels: list[str], wanted: Any) -> bool:
    """Return whether a node with these capabilities and labels has what is wanted.

    >>> node = {"gpu": {"memory": "24GB"}, "specialization": ["training"]}
    >>> matches(node, [], "training"), matches(node, [], {"gpu": {"memory": ">=16GB"}})
    (True, True)
    """
    if isinstance(wanted, str):
        return _has_text(capabilities, labels, wanted)
    if isinstance(wanted, list | tuple):
        return all(matches(capabilities, labels, one) for one in wanted)
    if isinstance(wanted, Mapping):
        return _has_map(capabilities, wanted)
    return False


def _has_text(capabilities: Mapping[str, Any], labels: list[str], text: str) -> bool:
    if text in labels or text in capabilities:
        return True
    if _holds(capabilities.get("specialization", _MISSING), text):
        return True
    path, colon, value = text.partition(":")
    found = _at(capabilities, path)
    if found is _MISSING:
        return False
    return _holds(found, value) if colon else found is not None and found is not False


def _has_map(tree: Any, wanted: Mapping[str, Any]) -> bool:
    for path, value in wanted.items():
        found = _at(tree, path)
        if found is _MISSING:
            return False
        if isinstance(value, Mapping):
            if not _has_map(found, value):
                return False
        elif isinstance(value, list | tuple):
            if not all(_holds(found, one) for one in value):
                return False
        elif not _holds(found, value):
            return False
    return True


def _at(tree: Any, path: str) -> Any:
    if isinstance(tree, Mapping) and path in tree:
        return tree[path]
    for key in path.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return _MISSING
        tree = tree[key]
    return tree


def _holds(found: Any, value: Any) -> bool:
    if isinstance(found, list | tuple):
        return any(_holds(one, value) for one in found)
    if found is _MISSING or isinstance(found, Mapping):
        return False
    constraint = _CONSTRAINT.fullmatch(value) if isinstance(value, str) else None
    if constraint is not None:
        return _compares(found, constraint[1], constraint[2])
    if isinstance(value, str):
        return str(found).lower() == value.lower() or _compares(found, "==", value)
    return bool(found == value)


def _compares(found: Any, sign: str, text: str) -> bool:
    mine, theirs = _number(found), _number(text)
    compare = _COMPARISONS[sign]
    if mine is not None and theirs is not None:
        return compare(mine, theirs)
    if sign not in {"==", "!="}:
        return False
    return compare(str(found).lower(), text.lower())


def _number(value: Any) -> float | None:
    """Return a number, or a quantity such as `24GB`, as a float; None if it is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    found = _QUANTITY.fullmatch(str(value).strip())
    if found is None:
        return None
    unit = found[2] or ""
    return float(found[1]) * (_BINARY.get(unit) or _FACTORS[unit])
