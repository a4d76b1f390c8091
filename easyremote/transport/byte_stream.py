"""The seam between the protocol and the world: a two-way stream of bytes.

Theory. A link needs very little of a connection: take what has arrived, hand over what is to be
sent, and wait when there is nothing or no room. The two hot operations never wait and say so by
returning None; a batch of frames is therefore parsed and answered without one task switch. TLS
connections, plain sockets and streams in memory offer the same interface, and one kit of tests
runs over all of them.

Rules of this interface. 1) None means "would block": wait, then try again. 2) What `try_send` did
not take must be offered again, byte for byte, before anything else (TLS has already encrypted it).
3) 0 from `try_receive_into` is the *agreed* end of the other side; a connection that was cut is
`StreamBroken`, wherever the kind of stream can tell the difference. 4) One task receives and one
sends; both run in the same thread.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["ByteStream", "StreamBroken"]


class StreamBroken(OSError):
    """The stream can no longer be used: cut, reset, or closed here.

    It is the only error that leaves a byte stream; its text says what happened.
    """


class ByteStream(Protocol):
    """A connected, ordered, two-way stream of bytes. See the rules of this module."""

    peer: str
    """Name of the other end, for logs: an address, or what the process is called."""

    def try_receive_into(self, view: memoryview) -> int | None:
        """Receive into `view` (at least one byte long) without waiting.

        Returns:
            How many bytes were written to the front of `view`; 0 if the other side has ended
            the stream; None if nothing has arrived.

        Raises:
            StreamBroken: The stream was cut, or is closed.
        """
        ...

    def try_send(self, view: memoryview) -> int | None:
        """Send from the front of `view` (at least one byte long) without waiting.

        Returns:
            How many bytes were taken; None if there is no room, and the same bytes must be
            offered again.

        Raises:
            StreamBroken: The stream was cut, or is closed.
        """
        ...

    async def wait_receivable(self) -> None:
        """Wait until `try_receive_into` is worth another try. May return too early.

        Raises:
            StreamBroken: The stream is closed here, perhaps while we waited.
        """
        ...

    async def wait_sendable(self) -> None:
        """Wait until `try_send` is worth another try. May return too early.

        Raises:
            StreamBroken: The stream is closed here, perhaps while we waited.
        """
        ...

    async def aclose(self) -> None:
        """Close, and give what was sent a short, bounded time to arrive; never raises `OSError`.

        The stream is closed when this returns or is cancelled.
        """
        ...

    def close_now(self) -> None:
        """Close without waiting. What was sent last may be lost."""
        ...
