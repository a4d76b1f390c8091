"""What a decorated function says about a remote one: whether it is a stub, and its parameters.

Theory. `@remote` on a function without a body names a function that a node has registered; on a
function with a body it would have to ship that body. Which one it is, is decided by the bytecode,
not by the source, which may be missing. A body is none if all that it can do is to return None,
to raise `NotImplementedError`, or (a generator) to yield nothing of interest.

The parameters of the stub are checked by Python itself: a function with the same parameters and an
empty body is made once, and called with the arguments of every call. It raises the `TypeError`
that a local call would raise, in a tenth of the time of `inspect.Signature.bind`. If the stub has
defaults, that function returns those of them that the caller left out, for they are what a reader
of the stub expects; `...` as a default leaves the choice to the provider.

Rules of this file. 1) The stub is never called. 2) Annotations are looked at, never evaluated by us
beyond what `typing` does.

Source. api.md, decision 4; features.md C1, C8, C14.
"""

from __future__ import annotations

import dis
import inspect
import types
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from typing import Any

from .options import NotAvailableError

_NOISE = frozenset(
    [
        "RESUME", "NOP", "CACHE", "PRECALL", "PUSH_NULL", "COPY_FREE_VARS", "MAKE_CELL",
        "RETURN_GENERATOR", "POP_TOP", "GEN_START", "EXTENDED_ARG", "NOT_TAKEN", "CALL",
        "LOAD_CONST", "ASYNC_GEN_WRAP", "CALL_INTRINSIC_1", "YIELD_VALUE",
        "JUMP_BACKWARD_NO_INTERRUPT",
    ]
)  # fmt: skip
"""Instructions that do nothing by themselves: a body that has only these before it ends is none."""
_LOADS = frozenset(["LOAD_GLOBAL", "LOAD_NAME", "LOAD_BUILTIN", "LOAD_COMMON_CONSTANT"])

_STREAMS = (Iterator, AsyncIterator, Generator, AsyncGenerator)

Checker = Callable[..., Mapping[str, Any] | None]
"""Takes the arguments of a call; raises TypeError, or returns the defaults to add."""

_MISSING = object()


def has_body(fn: types.FunctionType) -> bool:
    """Return whether a function does anything.

    >>> def stub(a): ...
    >>> def other(a): raise NotImplementedError("by name")
    >>> def real(a): return a + 1
    >>> [has_body(fn) for fn in (stub, other, real)]
    [False, False, True]
    """
    returned: Any = None
    raising = False
    for instruction in dis.get_instructions(fn.__code__):
        name = instruction.opname
        if name == "RETURN_CONST":
            return raising or instruction.argval is not None
        if name == "RETURN_VALUE":
            return raising or returned is not None
        if name == "RAISE_VARARGS":
            return not raising
        if name in _LOADS:
            if raising or instruction.argval not in {"NotImplementedError", NotImplementedError}:
                return True
            raising = True
        elif name.startswith("LOAD_CONST") or name == "LOAD_SMALL_INT":
            returned = instruction.argval
        elif name == "YIELD_VALUE":
            if returned is not None:
                return True
        elif name not in _NOISE:
            return True
    return False


def rule_of(fn: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """Return why a function is called by its name.

    Raises:
        NotAvailableError: It would have to be shipped.
    """
    ship = options.get("ship", "auto")
    if ship is False:
        return "ship=False"
    if "function" in options:
        return f"function={options['function']!r} names what a node has registered"
    if not isinstance(fn, types.FunctionType):
        return "it has no body that could be looked at"
    if not has_body(fn):
        return "its body is a stub"
    if "node_id" in options:
        return f"node_id={options['node_id']!r} names where it is registered"
    raise NotAvailableError(
        f"{fn.__qualname__} has a body, so `remote` would have to ship it (rule: a function whose "
        "body does something, without function= or node_id=, is sent by value), and code is not "
        "shipped yet. Register it on a node with `@node.register`, and here write a stub of the "
        "same parameters whose body is `raise NotImplementedError`, or "
        f"remote(function={fn.__name__!r})"
    )


def yields(fn: Callable[..., Any]) -> bool:
    """Return whether a stub stands for a function that yields: by what it is or returns."""
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        return True
    returned = getattr(fn, "__annotations__", {}).get("return")
    if isinstance(returned, str):
        try:
            returned = typing.get_type_hints(fn).get("return")
        except Exception:  # noqa: BLE001 - evaluating annotations of users may raise anything
            head = str(returned).partition("[")[0].rpartition(".")[2]
            return head in {kind.__name__ for kind in _STREAMS}
    origin = typing.get_origin(returned) or returned
    return origin in _STREAMS


def checker_of(fn: Callable[..., Any]) -> Checker | None:
    """Return what checks the arguments of a stub's calls; None if anything goes."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return None
    parameters = list(signature.parameters.values())
    if not all(parameter.name.isidentifier() for parameter in parameters):
        return None
    defaults = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.default is not parameter.empty and parameter.default is not ...
        and parameter.kind is not parameter.POSITIONAL_ONLY
    }  # fmt: skip
    name = fn.__name__ if fn.__name__.isidentifier() else "stub"
    lines = [f"def {name}({_spelled(parameters)}):"]
    missing = _unused("_missing", parameters)
    given = _unused("_defaults", parameters)
    if defaults:
        conditions = " or ".join(f"{key} is {missing}" for key in defaults)
        pairs = ", ".join(f"({key!r}, {key})" for key in defaults)
        lines.append(f"    if {conditions}:")
        lines.append(f"        return {{k: {given}[k] for k, v in ({pairs},) if v is {missing}}}")
    lines.append("    return None")
    space: dict[str, Any] = {missing: _MISSING, given: defaults}
    exec("\n".join(lines), space)  # noqa: S102 - made of identifiers alone, as dataclasses does
    made: Checker = space[name]
    made.__qualname__ = getattr(fn, "__qualname__", name)
    return made


def _unused(wish: str, parameters: list[inspect.Parameter]) -> str:
    names = {parameter.name for parameter in parameters}
    while wish in names:
        wish += "_"
    return wish


def _spelled(parameters: list[inspect.Parameter]) -> str:
    """Return parameters as Python writes them, with a marker for every default."""
    missing = _unused("_missing", parameters)
    parts: list[str] = []
    starred = False
    for index, parameter in enumerate(parameters):
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        text = parameter.name
        if parameter.kind is parameter.VAR_POSITIONAL:
            text, starred = f"*{text}", True
        elif parameter.kind is parameter.VAR_KEYWORD:
            text = f"**{text}"
        elif parameter.default is not parameter.empty:
            text = f"{text}={missing}"
        parts.append(text)
        following = parameters[index + 1 : index + 2]
        positional = parameter.kind is parameter.POSITIONAL_ONLY
        if positional and not (following and following[0].kind is parameter.POSITIONAL_ONLY):
            parts.append("/")
    return ", ".join(parts)
