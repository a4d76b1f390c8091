"""All places of a gateway as columns of numbers, for pools that are too long to be looped over.

Theory. Looking at ten thousand objects takes a millisecond, at ten thousand numbers in a row a few
microseconds. So the numbers of which a choice is made also stand in arrays, one row for each place
that is in some long pool. A place writes its own row whenever it changes, which is one write per
call that comes or goes, whatever the number of pools that it is in. A pool is an array of rows.

Rules of this file. 1) A row belongs to one place until every long pool has left it. 2) Rows are
written in `Place` and `Host` alone, and read in `place.py`.

Source. Structure of arrays; numpy for the arithmetic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .host import NO_ROOM, Place

ROWS_FIRST = 64


class Fleet:
    """The table.

    Attributes:
        value: `Place.value`.
        rest: `Place.rest`.
        used: `Place.used`.
        version: `Host.version`.
    """

    __slots__ = ("_free", "_held", "rest", "used", "value", "version")

    def __init__(self) -> None:
        self.value: NDArray[np.float64] = np.full(ROWS_FIRST, NO_ROOM)
        self.rest: NDArray[np.float64] = np.full(ROWS_FIRST, NO_ROOM)
        self.used: NDArray[np.int64] = np.zeros(ROWS_FIRST, np.int64)
        self.version: NDArray[np.int64] = np.zeros(ROWS_FIRST, np.int64)
        self._free = list(range(ROWS_FIRST - 1, -1, -1))
        self._held: dict[Place, int] = {}

    @property
    def rows(self) -> int:
        """How many places have one."""
        return len(self._held)

    def enter(self, place: Place) -> None:
        """A long pool has this place."""
        held = self._held.get(place, 0)
        self._held[place] = held + 1
        if held:
            return
        assert place.fleet is None
        if not self._free:
            self._grow()
        row = place.row = self._free.pop()
        place.fleet = self
        self.value[row] = place.value
        self.rest[row] = place.rest
        self.used[row] = place.used
        self.version[row] = place.host.version

    def leave(self, place: Place) -> None:
        """A long pool has this place no more."""
        held = self._held[place] - 1
        if held:
            self._held[place] = held
            return
        del self._held[place]
        self.value[place.row] = self.rest[place.row] = NO_ROOM
        self._free.append(place.row)
        place.fleet, place.row = None, -1

    def _grow(self) -> None:
        rows = len(self.value)
        empty = np.full(rows, NO_ROOM)
        zeros = np.zeros(rows, np.int64)
        self.value = np.concatenate([self.value, empty])
        self.rest = np.concatenate([self.rest, empty])
        self.used = np.concatenate([self.used, zeros])
        self.version = np.concatenate([self.version, zeros])
        self._free = list(range(2 * rows - 1, rows - 1, -1))
