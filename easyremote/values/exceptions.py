"""Exceptions of remote code, as data: type name, plain arguments, message, traceback, causes.

Theory. An exception should be caught on this side as it would be there: `except KeyError` catches
a remote KeyError. Unpickling it would let the remote side run code here, so it travels as data,
and a class is made for it that derives from both `RemoteExecutionError` and the original type,
where this process already knows that type. Instances are built by the builtin part of the type
alone: no `__init__` or `__new__` of users runs.

Rules of this file. 1) Nothing is imported; a type is looked up among the modules already loaded,
in their dictionaries, so that no lazy import wakes up. 2) Only subclasses of `Exception` become
their own type: a remote `SystemExit` ends nobody here. 3) Texts are bounded, cut in the middle.
4) Whatever a peer sends as an exception becomes one; nothing here raises.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Hashable
from types import ModuleType
from typing import Any, cast

from ..errors import RemoteExecutionError, SerializationError
from . import plain

ERROR_MSG_MAX = 4 * 1024
TRACEBACK_MAX = 64 * 1024
ARGS_BYTES_MAX = 8 * 1024
"""Most bytes of plain arguments, and of plain attributes; without them the message must do."""
CHAIN_MAX = 8
"""Most causes and contexts that are told, from the latest back."""
GROUP_MAX = 16
"""Most exceptions of one ExceptionGroup that keep their own type; in all its levels together."""
NAME_MAX = 256
NOTES_MAX = 16

_RESERVED = frozenset(
    {"type_name", "remote_traceback", "code", "may_have_run", "retry_after_s", "args"}
)
"""Attributes with a meaning of ours; the original's own of that name are not carried over."""
_MEDDLING = frozenset(
    {"__slots__", "__init_subclass__", "__setattr__", "__getattribute__", "__getattr__", "__del__"}
)
"""What a type of users may not define: it would run, or be missing, when we build an instance."""
_ARGS = BaseException.__dict__["args"]
"""Reads and sets `args`, whatever property a type of users has under this name."""
_STOPS = (StopIteration, StopAsyncIteration)
"""Types that a coroutine or generator may not raise: Python would turn them into RuntimeError."""


def cut(text: str, size_max: int) -> str:
    """Return `text` with at most `size_max` characters: the middle makes room for a note."""
    if len(text) <= size_max:
        return text
    note = f"\n... {len(text) - size_max:,} characters left out ...\n"
    head = (size_max - len(note)) // 2
    return text[:head] + note + text[len(text) - (size_max - len(note) - head) :]


# ---- to the wire -------------------------------------------------------------------------------


def encode_exception(error: BaseException) -> dict[str, Any]:
    """Return an exception as plain data that `decode_exception` takes; never raises."""
    detail = _described(error, [GROUP_MAX])
    detail["traceback"] = cut(_formatted(error), TRACEBACK_MAX)
    chain: list[dict[str, Any]] = []
    seen = {id(error)}
    current: BaseException | None = error
    while current is not None and len(chain) < CHAIN_MAX:
        relation = "cause"
        following = current.__cause__
        if following is None and not current.__suppress_context__:
            relation, following = "context", current.__context__
        if following is None or id(following) in seen:
            break
        seen.add(id(following))
        chain.append({**_described(following, [0]), "relation": relation})
        current = following
    if chain:
        detail["chain"] = chain
    return detail


def _described(error: BaseException, group_left: list[int]) -> dict[str, Any]:
    module, name = _type_of(error)
    detail: dict[str, Any] = {
        "module": module[:NAME_MAX],
        "type": name[:NAME_MAX],
        "message": cut(_message(error), ERROR_MSG_MAX),
    }
    args = _plain(list(_args_of(error)))
    if args is not None:
        detail["args"] = args
    state = {
        key: value
        for key, value in vars(error).items()
        if type(key) is str and not key.startswith("__") and key not in _RESERVED
    }
    if state:
        packed = _plain(state) or _plain({k: v for k, v in state.items() if _plain(v) is not None})
        if packed is not None:
            detail["state"] = packed
    if isinstance(error, BaseExceptionGroup):
        members: list[dict[str, Any]] = []
        for member in error.exceptions:
            if group_left[0] <= 0:
                break
            group_left[0] -= 1
            members.append(_described(member, group_left))
        detail["group"] = members
    return detail


def _args_of(error: BaseException) -> tuple[Any, ...]:
    """Return the arguments that build the builtin part again: an OSError's include its file."""
    if isinstance(error, OSError):
        return cast("tuple[Any, ...]", OSError.__reduce__(error)[1])
    return cast("tuple[Any, ...]", _ARGS.__get__(error))


def _type_of(error: BaseException) -> tuple[str, str]:
    """Return module and name of the type; of one that came from afar itself, the original's."""
    if isinstance(error, RemoteExecutionError):
        origin: Any = vars(error).get("_origin")
        if type(origin) is tuple and len(origin) == 2:
            return cast("tuple[str, str]", origin)
    cls = type(error)
    return str(cls.__module__), str(cls.__qualname__)


def _message(error: BaseException) -> str:
    try:
        return _sound(str(error))
    except Exception as failure:  # noqa: BLE001 - __str__ is code of users
        return f"<its text cannot be had: {type(failure).__name__}>"


def _formatted(error: BaseException) -> str:
    try:
        return _sound("".join(traceback.format_exception(error)))
    except Exception as failure:  # noqa: BLE001 - it calls code of users, too
        return f"<its traceback cannot be had: {type(failure).__name__}>\n"


def _sound(text: str) -> str:
    """Return `text` with lone surrogates escaped: frames carry Unicode only."""
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> bytes | None:
    try:
        body = plain.encode(value)
    except Exception:  # noqa: BLE001 - properties of registered types are code of users
        return None
    return body if len(body) <= ARGS_BYTES_MAX else None


# ---- from the wire -----------------------------------------------------------------------------


def decode_exception(detail: dict[str, Any]) -> RemoteExecutionError:
    """Return the exception that `detail` describes, not raised.

    Its class derives from `RemoteExecutionError` and, where this process has imported it, from the
    type that was raised. The remote traceback is a note on it and in `.remote_traceback`. Whatever
    a peer sends gives an exception; nothing is imported and no code of users runs.
    """
    error = _built(detail)
    text = detail.get("traceback")
    if type(text) is str and text:
        error.remote_traceback = cut(text, TRACEBACK_MAX)
        # Not by add_note, which would set the attribute of a type of users.
        own = object.__getattribute__(error, "__dict__")
        own["__notes__"] = ["Remote traceback:\n" + error.remote_traceback.rstrip("\n")]
    current: BaseException = error
    chain = detail.get("chain")
    for link in chain[:CHAIN_MAX] if type(chain) is list else []:
        if type(link) is not dict:
            break
        following = _built(link)
        if link.get("relation") == "cause":
            current.__cause__ = following
        else:
            current.__context__ = following
        current = following
    return error


def _built(detail: dict[str, Any], depth: int = 0) -> RemoteExecutionError:
    module, name, message = (_text(detail.get(key)) for key in ("module", "type", "message"))
    module, name = module[:NAME_MAX], name[:NAME_MAX]
    message = cut(message, ERROR_MSG_MAX)
    args = _unpacked(detail.get("args"), list)
    original = _original(module, name)
    error: RemoteExecutionError | None = None
    if original is not None:
        dual = _dual_class(cast("Hashable", original))
        if dual is not None:
            error = _instance(dual, original, args, message, _members(detail, depth))
    if error is None:
        known = f"{module}.{name}" if module not in {"", "builtins"} else name
        error = RemoteExecutionError(f"{known}: {message}" if message else known)
    own = vars(error)
    for key, value in (_unpacked(detail.get("state"), dict) or {}).items():
        if type(key) is str and not key.startswith("_") and key not in _RESERVED:
            own[key] = value
    own["type_name"] = name if module in {"", "builtins"} else f"{module}.{name}"
    own["_origin"] = (module, name)
    own["_detail"] = detail
    return error


def _text(value: Any) -> str:
    return value if type(value) is str else ""


def _unpacked(body: Any, kind: type[Any]) -> Any:
    """Return the plain list or dict in `body`, or None if there is none."""
    if type(body) is not bytes:
        return None
    try:
        value = plain.decode(body)
    except SerializationError:
        return None
    return value if type(value) is kind else None


def _members(detail: dict[str, Any], depth: int) -> list[Exception]:
    members = detail.get("group")
    if type(members) is not list or depth == CHAIN_MAX:
        return []
    return [_built(m, depth + 1) for m in members[:GROUP_MAX] if type(m) is dict]


def _original(module: str, name: str) -> type[Exception] | None:
    """Return the exception type of that name, if it is loaded here."""
    found: Any = sys.modules.get(module or "builtins")
    for part in name.split("."):
        # Not by getattr: modules and classes may import, or run code, when they are asked.
        if isinstance(found, ModuleType):
            namespace = ModuleType.__getattribute__(found, "__dict__")
        elif isinstance(found, type):
            namespace = type.__getattribute__(found, "__dict__")
        else:
            return None
        found = namespace.get(part)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return None


@functools.lru_cache(maxsize=512)
def _dual_class(original: Any) -> type[RemoteExecutionError] | None:
    """Return the class that is both `original` and a RemoteExecutionError, or None.

    None for what cannot be built without running code of users, or may not be raised everywhere.
    """
    if type(original) is not type or issubclass(original, (RemoteExecutionError, *_STOPS)):
        return None
    for base in original.__mro__:
        if base.__module__ != "builtins" and not _MEDDLING.isdisjoint(vars(base)):
            return None
    namespace = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__str__": _str,
        "__reduce__": _reduce,
    }
    try:
        return cast(
            "type[RemoteExecutionError]",
            type(original.__name__, (RemoteExecutionError, original), namespace),
        )
    except TypeError:  # Their layouts or orders of bases do not agree.
        return None


def _str(self: RemoteExecutionError) -> str:
    """Return the message as it was on the other side."""
    return str(vars(self).get("_message", ""))


def _reduce(self: RemoteExecutionError) -> Any:
    """Let the exception be copied and pickled, as local code may do with any exception."""
    return decode_exception, (vars(self).get("_detail", {}),)


def _instance(
    dual: type[RemoteExecutionError],
    original: type[Exception],
    args: list[Any] | None,
    message: str,
    members: list[Exception],
) -> RemoteExecutionError | None:
    """Return an instance, built by the builtin part of its type alone; None if that fails."""
    base: Any = next(cls for cls in original.__mro__ if cls.__module__ == "builtins")
    values = (message,) if args is None else tuple(args)
    try:
        if issubclass(base, BaseExceptionGroup):
            if not members:
                return None
            error = cast("Any", base).__new__(dual, message, members)
        else:
            error = _new(dual, base, values)
        try:
            base.__init__(error, *error.args if issubclass(base, BaseExceptionGroup) else values)
        except (TypeError, ValueError):
            if base is original:
                return None
            # A subclass of users has arguments of its own; its builtin part does without.
            _ARGS.__set__(error, values)
    except (TypeError, ValueError):  # The builtin checks what a peer chose.
        return None
    vars(error)["_message"] = message
    return cast("RemoteExecutionError", error)


def _new(dual: type[RemoteExecutionError], base: Any, values: tuple[Any, ...]) -> Any:
    try:
        return base.__new__(dual, *values)
    except TypeError:
        # MemoryError has a maker of its own, for itself alone. Types with fields refuse this one.
        return Exception.__new__(dual, *values)
