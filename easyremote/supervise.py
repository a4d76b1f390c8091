"""How often and how soon something that failed is tried again: as data.

Theory. When a gateway restarts, everybody who was connected comes back at once. Pauses that grow
spread the attempts of one peer over time, and *full jitter* (any pause between nothing and the
present limit is equally likely) spreads the peers among each other; growth alone would only move
the crowd.

Rules of this file. 1) No I/O, no clock: randomness is an argument. 2) A pause is bounded.

Source. promises.md, "Network attacker", T32; the comparison of full, equal and decorrelated jitter
in Amazon's architecture notes on back-off.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

PAUSE_FIRST_S = 0.1
"""Limit of the first pause: a link that broke by accident is back at once."""
PAUSE_MAX_S = 5.0
"""Limit of every pause: a peer that was away for an hour is found within seconds."""
FACTOR = 2.0


@dataclass
class Backoff:
    """The pauses between attempts.

    Attributes:
        first_s: The first pause is at most this long.
        max_s: No pause is longer.
        factor: By which the limit grows from pause to pause.
        rng: Where the jitter comes from.
        failures: Attempts that failed since the last success.
    """

    first_s: float = PAUSE_FIRST_S
    max_s: float = PAUSE_MAX_S
    factor: float = FACTOR
    rng: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next_s(self) -> float:
        """Return how long to wait before the next attempt; another one has failed.

        >>> fixed = Backoff(first_s=1.0, max_s=4.0, rng=random.Random(1))
        >>> [0 <= fixed.next_s() <= limit for limit in (1.0, 2.0, 4.0, 4.0)]
        [True, True, True, True]
        """
        # The exponent is bounded, so that years of failures do not overflow a float.
        limit_s = min(self.max_s, self.first_s * self.factor ** min(self.failures, 64))
        self.failures += 1
        return self.rng.uniform(0.0, limit_s)

    def reset(self) -> None:
        """An attempt succeeded: the next pause is short again."""
        self.failures = 0
