"""`easyremote audit`: what a gateway wrote down, and that nobody changed it."""

from __future__ import annotations

from pathlib import Path

import click

from .base import Group
from .options import json_option, state_options
from .output import console, count, moment, print_json, table


@click.group(cls=Group)
def audit() -> None:
    """Read and check the audit of a gateway."""


@audit.command()
@state_options
def verify(port: int | None, state_dir: Path | None, gateway: str | None, auth: str | None) -> None:
    """Walk the chain of the audit and say where it breaks, if it does."""
    from ..errors import EasyRemoteError
    from .admin import administer

    check = administer(port, state_dir, gateway, auth).verify_audit()
    if not check["good"]:
        raise EasyRemoteError(
            f"the audit is broken at entry {check['first_bad']}: entries were changed or removed. "
            "Compare the database with a backup"
        )
    click.echo(f"the audit is whole: {check['rows']} entries")


@audit.command("list")
@click.option("--event", metavar="NAME", help="Only entries of this kind, such as token_created.")
@json_option
@state_options
def list_audit(
    event: str | None, as_json: bool, port: int | None, state_dir: Path | None,
    gateway: str | None, auth: str | None,
) -> None:  # fmt: skip
    """List what was done to a gateway, the oldest first."""
    from .admin import administer

    entries = administer(port, state_dir, gateway, auth).list_audit()
    if event is not None:
        entries = [one for one in entries if one["event"] == event]
    if as_json:
        print_json(entries)
        return
    rows = [
        (one["seq"], moment(one["at"]), one["event"], one["actor"], said(one["detail"]))
        for one in entries
    ]
    heads = (">entry", "when (UTC)", "event", "by", "detail")
    console().print(table(count(len(rows), "entry").replace("entrys", "entries"), heads, rows))


def said(detail: dict[str, object]) -> str:
    """Return the detail of an entry on one line."""
    return ", ".join(f"{key}={value}" for key, value in detail.items() if value not in (None, []))
