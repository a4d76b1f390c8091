"""Flow control: what a peer may still send, as absolute totals.

Theory. A receiver grants credit as a cumulative total ("you may have sent N bytes since the
beginning"), never as an increment: a grant that is repeated or overtaken does no harm, and both
sides can check a total against what was really sent. A window is how far the grant runs ahead of
what the receiver has consumed. It starts small and doubles while the sender empties it faster
than two round trips, so that a long path is not throttled and an idle stream holds little.

Rules of this file. 1) No clock: time is an argument. 2) Totals never go down. 3) Credit that is
left is never negative: a peer that overruns it has broken the protocol.

Source. RFC 9000 section 4 (absolute limits); the window growth follows gRPC's BDP estimation.
"""

from __future__ import annotations

TOTAL_MAX = (1 << 62) - 1

FRAME_COST_MIN = 512
"""Bytes that a frame counts at least: about what it costs whoever holds it, so that a window of
empty frames fills no more memory than a window of bytes."""

GROWTH_FLOOR_S = 0.002
"""A window emptied faster than this is too small on any path: hops add time that pings miss. Not
more, for what a window holds beyond the path is a queue in which small messages wait."""


def cost(size_bytes: int) -> int:
    """Return what a frame with so many bytes of payload counts, on its stream and in all."""
    return max(size_bytes, FRAME_COST_MIN)


class Inflow:
    """The receiving side: counts what came, decides when to grant more."""

    __slots__ = ("consumed", "granted", "received", "since", "window", "window_max")

    def __init__(self, window: int, window_max: int, now: float) -> None:
        self.window = window
        self.window_max = window_max
        self.granted = window
        self.received = 0
        self.consumed = 0
        self.since = now

    def take(self, size_bytes: int) -> bool:
        """Count bytes that arrived; False if the peer sent more than was granted."""
        self.received += size_bytes
        return self.received <= self.granted

    def consume(self, size_bytes: int, now: float, rtt_s: float) -> bool:
        """Count bytes that left our memory; True if a new grant is worth a frame."""
        self.consumed += size_bytes
        if self.granted - self.consumed > self.window >> 1:
            return False
        if now - self.since < max(2.0 * rtt_s, GROWTH_FLOOR_S):
            self.window = min(self.window * 2, self.window_max)
        self.since = now
        self.granted = self.consumed + self.window
        return True


class Outflow:
    """The sending side: what the peer has granted and what was used of it."""

    __slots__ = ("granted", "sent")

    def __init__(self, granted: int) -> None:
        self.granted = granted
        self.sent = 0

    @property
    def left(self) -> int:
        """Bytes that may still be sent."""
        return self.granted - self.sent

    def grant(self, total: int) -> bool:
        """Take a new total; False if the peer takes credit back, which no peer may."""
        if not self.granted <= total <= TOTAL_MAX:
            return False
        self.granted = total
        return True


class StreamCredit:
    """How many streams the peer may open, and when their credit returns.

    The credit of a stream returns when its *work* is gone, not when the stream is reset: a peer
    that opens and resets in a loop gains nothing (CVE-2023-44487).
    """

    __slots__ = ("granted", "opened", "released", "since_growth", "window", "window_max")

    def __init__(self, window: int, window_max: int) -> None:
        self.window = window
        self.window_max = max(window, window_max)
        self.granted = window
        self.opened = 0
        self.released = 0
        self.since_growth = 0

    def open(self) -> bool:
        """Count a stream that the peer opened; False if it had no credit for it."""
        self.opened += 1
        return self.opened <= self.granted

    def release(self) -> bool:
        """The work of one stream is gone; True if a new grant is worth a frame."""
        self.released += 1
        self.since_growth += 1
        if self.since_growth >= self.window and self.window < self.window_max:
            self.window = min(self.window * 2, self.window_max)
            self.since_growth = 0
        if self.released + self.window - self.granted < max(1, self.window >> 2):
            return False
        self.granted = self.released + self.window
        return True


class Budget:
    """The abuse budget: a token bucket on which every mischief of a peer draws."""

    __slots__ = ("at", "burst", "left", "refill_per_s")

    def __init__(self, burst: float, refill_per_s: float, now: float) -> None:
        self.burst = burst
        self.refill_per_s = refill_per_s
        self.left = burst
        self.at = now

    def charge(self, cost: float, now: float) -> bool:
        """Draw `cost`; False if the budget is used up."""
        self.left = min(self.burst, self.left + (now - self.at) * self.refill_per_s) - cost
        self.at = now
        return self.left >= 0.0
