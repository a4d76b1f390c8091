"""What the gateway keeps about one user's calls.

Theory. Calls are looked up under the user whose they are: the id of somebody else's call is, for
everyone but its owner, an id that does not exist. Ids of calls that are over are remembered for a
while, in two generations, so that a call that is submitted again is not run again.

Rules of this file. 1) Pure. 2) Memory per user is bounded.

Source. promises.md T2, T10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calls import GatewayCall

REMEMBERED_MAX = 8192
"""Ids of calls that are over, in each of the two generations."""


class Caller:
    """One user, as far as calls go.

    Attributes:
        calls: Calls that are not over, by id.
        queued: How many of them wait for a node.
    """

    __slots__ = ("_older", "_over", "calls", "queued", "user")

    def __init__(self, user: str) -> None:
        self.user = user
        self.calls: dict[bytes, GatewayCall] = {}
        self.queued = 0
        self._over: set[bytes] = set()
        self._older: set[bytes] = set()

    def over(self, call_id: bytes) -> None:
        """A call has its outcome and nobody will ask for it again."""
        self.calls.pop(call_id, None)
        self._over.add(call_id)
        if len(self._over) >= REMEMBERED_MAX:
            self._older, self._over = self._over, set()

    def was_over(self, call_id: bytes) -> bool:
        """Return whether a call of this id had its outcome not long ago."""
        return call_id in self._over or call_id in self._older
