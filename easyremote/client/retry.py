"""Whether a call that failed is made again, how soon, and when to stop trying.

Theory. Nothing is tried again unless its caller said so. `retries=N` makes a call again whose body
provably did not start; `idempotent=True` says that it may run twice, so that it is made again also
where that is not known; `retry_exceptions` adds what the body itself raised. Pauses grow and are
spread by chance. And because a service that fails for everybody is not helped by more calls, a
session has a *throttle*: each failure takes a token and each success returns a tenth of one, and
while half of them are gone nothing is made again.

Rules of this file. 1) Pure: no clock; chance is an argument. 2) Each attempt is a call of its own,
with an id of its own, so that one run per id at most stays true. 3) The deadline spans all of them.

Source. gRPC's proposal A6 (retry throttling); supervise.py (full jitter).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..errors import EasyRemoteError, RemoteExecutionError
from ..supervise import Backoff
from ..wire.errors import ErrorCode

ATTEMPTS_IDEMPOTENT = 5
"""Attempts of an idempotent call where nobody says how many."""
SYSTEM_CODES = frozenset(
    {
        ErrorCode.NODE_LOST, ErrorCode.WORKER_DIED, ErrorCode.OVERLOADED, ErrorCode.GATEWAY_LOST,
        ErrorCode.SHUTTING_DOWN, ErrorCode.STALLED, ErrorCode.NO_NODE,
    }
)  # fmt: skip
"""Failures of the system that may pass by themselves."""
LASTING = frozenset({"InfeasibleError", "NoCapableNodeError", "NotConnectedError"})
"""Errors that share such a code and do not pass."""
TOKENS_MAX = 10.0
RETURNED = 0.1
"""Tokens that a success gives back."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What a caller allows.

    Attributes:
        attempts_max: How often the call is made at most, the first time included.
        idempotent: It may run twice.
        exceptions: Exceptions of the body after which it is made again, too.
    """

    attempts_max: int
    idempotent: bool = False
    exceptions: tuple[type[BaseException], ...] = ()

    def allows(self, error: BaseException, attempts: int, *, idempotent: bool = False) -> bool:
        """Return whether a call that failed may be made again.

        Args:
            error: How it failed.
            attempts: How often it was made.
            idempotent: Whoever registered the function says that it may run twice.
        """
        if attempts >= self.attempts_max:
            return False
        if isinstance(error, RemoteExecutionError):
            return isinstance(error, self.exceptions)
        if not isinstance(error, EasyRemoteError) or error.code not in SYSTEM_CODES:
            return False
        if type(error).__name__ in LASTING:
            return False
        return self.idempotent or idempotent or not error.may_have_run


NEVER = RetryPolicy(1)
REGISTERED_IDEMPOTENT = RetryPolicy(ATTEMPTS_IDEMPOTENT, idempotent=True)
"""For calls whose caller says nothing, of functions that were registered as idempotent."""


class Throttle:
    """Stops repeating calls while most of them fail. One for each session."""

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        self._tokens = TOKENS_MAX

    def failed(self) -> bool:
        """Count a failure; return whether its call may be made again."""
        self._tokens = max(0.0, self._tokens - 1.0)
        return self._tokens > TOKENS_MAX / 2

    def succeeded(self) -> None:
        """Count a success."""
        if self._tokens < TOKENS_MAX:
            self._tokens = min(TOKENS_MAX, self._tokens + RETURNED)


def pause_s(error: BaseException, attempts: int, rng: random.Random) -> float:
    """Return how long to wait before the next attempt.

    Args:
        error: How the last one failed; it may say when trying again makes sense.
        attempts: How many there were.
        rng: Where the jitter comes from.
    """
    asked = getattr(error, "retry_after_s", None) or 0.0
    return float(asked) + Backoff(rng=rng, failures=attempts - 1).next_s()
