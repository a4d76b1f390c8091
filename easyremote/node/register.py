"""The functions of one node: what each is, and the table that names them.

Theory. A function belongs to a *slot group*, the set of calls that share execution slots: `main`
(sync functions, one at a time unless the node says more), `async` (on an event loop, many at
once), or a group of its own, where `max_concurrency` or `isolation="process"` asks for it. The
gateway is told the group and its slots, so that it never keeps more calls at a node than can run
soon.

Rules of this file. 1) The table is changed from any thread and read from any thread; a change
replaces an entry, never edits one. 2) The order of registration is the order of discovery.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import describe
from .options import RegisterOptions, plain_tree

MAIN_GROUP = "main"
ASYNC_GROUP = "async"
ASYNC_SLOTS = 1024
"""Calls of `async def` functions that one node runs at once, unless a function says less."""


@dataclass(frozen=True, slots=True)
class Function:
    """One registered function.

    Attributes:
        name: What callers say.
        fn: The provider's own function, unchanged.
        shape: How its body runs.
        options: The keywords of its registration.
        group: The slot group that its calls share.
        slots: Calls of that group that run at once.
        entry: The description that goes to the gateway: plain data.
    """

    name: str
    fn: Callable[..., Any]
    shape: describe.Shape
    options: RegisterOptions
    group: str
    slots: int
    entry: dict[str, Any]


def build(fn: Any, options: RegisterOptions, main_slots: int) -> Function:
    """Describe `fn` for the table.

    Args:
        fn: What the provider registers.
        options: Its keywords, checked.
        main_slots: Slots of the group `main` on this node.

    Raises:
        TypeError: It cannot be called, or a keyword contradicts what it is.
        ValueError: It has no usable name.
    """
    if isinstance(fn, type):
        raise TypeError(f"register() takes a function, not the class {fn.__name__}")
    if not callable(fn):
        raise TypeError(f"register() takes a function, not {fn!r}")
    name = describe.name_of(fn) if options.name is None else describe.check_name(options.name)
    shape = describe.shape_of(fn, options.stream, options.async_func)
    group, slots = _group(name, shape, options, main_slots)
    entry = _entry(name, fn, shape, options)
    entry["group"], entry["slots"] = group, slots
    return Function(name, fn, shape, options, group, slots, entry)


def _group(
    name: str, shape: describe.Shape, options: RegisterOptions, main_slots: int
) -> tuple[str, int]:
    if options.isolation == "process" or options.max_concurrency is not None:
        return f"fn:{name}", options.max_concurrency or 1
    return (ASYNC_GROUP, ASYNC_SLOTS) if shape.is_async else (MAIN_GROUP, main_slots)


def _entry(
    name: str, fn: Callable[..., Any], shape: describe.Shape, options: RegisterOptions
) -> dict[str, Any]:
    doc = options.description
    combine = options.combine
    metadata: dict[str, Any] = {
        "quota_mode": options.quota_mode,
        "split": options.split,
        "combine": getattr(combine, "__qualname__", None) if callable(combine) else combine,
        "batch": options.batch,
        "load_balancing": options.load_balancing,
        **options.extra,
    }
    return {
        "name": name,
        "doc": describe.first_paragraph(fn) if doc is None else doc,
        **describe.describe_parameters(fn),
        "stream": shape.stream,
        "is_async": shape.is_async,
        "isolation": options.isolation,
        "max_concurrency": options.max_concurrency,
        "timeout_s": options.timeout,
        "idempotent": options.idempotent,
        "auth_required": options.auth_required,
        "access_level": options.access_level,
        "requirements": options.resource_requirements,
        "quota": options.quota_per_user,
        "scaling": options.scaling,
        "billing": options.billing,
        "priority": options.priority,
        "cache": options.cache,
        "version": options.version,
        "tags": [*options.tags, *_capability_tags(options)],
        "metadata": {key: value for key, value in metadata.items() if value is not None},
    }


def _capability_tags(options: RegisterOptions) -> list[str]:
    """Return the keywords that a subclass declared, as tags `key:value`."""
    return [f"{key}:{value}" for key, value in options.extra.items() if isinstance(value, str)]


class FunctionTable:
    """The functions of a node by name."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}
        self._lock = threading.Lock()

    def add(self, function: Function, *, replace: bool) -> None:
        """Add a function.

        Raises:
            ValueError: The name is taken and `replace` is False.
        """
        with self._lock:
            if function.name in self._functions and not replace:
                raise ValueError(
                    f"a function {function.name!r} is already registered on this node; give "
                    "another name=..., or replace=True"
                )
            self._functions = {**self._functions, function.name: function}

    def remove(self, name: str) -> None:
        """Take a function away; calls that run go on.

        Raises:
            LookupError: There is none of this name.
        """
        with self._lock:
            if name not in self._functions:
                raise LookupError(f"no function {name!r} is registered on this node")
            self._functions = {k: f for k, f in self._functions.items() if k != name}

    def get(self, name: str) -> Function | None:
        """Return the function of this name, or None."""
        return self._functions.get(name)

    def __len__(self) -> int:
        return len(self._functions)

    def entries(self) -> list[dict[str, Any]]:
        """Return the descriptions of all functions."""
        return [function.entry for function in self._functions.values()]

    def unenforced(self) -> list[str]:
        """Return the keywords that some function was given and that nothing enforces yet."""
        given: set[str] = set()
        for function in self._functions.values():
            given.update(function.options.unenforced())
        return sorted(given)


def declared_capabilities(capabilities: Any) -> dict[str, Any]:
    """Return the capabilities of a node as bounded plain data.

    Raises:
        TypeError: They are no dict of plain data.
    """
    if capabilities is None:
        return {}
    tree = plain_tree(capabilities, "capabilities")
    if not isinstance(tree, dict):
        raise TypeError(f"capabilities is a dict, not {type(capabilities).__name__}")
    return tree
