"""Follows the logs of a campaign while they grow, to know when a call is at a point.

Rules of this file. 1) Only whole lines are looked at. 2) Nothing is kept but how far was read.
"""

from __future__ import annotations

from pathlib import Path

from .history import Mark, read_marks


class Tail:
    """The new lines of one file that is appended to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def skip(self) -> None:
        """Forget what is there already."""
        self._at = self._size()

    def lines(self) -> str:
        """Return the whole lines that came since the last time."""
        if self._size() <= self._at:
            return ""
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return whole.decode()

    def marks(self) -> list[Mark]:
        """Return the new lines of bodies."""
        return read_marks(self.lines())

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
