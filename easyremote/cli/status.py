"""`easyremote status`: a gateway, its nodes and their functions, at one glance.

Rules of this file. 1) What a gateway of another version does not say is left out, never made up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .base import Command
from .duration import duration_text
from .options import connection_options, json_option
from .output import console, count, print_json, table

if TYPE_CHECKING:
    from rich.table import Table

    from .ask import Conversation


@click.command(cls=Command)
@json_option
@connection_options
def status(as_json: bool, gateway: str | None, auth: str | None) -> None:
    """Show the gateway, its nodes and their functions."""
    from .ask import converse

    seen = converse(gateway, auth, look)
    if as_json:
        print_json(seen)
        return
    out = console()
    out.print(headline(seen), soft_wrap=True, markup=False)
    out.print(node_table(seen["nodes"]))
    out.print()
    out.print(function_table(seen["functions"]))


async def look(gateway: Conversation) -> dict[str, Any]:
    """Ask for all that `status` shows."""
    return {
        "address": gateway.link.peer,
        "user": gateway.info.get("user"),
        "role": gateway.info.get("role"),
        "gateway": await gateway.ask("status"),
        "nodes": await gateway.ask("nodes"),
        "functions": await gateway.ask("functions"),
    }


def headline(seen: dict[str, Any]) -> str:
    """Return what concerns the gateway as a whole."""
    gauges = seen["gateway"]
    text = (
        f"gateway {seen['address']}, version {gauges.get('version')}, "
        f"up {duration_text(gauges.get('uptime_s', 0.0))}; "
        f"you are {seen['user']} ({seen['role']})\n"
        f"connected: {count(gauges.get('connected_nodes'), 'node')}, "
        f"{count(gauges.get('connected_clients'), 'client')}; calls: "
        f"{gauges.get('calls_running')} running, "
        f"{gauges.get('calls_queued')} queued, {gauges.get('calls_total')} so far"
    )
    return text + "\nthe gateway is stopping and takes no new calls" * bool(gauges.get("draining"))


def node_table(nodes: list[dict[str, Any]]) -> Table:
    """Return the nodes as a table."""
    rows = [
        (
            one["node_id"], one.get("health"), len(one.get("functions", ())), one.get("in_flight"),
            one.get("slots"), one.get("rtt_ms"), one.get("owner"), one.get("since"),
            list(one.get("capabilities", ())),
        )
        for one in nodes
    ]  # fmt: skip
    columns = (
        "node", "health", ">functions", ">calls", ">slots", ">rtt ms", "owner", "since (UTC)",
        "capabilities",
    )  # fmt: skip
    return table(count(len(rows), "node"), columns, rows)


def function_table(functions: list[dict[str, Any]]) -> Table:
    """Return the functions as a table."""
    rows = [
        (
            f"{one['node_id']}.{one['function_name']}", one.get("signature"),
            "stream" if one.get("stream") else "", one.get("health_status"),
            _first_line(one.get("description")),
        )
        for one in functions
    ]  # fmt: skip
    columns = ("function", "parameters", "kind", "health", "what it does")
    return table(count(len(rows), "function"), columns, rows)


def _first_line(text: Any) -> str:
    return str(text or "").strip().partition("\n")[0]
