"""`easyremote usage` and `easyremote quota`: what calls have cost, and what may still be used.

Rules of this file. 1) What a program reads (`--json`, `--csv`) has every field and every digit;
what people read is a table. 2) The numbers are those of `Client.usage()` and `Client.quota()`.
"""

from __future__ import annotations

import csv
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from .base import Command
from .options import connection_options, json_option
from .output import console, count, moment, note, print_json, table

if TYPE_CHECKING:
    from .ask import Conversation

PAGES_MAX = 10_000
NANO = 1_000_000_000


@click.command(cls=Command)
@click.option(
    "--since", metavar="TIME", help="How long ago, as 24h or 7d, or a date. Without it: all."
)
@click.option("--user", metavar="NAME", help="Of this user; for operators.")
@click.option("--all", "everybody", is_flag=True, help="Of all users; for operators.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
@json_option
@connection_options
def usage(
    since: str | None, user: str | None, everybody: bool, as_csv: bool, as_json: bool,
    gateway: str | None, auth: str | None,
) -> None:  # fmt: skip
    """Show what your calls have used and cost, one record a call, and the sum."""
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    from ..client.account import read_since
    from .ask import converse

    asked: dict[str, Any] = {"everybody": everybody}
    if since is not None:
        asked["since"] = read_since(since, time.time())
    if user is not None:
        asked["user"] = user

    async def ask(conversation: Conversation) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for _ in range(PAGES_MAX):
            page = await conversation.ask("usage", **asked)
            if not page:
                break
            found += page
            asked["after"] = page[-1]["seq"]
        return found

    records = [_shown(one) for one in converse(gateway, auth, ask)]
    if as_json:
        print_json(records)
    elif as_csv:
        _print_csv(records)
    else:
        console().print(usage_table(records))
        note(sum_of(records))


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "call_id": record["call_id"].hex()}


CSV_COLUMNS = (
    "seq", "call_id", "user", "sub_account", "function", "node_id", "accepted_at", "started_at",
    "ended_at", "seconds", "node_seconds", "flagged", "gpu_seconds", "bytes_in", "bytes_out",
    "outcome", "cost", "cost_nano", "currency",
)  # fmt: skip


def _print_csv(records: list[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: _cell(record.get(key)) for key in CSV_COLUMNS})


def _cell(value: Any) -> Any:
    """Return a value for a spreadsheet: a text that looks like a formula must not become one."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def usage_table(records: list[dict[str, Any]]) -> Any:
    """Return usage records as a table."""
    rows = [
        (
            moment(one["started_at"]), one["user"], one["function"], one["node_id"],
            f"{one['seconds']:.3f}", one["bytes_in"] + one["bytes_out"], one["outcome"],
            f"{one['cost']:.6f}", one["currency"], "yes" if one["flagged"] else "",
        )
        for one in records
    ]  # fmt: skip
    columns = (
        "started", "user", "function", "node", ">seconds", ">bytes", "outcome", ">cost", "currency",
        "times differ",
    )  # fmt: skip
    return table(count(len(rows), "call"), columns, rows)


def sum_of(records: list[dict[str, Any]]) -> str:
    """Return the sum of usage records, by currency, in one sentence."""
    sums: dict[str, int] = {}
    for one in records:
        currency = one["currency"] or ""
        sums[currency] = sums.get(currency, 0) + one["cost_nano"]
    seconds = sum(one["seconds"] for one in records)
    costs = ", ".join(f"{total / NANO:.6f} {name}".strip() for name, total in sorted(sums.items()))
    return f"{count(len(records), 'call')}, {seconds:.3f} s, cost {costs or '0'}"


@click.command(cls=Command)
@click.option("--user", metavar="NAME", help="Of this user; for operators.")
@json_option
@connection_options
def quota(user: str | None, as_json: bool, gateway: str | None, auth: str | None) -> None:
    """Show what you may still use of each function that has a quota."""
    from .ask import converse

    async def ask(conversation: Conversation) -> list[dict[str, Any]]:
        asked = {} if user is None else {"user": user}
        return list(await conversation.ask("quota", **asked))

    states = converse(gateway, auth, ask)
    if as_json:
        print_json(states)
        return
    rows = [
        (
            one["function"], one["sub_account"], f"{one['used']:g}", f"{one['remaining']:g}",
            f"{one['limit']:g}", one["unit"], one["period"], moment(one["resets_at"]), one["mode"],
            list(one["node_ids"]),
        )
        for one in states
    ]  # fmt: skip
    columns = (
        "function", "sub-account", ">used", ">left", ">limit", "unit", "per", "resets", "mode",
        "nodes",
    )  # fmt: skip
    console().print(table(count(len(rows), "quota"), columns, rows))
