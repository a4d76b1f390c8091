"""A call that yields: items as they come, with the producer held back.

Theory. The consumer grants credit: so many items in all may be sent. Credit is renewed when half of
it is used up, so the producer never waits for a round trip in between, and never runs further
ahead than the credit. How far that is follows from the size of the items: many small ones, few
large ones. Items are decoded by the consumer, one at a time.

The call is two objects. `StreamCall` belongs to the io thread and is kept by the link;
`RemoteStream` belongs to the user and keeps the call. So a stream that nobody holds any more is
collected, and stops its producer.

Rules of this file. 1) Items come in order, then the end or the error: an error never overtakes an
item, and a cut is never an end. 2) Leaving a loop over a stream closes it. 3) Nothing waits on
the io thread.

Source. features.md R2; promises.md P14; node/inputs.py does the same in the other direction.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import AsyncIterator, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from .. import seam
from ..errors import EasyRemoteError
from ..waiting import Gate, running_library
from ..wire.message import CODEC_PICKLE, Item, Kind, Want, decode
from .bodies import open_body
from .call import OutgoingCall
from .future import SLICE_S, Future
from .source import ASK

if TYPE_CHECKING:
    from ..link import Link
    from ..stream import Stream

Y = TypeVar("Y")

STREAM_ITEMS = 256
"""Most items that a producer may be ahead of us."""
STREAM_ITEMS_FIRST = 32
"""The same before the size of an item is known."""
STREAM_BYTES = 32 * 1024 * 1024
"""Most bytes that a producer may be ahead of us, judged by the mean size of its items."""
GRACE_MS = 5000
"""Time that a producer has to clean up when its consumer leaves."""

Arrived = tuple[Item, list[memoryview], bool]
"""An item, its segments, and whether it may be a pickle."""


class StreamCall(OutgoingCall):
    """The io thread's half of a stream."""

    wants_items = True
    allowed = STREAM_ITEMS_FIRST
    _judging = False
    _trusted: bool | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.items: deque[Arrived] = deque()
        self.gate = Gate()
        self.taken = 0
        self.taken_bytes = 0
        self._received = 0
        self._unjudged: deque[tuple[Item, list[memoryview]]] = deque()
        self._ending: tuple[Any, BaseException | None] | None = None

    # ---- io thread -----------------------------------------------------------------------------

    def open_on(self, link: Link) -> None:
        """Write it to a link, with credit for the first items."""
        super().open_on(link)
        if self.stream is not None:
            self.stream.send(Want(0, self.allowed))

    def _on_more(self, stream: Stream, kind: int, payload: bytes, more: bool) -> None:
        if kind != Kind.ITEM:
            super()._on_more(stream, kind, payload, more)
            return
        item = decode(Item, payload)
        if more:
            self._receive(stream, item, item.segments)
        else:
            self.on_item(item, [])

    def on_item(self, item: Item, buffers: list[memoryview]) -> None:
        """An item came; pickles, and what follows them, wait until it is known whose they are."""
        if self.future is None:
            return
        self._received += 1
        if self._judging or (item.codec == CODEC_PICKLE and self._trusted is None):
            self._unjudged.append((item, buffers))
            if not self._judging:
                self._judging = True
                self.session.trust.judge(self, self._judged)
            return
        self.items.append((item, buffers, bool(self._trusted)))
        self.gate.wake()

    def _judged(self, trusted: bool) -> None:
        self._judging = False
        self._trusted = trusted
        while self._unjudged:
            self.items.append((*self._unjudged.popleft(), trusted))
        ending, self._ending = self._ending, None
        if ending is not None:
            super()._settle(*ending)
        self.gate.wake()

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self._judging:
            self._ending = value, error
            return
        super()._settle(value, error)
        self.gate.wake()

    @property
    def can_go_again(self) -> bool:
        """Whether it may be submitted again after a loss: not if an item has come."""
        return super().can_go_again and not self._received

    def allow(self) -> None:
        """Let the producer go on, if half of what it may is used up (any thread)."""
        ahead = STREAM_ITEMS_FIRST
        if self.taken:
            mean = max(1, self.taken_bytes // self.taken)
            ahead = max(2, min(STREAM_ITEMS, STREAM_BYTES // mean))
        if self.future is None or self.allowed - self.taken > ahead // 2:
            return
        self.allowed = self.taken + ahead
        self.session.link.post(partial(self._say_want, self.allowed))

    def _say_want(self, total: int) -> None:
        stream = self.stream
        if stream is not None and stream.is_open and not self.ended:
            stream.send(Want(0, total))


class RemoteStream(Generic[Y]):
    """The items of a call that yields. Made by calling a streaming function.

    Iterate over it with `for` or `async for`; use it in a `with` block, or call `close()`, to say
    when you are done. Leaving a loop, by `break` or by an error, closes it: the producer stops.

    Attributes:
        future: The future of the call: its state, progress, and outcome.
    """

    def __init__(self, call: StreamCall, future: Future[Any]) -> None:
        self._call = call
        self._closed = False
        self.future = future

    @property
    def value(self) -> Any:
        """What the generator returned. There is a value once all items were taken.

        Raises:
            EasyRemoteError: There are items left, or the stream was closed before its end.
        """
        if self._call.items or not self.future.done():
            raise EasyRemoteError(
                "a stream has a value when its last item was taken: iterate over it to its end"
            )
        return self.future.result()

    # ---- taking items --------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Y]:
        """Take items in a loop; leaving the loop closes the stream."""
        return _Loop(self)

    def __next__(self) -> Y:
        """Block until there is an item, and take it."""
        while True:
            if not self._ready():
                self._block()
            found, item = self._take()
            if found:
                return cast("Y", item)

    def __aiter__(self) -> AsyncIterator[Y]:
        """Take items in an `async for`; leaving the loop closes the stream."""
        return _AsyncLoop(self)

    async def __anext__(self) -> Y:
        """Wait until there is an item, and take it."""
        while True:
            if not self._ready():
                await self._call.gate.wait_async(self._ready)
            try:
                found, item = self._take()
            except StopIteration:
                raise StopAsyncIteration from None
            if found:
                return cast("Y", item)

    def _ready(self) -> bool:
        return bool(self._call.items) or self._closed or self._call.future is None

    def _block(self) -> None:
        call = self._call
        if call.on_io_thread():
            raise EasyRemoteError(
                "this thread delivers the items of all streams, so it cannot wait for one; move "
                "the loop to a thread of your own"
            )
        if running_library() is not None:
            warnings.warn(
                "a stream is iterated with `for` inside an event loop, which stands still "
                "meanwhile; write `async for` instead",
                RuntimeWarning,
                stacklevel=3,
            )
        lender = seam.current_lender.get()
        if lender is None:
            call.gate.wait(self._ready)
            return
        with lender.lend():
            while not call.gate.wait(self._ready, SLICE_S):
                pass  # In slices, so that a body inside a worker can be interrupted.

    def _take(self) -> tuple[bool, Any]:
        """Return (True, the next item), or (False, None) if another thread was faster."""
        call = self._call
        if self._closed:
            raise StopIteration
        try:
            item, buffers, trusted = call.items.popleft()
        except IndexError:
            if call.future is not None or not self.future.done():
                return False, None
            self.future.result()  # Raises the error, if that is how it ended.
            raise StopIteration from None
        call.taken += 1
        call.taken_bytes += len(item.body or b"") + sum(buffer.nbytes for buffer in buffers)
        call.allow()
        if item.codec == CODEC_PICKLE and not trusted:
            self.close()
            raise call.session.trust.refusal(call.function, f"item {call.taken - 1}")
        return True, open_body(item.body, buffers, trusted)

    # ---- ending it -----------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the producer and drop what it has sent; never blocks."""
        if not self._closed:
            self._closed = True
            self._stop()

    def _stop(self) -> None:
        call = self._call
        if call.future is not None:
            self.future.cancel(grace=GRACE_MS / 1000)
        if self.future.done():
            self.future._seen()
        call.items.clear()
        call.gate.wake()

    def _left(self) -> None:
        """A loop was left. This may run inside a collection, where nothing may be locked."""
        if not self._closed:
            self._closed = True
            self._call.session.link.post(self._stop)

    async def aclose(self) -> None:
        """Do what `close` does."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def __del__(self) -> None:
        call = getattr(self, "_call", None)
        if call is not None and not self._closed and call.future is not None:
            call.request_cancel(ASK, GRACE_MS)

    def __repr__(self) -> str:
        return f"<RemoteStream {self._call.function} {self.future.id} {self.future.state}>"


class _Loop(Iterator[Y]):
    """One loop over a stream. A loop that is left drops it, and so closes the stream."""

    __slots__ = ("_stream",)

    def __init__(self, stream: RemoteStream[Y]) -> None:
        self._stream = stream

    def __next__(self) -> Y:
        return self._stream.__next__()

    def __del__(self) -> None:
        self._stream._left()


class _AsyncLoop(AsyncIterator[Y]):
    """The same for `async for`."""

    __slots__ = ("_stream",)

    def __init__(self, stream: RemoteStream[Y]) -> None:
        self._stream = stream

    async def __anext__(self) -> Y:
        return await self._stream.__anext__()

    def __del__(self) -> None:
        self._stream._left()
