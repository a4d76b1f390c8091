"""How often something may be started again, as data.

Theory. Starting a process again cures what was an accident and repeats what was a cause. So a
restart is allowed while there were few of them lately; past that the failure is reported to
whoever is above, which is the only one that may know better.

Rules of this file. Time is an argument.

Source. Erlang/OTP supervisors: restart intensity and period.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartIntensity:
    """At most `restarts_max` restarts within `period_s` seconds.

    A script that needs a second to fail is given up after five of them; one that fails now and
    then in the middle of its work is started again for ever.
    """

    restarts_max: int = 5
    period_s: float = 60.0
    pause_s: float = 0.2
    """Pause before a second restart in the period; it doubles with each further one."""


class Restarts:
    """The restarts of one thing."""

    def __init__(self, intensity: RestartIntensity) -> None:
        self.intensity = intensity
        self._times: deque[float] = deque()

    def next_pause_s(self, now: float) -> float | None:
        """Count a restart and return the pause before it; None if it is one too many."""
        times = self._times
        while times and now - times[0] >= self.intensity.period_s:
            times.popleft()
        if len(times) >= self.intensity.restarts_max:
            return None
        pause_s = self.intensity.pause_s * 2 ** (len(times) - 1) if times else 0.0
        times.append(now)
        return pause_s

    def describe(self) -> str:
        """Return the limit as people say it."""
        return f"{self.intensity.restarts_max} restarts within {self.intensity.period_s:g} s"
