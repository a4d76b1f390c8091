"""What the gateway keeps about one user's calls.

Theory. Calls are looked up under the user whose they are: the id of somebody else's call is, for
everyone but its owner, an id that does not exist. Ids of calls that are over are remembered for a
while, in two generations, so that a call that is submitted again is not run again, and with each
the node that answered and the user who owns it: whoever asks whether to trust an answer must hear
of the node that gave it, not of those that could have.

Rules of this file. 1) No I/O, no clock. 2) Memory per user is bounded.

Source. promises.md T2, T10.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ..flow import Buffers
    from .calls import GatewayCall

REMEMBERED_MAX = 8192
"""Ids of calls that are over, in each of the two generations."""


class Caller:
    """One user, as far as calls go.

    Attributes:
        calls: Calls that are not over, by id.
        queued: How many of them wait for a node.
        buffers: What they hold together.
        lane: What the links of its clients share, so that many get no more turns than one.
        forgot_until: Ids of calls that were over before this time may be forgotten.
    """

    __slots__ = (
        "_older", "_over", "_rotated_at", "buffers", "calls", "forgot_until", "lane", "queued",
        "user",
    )  # fmt: skip

    def __init__(self, user: str, buffers: Buffers) -> None:
        self.user = user
        self.buffers = buffers
        self.calls: dict[bytes, GatewayCall] = {}
        self.queued = 0
        self.lane = trio.Lock()
        self._over: dict[bytes, tuple[str | None, str | None]] = {}
        self._older: dict[bytes, tuple[str | None, str | None]] = {}
        self._rotated_at = self.forgot_until = -math.inf

    def over(
        self, call_id: bytes, answered_by: str | None, now: float, node_id: str | None = None
    ) -> None:
        """A call has its outcome and nobody will ask for it again.

        Args:
            call_id: Its id.
            answered_by: The user who owns the node that had it, None if none had.
            now: On trio's clock.
            node_id: That node.
        """
        self.calls.pop(call_id, None)
        self._over[call_id] = answered_by, node_id
        if len(self._over) >= REMEMBERED_MAX:
            if self._older:
                self.forgot_until = self._rotated_at
            self._older, self._over, self._rotated_at = self._over, {}, now

    def answered_by(self, call_id: bytes) -> str | None:
        """Return who owns the node that has or had a call, None if that is not known."""
        call = self.calls.get(call_id)
        if call is not None:
            return call.node_owner
        return self._ended(call_id)[0]

    def served_by(self, call_id: bytes) -> str | None:
        """Return the id of the node that has or had a call, None if that is not known."""
        call = self.calls.get(call_id)
        return self._ended(call_id)[1] if call is None else call.node_id

    def _ended(self, call_id: bytes) -> tuple[str | None, str | None]:
        return self._over.get(call_id) or self._older.get(call_id) or (None, None)

    def was_over(self, call_id: bytes) -> bool:
        """Return whether a call of this id had its outcome not long ago."""
        return call_id in self._over or call_id in self._older
