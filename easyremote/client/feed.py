"""Streamed arguments: iterators that the caller passes, pulled while the function runs.

Theory. An iterator among the arguments of a call does not travel; its items do, one by one, as the
function asks for them. The function grants credit (so many items in all), a producer here pulls
the user's iterator as far as that, and stops. So an endless camera costs constant memory.

A plain iterator is pulled in a thread of its own, an async one in the event loop in which the call
was made; called from no event loop, it gets a thread with an asyncio loop.

Rules of this file. 1) Code of users never runs on the io thread. 2) What the iterator raises
travels as the end of its items, and is raised in the function where it waits for the next one.
3) When the call has its outcome, the iterator is closed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import values
from ..errors import EasyRemoteError
from ..log import Log
from ..waiting import Gate, running_library
from ..wire.message import Item, ItemsEnd, Want, decode
from .bodies import pack

if TYPE_CHECKING:
    from ..stream import Stream
    from .call import OutgoingCall

_log = Log("client")

ITEM_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of items that wait to be sent before producers have to wait."""
COPY_ALL = 1 << 62
"""Producers often reuse the memory of an item, so it is copied, whatever its size."""

Message = Item | ItemsEnd


def is_streamed(value: Any) -> bool:
    """Return whether an argument is an iterator or an async iterator."""
    kind = type(value)
    return hasattr(kind, "__next__") or hasattr(kind, "__anext__")


class Feeds:
    """The streamed arguments of one call.

    Attributes:
        begun: Items may have left: the call cannot be submitted again.
    """

    def __init__(self) -> None:
        self.begun = False
        self.gate = Gate()
        self.stopped = False
        self.may_ship = False
        self.context: Context = copy_context()
        self._feeds: dict[int, Feed] = {}
        self._call: OutgoingCall | None = None
        self._said: deque[tuple[Message, list[memoryview]]] = deque()
        self._posted = False
        self._handed_bytes = 0
        self._sent_bytes = 0
        self._pending_bytes = 0
        self._watching = False
        self._running = 0

    def take_from(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with a marker in the place of every iterator."""

        def swap(value: Any) -> Any:
            if not is_streamed(value):
                return value
            channel = len(self._feeds) + 1
            self._feeds[channel] = Feed(self, channel, value)
            return values.StreamArgument(channel)

        swapped = tuple(swap(value) for value in args)
        return swapped, {key: swap(value) for key, value in kwargs.items()}

    def attach(self, call: OutgoingCall, may_ship: bool) -> None:
        """Say whose arguments they are; the iterators belong to the present event loop."""
        self._call = call
        self.may_ship = may_ship
        self._running = len(self._feeds)
        for feed in self._feeds.values():
            feed.find_home()

    # ---- io thread -----------------------------------------------------------------------------

    def on_want(self, payload: bytes) -> None:
        """The function asks for items."""
        want = decode(Want, payload)
        feed = self._feeds.get(want.channel)
        if feed is not None and not self.stopped:
            self.begun = True
            feed.allow(want.total)

    def on_drained(self, stream: Stream) -> None:
        """Bytes have left."""
        self._pending_bytes = stream.pending_bytes
        self.gate.wake()

    def _flush(self) -> None:
        """Send what the producers have handed over."""
        self._posted = False
        call = self._call
        assert call is not None
        for _ in range(len(self._said)):
            message, buffers = self._said.popleft()
            size = sum(buffer.nbytes for buffer in buffers)
            self._sent_bytes += size
            stream = call.stream
            if stream is None or call.ended or not stream.is_open:
                continue
            if size and not self._watching:
                self._watching = True
                stream.watch_drained()
            last = False
            if type(message) is ItemsEnd:
                self._running -= 1
                last = not self._running and not call.wants_items
                call.ended = last
            stream.send(message, buffers, end=last)
            self._pending_bytes = stream.pending_bytes
        if self._said:
            self._post()
        self.gate.wake()

    # ---- any thread ----------------------------------------------------------------------------

    def stop(self) -> None:
        """The call has its outcome, or is not wanted any more: producers end."""
        if not self.stopped:
            self.stopped = True
            self.gate.wake()
            for feed in self._feeds.values():
                feed.interrupt()

    def say(self, message: Message, buffers: list[memoryview]) -> None:
        """Send a message soon."""
        self._handed_bytes += sum(buffer.nbytes for buffer in buffers)
        self._said.append((message, buffers))
        self._post()

    def _post(self) -> None:
        if not self._posted:
            self._posted = True
            assert self._call is not None
            self._call.session.link.post(self._flush)

    @property
    def has_room(self) -> bool:
        """Whether few enough bytes wait to be sent."""
        waiting = self._handed_bytes - self._sent_bytes + self._pending_bytes
        return waiting < ITEM_BYTES_MAX


class Feed:
    """One streamed argument and its producer."""

    def __init__(self, feeds: Feeds, channel: int, source: Any) -> None:
        self._feeds = feeds
        self._channel = channel
        self._source: Iterator[Any] | AsyncIterator[Any] = source
        self._is_async = not hasattr(type(source), "__next__")
        self._allowed = 0
        self._made = 0
        self._started = False
        self._home: Callable[[Callable[[], Awaitable[None]]], object] | None = None
        self._interrupt: Callable[[], object] | None = None

    def find_home(self) -> None:
        """Remember the event loop to which an async iterator belongs."""
        library = running_library() if self._is_async else None
        if library is None:
            return
        if library.__name__ == "trio":
            self._home = self._home_in_trio(library)
        else:
            loop = library.get_running_loop()
            self._home = lambda produce: loop.call_soon_threadsafe(
                partial(self._start_task, loop, produce)
            )

    def _home_in_trio(self, trio: Any) -> Callable[[Callable[[], Awaitable[None]]], object]:
        token = trio.lowlevel.current_trio_token()

        async def in_scope(produce: Callable[[], Awaitable[None]]) -> None:
            with trio.CancelScope() as scope:
                self._interrupt = lambda: token.run_sync_soon(scope.cancel)
                await produce()

        def start(produce: Callable[[], Awaitable[None]]) -> None:
            # The call outlives the task that made it, so no nursery of the user is right.
            trio.lowlevel.spawn_system_task(in_scope, produce)

        return lambda produce: token.run_sync_soon(start, produce)

    def _start_task(self, loop: Any, produce: Callable[[], Awaitable[None]]) -> None:
        task = loop.create_task(produce())
        # Kept, for loops hold their tasks weakly.
        self._interrupt = lambda: loop.call_soon_threadsafe(task.cancel)

    # ---- io thread -----------------------------------------------------------------------------

    def allow(self, total: int) -> None:
        """The function takes so many items in all."""
        self._allowed = max(self._allowed, total)
        if self._started:
            self._feeds.gate.wake()
            return
        self._started = True
        if self._home is not None:
            try:
                self._home(self._produce_async)
            except RuntimeError:
                self._end(EasyRemoteError("the event loop of this iterator has been closed"))
            return
        work = self._produce_in_own_loop if self._is_async else self._produce
        context = self._feeds.context.copy()
        threading.Thread(
            target=context.run, args=(work,), name="easyremote-feed", daemon=True
        ).start()

    def interrupt(self) -> None:
        """Stop a producer that waits for its own iterator; from any thread."""
        if self._interrupt is not None:
            try:
                self._interrupt()
            except RuntimeError:  # Its event loop is over, and so is the producer.
                return

    # ---- the producer --------------------------------------------------------------------------

    def _may_make(self) -> bool:
        feeds = self._feeds
        return feeds.stopped or (self._made < self._allowed and feeds.has_room)

    def _hand_over(self, value: Any) -> bool:
        """Send an item; False if it cannot travel, which ends the items."""
        try:
            encoded = values.encode(
                value, allow_pickle=self._feeds.may_ship, copy_max=COPY_ALL,
                root=f"item[{self._made}]",
            )  # fmt: skip
        except EasyRemoteError as error:
            self._end(error)
            return False
        codec, body, segments, buffers = pack(encoded)
        self._made += 1
        self._feeds.say(Item(self._channel, codec, body, segments), buffers)
        return True

    def _end(self, error: BaseException | None) -> None:
        detail = None if error is None else values.encode_exception(error)
        self._feeds.say(ItemsEnd(self._channel, detail), [])

    def _produce(self) -> None:
        iterator: Any = self._source
        try:
            while True:
                self._feeds.gate.wait(self._may_make)
                if self._feeds.stopped:
                    break
                try:
                    value = next(iterator)
                except StopIteration:
                    self._end(None)
                    return
                if not self._hand_over(value):
                    break
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        except Exception as error:  # noqa: BLE001 - the task boundary: it is the iterator's own
            self._failed(error)

    async def _produce_async(self) -> None:
        iterator: Any = self._source
        try:
            while True:
                await self._feeds.gate.wait_async(self._may_make)
                if self._feeds.stopped:
                    break
                try:
                    value = await iterator.__anext__()
                except StopAsyncIteration:
                    self._end(None)
                    return
                if not self._hand_over(value):
                    break
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
        except Exception as error:  # noqa: BLE001 - the task boundary: it is the iterator's own
            self._failed(error)

    def _produce_in_own_loop(self) -> None:
        import asyncio

        async def main() -> None:
            task = asyncio.current_task()
            loop = asyncio.get_running_loop()
            assert task is not None
            self._interrupt = lambda: loop.call_soon_threadsafe(task.cancel)
            await self._produce_async()

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            return

    def _failed(self, error: Exception) -> None:
        if self._feeds.stopped:
            _log.warning("an iterator raised while it was closed", error=error)
        else:
            self._end(error)
