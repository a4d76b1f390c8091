"""The store as the gateway's event loop uses it: fast reads here, durable writes elsewhere.

Theory. A commit waits for the disk, and an event loop must not. Reads (who is this token?) come
from the memory of the `reader`, on the loop's own thread. Writes go to one thread with its own
connection, which takes everything that has queued up meanwhile, runs it in one transaction and
commits once: under load a hundred writes share one sync of the disk. A write that fails undoes
its own part only. In the simulation there is no thread: a write runs at once, where it is awaited.

Rules of this file. 1) `write` returns, and `submit` calls back, when the change is durable. 2) A
write that is cancelled while it waits may have happened. 3) The queue is bounded by its callers:
each waits for its own. 4) Writes happen in the order in which they were handed over.

Source. The group commit of Gray and Reuter, Transaction Processing (1993), section 9.4.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import trio

from ..errors import EasyRemoteError
from .database import StoreError
from .store import Store

P = ParamSpec("P")
T = TypeVar("T")
Then = Callable[[Any, BaseException | None], object]
"""Is told the result of a write, or why there is none."""

BATCH_MAX = 512
"""Writes in one transaction; a bound on how long the first of them waits for the last."""
WATCH_INTERVAL_S = 0.4
"""Revocation has to reach live links within a second."""


@dataclass(slots=True, eq=False)
class _Write:
    run: Callable[[Store], Any]
    done: trio.Event = field(default_factory=trio.Event)
    then: Then | None = None
    result: Any = None
    error: BaseException | None = None


class AsyncStore:
    """Group commit over a `Store`. Use it as an async context manager.

    Attributes:
        reader: The store for synchronous reads on this thread; never write through it.
        batch: Runs what `submit` calls back, so that all that it causes is sent at once.
    """

    def __init__(self, reader: Store, *, inline: bool = False) -> None:
        """Wrap `reader`, which stays open when this closes.

        Args:
            reader: An open store of this thread.
            inline: Write through `reader` itself, without a thread: for the simulation.
        """
        self.reader = reader
        self._inline = inline
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._trio_token: trio.lowlevel.TrioToken | None = None
        self._open = False
        self.batch: Callable[[Callable[[], None]], None] = _run

    async def __aenter__(self) -> Self:
        """Start the thread that writes."""
        assert not self._open
        await trio.lowlevel.checkpoint()
        self._open = True
        if not self._inline:
            self._trio_token = trio.lowlevel.current_trio_token()
            self._thread = threading.Thread(target=self._work, name="easyremote-store", daemon=True)
            self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the writes that were handed over, then stop."""
        self._open = False
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            # Bounded: the thread ends after the batch it has, and the disk's busy timeout.
            with trio.CancelScope() as scope:
                scope.shield = True
                await trio.to_thread.run_sync(thread.join)

    async def write(
        self, operation: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a method of `Store` and return its result once it is durable.

        Example: `await store.write(Store.revoke, token_id, by="alice")`

        Raises:
            StoreError: The disk failed, or the store was closed.
        """
        if not self._open:
            raise StoreError("the gateway's store is closed")
        write = _Write(partial(_call, operation, args, kwargs))
        if self._inline:
            await trio.lowlevel.checkpoint()
            with self.reader.transaction():
                result: T = write.run(self.reader)
            return result
        self._queue.put(write)
        await write.done.wait()
        if write.error is not None:
            raise write.error
        done: T = write.result
        return done

    def submit(
        self, then: Then, operation: Callable[Concatenate[Store, P], object], *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:  # fmt: skip
        """Run a function of a `Store`; `then` hears on this thread what came of it, later.

        Nothing is heard of a write that a store which closes does not reach.
        """
        if not self._open:
            return
        write = _Write(partial(_call, operation, args, kwargs), then=then)
        if not self._inline:
            self._queue.put(write)
            return
        try:
            with self.reader.transaction():
                write.result = write.run(self.reader)
        except EasyRemoteError as error:
            write.error = error
        trio.lowlevel.current_trio_token().run_sync_soon(self._tell, [write])

    def _tell(self, batch: list[_Write]) -> None:
        """Let those who wait for these writes go on."""
        asked = [write for write in batch if write.then is not None]
        for write in batch:
            write.done.set()
        if asked and self._open:
            self.batch(partial(_tell_each, asked))

    # ---- the thread ----------------------------------------------------------------------

    def _work(self) -> None:
        """Take writes in batches until told to stop."""
        store: Store | None = None
        while (first := self._queue.get()) is not None:
            batch, stop = [first], False
            while len(batch) < BATCH_MAX and not self._queue.empty():
                write = self._queue.get()
                if write is None:
                    stop = True
                    break
                batch.append(write)
            try:
                if store is None:
                    store = Store(self.reader.path, clock=self.reader.clock)
                _commit(store, batch)
            except Exception as error:  # noqa: BLE001 - the boundary of the thread
                for write in batch:
                    write.error = write.error or error
            self._settle(batch)
            if stop:
                break
        if store is not None:
            store.close()

    def _settle(self, batch: list[_Write]) -> None:
        assert self._trio_token is not None
        try:
            self._trio_token.run_sync_soon(self._tell, batch)
        except trio.RunFinishedError:
            return  # nobody is left to be told; the writes are durable


def _run(fn: Callable[[], None]) -> None:
    fn()


def _tell_each(writes: list[_Write]) -> None:
    for write in writes:
        assert write.then is not None
        write.then(write.result, write.error)


def _call(
    operation: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], store: Store
) -> T:
    return operation(store, *args, **kwargs)


def _commit(store: Store, batch: list[_Write]) -> None:
    """Run a batch in one transaction; a write that fails undoes its own part."""
    with store.transaction():
        for write in batch:
            try:
                with store.transaction():
                    write.result = write.run(store)
            except Exception as error:  # noqa: BLE001 - belongs to who waits for it
                write.error = error


async def watch_store(
    store: Store, changed: Callable[[], None], interval_s: float = WATCH_INTERVAL_S
) -> None:
    """Call `changed` soon after tokens or nodes have changed, by whatever process. Never returns.

    The gateway then asks `store.standing` about each live link.
    """
    seen = store.generation
    while True:
        await trio.sleep(interval_s)
        store.refresh()
        if store.generation != seen:
            seen = store.generation
            changed()
