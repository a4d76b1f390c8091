"""A large result on its way to the gateway, so that it can be said once more from its start.

Theory. A large value passes through the agent in pieces, and a gateway that dies in between takes
along what it has had of them. The pieces came in memory of their own, so to have them all once
more costs nothing but not letting them go. They are let go some seconds after the last one left.

Rules of this file. The space before a piece belongs to whoever sends it. So what is sent on a
second link while a first one may still hold it is a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..flow import Held


class Record:
    """What a worker has said of one large result.

    Attributes:
        size_bytes: How large it will be.
        entries: All of it so far.
    """

    __slots__ = ("__weakref__", "entries", "size_bytes")

    def __init__(self, size_bytes: int, opening: Held) -> None:
        self.size_bytes = size_bytes
        self.entries: list[Held] = [opening]

    def renew(self) -> list[Held]:
        """Replace all pieces by copies, and return everything to be said again."""
        self.entries = copies(self.entries)
        return list(self.entries)


def copies(entries: list[Held]) -> list[Held]:
    """Return the same, to be sent on another link."""
    copied: list[Held] = []
    for entry in entries:
        if len(entry) == 4:
            copied.append(entry)
        else:
            frame, last, end = entry
            copied.append((memoryview(bytearray(frame)), last, end))
    return copied
