"""What may happen on a stream and on a link: the two interfaces that every role implements.

Rules of this file. 1) Methods run synchronously on the link's thread; they never block, await or
raise. 2) After a terminal event (`on_reset`, `on_lost`, END both ways) nothing more is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import EasyRemoteError
from .wire import event as ev

if TYPE_CHECKING:
    from .link import Link
    from .stream import Stream


class StreamHandler:
    """What happens on one stream; override what is of interest. Runs on the link's thread.

    Attributes:
        relay: Credit returns only by `Stream.consumed`, and the bytes of segments without a
            destination come to `on_data`.
    """

    relay = False

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """The peer said something. With `more`, segments follow: `stream.fill` or `on_data`."""

    def on_filled(self, stream: Stream, end: bool) -> None:
        """The destinations named with `stream.fill` hold their bytes."""

    def on_data(self, stream: Stream, frame: memoryview, last: bool, end: bool) -> None:
        """Raw bytes came, behind header space, as one frame that can be forwarded."""

    def on_accepted(self, stream: Stream) -> None:
        """The peer has taken responsibility for this stream."""

    def on_started(self, stream: Stream) -> None:
        """User code has started for this stream."""

    def on_cancel(self, stream: Stream, strength: int, grace_ms: int) -> None:
        """The opener wants the work stopped: 0 asks, 1 interrupts, 2 kills."""

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        """The peer gave the stream up; nothing more comes."""

    def on_drained(self, stream: Stream, size_bytes: int) -> None:
        """Bytes of this stream were framed (only after `stream.watch_drained()`)."""

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        """The link is gone; nothing more comes."""


class LinkHandler:
    """What happens on a link as a whole. Runs on the link's thread, synchronously."""

    def on_hello(self, link: Link, event: ev.HelloReceived) -> None:
        """A peer introduced itself: `link.welcome(...)` or `link.close(code, reason)`."""

    def on_welcome(self, link: Link, info: dict[str, Any]) -> None:
        """The peer took us in; streams may be opened."""

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        """The peer opened a stream; return who handles it."""
        raise NotImplementedError

    def on_stream_credit(self, link: Link) -> None:
        """More streams may be opened."""

    def on_drain(self, link: Link, reason: str) -> None:
        """The peer takes no new streams."""

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        """The link is over; None after a goodbye."""
