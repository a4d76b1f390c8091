"""Byte streams without sockets: two ends in one process, for tests and simulations.

Theory. Each direction is a bounded buffer. Nothing here knows of time, files or threads, so that
a program on these streams runs the same under trio's virtual clock, as often as one likes.

Rules of this file. 1) An end that is closed lets the other one read what was sent before, then
its end; a cut destroys what was on its way, as a crash does. 2) A full buffer refuses; it never
grows.
"""

from __future__ import annotations

import trio

from .byte_stream import StreamBroken

CAPACITY_BYTES = 64 * 1024

_CLOSED_HERE = "the stream was closed on this side"
_GONE = "the other side has closed the stream"


class _Pipe:
    """One direction."""

    __slots__ = ("broken", "capacity_bytes", "changed", "data", "ended", "unread")

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.data = bytearray()
        self.ended = False
        """The sender has closed."""
        self.unread = False
        """The receiver has closed: nobody will read what is sent."""
        self.broken: str | None = None
        self.changed = trio.lowlevel.ParkingLot()

    @property
    def receivable(self) -> bool:
        return bool(self.data) or self.ended or self.unread or self.broken is not None

    @property
    def sendable(self) -> bool:
        return (
            len(self.data) < self.capacity_bytes
            or self.ended
            or self.unread
            or self.broken is not None
        )


class MemoryStream:
    """One end of a pair. Made by `memory_stream_pair`."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, peer: str) -> None:
        """Receive from one pipe, send into the other."""
        self.peer = peer
        self._incoming = incoming
        self._outgoing = outgoing
        self._open = True

    @property
    def closed(self) -> bool:
        """Whether this side has closed the stream."""
        return not self._open

    def try_receive_into(self, view: memoryview) -> int | None:
        """Receive without waiting."""
        assert len(view) > 0
        pipe = self._incoming
        self._check(pipe)
        data = pipe.data
        size = min(len(view), len(data))
        if not size:
            return 0 if pipe.ended else None
        with memoryview(data) as source:
            view[:size] = source[:size]
        del data[:size]
        pipe.changed.unpark_all()
        return size

    def try_send(self, view: memoryview) -> int | None:
        """Send without waiting, as much as there is room for."""
        assert len(view) > 0
        pipe = self._outgoing
        self._check(pipe)
        if pipe.unread:
            raise StreamBroken(_GONE)
        size = min(len(view), pipe.capacity_bytes - len(pipe.data))
        if size <= 0:
            return None
        pipe.data += view[:size]
        pipe.changed.unpark_all()
        return size

    async def wait_receivable(self) -> None:
        """Wait until there are bytes, or the end."""
        await trio.lowlevel.checkpoint()
        while self._open and not self._incoming.receivable:
            await self._incoming.changed.park()
        self._check_open()

    async def wait_sendable(self) -> None:
        """Wait until there is room."""
        await trio.lowlevel.checkpoint()
        while self._open and not self._outgoing.sendable:
            await self._outgoing.changed.park()
        self._check_open()

    async def aclose(self) -> None:
        """Close; what was sent stays readable."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Close; what was sent stays readable."""
        if self._open:
            self._open = False
            self._outgoing.ended = True
            self._incoming.unread = True
            self._incoming.data.clear()
            self._wake()

    def cut(self, reason: str = "the connection was cut") -> None:
        """Break both directions at once; what was on its way is lost."""
        for pipe in (self._incoming, self._outgoing):
            pipe.broken = reason
            pipe.data.clear()
        self._wake()

    def _wake(self) -> None:
        self._incoming.changed.unpark_all()
        self._outgoing.changed.unpark_all()

    def _check_open(self) -> None:
        if not self._open:
            raise StreamBroken(_CLOSED_HERE)

    def _check(self, pipe: _Pipe) -> None:
        self._check_open()
        if pipe.broken is not None:
            raise StreamBroken(pipe.broken)


def memory_stream_pair(
    capacity_bytes: int = CAPACITY_BYTES, *, peers: tuple[str, str] = ("memory", "memory")
) -> tuple[MemoryStream, MemoryStream]:
    """Return two connected ends.

    Args:
        capacity_bytes: What each direction holds before `try_send` refuses; 1 is lockstep.
        peers: What the first end calls the second, and the second the first.
    """
    assert capacity_bytes > 0
    there, back = _Pipe(capacity_bytes), _Pipe(capacity_bytes)
    return MemoryStream(back, there, peers[0]), MemoryStream(there, back, peers[1])
