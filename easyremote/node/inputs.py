"""A streamed argument: what a function iterates while its caller still produces.

Theory. The caller passed an iterator; the function gets this object in its place and pulls items
as they come. The caller never sends more than it was allowed, so a camera that never ends costs
constant memory on both sides. What is allowed grows from a few items to many once their size is
known.

Rules of this file. 1) One object serves `for` and `async for`; `for` in an `async def` blocks its
event loop and is the function's own decision. 2) Items are decoded by the consumer, one at a
time. 3) A call that should stop raises here: in the place where the function waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from .. import values
from ..errors import SerializationError, TaskCancelledError
from ..wire.message import CODEC_PICKLE, Item, Want

if TYPE_CHECKING:
    from .task import Task

ITEMS_AHEAD_MAX = 256
"""Most items that a caller may be ahead of the function."""
ITEMS_AHEAD_FIRST = 16
"""The same before the size of an item is known."""
BYTES_AHEAD_MAX = 32 * 1024 * 1024
"""Most bytes that a caller may be ahead, judged by the mean size of its items."""


class StreamedArgument(Iterator[Any], AsyncIterator[Any]):
    """An iterator whose items come from the caller. For `for` and for `async for`."""

    def __init__(self, task: Task, channel: int) -> None:
        self._task = task
        self._channel = channel
        self._items: deque[tuple[Item, list[memoryview]]] = deque()
        self._over = False
        self._error: dict[str, Any] | None = None
        self._received = 0
        self._taken = 0
        self._taken_bytes = 0
        self._allowed = 0

    # ---- io thread -----------------------------------------------------------------------------

    def feed(self, item: Item, buffers: list[memoryview]) -> bool:
        """Take an item; False if the caller was not allowed to send it."""
        self._received += 1
        if self._received > self._allowed:
            return False
        self._items.append((item, buffers))
        return True

    def finish(self, error: dict[str, Any] | None) -> None:
        """The caller's iterator is at its end, or raised."""
        self._error = error
        self._over = True

    # ---- the consumer --------------------------------------------------------------------------

    def allow(self) -> None:
        """Let the caller send more, if it has used up half of what it may."""
        ahead = ITEMS_AHEAD_FIRST
        if self._taken:
            mean = max(1, self._taken_bytes // self._taken)
            ahead = max(2, min(ITEMS_AHEAD_MAX, BYTES_AHEAD_MAX // mean))
        if self._over or self._allowed - self._taken > ahead // 2:
            return
        self._allowed = self._taken + ahead
        self._task.say(Want(self._channel, self._allowed), [])

    def _ready(self) -> bool:
        return bool(self._items) or self._over or self._task.stop_code is not None

    def _take(self) -> tuple[bool, Any]:
        """Return (True, the next item), or (False, None) if another thread was faster."""
        try:
            item, buffers = self._items.popleft()
        except IndexError:
            if self._task.stop_code is not None:
                self._task.stop_seen = True
                raise TaskCancelledError(self._task.stop_reason) from None
            if not self._over:
                return False, None
            if self._error is not None:
                raise values.decode_exception(self._error) from None
            raise StopIteration from None
        body: bytes | memoryview | None = item.body
        if body is None:
            body, buffers = buffers[0], buffers[1:]
        self._taken += 1
        self._taken_bytes += len(body) + sum(buffer.nbytes for buffer in buffers)
        allow_pickle = item.codec == CODEC_PICKLE and self._task.executor.accepts(self._task.call)
        if item.codec == CODEC_PICKLE and not allow_pickle:
            raise SerializationError(
                f"item {self._taken - 1} of a streamed argument is a pickle, and this node takes "
                "none from this caller: send plain data or arrays, or widen accept_code"
            )
        value = values.decode(body, buffers, allow_pickle=allow_pickle)
        self.allow()
        return True, value

    def __iter__(self) -> StreamedArgument:
        return self

    def __next__(self) -> Any:
        while True:
            if not self._ready():
                self._task.gate.wait(self._ready)
            taken, value = self._take()
            if taken:
                return value

    def __aiter__(self) -> StreamedArgument:
        return self

    async def __anext__(self) -> Any:
        while True:
            if not self._ready():
                await self._task.gate.wait_async(self._ready)
            try:
                taken, value = self._take()
            except StopIteration:
                raise StopAsyncIteration from None
            if taken:
                return value

    def __repr__(self) -> str:
        return f"<StreamedArgument channel={self._channel} taken={self._taken}>"


def bind(task: Task, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Put a `StreamedArgument` in the place of every streamed argument of a call."""
    markers = [a for a in args if type(a) is values.StreamArgument]
    if kwargs:
        markers += [a for a in kwargs.values() if type(a) is values.StreamArgument]
    if not markers:
        return args, kwargs
    if task.opener_ended:
        raise SerializationError("the call has a streamed argument, but its caller sends no items")
    inputs = {marker.channel: StreamedArgument(task, marker.channel) for marker in markers}
    task.inputs = inputs  # Before anything is allowed: items may come at once.
    for argument in inputs.values():
        argument.allow()

    def swap(value: Any) -> Any:
        return inputs[value.channel] if type(value) is values.StreamArgument else value

    return tuple(swap(a) for a in args), {key: swap(value) for key, value in kwargs.items()}
