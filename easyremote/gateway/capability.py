"""Does a node have a capability? The hard filter behind `remote(capability=...)`.

Theory. Capabilities are a free tree that a node's owner declared. A caller names what it wants in
one of three ways: text (a tag, an entry of `specialization`, a top-level key, or `path:value` and
`path.to.key`), a list (all of them), or a map (each path has an equal value; a list holds it).

Rules of this file. 1) Pure. 2) What cannot be understood does not match.

Source. features.md C3.
"""

from __future__ import annotations

from typing import Any

_MISSING = object()


def matches(capabilities: dict[str, Any], tags: list[str], wanted: Any) -> bool:
    """Return whether a node with these capabilities and tags has what is wanted."""
    if type(wanted) is str:
        return _has_text(capabilities, tags, wanted)
    if type(wanted) in (list, tuple):
        return all(matches(capabilities, tags, one) for one in wanted)
    if type(wanted) is dict:
        return _has_map(capabilities, wanted)
    return False


def _has_text(capabilities: dict[str, Any], tags: list[str], text: str) -> bool:
    if text in tags or text in capabilities:
        return True
    if _holds(capabilities.get("specialization", _MISSING), text):
        return True
    path, colon, value = text.partition(":")
    found = _at(capabilities, path)
    if found is _MISSING:
        return False
    return _holds(found, value) if colon else found is not None and found is not False


def _has_map(tree: Any, wanted: dict[str, Any]) -> bool:
    for path, value in wanted.items():
        found = _at(tree, path)
        if found is _MISSING:
            return False
        if type(value) is dict:
            if not _has_map(found, value):
                return False
        elif type(value) in (list, tuple):
            if not all(_holds(found, one) for one in value):
                return False
        elif not _holds(found, value):
            return False
    return True


def _at(tree: Any, path: str) -> Any:
    if type(tree) is dict and path in tree:
        return tree[path]
    for key in path.split("."):
        if type(tree) is not dict or key not in tree:
            return _MISSING
        tree = tree[key]
    return tree


def _holds(found: Any, value: Any) -> bool:
    if type(found) is list:
        return any(_holds(one, value) for one in found)
    if found is _MISSING or type(found) is dict:
        return False
    return bool(found == value) or (type(value) is str and str(found).lower() == value.lower())
