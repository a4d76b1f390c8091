"""One call that has a quota or a price, and what its user has left, in memory.

Theory. All that decides about a call is known on the gateway's one thread: the tallies of its
user's quotas, and which calls run. So a decision is made at once, and it is exact however many
calls come together; the disk only has to remember it before the call is given to a node.

A *balance* is the use that one user makes of one function of one owner; it has a tally for each
quota in force. A *charge* is one call's part in it. Seconds of calls that run count as they pass,
so no call is given to a node when settled and running seconds together have reached the limit.

Rules of this file. 1) No I/O. 2) Two clocks: `wall` in seconds since the epoch for windows and
records, `now` on trio's clock for durations. 3) The gateway's clock decides how long a call ran.

Source. promises.md D12, T3, T20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from ..scheduler.billing import (
    CANCELLED,
    DEADLINE,
    ERROR,
    LOST,
    NEVER,
    OK,
    PriceRule,
    agree,
    price_nano,
)
from ..scheduler.quota import BYTES, CALLS, SECONDS, Quota, Tally, Use, spread
from ..wire.errors import CodecError, ErrorCode
from ..wire.message import Failure, Item, Kind, Result, decode
from .routing import Refused
from .usage_store import Closed, Count, Who

if TYPE_CHECKING:
    from .pool import Offer

OUTCOME_OF_CODE = {
    ErrorCode.REMOTE_ERROR: ERROR, ErrorCode.CANCELLED: CANCELLED, ErrorCode.DEADLINE: DEADLINE,
}  # fmt: skip
"""Failures that are the caller's or the function's own; all others are the system's."""
SHOWN = {SECONDS: "seconds of execution", CALLS: "calls", BYTES: "bytes"}


class CallFacts(NamedTuple):
    """What matters about a call here."""

    call_id: bytes
    user: str
    sub: str
    """Sub-account below a shared token, or empty."""
    function: str
    bytes_in: int


class Balance:
    """What one user uses of one function of one owner.

    Attributes:
        who: User, sub-account, owner and function.
        tallies: One for each quota in force.
        running: Calls that nodes have.
        charges: How many calls are not over and written down.
        used_at: When it was last asked for, on trio's clock.
    """

    __slots__ = ("charges", "running", "tallies", "used_at", "who")

    def __init__(self, who: Who) -> None:
        self.who = who
        self.tallies: dict[Quota, Tally] = {}
        self.running: dict[Charge, None] = {}
        self.charges = 0
        self.used_at = 0.0

    def add(self, counts: Iterable[Count]) -> None:
        """Count uses in every tally."""
        for _, at, use in counts:
            for tally in self.tallies.values():
                tally.add(at, use)

    def running_s(self, tally: Tally, wall: float, now: float) -> float:
        """Return the seconds that running calls have used in the window of a tally."""
        if not self.running or tally.quota.limit_of(SECONDS) is None:
            return 0.0
        window_s = wall - tally.since(wall)
        return sum(
            min(max(0.0, now - charge.runs_since), window_s) * charge.weight
            for charge in self.running
        )

    def overdrawn(self, wall: float, now: float) -> list[CallFacts]:
        """Return the calls that run beyond a hard quota of theirs."""
        if not self.running:
            return []
        gone = {
            quota
            for quota, tally in self.tallies.items()
            if quota.mode == "hard"
            and not tally.seconds_left(wall, self.running_s(tally, wall, now))
        }
        return [
            charge.facts
            for charge in self.running
            if gone and charge.outcome is None and not gone.isdisjoint(charge.quotas_of(self))
        ]

    def refusal(self, quota: Quota, wall: float, now: float) -> Refused | None:
        """Return why nothing is left of a quota, None if something is."""
        tally = self.tallies[quota]
        limit = tally.exhausted(wall, self.running_s(tally, wall, now))
        if limit is None:
            return None
        resets_at = tally.resets_at(wall)
        name = f"{self.who.user} ({self.who.sub})" if self.who.sub else self.who.user
        per = "24 hours" if quota.period == "rolling_24h" else quota.period
        refused = Refused(
            ErrorCode.QUOTA,
            f"{name} has used up {limit.amount:g} {SHOWN[limit.unit]} of {self.who.function} per "
            f"{per}; there is some again in {_span(resets_at - wall)}",
            retry_after_s=max(0.0, resets_at - wall),
        )
        refused.detail = {"resets_at": resets_at, "remaining": 0}
        return refused


def _span(seconds: float) -> str:
    """Return how long that is, for people."""
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{max(0.0, seconds):.0f} s"


class Charge:
    """One call that has a quota or a price.

    Attributes:
        facts: Which call.
        wall: The clock of records and windows.
        at: When it was accepted, in seconds since the epoch.
        parts: Each balance that it counts in, and the quotas that hold for it there.
        adopted: A node had it from before the start of this gateway.
        durable: It is written down, and may be given to a node.
        strict: No node may hold it ahead of a free slot: its start is what a quota is about.
        gpus: GPUs that are reserved for it.
        given_at: When a node was given it, on trio's clock; None while none has it.
        started_at: When its node said that the body runs.
        ended_at: When its node said how it ended.
        outcome: How it ended (`scheduler.billing`), None while that is open.
        bytes_out: Bytes that came back.
        closing: What is to be written down at its end, once its beginning is.
    """

    __slots__ = (
        "adopted", "at", "bytes_in", "bytes_out", "closing", "durable", "ended_at", "facts",
        "given_at", "gpus", "node_id", "node_owner", "node_s", "outcome", "over", "parts", "price",
        "started_at", "strict", "wall",
    )  # fmt: skip

    def __init__(
        self, facts: CallFacts, wall: Callable[[], float], at: float,
        parts: list[tuple[Balance, list[Quota]]],
    ) -> None:  # fmt: skip
        self.facts = facts
        self.wall = wall
        self.at = at
        self.parts = parts
        self.strict = any(
            quota.limit_of(SECONDS) is not None for _, quotas in parts for quota in quotas
        )
        self.durable = self.adopted = False
        self.over = False
        self.closing: tuple[Closed, list[Count]] | None = None
        self.gpus = 0.0
        self.node_id = self.node_owner = ""
        self.price: PriceRule | None = None
        self.given_at: float | None = None
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.node_s: float | None = None
        self.outcome: str | None = None
        self.bytes_in = facts.bytes_in
        self.bytes_out = 0
        for balance, _ in parts:
            balance.charges += 1

    def covers(self, offer: Offer) -> bool:
        """Return whether it counts in the quota of a function on a node, which may have come late.

        A call is held to the quotas that were there when it came; where another one holds, it may
        not run.
        """
        terms = offer.entry.terms
        if terms is None or terms.quota is None:
            return True
        owner, quota = offer.record.owner, terms.quota
        return any(one.who.owner == owner and quota in quotas for one, quotas in self.parts)

    @property
    def weight(self) -> float:
        """How many seconds of quota a second of it takes: one for each GPU."""
        return self.gpus or 1.0

    @property
    def runs_since(self) -> float:
        """Since when it counts as running, on trio's clock."""
        since = self.started_at if self.started_at is not None else self.given_at
        assert since is not None
        return since

    def quotas_of(self, balance: Balance) -> list[Quota]:
        """Return the quotas that hold for it in one of its balances."""
        return [quota for one, quotas in self.parts if one is balance for quota in quotas]

    def let_go(self) -> None:
        """All of it is on the disk, or nothing ever will be."""
        for balance, _ in self.parts:
            balance.charges -= 1

    # ---- before a node has it ------------------------------------------------------------------

    def reserve(self) -> list[Count]:
        """Count it in the balances, and return what has to be written down."""
        counts: list[Count] = []
        for balance, _ in self.parts:
            mine = [(balance.who, self.at, Use(0.0, 1.0, float(self.bytes_in)))]
            balance.add(mine)
            counts += mine
        return counts

    def refusal(self, now: float) -> Refused | None:
        """Return why it may not start now, though it was accepted; None if it may.

        Its own place among the calls of a quota is taken already; seconds may have run out.
        """
        if not self.strict:
            return None
        wall = self.wall()
        for balance, quotas in self.parts:
            for quota in quotas:
                tally = balance.tallies[quota]
                if not tally.seconds_left(wall, balance.running_s(tally, wall, now)):
                    return balance.refusal(quota, wall, now)
        return None

    def seconds_allowed(self, now: float) -> float | None:
        """Return after how many seconds a hard quota cuts it off if it starts now, or None."""
        wall = self.wall()
        left = [
            balance.tallies[quota].seconds_left(
                wall, balance.running_s(balance.tallies[quota], wall, now)
            )
            for balance, quotas in self.parts
            for quota in quotas
            if quota.mode == "hard" and quota.limit_of(SECONDS) is not None
        ]
        return min(left) / self.weight if left else None

    def cut(self, deadline: float | None, now: float) -> float | None:
        """Return the deadline that a node is given: what a hard quota leaves, or an earlier one."""
        allowed_s = self.seconds_allowed(now)
        if allowed_s is None:
            return deadline
        return now + allowed_s if deadline is None else min(deadline, now + allowed_s)

    # ---- at a node -----------------------------------------------------------------------------

    def given(self, offer: Offer, now: float, gpus: float = 0.0) -> None:
        """A node has it now, or again, with so many GPUs reserved for it."""
        self.gpus = gpus
        self.node_id, self.node_owner = offer.record.node_id, offer.record.owner
        # Where a kept outcome is fetched, the place may be that of another function.
        terms = offer.entry.terms if offer.name == self.facts.function else None
        self.price = None if terms is None else terms.price
        if self.given_at is None:
            self.given_at = now
        for balance, _ in self.parts:
            balance.running[self] = None

    def taken_back(self) -> None:
        """The node gave it back before it began."""
        self.given_at = self.started_at = None
        for balance, _ in self.parts:
            balance.running.pop(self, None)

    def started(self, now: float) -> None:
        """Its node says that the body runs; the first word counts."""
        if self.started_at is None:
            self.started_at = now

    def passed(self, payload: bytes, *, outwards: bool) -> None:
        """An item of a stream went by."""
        size = len(payload) + sum(decode(Item, payload).segments)
        if outwards:
            self.bytes_out += size
        else:
            self.bytes_in += size

    def ended(self, kind: int, payload: bytes, now: float) -> None:
        """Its node says how it ended."""
        self.ended_at = now
        self.bytes_out += len(payload)
        if kind == Kind.RESULT:
            result = decode(Result, payload)
            self.outcome, self.node_s = OK, result.seconds
            self.bytes_out += sum(result.segments)
            return
        try:
            failure = decode(Failure, payload)
            code = ErrorCode(failure.code)
        except (CodecError, ValueError):
            self.outcome = LOST
            return
        self.decided(code, may_have_run=failure.maybe_executed)

    def decided(self, code: ErrorCode, *, may_have_run: bool) -> None:
        """It has an outcome that is a failure; the first one counts."""
        if self.outcome is None:
            ran = may_have_run or code is ErrorCode.REMOTE_ERROR
            self.outcome = OUTCOME_OF_CODE.get(code, LOST) if ran else NEVER

    # ---- when all is over ----------------------------------------------------------------------

    def close(self, now: float) -> tuple[Closed, list[Count]]:
        """Count what it used; return what has to be written down."""
        self.over = True
        wall = self.wall()
        outcome = self.outcome or (NEVER if self.given_at is None else CANCELLED)
        end = now if self.ended_at is None else self.ended_at
        seconds, flagged, most_s = 0.0, False, 0.0
        if outcome != NEVER and self.given_at is not None:
            most_s = max(0.0, end - self.given_at)
            seconds, flagged = self._measured(most_s, end)
        ended_wall = wall - (now - end)
        counts: list[Count] = []
        for balance, _ in self.parts:
            mine = self._counts(balance, outcome, seconds, ended_wall)
            balance.running.pop(self, None)
            balance.add(mine)
            counts += mine
        price = self.price
        paid = price is not None and price.pays_for(outcome)
        closed = Closed(
            self.facts.call_id, self.facts.user, self.node_id, self.node_owner,
            ended_wall - most_s if self.given_at is not None else None, ended_wall, seconds,
            self.node_s, seconds * self.gpus, self.bytes_in, self.bytes_out, outcome, paid,
            0 if price is None or not paid else price_nano(
                price, seconds, seconds * self.gpus, self.bytes_in + self.bytes_out
            ),
            None if price is None else price.to_plain(), flagged,
        )  # fmt: skip
        return closed, counts

    def _measured(self, most_s: float, end: float) -> tuple[float, bool]:
        if self.started_at is not None:
            least_s = min(most_s, max(0.0, end - self.started_at))
        else:
            # The time in which there was no gateway is nobody's.
            least_s = 0.0 if self.adopted or self.node_s is not None else most_s
        return agree(self.node_s, least_s, most_s)

    def _counts(
        self, balance: Balance, outcome: str, seconds: float, ended_wall: float
    ) -> list[Count]:
        """Return what is added to a balance now that it is over."""
        elsewhere = bool(self.node_owner) and balance.who.owner != self.node_owner
        if outcome == NEVER or elsewhere:
            return [(balance.who, self.at, Use(0.0, -1.0, -float(self.facts.bytes_in)))]
        counts: list[Count] = []
        more = self.bytes_in - self.facts.bytes_in + self.bytes_out
        if more:
            counts.append((balance.who, ended_wall, Use(0.0, 0.0, float(more))))
        if outcome != LOST:  # What the system broke takes nobody's time.
            pieces = spread(ended_wall - seconds, ended_wall, seconds * self.weight)
            counts += [(balance.who, at, Use(piece, 0.0, 0.0)) for at, piece in pieces]
        return counts
