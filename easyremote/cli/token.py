"""`easyremote token`: create, list and revoke the tokens of a gateway.

Rules of this file. 1) `create` prints the join string, and nothing else, to stdout: the only place
of this module where a secret is shown. 2) All works while the gateway runs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .base import Group
from .duration import duration_option
from .options import json_option, state_options
from .output import console, moment, note, print_json, table

ROLES = ("viewer", "guest", "member", "node", "operator", "owner")


@click.group(cls=Group)
def token() -> None:
    """Create, list and revoke the tokens of a gateway."""


@token.command()
@click.option(
    "--role",
    type=click.Choice(ROLES),
    default="guest",
    show_default=True,
    help="What the bearer may do: a guest calls functions with plain data, a member may also send "
    "Python objects where a node accepts them, a node offers functions.",
)
@click.option("--user", required=True, metavar="NAME", help="Whom calls, quotas and bills are of.")
@click.option("--node", "node_id", metavar="ID", help="The only node id that it may enrol.")
@click.option("--level", "levels", multiple=True, metavar="L", help="An access level; repeatable.")
@click.option(
    "--expires",
    callback=duration_option(never=True),
    metavar="TIME",
    help="How long it lasts: 90m, 24h, 30d, never. Without it a node's lasts 24h, any other for "
    "ever.",
)
@click.option("--single-use", is_flag=True, help="A node token that enrols one node.")
@click.option(
    "--functions", multiple=True, metavar="PATTERN",
    help="Functions that it may call (a node: offer), such as 'train_*'; repeatable.",
)  # fmt: skip
@click.option(
    "--nodes", multiple=True, metavar="PATTERN", help="Nodes that it may call; repeatable."
)
@click.option("--shared", is_flag=True, help="Several people use it, so it is no individual.")
@click.option(
    "--address", "addresses", multiple=True, metavar="HOST[:PORT]",
    help="How the bearer reaches the gateway, where the gateway cannot know; repeatable.",
)  # fmt: skip
@click.option("--note", "remark", default="", help="For people.")
@state_options
def create(
    role: str, user: str, node_id: str | None, levels: tuple[str, ...], expires: float | None,
    single_use: bool, functions: tuple[str, ...], nodes: tuple[str, ...], shared: bool,
    addresses: tuple[str, ...], remark: str, port: int | None, state_dir: Path | None,
    gateway: str | None, auth: str | None,
) -> None:  # fmt: skip
    """Make a token and print its join string.

    The string carries the gateway's address, its key and the secret: whoever has it is NAME. It
    goes to EASYREMOTE_JOIN, to `easyremote join`, or to join= of a program.
    """
    from ..identity.join import JoinString
    from .admin import TokenOrder, administer, readdressed

    order = TokenOrder(
        role, user, expires, levels, node_id, functions, nodes, single_use, shared, remark
    )
    made = administer(port, state_dir, gateway, auth).create_token(order)
    text = readdressed(made, addresses)
    said = JoinString.parse(text).describe()
    note(f"token {said['token id']}: {role} {user}, expires {said['expires']}, for {said['host']}")
    click.echo(text)


@token.command("list")
@json_option
@state_options
def list_tokens(
    as_json: bool, port: int | None, state_dir: Path | None, gateway: str | None, auth: str | None
) -> None:
    """List all tokens, without their secrets."""
    from .admin import administer

    tokens = administer(port, state_dir, gateway, auth).list_tokens()
    now = time.time()
    if as_json:
        print_json([{**one, "state": state_of(one, now)} for one in tokens])
        return
    columns = (
        "id", "state", "role", "user", "node", "levels", "scopes", "created", "expires",
        "last used", "note",
    )  # fmt: skip
    rows = [
        (
            one["id"], state_of(one, now), one["role"], one["user"], one["node_id"],
            one["levels"], [*one["scopes"]["functions"], *one["scopes"]["nodes"]],
            moment(one["created_at"]), moment(one["expires_at"]), moment(one["last_used_at"]),
            one["note"],
        )
        for one in tokens
    ]  # fmt: skip
    console().print(table("", columns, rows))


def state_of(token: dict[str, Any], now: float) -> str:
    """Return whether a token is `good`, `revoked`, `expired` or `used`."""
    if token["revoked_at"] is not None:
        return "revoked"
    if token["expires_at"] is not None and token["expires_at"] <= now:
        return "expired"
    return "used" if token.get("uses_left") == 0 else "good"


@token.command()
@click.argument("token_id", metavar="ID")
@state_options
def revoke(
    token_id: str, port: int | None, state_dir: Path | None, gateway: str | None, auth: str | None
) -> None:
    """Make a token void at once, and end the links that live on it."""
    from ..errors import EasyRemoteError
    from .admin import administer

    if not administer(port, state_dir, gateway, auth).revoke_token(token_id):
        raise EasyRemoteError(f"the token {token_id} was revoked before")
    note(f"token {token_id} is void now")
