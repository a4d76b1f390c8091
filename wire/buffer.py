"""Received bytes: where they land, and how they become whole frames.

Theory. The caller asks where the next bytes should go (`space`), reads into that memory, and says
how many came (`fill`). Small frames land in one buffer of fixed size and are cut out of it. While
the payload of a DATA frame is incomplete, the *destination itself* is that memory, so that bulk
bytes are received straight into their final place; only what shared a read with the frame's
header is copied.

Rules of this file. 1) O(n) in the bytes received: nothing is searched, and the buffer is moved
together only when it has run full. 2) Lengths are checked before anything is allocated. 3) No
frame is interpreted here beyond its header.
"""

from __future__ import annotations

import numpy as np

from .frame import HEADER, HEADER_SIZE

SIZE = 256 * 1024
"""Twice the largest control frame and more: one read brings many small frames."""

SIZE_OVER = 4 * 1024
"""After the end: something to receive the rest into."""

SIZE_GREETING = 40 * 1024
"""Before the handshake is done: twice the largest frame that is allowed then, and a bit."""


def fresh_frame(size_bytes: int) -> memoryview:
    """Return uninitialised writable memory for a header and `size_bytes` of payload."""
    return memoryview(np.empty(HEADER_SIZE + size_bytes, np.uint8))  # type: ignore[arg-type]


class ReceiveBuffer:
    """One connection's received bytes.

    Attributes:
        start: First byte in `data` that no frame has taken yet.
        end: One past the last received byte in `data`.
        target: What is left of the destination of the DATA payload being received.
    """

    __slots__ = ("data", "end", "start", "target", "view")

    def __init__(self) -> None:
        self.data = bytearray(SIZE_GREETING)
        self.view = memoryview(self.data)
        self.start = 0
        self.end = 0
        self.target: memoryview | None = None

    def space(self) -> memoryview:
        """Return the memory, never empty, that the next bytes must be received into."""
        if self.target is not None:
            return self.target
        if self.start == self.end:
            self.start = self.end = 0
        elif len(self.data) - self.end < len(self.data) // 2:
            left = self.end - self.start
            self.data[:left] = self.data[self.start : self.end]
            self.start, self.end = 0, left
        return self.view[self.end :]

    def grow(self) -> None:
        """Take the full size: the peer is no stranger any more."""
        left = self.end - self.start
        data = bytearray(SIZE)
        data[:left] = self.data[self.start : self.end]
        self.data, self.view = data, memoryview(data)
        self.start, self.end = 0, left

    def fill(self, size_bytes: int) -> bool:
        """Count bytes that were received into `space()`; True if they completed the target."""
        if self.target is None:
            self.end += size_bytes
            return False
        self.target = self.target[size_bytes:]
        if len(self.target):
            return False
        self.target = None
        return True

    def forget(self) -> None:
        """Drop everything, memory included: it is over, and what still comes is ignored.

        Whoever holds on to a connection that is over must not hold its buffer, too: peers that come
        and go would fill the memory faster than it is searched for what nobody needs.
        """
        if len(self.data) != SIZE_OVER:
            self.data = bytearray(SIZE_OVER)
            self.view = memoryview(self.data)
        self.start = self.end = 0
        self.target = None

    def header(self) -> tuple[int, int, int, int, int] | None:
        """Return (length, type, flags, kind, stream id) of the next frame, if they are here."""
        if self.target is not None or self.end - self.start < HEADER_SIZE:
            return None
        return HEADER.unpack_from(self.data, self.start)

    def payload(self, length: int) -> bytes | None:
        """Cut the frame at `start` out and return its payload, or None while it is incomplete."""
        begin = self.start + HEADER_SIZE
        stop = begin + length
        if stop > self.end:
            return None
        self.start = stop
        return bytes(self.view[begin:stop])

    def redirect(self, destination: memoryview) -> bool:
        """Take the frame at `start` off, its payload into `destination`; True if it is complete."""
        begin = self.start + HEADER_SIZE
        here = min(self.end - begin, len(destination))
        destination[:here] = self.view[begin : begin + here]
        self.start = begin + here
        if here == len(destination):
            return True
        self.target = destination[here:]
        return False
