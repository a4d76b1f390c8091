"""Calls that wait for a node, in order of arrival.

Theory. A node holds no more calls than its window allows; the rest waits here, where it can be
seen, cancelled for free and given to whichever node has room first. A call that leaves early is
only marked: its place is cleared when the head of the queue reaches it, or when most of the queue
is such places.

Rules of this file. 1) No I/O, no clock. 2) The bound is kept by the dispatcher, which asks before
it adds.
"""

from __future__ import annotations

from collections import deque

from .calls import GatewayCall

_CLEAR_FROM = 64
"""Queues shorter than this are not worth clearing."""


class CallQueue:
    """The calls that wait for one pool of places.

    Attributes:
        waiting: How many calls wait.
    """

    __slots__ = ("_calls", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self._calls: deque[GatewayCall] = deque()

    def add(self, call: GatewayCall) -> None:
        """Let a call wait, at its place in the order of arrival."""
        assert call.queue is None
        call.queue = self
        self.waiting += 1
        calls = self._calls
        index = len(calls)
        while index and calls[index - 1].sequence > call.sequence:
            index -= 1
        if index == len(calls):
            calls.append(call)
        else:
            calls.insert(index, call)

    def head(self) -> GatewayCall | None:
        """Return the call that has waited longest, or None."""
        calls = self._calls
        while calls:
            if calls[0].queue is self:
                return calls[0]
            calls.popleft()
        return None

    def leave(self, call: GatewayCall) -> None:
        """A call waits no longer: it was taken, or settled."""
        assert call.queue is self
        call.queue = None
        self.waiting -= 1
        calls = self._calls
        if calls and calls[0] is call:
            calls.popleft()
        elif len(calls) > _CLEAR_FROM and len(calls) > 4 * self.waiting:
            self._calls = deque(left for left in calls if left.queue is self)

    def position(self, call: GatewayCall) -> int:
        """Return how many calls are ahead of a waiting call."""
        return self.calls().index(call)

    def calls(self) -> list[GatewayCall]:
        """Return the waiting calls, oldest first."""
        return [call for call in self._calls if call.queue is self]
