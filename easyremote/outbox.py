"""The links of one thread that have something to send, flushed once per batch.

Theory. A batch of received frames causes frames on many links. Each of those links is marked, and
written to once when the batch is over, so that a hundred small frames leave in one write.

Rules of this file. 1) A mark outside a batch schedules a flush by itself: nobody can forget it.
2) One outbox belongs to one thread.
"""

from __future__ import annotations

from typing import Protocol

import trio

from .turns import Turns


class Flushable(Protocol):
    """What an outbox holds: a link."""

    marked: bool

    def flush(self) -> None:
        """Send what there is."""


class Outbox:
    """The links of one thread that have something to send.

    Attributes:
        turns: The line of those of them that have more to do than one turn holds.
    """

    def __init__(self) -> None:
        self._dirty: list[Flushable] = []
        self._depth = 0
        self._scheduled = False
        self.turns = Turns()

    def mark(self, link: Flushable) -> None:
        """`link` has something to send at the end of this batch."""
        if not link.marked:
            link.marked = True
            self._dirty.append(link)
            if not self._depth and not self._scheduled:
                self._scheduled = True
                trio.lowlevel.current_trio_token().run_sync_soon(self.flush)

    def begin(self) -> None:
        """A batch begins: marks are collected."""
        self._depth += 1

    def end(self) -> None:
        """A batch ends: what it caused is sent."""
        self._depth -= 1
        if not self._depth:
            self.flush()

    def flush(self) -> None:
        """Send what there is. Sending may mark links again (credit that returns)."""
        self._scheduled = False
        self._depth += 1
        try:
            while self._dirty:
                todo, self._dirty = self._dirty, []
                for link in todo:
                    link.marked = False
                    link.flush()
        finally:
            self._depth -= 1
