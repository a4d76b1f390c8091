"""Quotas and bills: which calls may go on, what they have used, and what they cost.

Theory. A call whose function has a quota or a price is accounted for; all others never come here.
It is decided in memory (`charge.py`), written down as an open row together with its use of the
quota, and given to a node only when that is durable. So a limit in calls holds whatever happens to
the gateway: what ran was counted. The row is closed when the node has done with the call.

    admit --refused--> QuotaExceededError, nothing written
      |
      +--decided--> open row + quota use --durable--> given to a node --> closed row

After a start, open rows are calls of earlier starts. One that comes back, by its caller or by the
node that has it, is taken up and not counted again. The rest are closed as unknown, free of
charge, when nobody can bring them back any more.

Rules of this file. 1) Whose use it is follows from the token. A sub-account exists below a shared
token only: the people who share it have a quota each, and see each other's use. 2) Nothing here
waits: the store calls back. 3) A disk that fails refuses new calls and changes no outcome.

Source. decisions.md 13; promises.md D12 and 4.2, "Quotas", "Billing".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..log import Log
from ..scheduler.billing import NANO
from ..scheduler.quota import Quota, Tally, Use
from ..wire.errors import ErrorCode
from .charge import Balance, CallFacts, Charge
from .routing import Refused
from .terms import Terms
from .usage_store import (
    AlreadyOpenError,
    Closed,
    Opened,
    OpenRow,
    Totals,
    Who,
    close_usage,
    give_up_open,
    open_rows,
    open_usage,
    tidy_usage,
    totals,
    uses_since,
)

if TYPE_CHECKING:
    from .async_store import AsyncStore
    from .calls import GatewayCall

_log = Log("gateway")

RETURN_S = 300.0
"""How long calls of earlier starts may be taken up again: longer than callers and nodes keep them
(`recovery.ASKED_S`)."""
IDLE_S = 3600.0
"""A balance that nobody used for so long is read from the disk when it is wanted again."""
TIDY_EVERY_S = 3600.0
BALANCES_MAX = 10_000
"""With so many in memory, those that no call counts in are forgotten at once."""
TALLIES_MAX = 16

Ready = Callable[[Refused | None], object]
"""Is told that a call is written down and may be placed, or why not."""


def facts_of(call: GatewayCall, sub: str = "") -> CallFacts:
    """Return what matters about a call here."""
    message = call.message
    size = sum(message.segments) + len(message.body or b"")
    function = message.function.rpartition(".")[2]
    return CallFacts(message.call_id, call.principal.user, sub, function, size)


class Accounts:
    """All accounts of a gateway.

    Attributes:
        open: How many calls are accounted for and not over.
        revenue: Paid calls since ever, by node and currency: the sum of the usage records.
    """

    def __init__(self, store: AsyncStore, incarnation: int, now: float) -> None:
        """Begin with what the disk knows.

        Args:
            store: Where all of it is kept.
            incarnation: The number of this start.
            now: On trio's clock.
        """
        self._store = store
        self._incarnation = incarnation
        self._balances: dict[Who, Balance] = {}
        self._returning: dict[tuple[str, bytes], OpenRow] = {
            (row.user, row.call_id): row for row in open_rows(store.reader)
        }
        self._return_until = now + RETURN_S
        self._tidy_at = now + TIDY_EVERY_S
        self._changed: set[str] = set()
        self._unwritten: list[Charge] = []
        self.open = 0
        self.revenue = totals(store.reader, "node_id")

    def wall(self) -> float:
        """Return the time in seconds since the epoch, by the clock of the records."""
        return self._store.reader.clock()

    # ---- a call comes --------------------------------------------------------------------------

    def admit(
        self, facts: CallFacts, terms: Iterable[tuple[str, Terms]], now: float, ready: Ready
    ) -> Charge:
        """Decide whether a call may go on, and see that this is remembered.

        Args:
            facts: The call.
            terms: Owner and terms of every node that may run it; all of them hold.
            now: On trio's clock.
            ready: Called once, later and never from here, unless the charge is `durable` already
                or was closed meanwhile: with None when the call may be given to a node, with a
                refusal if it may not; then the charge is over.

        Returns:
            The charge; `close` it when the call is over, whatever became of it.

        Raises:
            Refused: Nothing is left of a quota. Nothing has changed then.
        """
        wall = self.wall()
        parts = self._parts(facts, terms, wall, now)
        row = self._returning.get((facts.user, facts.call_id))
        if row is not None and (row.sub, row.function) == (facts.sub, facts.function):
            return self._charge_of(row, parts)
        for balance, quotas in parts:
            for quota in quotas:
                refused = balance.refusal(quota, wall, now)
                if refused is not None:
                    raise refused
        charge = Charge(facts, self.wall, wall, parts)
        self.open += 1
        opened = Opened(
            facts.call_id, facts.user, facts.sub, facts.function, wall, self._incarnation,
            facts.bytes_in,
        )  # fmt: skip

        def written(_: object, error: BaseException | None) -> None:
            if error is None:
                charge.durable = True
                if charge.over:
                    self._write_closed(charge)
                else:
                    ready(None)
            elif charge.over:
                charge.let_go()
            else:
                self.open -= 1
                charge.close(now)
                charge.let_go()
                ready(_not_written(error))

        self._store.submit(written, open_usage, opened, charge.reserve())
        return charge

    def awaits(self, user: str, call_id: bytes) -> bool:
        """Return whether a call of an earlier start has an open row that nobody has taken up."""
        return (user, call_id) in self._returning

    def take_up(
        self, facts: CallFacts, terms: Iterable[tuple[str, Terms]], now: float
    ) -> Charge | None:
        """Return the charge of a call that a node has from before a restart; None if it has none.

        It was counted then. Its row may have been closed meanwhile: then it has no charge.
        """
        row = self._returning.get((facts.user, facts.call_id))
        if row is None:
            return None
        who = facts._replace(sub=row.sub, function=row.function, bytes_in=row.bytes_in)
        charge = self._charge_of(row, self._parts(who, terms, self.wall(), now))
        charge.given_at = now - max(0.0, self.wall() - row.at)
        charge.adopted = True
        return charge

    def _charge_of(self, row: OpenRow, parts: list[tuple[Balance, list[Quota]]]) -> Charge:
        del self._returning[row.user, row.call_id]
        facts = CallFacts(row.call_id, row.user, row.sub, row.function, row.bytes_in)
        charge = Charge(facts, self.wall, row.at, parts)
        charge.durable = True
        self.open += 1
        return charge

    def _parts(
        self, facts: CallFacts, terms: Iterable[tuple[str, Terms]], wall: float, now: float
    ) -> list[tuple[Balance, list[Quota]]]:
        """Return the balances that a call counts in, each with the quotas that hold there."""
        found: dict[Who, list[Quota]] = {}
        for owner, one in terms:
            if one.quota is not None:
                who = Who(facts.user, facts.sub, owner, facts.function)
                found.setdefault(who, []).append(one.quota)
        return [(self._balance(who, quotas, wall, now), quotas) for who, quotas in found.items()]

    def _balance(self, who: Who, quotas: Iterable[Quota], wall: float, now: float) -> Balance:
        balance = self._balances.get(who)
        if balance is None:
            if len(self._balances) >= BALANCES_MAX:
                self._forget_idle(now)
            balance = self._balances[who] = Balance(who)
        elif len(balance.tallies) >= TALLIES_MAX and not balance.charges:
            balance.tallies.clear()  # Of quotas that its owner has changed since.
        balance.used_at = now
        for quota in quotas:
            if quota not in balance.tallies:
                tally = Tally(quota)
                for bucket, use in uses_since(self._store.reader, who, tally.since(wall)):
                    tally.add(bucket, use)
                balance.tallies[quota] = tally
        return balance

    # ---- a call is over ------------------------------------------------------------------------

    def close(self, charge: Charge, now: float) -> None:
        """A call is over and its node has done with it: write down what became of it, once."""
        if charge.over:
            return
        self.open -= 1
        closed, _ = charge.closing = charge.close(now)
        if closed.paid:
            self._earn(closed)
        if closed.flagged:
            _log.warning(
                "a node measured another time than the gateway", node_id=closed.node_id,
                call_id=closed.call_id, node_s=closed.node_seconds, billed_s=closed.seconds,
            )  # fmt: skip
        if charge.durable:
            self._write_closed(charge)

    def _write_closed(self, charge: Charge, *, again: bool = False) -> None:
        """Write the end of a call down; if the disk cannot now, it is tried once a second."""

        def written(_: object, error: BaseException | None) -> None:
            if error is None:
                charge.let_go()
                return
            self._unwritten.append(charge)
            if not again:
                _said(_, error)

        assert charge.closing is not None
        self._store.submit(written, close_usage, *charge.closing)

    def _earn(self, closed: Closed) -> None:
        self._changed.add(closed.node_id)
        key = closed.node_id, str((closed.rule or {}).get("currency", ""))
        before = self.revenue.get(key, Totals(0, 0.0, 0))
        self.revenue[key] = Totals(
            before.calls + 1, before.seconds + closed.seconds,
            before.price_nano + closed.price_nano,
        )  # fmt: skip

    def earned(self, node_id: str) -> float | None:
        """Return what a node has earned, in the currency of most of its calls; None for never."""
        sums = self.revenue_of(node_id).values()
        most = max(sums, key=lambda one: one.calls, default=None)
        return None if most is None else most.price_nano / NANO

    def take_changed(self) -> set[str]:
        """Return the nodes that have earned something since the last time."""
        changed, self._changed = self._changed, set()
        return changed

    def revenue_of(self, node_id: str) -> dict[str, Totals]:
        """Return what the paid calls of a node sum up to, by currency."""
        return {
            currency: sums for (node, currency), sums in self.revenue.items() if node == node_id
        }

    def sums(self) -> dict[str, Any]:
        """Return what all paid calls sum up to: the numbers of the usage records, for gauges."""
        nano: dict[str, int] = {}
        for (_, currency), one in self.revenue.items():
            nano[currency] = nano.get(currency, 0) + one.price_nano
        return {
            "calls_billed": sum(one.calls for one in self.revenue.values()),
            "seconds_billed": sum(one.seconds for one in self.revenue.values()),
            "revenue": {currency: total / NANO for currency, total in nano.items()},
        }

    # ---- with time -----------------------------------------------------------------------------

    def overdrawn(self, now: float) -> list[CallFacts]:
        """Return the running calls whose hard quota has nothing left: they must be stopped."""
        wall = self.wall()
        return [facts for one in self._balances.values() for facts in one.overdrawn(wall, now)]

    def keep_house(self, now: float) -> None:
        """Give up what cannot come back, and forget what nobody needs. Asked once a second."""
        wall = self.wall()
        unwritten, self._unwritten = self._unwritten, []
        for charge in unwritten:
            self._write_closed(charge, again=True)
        if self._returning and now >= self._return_until:
            lost, self._returning = list(self._returning), {}
            _log.warning("calls from before the restart have no known end", calls=len(lost))
            self._store.submit(_said, give_up_open, lost, wall)
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_EVERY_S
            self._store.submit(_said, tidy_usage, wall)
            self._forget_idle(now - IDLE_S)

    def _forget_idle(self, before: float) -> None:
        idle = [
            who for who, one in self._balances.items() if not one.charges and one.used_at < before
        ]
        for who in idle:
            del self._balances[who]

    # ---- what is left --------------------------------------------------------------------------

    def states(self, who: Who, quota: Quota, now: float) -> list[dict[str, Any]]:
        """Return what is left of a quota, one entry for each limit (`facts.QuotaState`)."""
        wall = self.wall()
        balance = self._balance(who, (quota,), wall, now)
        tally = balance.tallies[quota]
        used = tally.used(wall).plus(Use(balance.running_s(tally, wall, now), 0.0, 0.0))
        return [
            {
                "function": who.function, "owner": who.owner, "sub_account": who.sub,
                "unit": limit.unit, "limit": limit.amount, "used": used.of(limit.unit),
                "remaining": max(0.0, limit.amount - used.of(limit.unit)), "period": quota.period,
                "resets_at": tally.resets_at(wall), "mode": quota.mode, "timezone": quota.zone,
            }
            for limit in quota.limits
        ]  # fmt: skip


def _not_written(error: BaseException) -> Refused:
    if isinstance(error, AlreadyOpenError):
        return Refused(
            ErrorCode.GATEWAY_LOST, "a call of this id was counted before: it has run, or runs",
            may_have_run=True,
        )  # fmt: skip
    _log.error("a call was refused: its quota or bill cannot be written down", reason=error)
    return Refused(
        ErrorCode.OVERLOADED, "the gateway cannot write down what this call uses; see its log",
        retry_after_s=5.0,
    )  # fmt: skip


def _said(_: object, error: BaseException | None) -> None:
    if error is not None:
        _log.error("what calls used could not be written down", reason=error)
