"""The keywords of `register`: checked one by one, so that a typo never opens a function.

Theory. A keyword that is misspelt and silently ignored is a security hole (`auth_requird=True`)
or a bill that is never written. So the list of keywords is closed, every value is checked where
it is written, and what nothing enforces yet is named when the node starts to serve.

Rules of this file. 1) Everything here runs at registration, in front of the provider: errors are
`TypeError` and `ValueError`. 2) Values that travel to the gateway are plain data.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..scheduler.billing import read_price
from ..scheduler.needs import read_needs
from ..scheduler.quota import read_quota
from ..scheduler.scaling import read_scaling
from . import memory
from .memory import MEMORY_KEY
from .zone import local_zone

ALIASES = {
    "timeout_seconds": "timeout",
    "max_concurrent": "max_concurrency",
}
"""Other spellings that providers already use, and what they mean."""

ENFORCED = frozenset(
    {
        "name", "stream", "async_func", "timeout", "max_concurrency", "isolation", "async_backend",
        "auth_required", "access_level", "description", "version", "tags", "replace", "scaling",
        "quota_per_user", "quota_mode", "billing", "resource_requirements", "priority",
        "idempotent",
    }
)  # fmt: skip
"""Keywords whose effect is there: behaviour, or the place in discovery that they ask for."""

PRIORITY_MAX = 1000
"""The same as for callers: a gateway passes over any other."""

TREE_DEPTH_MAX = 16
TREE_NODES_MAX = 4000
TEXT_MAX = 16 * 1024
"""Bounds of what a provider may declare: it is sent to and kept by the gateway."""


@dataclass(frozen=True, slots=True)
class RegisterOptions:
    """The keywords of one `register`, with their defaults. `api.md` says what each means."""

    name: str | None = None
    stream: bool | None = None
    async_func: bool | None = None
    resource_requirements: Mapping[str, Any] | None = None
    auth_required: bool = False
    access_level: str | None = None
    quota_per_user: str | Mapping[str, Any] | None = None
    scaling: str | int | Mapping[str, Any] | None = None
    billing: str | Mapping[str, Any] | None = None
    timeout: float | None = None
    max_concurrency: int | None = None
    priority: int = 0
    idempotent: bool = False
    cache: bool | float = False
    split: str | None = None
    combine: str | Callable[..., Any] | None = None
    batch: Mapping[str, Any] | None = None
    description: str | None = None
    version: str | None = None
    tags: tuple[str, ...] = ()
    isolation: str = "thread"
    quota_mode: str = "soft"
    replace: bool = False
    async_backend: str = "asyncio"
    load_balancing: bool | str | Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keywords that a subclass of the node declared."""

    def unenforced(self) -> list[str]:
        """Return the keywords that were given and that nothing enforces yet."""
        given = {name for name, default in _DEFAULTS.items() if getattr(self, name) != default}
        return sorted({*given, *self.extra} - ENFORCED)


_DEFAULTS: dict[str, Any] = {
    f.name: f.default for f in fields(RegisterOptions) if f.name != "extra"
}
KEYWORDS = frozenset(_DEFAULTS)


def parse(keywords: Mapping[str, Any], extra_allowed: Iterable[str] = ()) -> RegisterOptions:
    """Check the keywords of one `register`.

    Args:
        keywords: As they were written.
        extra_allowed: Further keywords that the class of the node declares.

    Raises:
        TypeError: A keyword is unknown, given twice under two spellings, or of a wrong type.
        ValueError: A value is out of range.
    """
    extra_allowed = frozenset(extra_allowed)
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for written, value in keywords.items():
        keyword = ALIASES.get(written, written)
        if keyword in extra_allowed:
            extra[keyword] = plain_tree(value, keyword)
        elif keyword not in KEYWORDS:
            raise TypeError(_unknown(written, extra_allowed))
        elif keyword in values:
            raise TypeError(f"register() was given {keyword!r} twice, once as {written!r}")
        else:
            values[keyword] = _CHECKS[keyword](keyword, value)
    return RegisterOptions(**values, extra=extra)


def _unknown(keyword: str, extra_allowed: Iterable[str]) -> str:
    known = [*KEYWORDS, *ALIASES, *extra_allowed]
    close = difflib.get_close_matches(keyword, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"register() got an unexpected keyword argument {keyword!r}{hint}"


def plain_tree(value: Any, path: str) -> Any:
    """Return a copy of `value` made of plain data only, within the bounds of this file.

    Raises:
        TypeError: Something in it is not None, bool, int, float, str, list, tuple or dict.
        ValueError: It is too deep or too large.
    """
    left = [TREE_NODES_MAX]

    def copy(value: Any, path: str, depth: int) -> Any:
        left[0] -= 1
        if depth > TREE_DEPTH_MAX or left[0] < 0:
            raise ValueError(f"{path.partition('.')[0]} is too deep or has too many entries")
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            if len(value) > TEXT_MAX:
                raise ValueError(f"{path} is longer than {TEXT_MAX} characters")
            return value
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"{path} has the key {key!r}; keys are text")
            return {key: copy(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            return [copy(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(items)]
        raise TypeError(f"{path} is a {type(value).__name__}; plain data is expected")

    return copy(value, path, 0)


def _text(keyword: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{keyword} is text, not {type(value).__name__}")
    if value is not None and len(value) > TEXT_MAX:
        raise ValueError(f"{keyword} is longer than {TEXT_MAX} characters")
    return value


def _flag(keyword: str, value: Any) -> bool:
    # A truthy "false" must not decide who may call a function.
    if not isinstance(value, bool):
        raise TypeError(f"{keyword} is True or False, not {value!r}")
    return value


def _flag_or_none(keyword: str, value: Any) -> bool | None:
    return None if value is None else _flag(keyword, value)


def _positive(keyword: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{keyword} is a number of seconds, not {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{keyword} is a positive number of seconds, not {value!r}")
    return float(value)


def count(keyword: str, value: Any) -> int | None:
    """Return `value` if it is None or a number of things that run at once.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is out of range.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{keyword} is a whole number, not {value!r}")
    if not 1 <= value <= 100_000:
        raise ValueError(f"{keyword} lies between 1 and 100000, not {value}")
    return value


def _priority(keyword: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{keyword} is a whole number, not {value!r}")
    if abs(value) > PRIORITY_MAX:
        raise ValueError(f"{keyword} lies between -{PRIORITY_MAX} and {PRIORITY_MAX}, not {value}")
    return value


def _mapping(keyword: str, value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"{keyword} is a dict, not {type(value).__name__}")
    return dict(plain_tree(value, keyword))


def _requirements(keyword: str, value: Any) -> Mapping[str, Any] | None:
    requirements = _mapping(keyword, value)
    try:
        memory.limit_of(requirements)
    except ValueError as error:
        raise ValueError(f"{keyword}, {MEMORY_KEY}: {error}") from None
    read_needs(requirements)
    return requirements


def _text_or_mapping(keyword: str, value: Any) -> str | Mapping[str, Any] | None:
    if value is not None and not isinstance(value, str | Mapping):
        raise TypeError(f"{keyword} is text or a dict, not {type(value).__name__}")
    return _mapping(keyword, value) if isinstance(value, Mapping) else _text(keyword, value)


def _quota(keyword: str, value: Any) -> Mapping[str, Any] | None:
    """Return a quota in its dict form, by the calendar of this machine unless it says another."""
    written = _text_or_mapping(keyword, value)
    if written is None:
        return None
    try:
        plain = read_quota(written, zone=local_zone()).to_plain()
    except ValueError as error:
        raise ValueError(f"{keyword}: {error}") from None
    if isinstance(written, str) or "mode" not in written:
        del plain["mode"]  # Said by quota_mode.
    return plain


def _billing(keyword: str, value: Any) -> str | Mapping[str, Any] | None:
    written = _text_or_mapping(keyword, value)
    if written is None:
        return None
    try:
        return read_price(written).to_plain()
    except ValueError as error:
        raise ValueError(f"{keyword}: {error}") from None


def _scaling(keyword: str, value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, str | Mapping):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f'{keyword} is "auto", a number of workers or a dict, not {value!r}')
        count(keyword, value)
    read_scaling(value)
    return _mapping(keyword, value) if isinstance(value, Mapping) else value


def _cache(keyword: str, value: Any) -> bool | float:
    if isinstance(value, bool):
        return value
    seconds = _positive(keyword, value)
    return False if seconds is None else seconds


def _combine(keyword: str, value: Any) -> Any:
    if value is None or isinstance(value, str) or callable(value):
        return value
    raise TypeError(f"{keyword} is a name or a function, not {type(value).__name__}")


def _balancing(keyword: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    return _mapping(keyword, value)


def _tags(keyword: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"{keyword} is a list of texts; write [{value!r}]")
    if not isinstance(value, Iterable):
        raise TypeError(f"{keyword} is a list of texts, not {value!r}")
    tags = tuple(value)
    if len(tags) > 100 or not all(isinstance(tag, str) and 0 < len(tag) <= 200 for tag in tags):
        raise TypeError(f"{keyword} is a list of at most 100 short texts")
    return tags


def _one_of(*choices: str) -> Callable[[str, Any], str]:
    def check(keyword: str, value: Any) -> str:
        if value not in choices:
            listed = " or ".join(repr(choice) for choice in choices)
            raise ValueError(f"{keyword} is {listed}, not {value!r}")
        return str(value)

    return check


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "name": _text,
    "stream": _flag_or_none,
    "async_func": _flag_or_none,
    "resource_requirements": _requirements,
    "auth_required": _flag,
    "access_level": _text,
    "quota_per_user": _quota,
    "scaling": _scaling,
    "billing": _billing,
    "timeout": _positive,
    "max_concurrency": count,
    "priority": _priority,
    "idempotent": _flag,
    "cache": _cache,
    "split": _text,
    "combine": _combine,
    "batch": _mapping,
    "description": _text,
    "version": _text,
    "tags": _tags,
    "isolation": _one_of("thread", "process"),
    "quota_mode": _one_of("soft", "hard"),
    "replace": _flag,
    "async_backend": _one_of("asyncio", "trio"),
    "load_balancing": _balancing,
}
