"""Whose turn it is among links that have more to do than one turn holds.

Theory. A thread has many links, and each does its work in turns. A link that is done within one
turn goes on as soon as something comes; that is everybody who calls now and then. A link that is
not done stands in line for its further turns, and one of that line has a turn between two looks at
the sockets. So a crowd of greedy peers costs everybody else about one turn, however many they are,
and the links of one user stand in the line once: a user does not get more by connecting more often.

While more than two stand in the line all turns are short. Two are a caller and its node under load,
and longer turns cost them less.

Rules of this file. 1) A turn is over after a time or after a number of events, whichever comes
first: the first bounds what it costs, the second holds for any clock. 2) Whoever is alone pays for
a checkpoint and nothing else. 3) One line belongs to one thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import trio

TURN_S = 0.006
"""What is said in a turn is sent at its end, and each sending costs as much as handling a call:
with turns of 2 ms, a gateway under load spent a fifth of its time on sending little pieces."""
TURN_EVENTS = 256
CROWDED_TURN_S = 0.0005
CROWDED_TURN_EVENTS = 16
"""The same while many want more than a turn."""
LINE_OF_FEW = 2
"""So many in the line, with whoever asks, are not many."""


class Turns:
    """The line of those who want further turns."""

    __slots__ = ("_claims", "_line")

    def __init__(self) -> None:
        self._line = trio.Lock()
        self._claims = 0

    def bounds(self, *, first: bool) -> tuple[float, int]:
        """Return for how many seconds and how many events a turn goes on.

        Args:
            first: It is the turn of somebody who does not stand in the line.
        """
        if self._claims + first > LINE_OF_FEW:
            return CROWDED_TURN_S, CROWDED_TURN_EVENTS
        return TURN_S, TURN_EVENTS

    async def further(self, lane: trio.Lock | None, turn: Callable[[], bool]) -> bool:
        """Wait for a further turn, have it, and return what it returns.

        Args:
            lane: Held by one of those who share one place in the line; None for a place alone.
            turn: Does the work, synchronously.
        """
        self._claims += 1
        try:
            async with contextlib.AsyncExitStack() as stack:
                if lane is not None:
                    await _hold(lane)
                    stack.callback(lane.release)
                await stack.enter_async_context(self._line)
                return turn()
        finally:
            self._claims -= 1


async def _hold(lane: trio.Lock) -> None:
    """Take a lane, without a checkpoint where it is free: the line itself has one."""
    try:
        lane.acquire_nowait()
    except trio.WouldBlock:
        await lane.acquire()
