"""Quota use and usage records on disk: what each of them writes, as one transaction each.

Theory. A call that has a quota or a price is one row of `usage`: opened, with its quota counted,
before the call is given to a node, and closed once with what became of it. A closed row never
changes and a paid one is never removed; triggers of the database see to it. What was used of
quotas is kept apart, as sums by five minutes, so that a start of the gateway reads sums and not
all calls of a month.

Rules of this file. 1) Functions of a `Store`; each is one transaction and may be run in a group
(`async_store.py`). 2) Money is whole billionths. 3) A row is opened once for a user and a call id,
whoever made the id up.

Source. promises.md 4.2, "Quotas" and "Billing"; P9.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import EasyRemoteError
from ..scheduler.billing import UNKNOWN
from ..scheduler.quota import Use, bucket_of
from .store import Store

OPEN = "open"
KEEP_QUOTA_S = 40 * 86_400.0
"""Longer than the longest window."""
KEEP_UNPAID_S = 2 * 86_400.0
"""How long rows of calls are kept that only had a quota: while their ids may come again."""
LIST_MAX = 10_000


class AlreadyOpenError(EasyRemoteError):
    """A call of this id was counted before: it has run, or runs."""


class Who(NamedTuple):
    """Whose use it is, and of what."""

    user: str
    sub: str
    """Sub-account below a shared token, or empty."""
    owner: str
    """Who owns the nodes."""
    function: str


class Opened(NamedTuple):
    """What is written before a call is given to a node."""

    call_id: bytes
    user: str
    sub: str
    function: str
    at: float
    incarnation: int
    bytes_in: int


class Closed(NamedTuple):
    """What is written when a call is over."""

    call_id: bytes
    user: str
    node_id: str
    node_owner: str
    started_at: float | None
    ended_at: float
    seconds: float
    node_seconds: float | None
    gpu_seconds: float
    bytes_in: int
    bytes_out: int
    outcome: str
    paid: bool
    price_nano: int
    rule: Mapping[str, Any] | None
    """The price rule that it was billed by."""
    flagged: bool


Count = tuple[Who, float, Use]
"""A use of a quota, and when it happened."""


def open_usage(store: Store, opened: Opened, counts: Iterable[Count]) -> None:
    """Write down that a call is about to be given to a node, and count it.

    Raises:
        AlreadyOpenError: This user has had a call of this id.
    """
    with store.transaction() as connection:
        done = connection.execute(
            "INSERT INTO usage (call_id, user, sub, function, accepted_at, incarnation, bytes_in) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (user, call_id) DO NOTHING",
            (
                opened.call_id, opened.user, opened.sub, opened.function, opened.at,
                opened.incarnation, opened.bytes_in,
            ),
        ).rowcount  # fmt: skip
        if not done:
            raise AlreadyOpenError("a call of this id was counted before")
        _count(store, counts)


def close_usage(store: Store, closed: Closed, counts: Iterable[Count]) -> bool:
    """Write down what became of a call; False if that was done before, and nothing is changed."""
    rule = None if closed.rule is None else json.dumps(dict(closed.rule), sort_keys=True)
    with store.transaction() as connection:
        done = connection.execute(
            "UPDATE usage SET node_id = ?, node_owner = ?, started_at = ?, ended_at = ?, "
            "seconds = ?, node_seconds = ?, gpu_seconds = ?, bytes_in = ?, bytes_out = ?, "
            "outcome = ?, paid = ?, "
            "price_nano = ?, currency = ?, rule = ?, flagged = ? "
            "WHERE user = ? AND call_id = ? AND outcome = 'open'",
            (
                closed.node_id, closed.node_owner, closed.started_at, closed.ended_at,
                closed.seconds, closed.node_seconds, closed.gpu_seconds,
                closed.bytes_in, closed.bytes_out,
                closed.outcome, closed.paid, closed.price_nano,
                (closed.rule or {}).get("currency", ""), rule, closed.flagged,
                closed.user, closed.call_id,
            ),
        ).rowcount  # fmt: skip
        if done:
            _count(store, counts)
    return bool(done)


def _count(store: Store, counts: Iterable[Count]) -> None:
    with store.transaction() as connection:
        connection.executemany(
            "INSERT INTO quota_use VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (user, sub, owner, function, bucket) DO UPDATE SET "
            "seconds = seconds + excluded.seconds, calls = calls + excluded.calls, "
            "bytes = bytes + excluded.bytes",
            [(*who, bucket_of(at), *use) for who, at, use in counts],
        )


# ---- what is read --------------------------------------------------------------------------------


def uses_since(store: Store, who: Who, since: float) -> list[tuple[int, Use]]:
    """Return what was used since then, by five minutes."""
    return [
        (bucket, Use(*use))
        for bucket, *use in store.rows(
            "SELECT bucket, seconds, calls, bytes FROM quota_use WHERE user = ? AND sub = ? "
            "AND owner = ? AND function = ? AND bucket >= ?",
            *who,
            since,
        )
    ]


def accounts_of(store: Store, user: str) -> list[Who]:
    """Return all that a user has used and that had a quota, by function and sub-account."""
    return [
        Who(*row)
        for row in store.rows(
            "SELECT DISTINCT user, sub, owner, function FROM quota_use WHERE user = ?", user
        )
    ]


class OpenRow(NamedTuple):
    """A row that was open when the gateway ended."""

    call_id: bytes
    user: str
    sub: str
    function: str
    at: float
    bytes_in: int


def open_rows(store: Store) -> list[OpenRow]:
    """Return the calls that have no outcome yet, the oldest first."""
    return [
        OpenRow(*row)
        for row in store.rows(
            "SELECT call_id, user, sub, function, accepted_at, bytes_in FROM usage "
            "WHERE outcome = 'open' ORDER BY seq"
        )
    ]


_COLUMNS = (
    "seq", "call_id", "user", "sub", "function", "node_id", "node_owner", "accepted_at",
    "started_at", "ended_at", "seconds", "node_seconds", "gpu_seconds", "bytes_in", "bytes_out",
    "outcome", "paid", "price_nano", "currency", "rule", "flagged",
)  # fmt: skip


def usage_of(store: Store, user: str, call_ids: list[bytes]) -> list[dict[str, Any]]:
    """Return the records of some calls of a user, paid or not, whether they have ended or not."""
    marks = ", ".join("?" * len(call_ids))
    rows = store.rows(
        f"SELECT {', '.join(_COLUMNS)} FROM usage "  # noqa: S608 - names of ours, and marks
        f"WHERE user = ? AND call_id IN ({marks}) ORDER BY seq",
        user, *call_ids,
    )  # fmt: skip
    return _records(rows)


def list_usage(
    store: Store, *, user: str | None = None, since: float = 0.0, after: int = 0,
    limit: int = LIST_MAX,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return usage records, the oldest first: paid calls, and those whose end nobody knows.

    Args:
        store: Where they are.
        user: Only this user's.
        since: Only calls that were accepted at or after this time.
        after: Only those behind this sequence number.
        limit: How many at most.
    """
    mine, whose = ("", ()) if user is None else ("AND user = ? ", (user,))
    rows = store.rows(
        f"SELECT {', '.join(_COLUMNS)} FROM usage "  # noqa: S608 - names of ours
        f"WHERE (paid OR outcome = ?) AND accepted_at >= ? AND seq > ? {mine}"
        "ORDER BY seq LIMIT ?",
        UNKNOWN, since, after, *whose, limit,
    )  # fmt: skip
    return _records(rows)


def _records(rows: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    for one in found:
        one["paid"], one["flagged"] = bool(one["paid"]), bool(one["flagged"])
        one["rule"] = None if one["rule"] is None else json.loads(one["rule"])
    return found


class Totals(NamedTuple):
    """The sum of usage records."""

    calls: int
    seconds: float
    price_nano: int


def totals(store: Store, column: str = "user") -> dict[tuple[str, str], Totals]:
    """Return the sums of all paid calls, by currency and user, `node_id` or `function`."""
    assert column in _COLUMNS
    return {
        (name, currency): Totals(calls, seconds, price_nano)
        for name, currency, calls, seconds, price_nano in store.rows(
            f"SELECT {column}, currency, count(*), total(seconds), sum(price_nano) "  # noqa: S608
            f"FROM usage WHERE paid GROUP BY {column}, currency"
        )
    }


# ---- after a crash, and with time ----------------------------------------------------------------


def give_up_open(store: Store, call_ids: Iterable[tuple[str, bytes]], now: float) -> int:
    """Close rows whose calls nobody has heard of since a crash: unknown, and free of charge."""
    with store.transaction() as connection:
        done = connection.executemany(
            "UPDATE usage SET outcome = ?, ended_at = ? "
            "WHERE user = ? AND call_id = ? AND outcome = 'open'",
            [(UNKNOWN, now, user, call_id) for user, call_id in call_ids],
        ).rowcount
        if done > 0:
            store.audit("usage_unknown", "gateway", {"calls": done})
    return max(0, done)


def tidy_usage(store: Store, now: float) -> None:
    """Forget what no decision and no bill needs any more."""
    with store.transaction() as connection:
        connection.execute(
            "DELETE FROM usage WHERE NOT paid AND outcome NOT IN ('open', ?) AND ended_at < ?",
            (UNKNOWN, now - KEEP_UNPAID_S),
        )
        connection.execute("DELETE FROM quota_use WHERE bucket < ?", (now - KEEP_QUOTA_S,))
