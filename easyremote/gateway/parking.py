"""Calls whose callers lost their link: how long they go on, and how long results wait.

Theory. A client that vanished without a goodbye may come back and submit its calls again under the
same ids. Until then they go on, and what comes for the client is held by the relay, uncredited, so
that it is never more than the window of a stream. Calls that go on are given up after a grace,
results after a longer one, and results are bounded in bytes over all callers.

Rules of this file. 1) Time is an argument. 2) Nothing is parked twice.

Source. decisions.md 15.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .limits import GatewayLimits

if TYPE_CHECKING:
    from .calls import GatewayCall


class Parking:
    """The calls that wait for their callers.

    Attributes:
        bytes_kept: Bytes of outcomes that are kept.
    """

    def __init__(self, limits: GatewayLimits) -> None:
        self._limits = limits
        self._until: dict[GatewayCall, float] = {}
        self._kept: dict[GatewayCall, int] = {}
        self.bytes_kept = 0

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, call: GatewayCall) -> bool:
        return call in self._until

    def away(self, call: GatewayCall, now: float) -> None:
        """The caller of a running or waiting call is gone for now."""
        self._until[call] = math.inf if call.detached else now + self._limits.client_grace_s

    def keep(self, call: GatewayCall, now: float) -> bool:
        """Keep the outcome of a call whose caller is away; False if there is no room for it."""
        if call not in self._until:
            return False
        size = call.kept_bytes
        if self.bytes_kept + size > self._limits.parked_bytes_max:
            return False
        self._until[call] = now + self._limits.result_ttl_s
        self.bytes_kept += size - self._kept.get(call, 0)
        self._kept[call] = size
        return True

    def leave(self, call: GatewayCall) -> None:
        """The caller is back, or the call is forgotten."""
        self._until.pop(call, None)
        self.bytes_kept -= self._kept.pop(call, 0)

    def expired(self, now: float) -> list[GatewayCall]:
        """Return the calls that have waited long enough."""
        return [call for call, until in self._until.items() if until <= now]
