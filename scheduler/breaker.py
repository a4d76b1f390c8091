"""Keep calls from a node that fails, whatever it says about itself.

Theory. What the gateway saw of a node weighs more than what the node claims: calls that were lost
with it, calls that it never ended, and answers that took far longer than the body that it reports.
Failures and successes are counted and fade with time. The share of failures is `doubt`, which is
taken off the node's score; many failures at once open the breaker, and the node gets nothing for a
while. Then it is probed with one call at a time: a success closes the breaker, a failure opens it
for twice as long.

                   failures                       time                     success
        CLOSED ───────────────▶ OPEN ───────────────────▶ PROBING ─────────────────▶ CLOSED
                                 ▲                           │
                                 └───────────────────────────┘ failure

An exception of the user's function is a success here: the node did its work. So is a process that
the function brought down; otherwise whoever may call it could take a node from everybody else.

Rules of this file. 1) Pure: `now` is an argument. 2) The table holds every pair of state and input.
3) Opening is for `OPEN_MAX_S` at most: a node that got well is found out.

Source. Envoy's outlier detection (consecutive failures, ejection time); Nygard's circuit breaker.
"""

from __future__ import annotations

from enum import Enum

HALF_LIFE_S = 30.0
"""What was seen so long ago counts half."""
FADE_EVERY_S = 1.0
"""Successes are many, and are counted without looking at the time more often."""
FAILURES_OPEN = 5.0
"""Fading failures that open the breaker, if they are also `RATE_OPEN` of all."""
RATE_OPEN = 0.5
DOUBT_PRIOR = 4.0
"""Successes that a node is credited with, so that its first failure is not half of all."""
OPEN_S = 5.0
"""How long it is open the first time; doubled each time after."""
OPEN_MAX_S = 300.0

SLOW_FACTOR = 5.0
SLOW_SLACK_S = 1.0
"""An answer is suspiciously late if it took longer than the claimed body times that factor and
this beside: a gateway or a network that is slow for a second proves nothing."""


class State(Enum):
    """Whether calls are given to a node."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Input(Enum):
    """What may happen to a breaker."""

    SUCCESS = "success"
    FAILURE = "failure"  # One of few.
    TOO_MANY = "too many"  # The failure after which there are too many.
    TIME = "time"  # It was open for long enough.


TABLE: dict[tuple[State, Input], State] = {
    (State.CLOSED, Input.SUCCESS): State.CLOSED,
    (State.CLOSED, Input.FAILURE): State.CLOSED,
    (State.CLOSED, Input.TOO_MANY): State.OPEN,
    (State.CLOSED, Input.TIME): State.CLOSED,
    # What was given before it opened ends after it opened, and changes nothing.
    (State.OPEN, Input.SUCCESS): State.OPEN,
    (State.OPEN, Input.FAILURE): State.OPEN,
    (State.OPEN, Input.TOO_MANY): State.OPEN,
    (State.OPEN, Input.TIME): State.PROBING,
    (State.PROBING, Input.SUCCESS): State.CLOSED,
    (State.PROBING, Input.FAILURE): State.OPEN,
    (State.PROBING, Input.TOO_MANY): State.OPEN,
    (State.PROBING, Input.TIME): State.PROBING,
}


def is_late(took_s: float, claimed_s: float) -> bool:
    """Return whether an answer took so much longer than the node claims that the claim is wrong."""
    return took_s > SLOW_FACTOR * max(0.0, claimed_s) + SLOW_SLACK_S


class Breaker:
    """What was seen of one node.

    Attributes:
        state: Whether it gets calls.
        opened_at: When it opened last.
        open_s: For how long.
        late: Answers that took far longer than the node claims, in all.
    """

    __slots__ = ("_failures", "_seen_at", "_successes", "late", "open_s", "opened_at", "state")

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.opened_at = 0.0
        self.open_s = OPEN_S
        self.late = 0
        self._failures = 0.0
        self._successes = 0.0
        self._seen_at = 0.0

    def failed(self, now: float) -> None:
        """The node lost a call, gave no end to it, or broke the protocol."""
        self._fade(now)
        self._failures += 1.0
        seen = self._failures + self._successes
        many = self._failures >= FAILURES_OPEN and self._failures >= RATE_OPEN * seen
        self._step(Input.TOO_MANY if many else Input.FAILURE, now)

    def succeeded(self, now: float, took_s: float = 0.0, claimed_s: float | None = None) -> None:
        """A call came to an outcome that is not the node's fault.

        Args:
            now: On the gateway's clock.
            took_s: From the moment at which the node had all of it, less what it waited behind
                other calls there; 0.0 where that was not measured.
            claimed_s: How long its body took, as the node says.
        """
        if claimed_s is not None and is_late(took_s, claimed_s):
            self.late += 1
            self.failed(now)
            return
        if now - self._seen_at >= FADE_EVERY_S:
            self._fade(now)
        self._successes += 1.0
        if self.state is not State.CLOSED:
            self._step(Input.SUCCESS, now)

    def tick(self, now: float) -> bool:
        """Let time pass; True if calls may be given again that could not be before."""
        if self.state is State.OPEN and now >= self.opened_at + self.open_s:
            self._step(Input.TIME, now)
            return True
        return False

    def doubt(self, now: float) -> float:
        """Return the share of failures in what was seen lately, in [0, 1]."""
        self._fade(now)
        return self._failures / (self._failures + self._successes + DOUBT_PRIOR)

    def _fade(self, now: float) -> None:
        factor = 0.5 ** (max(0.0, now - self._seen_at) / HALF_LIFE_S)
        self._failures *= factor
        self._successes *= factor
        self._seen_at = max(self._seen_at, now)

    def _step(self, what: Input, now: float) -> None:
        before, self.state = self.state, TABLE[self.state, what]
        if before is self.state:
            return
        if self.state is State.OPEN:
            self.open_s = OPEN_S if before is State.CLOSED else min(OPEN_MAX_S, 2 * self.open_s)
            self.opened_at = now
        elif self.state is State.CLOSED:
            self._failures = 0.0
