"""Quotas and bills, checked when a run is over: against what bodies noted, and against themselves.

Rules of this file. 1) The truth about execution is what the bodies noted. 2) The rows on disk are
read as they are, by plain SQL.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from easyremote.errors import QuotaExceededError
from easyremote.scheduler.quota import CALLS

from .functions import CALLS_MAX, DECLARED, SECONDS_MAX

if TYPE_CHECKING:
    from easyremote.gateway.core import Gateway

    from .workload import CallRecord
    from .world import World

COUNTED = frozenset(
    name for name, declared in DECLARED.items() if {"quota_per_user", "billing"} & declared.keys()
)
LIMITED = frozenset(name for name, declared in DECLARED.items() if "quota_per_user" in declared)
CUT_S = 1.5
"""After this time calls are stopped of which a hard quota in seconds allows no more."""
RAN_AT_A_LOSS = frozenset({"never", "lost", "unknown"})
"""Outcomes of rows that take no seconds."""


def check_books(world: World) -> None:
    """Report what is wrong with the accounts; the gateway must be up, and idle."""
    gateway, store = world.gateway.gateway, world.gateway.store
    if gateway is None or store is None:
        return
    rows = store.rows(
        "SELECT call_id, user, function, outcome, seconds, gpu_seconds, paid, price_nano, node_id, "
        "currency FROM usage"
    )
    _check_starts(world, rows)
    _check_sums(world, rows, store)
    _check_memory(world, gateway, rows, store)
    for _, _, _, outcome, *_ in rows:
        world.reached[f"row {outcome}"] += 1


def _check_starts(world: World, rows: list[Any]) -> None:
    """What ran was counted, and nobody ran more than allowed."""
    outcomes = {row[0]: row[3] for row in rows}
    users = {host.name: host.user for host in world.clients}
    ran: Counter[str] = Counter()
    for record in world.calls:
        plan = record.plan
        if plan.fn not in COUNTED:
            continue
        for start in world.starts.get(plan.number, ()):
            if plan.fn == "metered":
                ran[users[record.client]] += 1
            outcome = outcomes.get(start.call_id)
            if outcome is None or outcome == "never":
                said = "has no row" if outcome is None else "never ran, as its row says"
                world.violation("QUOTA", f"call {plan.number} ({plan.fn}) started, and {said}")
        _check_outcome(world, record, outcomes)
    for user, number in ran.items():
        if number > CALLS_MAX:
            world.violation("QUOTA", f"{user} ran {number} calls of {CALLS_MAX}")


def _check_outcome(world: World, record: CallRecord, outcomes: dict[bytes, str]) -> None:
    outcome = outcomes.get(record.call_id)
    if record.outcome() == "result" and outcome not in ("ok", "unknown"):
        world.violation("QUOTA", f"call {record.plan.number} has a result, its row says {outcome}")
    if isinstance(record.error, QuotaExceededError) and record.plan.fn not in LIMITED:
        world.violation("QUOTA", f"call {record.plan.number} exceeds a quota of nobody")


def _check_sums(world: World, rows: list[Any], store: Any) -> None:
    """What is counted of quotas is the sum of the rows, and every row is closed."""
    calls: Counter[tuple[str, str]] = Counter()
    seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
    for call_id, user, function, outcome, used_s, *_ in rows:
        if outcome == "open":
            world.violation("BOOKS", f"the row of {call_id.hex()[:8]} ({function}) is still open")
        if function in LIMITED:
            calls[user, function] += outcome != "never"
            seconds[user, function] += 0.0 if outcome in RAN_AT_A_LOSS else used_s
    counted = {
        (user, function): (number, used_s)
        for user, function, number, used_s in store.rows(
            "SELECT user, function, total(calls), total(seconds) FROM quota_use GROUP BY 1, 2"
        )
    }
    for (user, function), used_s in seconds.items():
        running = sum(row[1] == user and row[2] == function for row in rows)
        most = SECONDS_MAX["timed"] + CUT_S * running
        if world.scenario.calm and function == "timed" and used_s > most:
            world.violation("QUOTA", f"{user} had {used_s:.1f} s of a hard quota of {most:.1f} s")
    for who in calls.keys() | counted.keys():
        number, used_s = counted.get(who, (0.0, 0.0))
        if number != calls[who]:
            world.violation("BOOKS", f"{who}: {number:g} calls counted, {calls[who]} in rows")
        if not math.isclose(used_s, seconds[who], abs_tol=1e-6):
            world.violation("BOOKS", f"{who}: {used_s} s counted, {seconds[who]} s in rows")


def _check_memory(world: World, gateway: Gateway, rows: list[Any], store: Any) -> None:
    """What is in memory is what is on disk, and no call counts in it any more."""
    accounts = gateway.accounts
    paid: Counter[tuple[str, str]] = Counter()
    for *_, is_paid, price_nano, node_id, currency in rows:
        if is_paid:
            paid[node_id, currency] += price_nano
        elif price_nano:
            world.violation("BOOKS", "a call that is not paid has a price")
    known = {key: sums.price_nano for key, sums in accounts.revenue.items() if sums.calls}
    if known != dict(paid):
        world.violation("BOOKS", f"revenue is {known}, the rows say {dict(paid)}")
    if accounts.open or accounts._returning:
        left = accounts.open + len(accounts._returning)
        world.violation("LEAK", f"{left} calls are accounted for and not over")
    for who, balance in accounts._balances.items():
        if balance.charges or balance.running:
            world.violation("LEAK", f"{who}: {balance.charges} charges are not let go")
        ((number, used_s),) = store.rows(
            "SELECT total(calls), total(seconds) FROM quota_use WHERE user = ? AND function = ?",
            who.user, who.function,
        )  # fmt: skip
        for quota, tally in balance.tallies.items():
            used = tally.used(accounts.wall())
            if used.calls != number or not math.isclose(used.seconds, used_s, abs_tol=1e-6):
                world.violation("BOOKS", f"{who}: {used} in memory, {number}, {used_s} on disk")
            if quota.limit_of(CALLS) is not None and used.calls > CALLS_MAX:
                world.violation("QUOTA", f"{who} has used {used.calls:g} calls of {CALLS_MAX}")
