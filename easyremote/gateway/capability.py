"""Does a node have a capability? The hard filter behind `remote(capability=...)`.

Theory. Capabilities are a free tree that a node's owner declared. A caller names what it wants in
one of three ways: text (a tag, an entry of `specialization`, a top-level key, or `path:value` and
`path.to.key`), a list (all of them), or a map (each path has an equal value; a list holds it).

Rules of this file. 1) Pure. 2) What cannot be understood does not match. 3) Node and caller may be
the same stranger, who fits long lists to long lists: comparisons are counted, over all nodes.

Source. features.md C3.
"""

from __future__ import annotations

from typing import Any

_MISSING = object()

COMPARISONS_MAX = 50_000
"""For one call: some 20 ms. A thousand nodes of fifty values each are within it."""


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


def matches(
    capabilities: dict[str, Any], tags: list[str], wanted: Any, effort: Effort | None = None
) -> bool:
    """Return whether a node with these capabilities and tags has what is wanted.

    Args:
        capabilities: What the node declared.
        tags: Its labels, and those of the function.
        wanted: What the caller named.
        effort: What was spent for the same call on other nodes.

    Raises:
        TooMuch: Finding out would take too long.
    """
    effort = effort or Effort()
    if type(wanted) is str:
        effort.spend(1 + len(tags))
        return _has_text(capabilities, tags, wanted, effort)
    if type(wanted) in (list, tuple):
        return all(matches(capabilities, tags, one, effort) for one in wanted)
    if type(wanted) is dict:
        return _has_map(capabilities, wanted, effort)
    return False


def _has_text(capabilities: dict[str, Any], tags: list[str], text: str, effort: Effort) -> bool:
    if text in tags or text in capabilities:
        return True
    if _holds(capabilities.get("specialization", _MISSING), text, effort):
        return True
    path, colon, value = text.partition(":")
    found = _at(capabilities, path)
    if found is _MISSING:
        return False
    return _holds(found, value, effort) if colon else found is not None and found is not False


def _has_map(tree: Any, wanted: dict[str, Any], effort: Effort) -> bool:
    for path, value in wanted.items():
        found = _at(tree, path)
        if found is _MISSING:
            return False
        if type(value) is dict:
            if not _has_map(found, value, effort):
                return False
        elif type(value) in (list, tuple):
            if not all(_holds(found, one, effort) for one in value):
                return False
        elif not _holds(found, value, effort):
            return False
    return True


def _at(tree: Any, path: str) -> Any:
    """Return what lies at a path; its keys are searched for, so that costs its length."""
    if type(tree) is dict and path in tree:
        return tree[path]
    for key in path.split("."):
        if type(tree) is not dict or key not in tree:
            return _MISSING
        tree = tree[key]
    return tree


def _holds(found: Any, value: Any, effort: Effort) -> bool:
    effort.spend(1)
    if type(found) is list:
        return any(_holds(one, value, effort) for one in found)
    if found is _MISSING or type(found) is dict:
        return False
    return bool(found == value) or (type(value) is str and str(found).lower() == value.lower())
