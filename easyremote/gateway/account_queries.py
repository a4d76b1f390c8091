"""What users ask about their accounts: what is left of quotas, and what calls have cost.

Theory. Everybody sees what is of the user of its own token; operators see anybody's. A record is
closed a moment after its caller has the outcome, so a question about records waits until all that
was handed to the disk before it is there: who has seen a result finds its record.

Rules of this file. 1) Answers are plain data in pages; whoever wants more asks for what is behind
the last `seq`. 2) Money is said in units of its currency and, exactly, in billionths.

Source. features.md R7 and R10; api.md, "sessions".
"""

# ruff: noqa: ARG001  # Every answer takes what any of them needs.

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import trio

from ..identity.role import Operation, Principal
from ..scheduler.billing import NANO
from ..scheduler.quota import Quota
from ..wire.errors import ErrorCode
from .registry import visible
from .routing import Refused
from .store import Store
from .usage_store import Who, accounts_of, list_usage, usage_of

if TYPE_CHECKING:
    from .core import Gateway
    from .session import Session

PAGE_ROWS = 1000
AUDIT_PAGE_ROWS = 1000
CALLS_MAX = 1000
"""Calls whose records are asked for at once."""
SUBS_MAX = 1000
"""Sub-accounts of one function that are listed."""

Args = dict[str, Any]


def quota(gateway: Gateway, session: Session, args: Args) -> Any:
    """Return what is left of every quota that holds for a user."""
    principal = session.principal
    user = _whose(principal, args)
    now = trio.current_time()
    subs = _subs(accounts_of(gateway.store.reader, user))
    found: dict[tuple[str, str, Quota], list[str]] = {}
    for record in gateway.registry.nodes.values():
        for offer in record.offers.values():
            terms = offer.entry.terms
            if terms is not None and terms.quota is not None and visible(offer, principal):
                key = record.owner, offer.name, terms.quota
                found.setdefault(key, []).append(record.node_id)
    states: list[dict[str, Any]] = []
    for (owner, name, one), node_ids in found.items():
        for sub in ["", *subs.get((owner, name), [])[:SUBS_MAX]]:
            found_here = gateway.accounts.states(Who(user, sub, owner, name), one, now)
            more = {"user": user, "node_ids": sorted(node_ids)}
            states += [{**state, **more} for state in found_here]
    return sorted(states, key=lambda one: (one["function"], one["owner"], one["sub_account"]))


def _subs(accounts: Iterable[Who]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for who in accounts:
        if who.sub:
            found.setdefault((who.owner, who.function), []).append(who.sub)
    return found


async def usage(gateway: Gateway, session: Session, args: Args) -> Any:
    """Return a page of usage records of a user, or of all; or those of some calls of the asker."""
    if "call_ids" in args:
        return await _usage_of_calls(gateway, session, args["call_ids"])
    everybody = args.get("everybody", False) is True
    if everybody:
        _check_operator(session.principal)
        user = None
    else:
        user = _whose(session.principal, args)
    since, after = args.get("since", 0.0), args.get("after", 0)
    if type(since) not in (int, float) or type(after) is not int:
        raise Refused(ErrorCode.BAD_ARGUMENT, "since is a time in seconds, after a whole number")
    await gateway.store.write(_nothing)
    rows = list_usage(
        gateway.store.reader, user=user, since=float(since), after=after, limit=PAGE_ROWS
    )
    return [plain_usage(row) for row in rows]


async def _usage_of_calls(gateway: Gateway, session: Session, call_ids: Any) -> Any:
    if type(call_ids) is not list or not 0 < len(call_ids) <= CALLS_MAX:
        raise Refused(ErrorCode.BAD_ARGUMENT, f"call_ids is a list of 1 to {CALLS_MAX} ids")
    if not all(type(call_id) is bytes for call_id in call_ids):
        raise Refused(ErrorCode.BAD_ARGUMENT, "a call id is 16 bytes")
    await gateway.store.write(_nothing)
    rows = usage_of(gateway.store.reader, session.principal.user, call_ids)
    return [plain_usage(row) for row in rows]


def _nothing(_: Store) -> None:
    """Write nothing: what was handed over before is durable when this is done."""


def plain_usage(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the store as a record (`facts.Usage`)."""
    started_at = row["started_at"] if row["started_at"] is not None else row["accepted_at"]
    return {
        "function": row["function"], "node_id": row["node_id"] or None,
        "seconds": row["seconds"], "bytes_in": row["bytes_in"], "bytes_out": row["bytes_out"],
        "gpu_seconds": row["gpu_seconds"], "cost": row["price_nano"] / NANO,
        "currency": row["currency"] or None, "call_id": row["call_id"], "user": row["user"],
        "started_at": started_at, "outcome": row["outcome"],
        "seq": row["seq"], "cost_nano": row["price_nano"], "sub_account": row["sub"],
        "accepted_at": row["accepted_at"], "ended_at": row["ended_at"],
        "node_seconds": row["node_seconds"], "flagged": row["flagged"], "rule": row["rule"],
    }  # fmt: skip


def audit_list(gateway: Gateway, session: Session, args: Args) -> Any:
    """Return a page of the audit."""
    after = args.get("after", 0)
    if type(after) is not int:
        raise Refused(ErrorCode.BAD_ARGUMENT, "after is the number of an entry")
    rows = gateway.store.reader.audit_rows(after=after, limit=AUDIT_PAGE_ROWS)
    return [row._asdict() for row in rows]


def _whose(principal: Principal, args: Args) -> str:
    user = args.get("user")
    if user is None or user == principal.user:
        return principal.user
    if type(user) is not str:
        raise Refused(ErrorCode.BAD_ARGUMENT, "user is the name of a user")
    _check_operator(principal)
    return user


def _check_operator(principal: Principal) -> None:
    if not principal.may(Operation.OPERATE):
        raise Refused(
            ErrorCode.FORBIDDEN,
            f"a {principal.role.value} sees its own account only; ask an operator",
        )
