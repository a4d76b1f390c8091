"""Many futures at once: all of them, some of them, or one after the other as they come.

Rules of this file. 1) What is taken are futures of calls; those of the standard library are taken,
too. 2) Order is the order of the arguments. 3) Waiting here lends the slot of a worker.

Source. decisions.md 26; api.md, `gather`, `wait`, `as_completed`, `get`, `cancel`.
"""

from __future__ import annotations

import concurrent.futures as cf
import threading
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Literal, TypeVar, cast, overload

from ..errors import TaskCancelledError
from .future import Future, Input
from .options import NotAvailableError
from .source import ASK, Derived
from .watch import AsCompleted, Watch, follow

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")


class _Gathering(Derived):
    """The source of a gathered future: it counts its parts."""

    function = "gather"

    def __init__(self, parts: tuple[Any, ...], return_exceptions: bool) -> None:
        super().__init__(parts)
        self.outer: Future[list[Any]] = Future(self)
        self._return_exceptions = return_exceptions
        self._left = len(parts)
        self._lock = threading.Lock()
        for part in parts:
            follow(part, self._arrived)
        if not parts:
            self.outer._step(Input.SETTLE, [])

    def _arrived(self, part: cf.Future[Any]) -> None:
        with self._lock:
            self._left -= 1
            last = not self._left
        error = _error_of(part)
        if error is not None and not self._return_exceptions:
            # The first failure is the outcome; the others go on, and nobody else looks at them.
            self.outer._step(Input.SETTLE, None, error)
        elif last and not self.outer.done():
            self.outer._step(Input.SETTLE, [_outcome_of(one) for one in self.parents])

    def request_cancel(self, strength: int, grace_ms: int) -> None:
        """Cancel every part."""
        for part in self.parents:
            if isinstance(part, Future):
                part.cancel(force=strength > ASK, grace=grace_ms / 1000)
            else:
                part.cancel()

    def on_io_thread(self) -> bool:
        """Whether the caller runs where nothing may block."""
        for part in self.parents:
            if isinstance(part, Future) and part._source is not None:
                return part._source.on_io_thread()
        return False


def _error_of(part: cf.Future[Any]) -> BaseException | None:
    if isinstance(part, Future):
        part._seen()
        return part._exception
    if part.cancelled():
        return TaskCancelledError("the future was cancelled")
    return part.exception()


def _outcome_of(part: cf.Future[Any]) -> Any:
    if isinstance(part, Future):
        return part._result if part._exception is None else part._exception
    return _error_of(part) or part.result()


@overload
def gather(  # type: ignore[overload-overlap] # see the docstring
    f1: Awaitable[T1], f2: Awaitable[T2], /, *, return_exceptions: Literal[False] = False
) -> Future[tuple[T1, T2]]: ...
@overload
def gather(  # type: ignore[overload-overlap] # see the docstring
    f1: Awaitable[T1], f2: Awaitable[T2], f3: Awaitable[T3], /, *,
    return_exceptions: Literal[False] = False,
) -> Future[tuple[T1, T2, T3]]: ...  # fmt: skip
@overload
def gather(  # type: ignore[overload-overlap] # see the docstring
    f1: Awaitable[T1], f2: Awaitable[T2], f3: Awaitable[T3], f4: Awaitable[T4], /, *,
    return_exceptions: Literal[False] = False,
) -> Future[tuple[T1, T2, T3, T4]]: ...  # fmt: skip
@overload
def gather(  # type: ignore[overload-overlap] # see the docstring
    f1: Awaitable[T1], f2: Awaitable[T2], f3: Awaitable[T3], f4: Awaitable[T4],
    f5: Awaitable[T5], /, *, return_exceptions: Literal[False] = False,
) -> Future[tuple[T1, T2, T3, T4, T5]]: ...  # fmt: skip
@overload
def gather(*fs: Awaitable[T], return_exceptions: Literal[False] = False) -> Future[list[T]]: ...
@overload
def gather(*fs: Awaitable[Any], return_exceptions: bool) -> Future[list[Any]]: ...
def gather(*fs: Any, return_exceptions: bool = False) -> Any:
    """Return one future of all results, in the order of the arguments.

    The result is a list. Type checkers see a tuple for two to five futures of known types, so that
    `a, b = await gather(f(), g())` gives each name its type, as with `asyncio.gather`.

    Args:
        fs: Futures of calls, or futures of `concurrent.futures`.
        return_exceptions: Put errors into the list; by default the first failure is the error of
            the whole, while the other calls go on.

    Returns:
        A future. Cancelling it cancels every part.
    """
    return _Gathering(tuple(_taken(one, "gather") for one in fs), return_exceptions).outer


def _taken(one: Any, where: str) -> Any:
    if isinstance(one, cf.Future):
        return one
    if isinstance(one, list | tuple | set):
        raise TypeError(f"{where} takes futures one by one: write {where}(*calls)")
    raise TypeError(
        f"{where} takes what calls of remote functions return, not {type(one).__name__}; for "
        "other awaitables use asyncio.gather or a trio nursery"
    )


def wait(
    fs: Iterable[Future[T]], timeout: float | None = None, return_when: str = cf.ALL_COMPLETED, *,
    num_returns: int | None = None,
) -> cf._base.DoneAndNotDoneFutures[T]:  # fmt: skip
    """Block until some futures have outcomes.

    Args:
        fs: Futures.
        timeout: Give up after so many seconds; nothing is raised, the rest is not done.
        return_when: `concurrent.futures.ALL_COMPLETED`, `FIRST_COMPLETED` or `FIRST_EXCEPTION`.
        num_returns: Return as soon as so many are done, whatever `return_when` says.

    Returns:
        The sets `done` and `not_done`.
    """
    if return_when not in {cf.ALL_COMPLETED, cf.FIRST_COMPLETED, cf.FIRST_EXCEPTION}:
        raise ValueError(f"return_when is one of the constants of wait, not {return_when!r}")
    futures = list(dict.fromkeys(_taken(one, "wait") for one in fs))
    wanted = len(futures) if num_returns is None else min(num_returns, len(futures))
    if num_returns is None and return_when == cf.FIRST_COMPLETED:
        wanted = min(1, len(futures))
    watch = Watch()
    failed = False

    def enough() -> bool:
        nonlocal failed
        if num_returns is None and return_when == cf.FIRST_EXCEPTION and not failed:
            failed = any(one.done() and _failed(one) for one in futures)
        return failed or len(watch.done) >= wanted

    for one in futures:
        watch.add(one)
    try:
        watch.block(enough, timeout)
    finally:
        watch.forget()
    done = {one for one in futures if one.done()}
    return cf._base.DoneAndNotDoneFutures(done, set(futures) - done)


def _failed(one: cf.Future[Any]) -> bool:
    if isinstance(one, Future):
        return one._exception is not None and not one.cancelled()
    return not one.cancelled() and one.exception() is not None


def as_completed(fs: Iterable[Future[T]], timeout: float | None = None) -> AsCompleted[T]:
    """Return futures as they get their outcomes, for `for` and for `async for`.

    Args:
        fs: Futures; more can be added with `.add(future)` at any time.
        timeout: Seconds from now after which waiting raises `TimeoutError`.
    """
    return AsCompleted((_taken(one, "as_completed") for one in fs), timeout)


@overload
def get(x: Future[T], timeout: float | None = None) -> T: ...
@overload
def get(x: Sequence[Future[T]], timeout: float | None = None) -> list[T]: ...
def get(x: Any, timeout: float | None = None) -> Any:
    """Block until a call, or each of several, has its result, and return it.

    Raises:
        TimeoutError: That took longer than `timeout` seconds in all; the calls go on.
    """
    if isinstance(x, cf.Future):
        return cast("Future[Any]", x).result(timeout)
    return gather(*x).result(timeout)


def cancel(f: Future[Any], *, force: bool = False, recursive: bool = True) -> bool:
    """Ask for a call to be stopped; the same as `f.cancel(force=force)`.

    Args:
        f: The future of the call.
        force: Interrupt the body at once, and kill after a grace.
        recursive: What the body itself waits for is cancelled with it.

    Returns:
        False if there is an outcome already.
    """
    if not recursive:
        raise NotAvailableError(
            "recursive=False: calls that a cancelled body waits for are cancelled with it; leave "
            "`recursive` away, or start them with .spawn(), which makes them independent"
        )
    return f.cancel(force=force)
