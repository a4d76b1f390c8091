"""When a link was last known to be alive, on a clock that goes on while the machine sleeps.

Theory. Whoever lost a link may go on with its calls on the next one for as long as the others keep
them. They count from the moment when they last heard of us; we must not count from the moment when
we notice, for between the two we may have slept, and the clocks of timers stand still meanwhile.
Bytes that come prove nothing: they may have waited in the kernel all night. The answer to a ping
proves that the peer was there after the ping had left, and a ping leaves every few seconds. So
that is what counts.

Rules of this file. In doubt, the earlier moment: the clock of sleep is read at the answer to a
ping alone, and what it went ahead since the answer before is taken for sleep after this ping.
"""

from __future__ import annotations

import sys
import time

import trio


def _awake_or_not() -> float:
    """Return seconds that go on during sleep."""
    # Linux has a clock of its own for that; on macOS this one counts sleep and `time.monotonic`
    # does not, elsewhere `time.monotonic` does.
    return time.clock_gettime(_CLOCK_ID)


if hasattr(time, "CLOCK_BOOTTIME"):
    _CLOCK_ID = time.CLOCK_BOOTTIME
    clock = _awake_or_not
elif sys.platform == "darwin":
    _CLOCK_ID = time.CLOCK_MONOTONIC
    clock = _awake_or_not
else:
    clock = time.monotonic


class Alive:
    """What one link knows of that.

    Attributes:
        at: When the peer was certainly there, on `clock`.
        heard_at: The same on trio's clock.
    """

    __slots__ = ("_ahead_s", "at", "heard_at")

    def __init__(self) -> None:
        """The peer is there now."""
        self.at = clock()
        self.heard_at = trio.current_time()
        self._ahead_s = self.at - self.heard_at

    def answered(self, now: float, rtt_s: float) -> None:
        """A ping was answered.

        Args:
            now: When, on trio's clock.
            rtt_s: How long that took, on the same clock.
        """
        self.heard_at = now - rtt_s
        self.at = self.heard_at + self._ahead_s
        self._ahead_s = clock() - now
