"""The bytes of one direction through a relay, and those of all relays of a process.

Theory. See `relay`: the credit of a stream returns when the bytes have left us, that of the link
when they have come, as long as all relays together hold little.

Rules of this file. Every byte that came is credited exactly once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .wire.credit import cost

if TYPE_CHECKING:
    from .stream import Stream

Held = tuple[int, bytes, bool, bool] | tuple[memoryview, bool, bool]
"""A message (kind, payload, more, end) or a DATA frame (frame, last, end) that waits."""


class Buffers:
    """The bytes that the relays of one process hold together.

    Attributes:
        used_bytes: Held now, of those for which links got their credit.
        limit_bytes: Above this, links wait for their credit, too.
    """

    __slots__ = ("limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0


class Flow:
    """Bytes that came on one side of a pair and have not left us on the other.

    Each frame counts as it does for credit, which is about what it costs us: never nothing.

    Attributes:
        owed_bytes: Those for which the stream has not got its credit.
        moved_bytes: All that have left us; stands still when the other side is stuck.
        held: What waits for a side that is missing; None if nothing ever did.
        watched: The other side reports what it frames.
    """

    __slots__ = ("_buffers", "_source", "_withheld", "held", "moved_bytes", "owed_bytes", "watched")

    def __init__(self, source: Stream | None, buffers: Buffers) -> None:
        self._source = source
        self._buffers = buffers
        self._withheld = 0  # Bytes for which the link has not got its credit either.
        self.owed_bytes = 0
        self.moved_bytes = 0
        self.held: list[Held] | None = None
        self.watched = False

    def came(self, size_bytes: int) -> None:
        """A frame with so many bytes has come from the source."""
        buffers = self._buffers
        size_bytes = cost(size_bytes)
        self.owed_bytes += size_bytes
        if buffers.used_bytes + size_bytes <= buffers.limit_bytes and self._source is not None:
            buffers.used_bytes += size_bytes
            self._source.stored(size_bytes)
        else:
            self._withheld += size_bytes

    def hold(self, entry: Held) -> None:
        """Keep something for a side that is missing."""
        if self.held is None:
            self.held = []
        self.held.append(entry)

    def left(self, size_bytes: int) -> None:
        """Bytes have left us, or were dropped: credit them."""
        size_bytes = min(size_bytes, self.owed_bytes)
        if not size_bytes:
            return
        self.owed_bytes -= size_bytes
        self.moved_bytes += size_bytes
        withheld = min(size_bytes, self._withheld)
        self._withheld -= withheld
        self._buffers.used_bytes -= size_bytes - withheld
        source = self._source
        if source is not None and source.link.ready:
            source.passed_on(size_bytes)
            if withheld:
                source.stored(withheld)

    def drop(self) -> None:
        """Forget everything."""
        self.held = None
        self.left(self.owed_bytes)
