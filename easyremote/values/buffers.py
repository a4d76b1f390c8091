"""Raw buffers beside an encoded value: where bytes go out, and who takes which on arrival.

Theory. Bulk bytes never go through CBOR, which would copy them. The encoder puts them in *places*:
mostly a buffer of their own; when a value has very many parts, small ones share the last buffer.
Places are handed out in the order in which the value is walked, and the decoder walks in the same
order, so that every place names the next buffer, or the next bytes of the shared one: no buffer
can be named twice, left out, or read beyond its end.

Rules of this file. 1) What the caller might still change is copied when the call is made, up to
`copy_max` bytes; larger buffers are borrowed. 2) What is taken out of a buffer of its own owns it:
nobody else refers to that memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ..wire.errors import CodecError

COPY_MAX = 1 << 20
"""Buffers up to 1 MiB are copied at the call; larger ones are borrowed until it settles."""
OUT_OF_BAND_MIN = 64 * 1024
"""Text and bytes from this size on leave the CBOR; fits the frame limit, and 5 us of copying."""
OWN_ANY_SIZE = 64
"""The first buffers each have their own, however small."""
OWN_MAX = 1024
"""Most buffers of their own; a message names 4,096 segments at most."""
SHARED = -1
"""The place of bytes in the shared buffer."""

Bytes = bytes | bytearray | memoryview


class Outlet:
    """The buffers of a value that is being encoded."""

    __slots__ = ("_copy_max", "_own", "_shared")

    def __init__(self, copy_max: int = COPY_MAX) -> None:
        """Copy what has up to `copy_max` bytes, borrow the rest."""
        self._copy_max = copy_max
        self._own: list[memoryview] = []
        self._shared: bytearray | None = None

    def put(self, data: memoryview, *, fresh: bool = False) -> int | None:
        """Take contiguous bytes, and return their place.

        Args:
            data: One-dimensional, of unsigned bytes.
            fresh: Nobody else can change them, so that no copy is needed.
        """
        size = data.nbytes
        if not size:
            return None
        own = len(self._own)
        if own >= OWN_ANY_SIZE and (size < OUT_OF_BAND_MIN or own >= OWN_MAX):
            if self._shared is None:
                self._shared = bytearray()
            self._shared += data
            return SHARED
        self.put_own(data, fresh=fresh)
        return own

    def put_own(self, data: memoryview, *, fresh: bool = False) -> None:
        """Take bytes that shall be the next buffer, whatever their size."""
        if not fresh and data.nbytes <= self._copy_max:
            data = memoryview(bytes(data))
        self._own.append(data)

    def buffers(self) -> list[memoryview]:
        """Return all buffers, in the order of their places; the shared one is the last."""
        if self._shared is None:
            return self._own
        return [*self._own, memoryview(self._shared)]


class Inlet:
    """The buffers that came with a value that is being decoded."""

    __slots__ = ("_buffers", "_next", "_offset", "_shared")

    def __init__(self, buffers: Sequence[Bytes]) -> None:
        """Hand out `buffers`, each once."""
        self._buffers = [memoryview(buffer).cast("B") for buffer in buffers]
        self._next = 0
        self._shared: memoryview | None = None
        self._offset = 0

    def take(self, place: object, size: int) -> memoryview:
        """Return the `size` bytes at `place`: writable, and nobody else's.

        Raises:
            CodecError: The place is not the next one, or holds another number of bytes.
        """
        if place is None:
            if size:
                raise CodecError(f"{size} bytes have no place")
            return memoryview(bytearray())
        if type(place) is not int:
            raise CodecError("a place is a number")
        if place == SHARED:
            return self._take_shared(size)
        if place != self._next or place >= len(self._buffers):
            raise CodecError(f"buffer {place} of {len(self._buffers)} is not the next one")
        buffer = self._buffers[place]
        if buffer.nbytes != size or not size:
            raise CodecError(f"buffer {place} has {buffer.nbytes} bytes, not {size}")
        self._next += 1
        return owned_copy(buffer) if buffer.readonly else buffer

    def _take_shared(self, size: int) -> memoryview:
        if self._shared is None:
            if not self._buffers:
                raise CodecError("there is no shared buffer")
            self._shared = self._buffers[-1]
        begin, end = self._offset, self._offset + size
        if not 0 < size <= self._shared.nbytes - begin:
            raise CodecError("the shared buffer is shorter than what it should hold")
        self._offset = end
        return owned_copy(self._shared[begin:end])

    def finish(self) -> None:
        """Check that every byte was taken.

        Raises:
            CodecError: Buffers, or bytes of the shared one, are left over.
        """
        taken = self._next
        if self._shared is not None:
            taken += 1
            if self._offset != self._shared.nbytes:
                raise CodecError("bytes of the shared buffer are left over")
        if taken != len(self._buffers):
            raise CodecError(f"the value names {taken} of {len(self._buffers)} buffers")


def owned_copy(data: memoryview) -> memoryview:
    """Return a writable copy that is aligned for every element type."""
    copy = fresh(data.nbytes)
    copy[:] = data
    return copy


def fresh(size: int) -> memoryview:
    """Return writable memory that only the view refers to; not cleared.

    Raises:
        MemoryError: There is not as much.
    """
    return np.empty(size, np.uint8).data


def object_bytes_max() -> int:
    """Return the largest value that is taken: half of the machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 4 * 1024**3
