"""Values that are no plain data, as pickles. The only module that imports pickle or cloudpickle.

Theory. A pickle is a program, and unpickling runs it. So a pickle is made only where the caller
said that the other side takes it, and taken only where the owner said so (`allow_pickle`); a value
of which one part is not plain becomes one pickle as a whole, so that identity and cycles survive.
Pickle's protocol 5 leaves the bytes of arrays out of band. The standard pickler is tried first: it
is five times as fast as cloudpickle, which can take functions and classes by value.

By value or by name? What is defined in `__main__` exists on this side only and goes by value.
What was installed goes by name. In between lie the user's own modules, which the other side may or
may not have: they go by name with their value beside it, which is used where the name leads
nowhere.

Rules of this file. 1) `loads` is the only way to an unpickler, and its callers have checked that
pickles are allowed. 2) Errors of a pickler are `SerializationError`, whatever code of users raised.

Source. PEP 574 (out-of-band buffers); the cloudpickle documentation on pickling by value.
"""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import site
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import SerializationError
from .buffers import Bytes, Outlet, owned_copy

PROTOCOL = 5
IN_BAND_MAX = 4096
"""Buffers up to this size stay in the pickle: a segment of their own costs more than the copy."""
BUFFERS_MAX = 4000
"""Most buffers out of band; a message names 4,096 segments."""

VALUE_BYTES_MAX = 256 * 1024
"""A class or function that is larger by value than this, with all that it uses, goes by name."""

_MAIN = frozenset({"__main__", "__mp_main__"})
_MISTAKES = (Exception,)
"""A pickler runs code of users (`__reduce__`, `__getstate__`), which may raise anything."""


class _ByValueError(Exception):
    """The standard pickler met something that only exists in this program."""


# ---- out ---------------------------------------------------------------------------------------


def dumps(value: Any, outlet: Outlet) -> bytes:
    """Return the pickle of `value`; its large buffers go to `outlet`.

    Raises:
        SerializationError: It cannot be pickled.
    """
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        data = buffer.raw()
        if data.nbytes <= IN_BAND_MAX or len(buffers) == BUFFERS_MAX:
            return True
        buffers.append(data)
        return False

    try:
        stream = io.BytesIO()
        try:
            _Pickler(stream, PROTOCOL, buffer_callback=keep_in_band).dump(value)
        except Exception:  # noqa: BLE001 - cloudpickle may well take what this one did not
            buffers.clear()
            stream = io.BytesIO()
            _cloud_pickler()(stream, PROTOCOL, buffer_callback=keep_in_band).dump(value)
    except _MISTAKES as error:
        raise SerializationError(f"cannot be pickled: {error}") from error
    for data in buffers:
        outlet.put_own(data)
    return stream.getvalue()


def is_picklable(value: Any) -> bool:
    """Whether `dumps` takes `value`; used to find which part of a value it does not take."""
    try:
        dumps(value, Outlet(0))
    except SerializationError:
        return False
    return True


class _Pickler(pickle.Pickler):
    """The standard pickler, which knows what must not go by name alone."""

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is np.ndarray:
            return _reduce_array(obj)
        if kind is FunctionType or isinstance(obj, type):
            module = getattr(obj, "__module__", None)
            if module in _MAIN:
                raise _ByValueError(obj)
            return _reduce_by_name(obj, module)
        return NotImplemented


@functools.cache
def _cloud_pickler() -> Any:
    """Return cloudpickle's pickler with our rules; imported when it is first needed."""
    import cloudpickle  # 20 ms

    class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is np.ndarray:
                return _reduce_array(obj)
            if kind is FunctionType or isinstance(obj, type):
                reduced = _reduce_by_name(obj, getattr(obj, "__module__", None))
                if reduced is not NotImplemented:
                    return reduced
            return super().reducer_override(obj)

    return CloudPickler


def _reduce_array(array: np.ndarray[Any, Any]) -> Any:
    """Let an array leave out of band and arrive writable; numpy does so for contiguous ones."""
    flags = array.flags
    if array.dtype.hasobject or (flags.forc and flags.writeable):
        return NotImplemented
    return array.copy(order="K" if flags.forc else "C").__reduce_ex__(PROTOCOL)


# ---- by name or by value -----------------------------------------------------------------------

_by_value_lock = threading.RLock()
_values_of_classes: WeakKeyDictionary[Any, bytes | None] = WeakKeyDictionary()


def _reduce_by_name(obj: Any, module: str | None) -> Any:
    """Reduce what a user's own module defines to its name with its value beside it."""
    if module is None or not _is_users(module):
        return NotImplemented
    name = obj.__qualname__
    if "<" in name or _lookup(sys.modules.get(module), name) is not obj:
        return NotImplemented  # Made inside a function: it has no name that leads to it.
    value = _value_of(obj)
    return NotImplemented if value is None else (_resolve, (module, name, value))


def _value_of(obj: Any) -> bytes | None:
    """Return the pickle by value of a class or function of a module, or None if it has none."""
    with _by_value_lock:
        try:
            return _values_of_classes[obj]
        except KeyError:
            pass
        value = _cloudpickle_by_value(obj)
        if value is not None and len(value) > VALUE_BYTES_MAX:
            value = None
        _values_of_classes[obj] = value
        return value


def _cloudpickle_by_value(obj: Any) -> bytes | None:
    """Return a pickle that holds `obj` and what it uses of all modules of the user's own."""
    import cloudpickle

    known = cloudpickle.list_registry_pickle_by_value()
    ours = [
        module
        for name, module in list(sys.modules.items())
        if _is_users(name) and module.__name__ == name and name not in known
    ]
    for module in ours:
        cloudpickle.register_pickle_by_value(module)
    try:
        value: bytes = cloudpickle.dumps(obj, PROTOCOL)
    except _MISTAKES:  # It uses a lock, a socket: it has no value, only a name.
        return None
    finally:
        for module in ours:
            cloudpickle.unregister_pickle_by_value(module)
    return value


def _resolve(module: str, name: str, value: bytes) -> Any:
    """Return what a name stands for on this side; else what it stood for on the other.

    Called by the unpickler.
    """
    try:
        found = _lookup(sys.modules.get(module) or importlib.import_module(module), name)
    except _MISTAKES:  # Whatever the module of that name does when it is imported here.
        found = None
    return pickle.loads(value) if found is None else found  # noqa: S301 - the caller is one


def _lookup(module: ModuleType | None, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


@functools.lru_cache(maxsize=4096)
def _is_users(module: str) -> bool:
    """Whether a module is a file of the user's own, neither installed nor part of Python."""
    if module.partition(".")[0] in {"easyremote", *sys.stdlib_module_names}:
        return False
    path = getattr(sys.modules.get(module), "__file__", None)
    return path is not None and not path.startswith(_installed_folders())


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(site.getsitepackages())
    folders.add(site.getusersitepackages())
    return tuple(folder + "/" for folder in sorted(folders))


# ---- in ----------------------------------------------------------------------------------------


def loads(data: Bytes, buffers: Sequence[Bytes]) -> Any:
    """Run a pickle and return its value. Only for peers that are trusted to run code here.

    Raises:
        SerializationError: It fails, or leaves buffers over.
    """
    left = _writable(buffers)
    try:
        value = pickle.loads(data, buffers=left)  # noqa: S301 - see rule 1
    except _MISTAKES as error:
        raise SerializationError(
            f"a pickle that arrived cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if next(left, None) is not None:
        raise SerializationError("a pickle that arrived does not use all of its buffers")
    return value


def _writable(buffers: Sequence[Bytes]) -> Iterator[memoryview]:
    for buffer in buffers:
        data = memoryview(buffer).cast("B")
        yield owned_copy(data) if data.readonly else data
