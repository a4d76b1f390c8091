"""A remote function over many arguments, with no more calls under way than is useful.

Theory. Arguments are taken from the iterables as results are taken from here: there are always up
to `MAP_AHEAD` calls ahead of the consumer, so nodes never wait for it, and an endless iterable
costs constant memory.

Rules of this file. 1) The user's iterables are pulled by whoever takes results, never by a thread
of ours. 2) Dropping the result cancels what is under way.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

from .future import Future
from .source import ASK
from .stream import GRACE_MS
from .watch import Watch

R_co = TypeVar("R_co", covariant=True)

MAP_AHEAD = 256
"""Calls ahead of the consumer: the stream credit that a gateway grants at first."""


class MapResult(Iterator[R_co], AsyncIterator[R_co], Generic[R_co]):
    """Results of `.map()` and `.starmap()`, for `for` and for `async for`."""

    def __init__(
        self, submit: Callable[..., Future[Any]], arguments: Iterable[tuple[Any, ...]], *,
        timeout_s: float | None = None, chunksize: int = 1, ordered: bool = True,
        return_exceptions: bool = False,
    ) -> None:  # fmt: skip
        """Begin with the first calls; see `RemoteFunction.map`."""
        if chunksize < 1:
            raise ValueError("chunksize is at least 1")
        self._submit = submit
        self._arguments = iter(arguments)
        self._until = None if timeout_s is None else time.monotonic() + timeout_s
        self._chunksize = chunksize
        self._ahead = max(MAP_AHEAD, chunksize)
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._calls: deque[Future[Any]] = deque()
        self._under_way: set[Future[Any]] = set()
        self._watch = Watch()
        self._drained = False
        self._refill()

    def _refill(self) -> None:
        """Make calls until enough are under way: a chunk at a time."""
        count = len(self._calls) if self._ordered else len(self._under_way)
        while not self._drained and count + self._chunksize <= self._ahead:
            for _ in range(self._chunksize):
                try:
                    args = next(self._arguments)
                except StopIteration:
                    self._drained = True
                    return
                call = self._submit(*args)
                if self._ordered:
                    self._calls.append(call)
                else:
                    self._under_way.add(call)
                    self._watch.add(call)
                count += 1

    def _ready(self) -> bool:
        if self._ordered:
            return not self._calls or self._calls[0].done()
        return not self._under_way or bool(self._watch.done)

    @property
    def _over(self) -> bool:
        return not self._calls and not self._under_way

    def _left_s(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def _late(self) -> TimeoutError:
        self.close()
        return TimeoutError("the results of a map took longer than its timeout")

    def _take(self) -> Any:
        if self._ordered:
            call = self._calls.popleft()
        else:
            call = cast("Future[Any]", self._watch.done.popleft())
            self._under_way.discard(call)
        self._refill()
        error = call.exception() if not call.cancelled() else call._exception
        if error is None:
            return call.result()
        if self._return_exceptions:
            return error
        self.close()
        raise error

    def __next__(self) -> R_co:
        """Block until the next result."""
        if self._over:
            raise StopIteration
        if not self._ready() and not self._wait():
            raise self._late()
        return cast("R_co", self._take())

    def _wait(self) -> bool:
        if not self._ordered:
            return self._watch.block(self._ready, self._left_s())
        watch = Watch()
        watch.add(self._calls[0])
        try:
            return watch.block(self._ready, self._left_s())
        finally:
            watch.forget()

    def __aiter__(self) -> MapResult[R_co]:
        return self

    async def __anext__(self) -> R_co:
        """Wait until the next result."""
        if self._over:
            raise StopAsyncIteration
        if not self._ready() and not await self._wait_async():
            raise self._late()
        return cast("R_co", self._take())

    async def _wait_async(self) -> bool:
        if not self._ordered:
            return await self._watch.wait(self._ready, self._left_s())
        watch = Watch()
        watch.add(self._calls[0])
        try:
            return await watch.wait(self._ready, self._left_s())
        finally:
            watch.forget()

    def close(self) -> None:
        """Cancel what is under way; there are no more results."""
        self._drained = True
        self._watch.forget()
        for call in (*self._calls, *self._under_way):
            if not call.cancel():
                call._seen()
        self._calls.clear()
        self._under_way.clear()

    def __del__(self) -> None:
        if getattr(self, "_watch", None) is None:
            return
        self._watch.forget()
        # This may run inside a collection, where nothing may be locked: only ask.
        for call in (*self._calls, *self._under_way):
            call._cancelling = True
            call._seen()
            if not call.done() and call._source is not None:
                call._source.request_cancel(ASK, GRACE_MS)
