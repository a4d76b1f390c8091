"""How often something may be started again, as data.

Theory. Starting a process again cures what was an accident and repeats what was a cause. So a
restart is allowed while there were few of them lately; past that the failure is reported to
whoever is above, which is the only one that may know better.

The limit is `EASYREMOTE_RESTARTS_MAX` in the environment of the node, else five within a minute. A
campaign that kills a node's script all the time raises it; 0 never starts anything again.

Rules of this file. Time is an argument.

Source. Erlang/OTP supervisors: restart intensity and period.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass

from ..log import Log

_log = Log("node")

RESTARTS_VARIABLE = "EASYREMOTE_RESTARTS_MAX"
"""Environment variable: how often within a minute a node starts its script, or one isolated
function's process, again."""


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
    pause_max_s: float = 2.0
    """No pause is longer."""

    @classmethod
    def from_environment(cls) -> RestartIntensity:
        """Return the limit that the environment asks for, else the usual one."""
        text = os.environ.get(RESTARTS_VARIABLE, "").strip()
        if not text:
            return cls()
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            _log.warning(f"{RESTARTS_VARIABLE} is a number of restarts; it is ignored", given=text)
            return cls()
        return cls(restarts_max=int(text))


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
        pause_s = 0.0
        if times:  # The exponent is bounded, so that a raised limit does not overflow a float.
            pause_s = self.intensity.pause_s * 2 ** min(len(times) - 1, 30)
        times.append(now)
        return min(pause_s, self.intensity.pause_max_s)

    def describe(self) -> str:
        """Return the limit as people say it."""
        count = self.intensity.restarts_max
        noun = "restart" if count == 1 else "restarts"
        return f"{count} {noun} within {self.intensity.period_s:g} s"
