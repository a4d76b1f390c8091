"""Where in a value the part is that cannot travel: `args[0].model.x`, `kwargs['data'][3]`.

Theory. The encoder is fast because it does not keep track of where it is. When it fails, which is
rare, the value is walked once more, with a path, down to the innermost part that fails by itself.

Rules of this file. 1) The walk is bounded in depth and number of parts. 2) It looks at containers
and attributes, and calls no code of users but their `__repr__` of keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

DEPTH_MAX = 64
PARTS_MAX = 2000
"""Most parts of one value that are tried."""
KEY_CHARS_MAX = 40


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what `value` consists of, each with what its path adds to that of `value`."""
    if isinstance(value, list | tuple):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"[{short(key)}]", item
            yield f" (its key {short(key)})", key
    elif isinstance(value, set | frozenset):
        yield from ((f" (its entry {short(item)})", item) for item in value)
    else:
        yield from attributes(value)


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that an instance has of its own."""
    if isinstance(value, type) or callable(value):
        return
    found = getattr(value, "__dict__", None)
    if isinstance(found, dict):
        yield from ((f".{name}", item) for name, item in found.items())
    elif dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        yield from ((f".{name}", getattr(value, name)) for name in names if hasattr(value, name))


def short(value: Any) -> str:
    """Return a short text for a key."""
    if isinstance(value, str | bytes | int | float | None):
        text = repr(value[:KEY_CHARS_MAX] if isinstance(value, str | bytes) else value)
        return text[: KEY_CHARS_MAX + 3]
    return f"<{type(value).__name__}>"


def find(value: Any, root: str, is_fit: Callable[[Any], bool]) -> tuple[str, Any]:
    """Return the path and the innermost part of `value` that is not fit, though all its parts are.

    Args:
        value: Is not fit.
        root: Its own path.
        is_fit: Whether a part can travel by itself.
    """
    path, culprit = root, value
    seen = {id(value)}
    for _ in range(DEPTH_MAX):
        for step, part in islice(parts(culprit), PARTS_MAX):
            if id(part) not in seen and not is_fit(part):
                seen.add(id(part))
                path, culprit = path + step, part
                break
        else:
            break
    return path, culprit
