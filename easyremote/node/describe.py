"""What a function looks like to somebody who has never seen its code.

Theory. A caller, a form on a dashboard and an OpenAPI document need the same few facts: the
parameters with their kinds and defaults, a schema of what each accepts, one paragraph of text,
and whether the answer is one value or a stream. All of it is read from the function itself once,
at registration.

Rules of this file. 1) Everything returned is plain data of bounded size: texts are cut, schemas
that grow too deep become "anything". 2) An annotation that cannot be resolved is text, never an
error. 3) The function is not called.

Source. JSON Schema 2020-12 for the words used; PEP 362 for signatures.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import inspect
import pathlib
import re
import reprlib
import types
import typing
import uuid
from collections import abc
from collections.abc import Callable
from typing import Any

FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
"""A path `node.function` is split at its last dot, so a function name has none."""

DOC_CHARS_MAX = 2000
SIGNATURE_CHARS_MAX = 2000
ANNOTATION_CHARS_MAX = 200
DEFAULT_CHARS_MAX = 200
PARAMETERS_MAX = 200
SCHEMA_DEPTH_MAX = 6
SCHEMA_NODES_MAX = 400

_UNRESOLVED = (
    NameError, TypeError, AttributeError, SyntaxError, ValueError, LookupError, ImportError,
)  # fmt: skip
"""What resolving an annotation may raise: it is an expression of the provider."""

_REPR = reprlib.Repr()  # Bounded, and it survives a __repr__ that raises.
_REPR.maxother = _REPR.maxstring = _REPR.maxlong = DEFAULT_CHARS_MAX

_STARS = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
_PLAIN_DEFAULTS = (type(None), bool, int, float, str)


def check_name(name: str) -> str:
    """Return `name` if a function may be called so.

    Raises:
        ValueError: It is no plain identifier of at most 64 characters.
    """
    if FUNCTION_NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} cannot be the name of a function: letters, digits and _ only, at most 64, "
            "not beginning with a digit; give one with register(name=...)"
        )
    return name


def name_of(fn: Callable[..., Any]) -> str:
    """Return the name under which `fn` is registered if none is given.

    Raises:
        ValueError: It has no name that could be used (a lambda, a partial, an instance).
    """
    name = getattr(fn, "__name__", None)
    return check_name(name if isinstance(name, str) else f"<{type(fn).__name__}>")


def first_paragraph(fn: Callable[..., Any]) -> str:
    """Return the first paragraph of the docstring as one line, or an empty text."""
    if isinstance(fn, types.FunctionType | types.MethodType | types.BuiltinFunctionType | type):
        doc = inspect.getdoc(fn)
    else:
        doc = inspect.getdoc(getattr(fn, "func", None) or type(fn).__call__)
    return cut(" ".join((doc or "").strip().split("\n\n")[0].split()), DOC_CHARS_MAX)


def cut(text: str, chars_max: int) -> str:
    """Return `text`, shortened to `chars_max` characters if it is longer."""
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """How the body of a function runs."""

    is_async: bool
    """It is an `async def`: it runs on an event loop."""
    stream: bool
    """It answers with items, one after the other."""


def shape_of(fn: Callable[..., Any], stream: bool | None, async_func: bool | None) -> Shape:
    """Find out how `fn` runs, and refuse what contradicts it.

    Args:
        fn: Function, bound method, partial or callable object.
        stream: What the provider said; None finds it out. True on a function that is no
            generator streams the iterable that it returns.
        async_func: What the provider said; None finds it out.

    Raises:
        TypeError: What was said cannot be true of this function.
    """
    call = fn
    if not (inspect.isroutine(fn) or hasattr(fn, "func")):
        call = type(fn).__call__  # An instance of a class with __call__.
    generator, agenerator = inspect.isgeneratorfunction(call), inspect.isasyncgenfunction(call)
    is_async = agenerator or inspect.iscoroutinefunction(call)
    label = getattr(fn, "__name__", repr(fn))
    if async_func is True and not is_async:
        raise TypeError(f"{label} is a plain def: async_func=True needs async def")
    if async_func is False and is_async:
        raise TypeError(f"{label} is an async def: leave async_func=False away")
    if stream is False and (generator or agenerator):
        raise TypeError(f"{label} is a generator: leave stream=False away, or return a list")
    return Shape(is_async=is_async, stream=bool(stream) or generator or agenerator)


def describe_parameters(fn: Callable[..., Any]) -> dict[str, Any]:
    """Describe how `fn` is called.

    Returns:
        Plain data: `signature` (text), `parameters` (one dict each: name, kind, annotation,
        required, default) and `schema` (an object schema over the parameters, and `returns`).
    """
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # Some builtins do not say how they are called.
        return {"signature": "(...)", "parameters": [], "schema": {}}
    hints = _hints(fn)
    parameters, texts = [], []
    properties: dict[str, Any] = {}
    required: list[str] = []
    budget = [SCHEMA_NODES_MAX]
    star = False
    for parameter in list(signature.parameters.values())[:PARAMETERS_MAX]:
        entry = _parameter(parameter, hints)
        parameters.append(entry)
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            texts.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        texts.append(_parameter_text(parameter, entry))
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        properties[parameter.name] = schema_of(hints.get(parameter.name, Any), 0, budget)
        if entry["required"]:
            required.append(parameter.name)
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    text = f"({', '.join(texts)})"
    if "return" in hints or signature.return_annotation is not signature.empty:
        returned = hints.get("return", signature.return_annotation)
        schema["returns"] = schema_of(returned, 0, budget)
        text += f" -> {annotation_text(returned)}"
    return {
        "signature": cut(text, SIGNATURE_CHARS_MAX),
        "parameters": parameters,
        "schema": schema,
    }


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the resolved annotations; those that cannot be resolved stay as text."""
    target = getattr(fn, "func", fn)
    if not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target)
    except _UNRESOLVED:
        return _hints_one_by_one(target)


def _hints_one_by_one(target: Any) -> dict[str, Any]:
    """Resolve what can be resolved of annotations of which some cannot."""
    hints: dict[str, Any] = {}
    for name, annotation in getattr(target, "__annotations__", {}).items():
        alone = type("_Alone", (), {"__annotations__": {name: annotation}})
        try:
            hints.update(typing.get_type_hints(alone, getattr(target, "__globals__", None)))
        except _UNRESOLVED:
            hints[name] = annotation
    return hints


def _parameter(parameter: inspect.Parameter, hints: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": parameter.name,
        "kind": parameter.kind.name.lower(),
        "required": parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD),
    }
    if parameter.annotation is not parameter.empty:
        entry["annotation"] = annotation_text(hints.get(parameter.name, parameter.annotation))
    if parameter.default is not parameter.empty:
        default = parameter.default
        if type(default) in _PLAIN_DEFAULTS and len(repr(default)) <= DEFAULT_CHARS_MAX:
            entry["default"] = default
        else:
            entry["default_text"] = _safe_repr(default)
    return entry


def _parameter_text(parameter: inspect.Parameter, entry: dict[str, Any]) -> str:
    text = _STARS.get(parameter.kind.name, "") + parameter.name
    if "annotation" in entry:
        text += f": {entry['annotation']}"
    if "default" in entry or "default_text" in entry:
        equals = " = " if "annotation" in entry else "="
        text += equals + str(entry.get("default_text") or repr(entry.get("default")))
    return text


def _safe_repr(value: Any) -> str:
    size_bytes = getattr(value, "nbytes", 0)
    if isinstance(size_bytes, int) and size_bytes > 10_000:
        return "..."  # The repr of a large array is slow and says nothing.
    return cut(_REPR.repr(value), DEFAULT_CHARS_MAX)


def annotation_text(annotation: Any) -> str:
    """Return an annotation as people write it."""
    if isinstance(annotation, str):
        return cut(annotation, ANNOTATION_CHARS_MAX)
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return cut(annotation.__qualname__, ANNOTATION_CHARS_MAX)
    return cut(_safe_repr(annotation).replace("typing.", ""), ANNOTATION_CHARS_MAX)


# ---- schemas -----------------------------------------------------------------------------------

_SIMPLE: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    complex: {"type": "array", "items": {"type": "number"}, "format": "complex"},
    str: {"type": "string"},
    bytes: {"type": "string", "format": "binary"},
    bytearray: {"type": "string", "format": "binary"},
    type(None): {"type": "null"},
    None: {"type": "null"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"},
    datetime.timedelta: {"type": "number", "format": "duration"},
    decimal.Decimal: {"type": "string", "format": "decimal"},
    uuid.UUID: {"type": "string", "format": "uuid"},
    pathlib.Path: {"type": "string", "format": "path"},
    dict: {"type": "object"},
    abc.Mapping: {"type": "object"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    abc.Sequence: {"type": "array"},
    set: {"type": "array", "uniqueItems": True},
    frozenset: {"type": "array", "uniqueItems": True},
}
_STREAMS = (abc.Iterator, abc.AsyncIterator, abc.Iterable, abc.AsyncIterable, abc.Generator,
            abc.AsyncGenerator)  # fmt: skip


def schema_of(annotation: Any, depth: int, budget: list[int]) -> dict[str, Any]:
    """Return the schema of one annotation; `{}`, anything, where there is no better answer."""
    budget[0] -= 1
    if depth > SCHEMA_DEPTH_MAX or budget[0] < 0 or isinstance(annotation, str):
        return {}
    origin = typing.get_origin(annotation)
    if origin is not None:
        return _generic(origin, typing.get_args(annotation), depth, budget)
    try:
        simple = _SIMPLE.get(annotation)
    except TypeError:  # An unhashable annotation is nothing that we know.
        return {}
    if simple is not None:
        return dict(simple)
    return _class(annotation, depth, budget) if isinstance(annotation, type) else {}


def _generic(origin: Any, args: tuple[Any, ...], depth: int, budget: list[int]) -> dict[str, Any]:
    if origin is typing.Annotated or origin in (typing.Final, typing.ClassVar):
        return schema_of(args[0], depth, budget)
    if origin is typing.Union or origin is types.UnionType:
        return {"anyOf": [schema_of(arg, depth + 1, budget) for arg in args]}
    if origin is typing.Literal:
        return {"enum": [arg for arg in args if type(arg) in _PLAIN_DEFAULTS]}
    if origin in _STREAMS:
        return {"type": "array", "items": schema_of(args[0], depth + 1, budget), "stream": True}
    if origin is tuple and args and args[-1] is not Ellipsis:
        return {"type": "array", "prefixItems": [schema_of(a, depth + 1, budget) for a in args]}
    if origin in (list, set, frozenset, tuple, abc.Sequence, abc.Set, abc.Collection):
        schema = dict(_SIMPLE.get(origin, {"type": "array"}))
        schema["items"] = schema_of(args[0], depth + 1, budget)
        return schema
    if isinstance(origin, type) and issubclass(origin, abc.Mapping) and len(args) == 2:
        values = schema_of(args[1], depth + 1, budget)
        return {"type": "object", "additionalProperties": values}
    return _class(origin, depth, budget) if isinstance(origin, type) else {}


def _class(cls: type, depth: int, budget: list[int]) -> dict[str, Any]:
    if issubclass(cls, enum.Enum):
        members = list(cls)[:100]
        return {"enum": [m.value for m in members if type(m.value) in _PLAIN_DEFAULTS]}
    if cls.__name__ == "ndarray" and cls.__module__.partition(".")[0] == "numpy":
        return {"type": "string", "format": "ndarray"}
    fields: dict[str, Any] = {}
    required: list[str] = []
    if dataclasses.is_dataclass(cls):
        for f in dataclasses.fields(cls):
            fields[f.name] = f.type
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                required.append(f.name)
    elif typing.is_typeddict(cls):
        fields = dict(cls.__annotations__)
        required = sorted(getattr(cls, "__required_keys__", ()))
    else:
        return {}
    hints = {**fields, **_class_hints(cls)}
    properties = {
        name: schema_of(hints[name], depth + 1, budget) for name in list(fields)[:PARAMETERS_MAX]
    }
    return {"type": "object", "title": cls.__name__, "properties": properties, "required": required}


def _class_hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except _UNRESOLVED:
        return {}
