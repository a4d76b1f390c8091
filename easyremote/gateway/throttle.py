"""Slows down whoever keeps failing to authenticate.

Theory. A 256-bit secret cannot be guessed, but each attempt costs the gateway a TLS handshake and
the audit a line. An address may fail a number of times a minute; past that every answer to it
waits a second, good or bad, so that the wait tells nothing. What counts as one address is the
caller's business (`transport.listener.place_of`: whoever has one IPv6 address has 2^64).

Rules of this file. 1) Time is an argument. 2) The table is bounded: past its size the addresses
that failed longest ago are forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict

FAILURES_PER_MINUTE = 10.0
DELAY_S = 1.0
ADDRESSES_MAX = 10_000


class AuthThrottle:
    """A leaky bucket of failures for each address."""

    def __init__(self) -> None:
        """Start with nobody suspected."""
        self._level: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def failed(self, address: str, now: float) -> None:
        """Note a failure of `address`."""
        level = self._leaked(address, now) + 1.0
        # Bounded, so that a long attack does not lock the address out for longer than a minute.
        self._level[address] = (min(level, 2 * FAILURES_PER_MINUTE), now)
        self._level.move_to_end(address)
        while len(self._level) > ADDRESSES_MAX:
            self._level.popitem(last=False)

    def delay_s(self, address: str, now: float) -> float:
        """Return how long the next answer to `address` has to wait."""
        return DELAY_S if self._leaked(address, now) >= FAILURES_PER_MINUTE else 0.0

    def _leaked(self, address: str, now: float) -> float:
        level, since = self._level.get(address, (0.0, now))
        return max(0.0, level - (now - since) * FAILURES_PER_MINUTE / 60.0)
