"""What each user has used lately: who should be served next follows from it.

Theory. A user's usage is counted in slot-seconds (one slot, or one GPU, for one second) and loses
half of its worth with every half-life, so that yesterday's experiment is forgotten and this
minute's is not. Whoever has the least usage, relative to his weight, is served next.

All usages decay by the same factor, so time alone never changes their order. That is why nothing
is ever decayed here. What is charged *grows* instead: a slot-second at the time `now` counts
`2 ** ((now - epoch) / half_life_s)`. A key changes only when its user is charged, queues may sort
by it, and the numbers are brought back to a small size once in hundreds of half-lives.

A call is charged an estimate when it is given to a node, or a user with a thousand waiting calls
would get all of a thousand free slots. When it is over, the estimate is taken back, at the worth
it had, and what was really used is charged.

While everybody has calls waiting, two users whose usage is U and 0 are level again after one
half-life at most, for U is no more than what one half-life of all slots is worth; with n users
that are new, after `log2(n + 1)` half-lives.

Rules of this file. 1) Pure: `now` is an argument and does not go backwards. 2) `key` is a plain
attribute, for queues compare it often. 3) `charge` is followed by one `settle`.

Source. Fair-share scheduling with decayed usage: Kay and Lauder, "A Fair Share Scheduler",
CACM 31(1), 1988; Slurm's priority/multifactor plugin. Growing charges instead of decaying totals
is the usual form of exponential decay (Cormode et al., "Forward Decay", ICDE 2009).
"""

from __future__ import annotations

import math
from typing import Protocol

HALF_LIFE_S = 60.0
"""Usage is worth half after a minute. A longer memory makes whoever had bad luck with one long call
wait through whole bursts; a shorter one lets calls that last minutes be forgotten as they run."""

COST_MIN_S = 1e-6
"""Least that a call is charged: even empty calls take turns."""

COST_MAX_S = 1e8
"""Most that a call is charged, three years: one wild number does not swallow all precision."""

HALF_LIVES_MAX = 400.0
"""Numbers are brought back to a small size after this many half-lives; doubles reach 1,023."""

NEGLIGIBLE_S = 1e-3
"""Users who used less than this and have no calls are forgotten when there are many."""

SWEEP_FROM = 1024
"""Up to this many users nobody is forgotten."""


class Sorted(Protocol):
    """Something that is sorted by a user's key."""

    def rekey(self) -> None:
        """The key is smaller than it was."""
        ...


class Share:
    """One user's part of everything that this gateway hands out.

    Attributes:
        user: Whose it is.
        weight: How much he may use, compared with others.
        used: Usage, in slot-seconds at the worth they had at the epoch.
        key: `used / weight`: who has the least is served next.
        running: Calls that are charged and not settled.
        lanes: Where calls of his wait, in all queues.
    """

    __slots__ = ("key", "lanes", "running", "used", "user", "weight")

    def __init__(self, user: str, weight: float) -> None:
        self.user = user
        self.weight = weight
        self.used = 0.0
        self.key = 0.0
        self.running = 0
        self.lanes: list[Sorted] = []


class Shares:
    """The usage of all users, shared by all queues."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        assert half_life_s > 0.0
        self.half_life_s = half_life_s
        self._epoch = 0.0
        self._at = 0.0
        self._worth = 1.0
        self._shares: dict[str, Share] = {}
        self._sweep_at = SWEEP_FROM

    def __len__(self) -> int:
        """Return how many users are known."""
        return len(self._shares)

    def of(self, user: str, now: float) -> Share:
        """Return a user's share. Ask again for each call: idle users are forgotten."""
        share = self._shares.get(user)
        if share is None:
            if len(self._shares) >= self._sweep_at:
                self._sweep(now)
            share = self._shares[user] = Share(user, 1.0)
        return share

    def weigh(self, share: Share, weight: float) -> None:
        """Let a user have `weight` times what a user of weight 1 has."""
        assert 0.0 < weight < math.inf
        share.weight = weight
        self._changed(share)

    def worth(self, now: float) -> float:
        """Return what a slot-second counts at `now`."""
        if now != self._at:
            age = (now - self._epoch) / self.half_life_s
            if age > HALF_LIVES_MAX:
                self._rebase(age, now)
                age = 0.0
            self._at = now
            self._worth = math.exp2(age)
        return self._worth

    def charge(self, share: Share, cost_s: float, now: float) -> None:
        """A call of this user is given to a node.

        Args:
            share: Whose call it is.
            cost_s: Slot-seconds that it will use, estimated; the same number goes to `settle`.
            now: The time, which goes to `settle` as `since`.
        """
        worth = self._worth if now == self._at else self.worth(now)
        share.used += bounded(cost_s) * worth
        share.key = share.used / share.weight
        share.running += 1

    def settle(
        self, share: Share, cost_s: float, since: float, actual_s: float, now: float
    ) -> None:
        """A call that was charged is over.

        Args:
            share: Whose call it was.
            cost_s: What was charged.
            since: When it was charged.
            actual_s: The slot-seconds that it really used; 0 if its body never began.
            now: The time.
        """
        assert share.running > 0
        share.running -= 1
        worth = self.worth(now)
        charged = bounded(cost_s) * math.exp2((since - self._epoch) / self.half_life_s)
        used = share.used - charged
        if actual_s > 0.0:
            used += bounded(actual_s) * worth
        lower = used < share.used
        share.used = max(0.0, used)
        share.key = share.used / share.weight
        if lower and share.lanes:
            self._changed(share)

    def usage_s(self, share: Share, now: float) -> float:
        """Return the slot-seconds that a user used, at what they are worth now."""
        return share.used / self.worth(now)

    def _changed(self, share: Share) -> None:
        share.key = share.used / share.weight
        for lane in share.lanes:
            lane.rekey()

    def _rebase(self, age: float, now: float) -> None:
        """Make `now` the epoch."""
        shrink = math.exp2(-age)
        self._epoch = now
        for share in self._shares.values():
            share.used *= shrink
        for share in self._shares.values():
            self._changed(share)

    def _sweep(self, now: float) -> None:
        least = NEGLIGIBLE_S * self.worth(now)
        self._shares = {
            user: share
            for user, share in self._shares.items()
            if share.running or share.lanes or share.used > least or share.weight != 1.0
        }
        self._sweep_at = max(SWEEP_FROM, 2 * len(self._shares))


def bounded(cost_s: float) -> float:
    """Return what is charged for a call that is estimated to cost `cost_s`."""
    if COST_MIN_S <= cost_s <= COST_MAX_S:
        return cost_s
    return COST_MIN_S if cost_s < COST_MIN_S else COST_MAX_S
