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

BLAMELESS_BYTES = 256 * 1024
"""A quarter of the first window of a stream: whoever has so little here has credit for more."""


class Buffers:
    """The bytes that the relays of one process, or of one user there, hold together.

    A user has a share of the whole: whoever fills it loses the credit of the own links, while all
    others still have theirs. Only when the whole is full, too, does it become abuse to send more.

    Attributes:
        used_bytes: Held now, of those for which links got their credit.
        held_bytes: Held now, of all.
        limit_bytes: Above this, links wait for their credit, too.
    """

    __slots__ = ("_whole", "held_bytes", "limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int, whole: Buffers | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.held_bytes = 0
        self._whole = whole

    def share(self, limit_bytes: int) -> Buffers:
        """Return the part of one user."""
        return Buffers(min(limit_bytes, self.limit_bytes), self)

    @property
    def is_full(self) -> bool:
        """Whether no more is welcome."""
        whole = self._whole
        return self.held_bytes > self.limit_bytes or (whole is not None and whole.is_full)

    @property
    def is_abused(self) -> bool:
        """Whether the whole is over its limit, and this part is over its own."""
        whole = self._whole
        return self.held_bytes > self.limit_bytes and (whole is None or whole.is_abused)

    def has_room(self, size_bytes: int) -> bool:
        """Return whether so much more may be held with credit."""
        whole = self._whole
        room = self.used_bytes + size_bytes <= self.limit_bytes
        return room and (whole is None or whole.has_room(size_bytes))

    def add(self, held_bytes: int, used_bytes: int) -> None:
        """Count bytes that are held from now on, or no longer; some of them with credit."""
        self.held_bytes += held_bytes
        self.used_bytes += used_bytes
        if self._whole is not None:
            self._whole.add(held_bytes, used_bytes)


class Flow:
    """Bytes that came on one side of a pair and have not left us on the other.

    Each frame counts as it does for credit, which is about what it costs us: never nothing.

    Attributes:
        owed_bytes: Those for which the stream has not got its credit.
        moved_bytes: All that have left us; stands still when the other side is stuck.
        held: What waits for a side that is missing; None if nothing ever did.
        watched: The other side reports what it frames.
    """

    __slots__ = (
        "_buffers",
        "_seen_at",
        "_seen_bytes",
        "_source",
        "_withheld",
        "held",
        "moved_bytes",
        "owed_bytes",
        "watched",
    )

    def __init__(self, source: Stream | None, buffers: Buffers) -> None:
        self._source = source
        self._buffers = buffers
        self._withheld = 0  # Bytes for which the link has not got its credit either.
        self._seen_bytes = -1
        self._seen_at = 0.0
        self.owed_bytes = 0
        self.moved_bytes = 0
        self.held: list[Held] | None = None
        self.watched = False

    def came(self, size_bytes: int) -> None:
        """A frame with so many bytes has come from the source."""
        buffers, source = self._buffers, self._source
        size_bytes = cost(size_bytes)
        self.owed_bytes += size_bytes
        if source is not None and buffers.has_room(size_bytes):
            buffers.add(size_bytes, size_bytes)
            source.stored(size_bytes)
        else:
            buffers.add(size_bytes, 0)
            self._withheld += size_bytes
            if source is not None and buffers.is_abused:
                source.link.charge(1.0)

    def is_silent(self, now: float, stall_s: float) -> bool:
        """Return whether nothing has come for so long from a source that has credit to send more.

        A source is not blamed while half a window and more of what it sent waits here: it may have
        no credit.
        """
        came_bytes = self.moved_bytes + self.owed_bytes
        if came_bytes != self._seen_bytes or self._withheld or self.owed_bytes > BLAMELESS_BYTES:
            self._seen_bytes, self._seen_at = came_bytes, now
            return False
        return now - self._seen_at >= stall_s

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
        self._buffers.add(-size_bytes, withheld - size_bytes)
        source = self._source
        if source is not None and source.link.ready:
            source.passed_on(size_bytes)
            if withheld:
                source.stored(withheld)

    def drop(self) -> None:
        """Forget everything."""
        self.held = None
        self.left(self.owed_bytes)
