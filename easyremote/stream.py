"""A handle on one open stream of a link: what its owner may do with it.

Rules of this file. 1) A handle is valid until END both ways, reset or loss. 2) Nothing here
blocks; what is said is sent at the end of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .handlers import StreamHandler
from .wire.credit import cost
from .wire.errors import ErrorCode
from .wire.message import Message, kind_of
from .wire.message import encode as encode_message

if TYPE_CHECKING:
    from .link import Link

NOBODY = StreamHandler()
"""Handles what nobody wants to hear."""


class Stream:
    """One open stream. See the module."""

    __slots__ = ("handler", "link", "stream_id")

    def __init__(self, link: Link, stream_id: int, handler: StreamHandler) -> None:
        self.link = link
        self.stream_id = stream_id
        self.handler = handler

    def forget_handler(self) -> None:
        """Let go of who handled it: it is over. Handlers hold their streams, and cycles cost."""
        self.handler = NOBODY

    def hear_loss(self) -> bool:
        """If the link is lost and the handler was not told yet, tell it now; whether it was so."""
        loss = self.link.loss
        return loss is not None and loss.tell_one(self)

    @property
    def is_open(self) -> bool:
        """Whether something may still happen on this stream."""
        return self.stream_id in self.link.connection.streams

    def send(
        self, message: Message, buffers: Sequence[memoryview] = (), *, end: bool = False
    ) -> None:
        """Say a message; `message.segments` lists the sizes of `buffers`."""
        self.forward(kind_of(message), encode_message(message), buffers=buffers, end=end)

    def forward(
        self, kind: int, payload: bytes, more: bool = False, end: bool = False,
        buffers: Sequence[memoryview] = (),
    ) -> None:  # fmt: skip
        """Say an encoded message; with `more`, its segments follow by `forward_data`."""
        link = self.link
        link.connection.send(self.stream_id, kind, payload, buffers, more=more, end=end)
        link.outbox.mark(link)

    def forward_data(self, frame: memoryview, last: bool, end: bool) -> None:
        """Send a DATA frame that another link received, in the memory that it came in."""
        link = self.link
        link.connection.forward_data(self.stream_id, frame, last=last, end=end)
        link.outbox.mark(link)

    def fill(self, buffers: Sequence[memoryview]) -> None:
        """Name where the segments of the message just received belong."""
        self.link.connection.fill(self.stream_id, buffers)

    def watch_drained(self) -> None:
        """Report framed bytes to the handler's `on_drained`."""
        self.link.connection.watch(self.stream_id)

    def consumed(self, size_bytes: int) -> None:
        """A frame with so many bytes has left our memory: the peer gets credit (relay only)."""
        link = self.link
        link.connection.consumed(self.stream_id, cost(size_bytes))
        link.outbox.mark(link)

    def stored(self, counted: int) -> None:
        """What was received here is in memory that we account for: the link gets its credit.

        Args:
            counted: What the frames count (`wire.credit.cost`).

        The stream gets its own by `passed_on`. So one stream whose bytes go nowhere never uses
        up the credit of its link.
        """
        link = self.link
        link.connection.credit_connection(counted)
        link.outbox.mark(link)

    def passed_on(self, counted: int) -> None:
        """What was `stored` has left our memory: the stream gets its credit."""
        link = self.link
        link.connection.consumed_on_stream(self.stream_id, counted)
        link.outbox.mark(link)

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for credit or their turn."""
        return self.link.connection.queued_bytes(self.stream_id)

    def reset(self, code: ErrorCode, reason: str) -> None:
        """Give the stream up; without effect if it is over."""
        link = self.link
        link.connection.reset(self.stream_id, code, reason)
        link.forget(self.stream_id)
        link.outbox.mark(link)

    def cancel(self, strength: int = 0, grace_ms: int = 5000) -> None:
        """Ask the peer to stop the work of this stream, which we opened."""
        link = self.link
        link.connection.cancel(self.stream_id, strength, grace_ms)
        link.outbox.mark(link)

    def accept(self) -> None:
        """Tell the opener, soon, that we are responsible."""
        notices = self.link.connection.notices
        first = notices.due_at is None
        self.link.connection.accept(self.stream_id)
        if first:
            self.link.wake_timer()

    def started(self) -> None:
        """Tell the opener, soon, that user code has started."""
        notices = self.link.connection.notices
        first = notices.due_at is None
        self.link.connection.started(self.stream_id)
        if first:
            self.link.wake_timer()

    def release(self) -> None:
        """The work of this stream, which the peer opened, is gone. Exactly once per stream."""
        link = self.link
        link.connection.release(self.stream_id)
        link.outbox.mark(link)
