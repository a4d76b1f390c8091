"""`remote`: say that a function runs elsewhere.

Three ways, all by name:

    @remote(node_id="gpu-01")                  # 1: a stub with the parameters of the function
    def train(model: dict, epochs: int = 10) -> float:
        raise NotImplementedError

    train = remote("gpu-01", "train")          # 2: no stub, arguments are not checked here

    @remote(capability="gpu_training")         # 3: any node that has the function and can do it
    def train(model: dict, epochs: int = 10) -> float:
        raise NotImplementedError

`train(...)` then returns a `Future[float]` at once.

Rules of this file. 1) Whether a function is a stub is decided in `stub.py`, and every refusal says
by which rule. 2) Nothing is sent when a function is declared.

Source. api.md, "the client side".
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Literal, NoReturn, ParamSpec, Protocol, TypeVar, Unpack, overload

from .function import RemoteFunction, RemoteStreamFunction
from .mapping import MapResult
from .options import CallOptions, NotAvailableError, checked, refuse_later_ones, route
from .stub import checker_of, rule_of, yields

__all__ = ["CallOptions", "MapResult", "RemoteFunction", "RemoteStreamFunction", "remote"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Y = TypeVar("Y")


class Decorate(Protocol):
    """What `remote(node_id=...)` returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap] # the first that fits is meant
        self, fn: Callable[P, AsyncIterator[Y]], /
    ) -> RemoteStreamFunction[P, Y]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Iterator[Y]], /
    ) -> RemoteStreamFunction[P, Y]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> RemoteFunction[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, None], /) -> RemoteFunction[P, Any]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> RemoteFunction[P, R]: ...


class DecorateStream(Protocol):
    """What `remote(stream=True, ...)` returns."""

    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[Y]], /) -> RemoteStreamFunction[P, Y]: ...
    @overload
    def __call__(self, fn: Callable[P, Iterable[Y]], /) -> RemoteStreamFunction[P, Y]: ...
    @overload
    def __call__(self, fn: Callable[P, None], /) -> RemoteStreamFunction[P, Any]: ...


@overload
def remote(  # type: ignore[overload-overlap] # the first that fits is meant
    fn: Callable[P, AsyncIterator[Y]], /
) -> RemoteStreamFunction[P, Y]: ...
@overload
def remote(  # type: ignore[overload-overlap]
    fn: Callable[P, Iterator[Y]], /
) -> RemoteStreamFunction[P, Y]: ...
@overload
def remote(
    fn: Callable[P, Coroutine[Any, Any, R]], /, **o: Unpack[CallOptions]
) -> RemoteFunction[P, R]: ...
@overload
def remote(fn: Callable[P, None], /, **o: Unpack[CallOptions]) -> RemoteFunction[P, Any]: ...
@overload
def remote(fn: Callable[P, R], /, **o: Unpack[CallOptions]) -> RemoteFunction[P, R]: ...
@overload
def remote(node: str, function: str, /, **o: Unpack[CallOptions]) -> RemoteFunction[..., Any]: ...
@overload
def remote(
    node: str, function: str, /, *, stream: Literal[True], **o: Unpack[CallOptions]
) -> RemoteStreamFunction[..., Any]: ...
@overload
def remote(*, stream: Literal[True], **o: Unpack[CallOptions]) -> DecorateStream: ...
@overload
def remote(**o: Unpack[CallOptions]) -> Decorate: ...
def remote(*args: Any, stream: bool = False, **options: Any) -> Any:
    """Declare a function that runs on a node.

    Use it as a decorator of a stub (a function whose body is `raise NotImplementedError`, `...` or
    `pass`), with or without options, or give it a node and the name of a function. Calling the
    result sends the call and returns a `Future`; a function that yields returns a `RemoteStream`.

    Args:
        args: A stub; or the id of a node and the name of a function.
        stream: The function yields items, although the stub does not say so.
        options: See `CallOptions`: `node_id`, `capability`, `timeout`, `auth`, ...

    Raises:
        TypeError: An option is unknown or has the wrong type, or `args` are something else.
        ValueError: An option has a value that it cannot have.
        NotAvailableError: The function has a body that would have to be shipped, or is a class.
    """
    given = checked(options)
    refuse_later_ones(given)
    if not args:
        return lambda fn: _declare(fn, given, stream)
    if len(args) == 2 and all(isinstance(one, str) for one in args):
        node, function = args
        given = {"node_id": node, **given}
        return _make(stream, function, given, None)
    if len(args) == 1 and callable(args[0]):
        return _declare(args[0], given, stream)
    raise TypeError(
        "remote() decorates a function, or takes the id of a node and the name of a function: "
        'remote("gpu-01", "train"); a function on any node is '
        '`@remote` or remote(function="train")'
    )


def _declare(fn: Any, given: Mapping[str, Any], stream: bool) -> Any:
    if inspect.isclass(fn):
        _refuse_class(fn)
    if isinstance(fn, RemoteFunction | RemoteStreamFunction):
        return fn.options(**given)
    if not callable(fn):
        raise TypeError(f"remote() decorates a function, not {type(fn).__name__}")
    if isinstance(fn, staticmethod | classmethod):
        raise TypeError("write @staticmethod above @remote, not below")
    rule_of(fn, given)
    return _make(stream or yields(fn), fn.__name__, given, fn)


def _refuse_class(cls: type[Any]) -> NoReturn:
    raise NotAvailableError(
        f"{cls.__name__} is a class, and remote objects (actors) do not exist yet. Register "
        "functions on a node with `@node.register`, keep the state in a variable of that script, "
        "and call them with remote(...)"
    )


def _make(
    stream: bool, function: str, given: Mapping[str, Any], fn: Callable[..., Any] | None
) -> RemoteFunction[..., Any] | RemoteStreamFunction[..., Any]:
    checker = None if fn is None else checker_of(fn)
    made = RemoteStreamFunction if stream else RemoteFunction
    return made(route(function, given), dict(given), fn, checker)
