"""`easyremote status`: a gateway, its nodes and their functions, at one glance.

Rules of this file. 1) What a gateway of another version does not say is left out, never made up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .base import Command
from .duration import duration_text
from .options import connection_options, json_option
from .output import cell, console, count, print_json, table

if TYPE_CHECKING:
    from rich.table import Table

    from .ask import Conversation


@click.command(cls=Command)
@click.option("--call", "call_id", metavar="ID", help="Explain what one call of yours waits for.")
@json_option
@connection_options
def status(as_json: bool, gateway: str | None, auth: str | None, call_id: str | None) -> None:
    """Show the gateway, its nodes and their functions; or what a call waits for."""
    from .ask import converse

    if call_id is not None:
        _explain(bytes_of(call_id), as_json, gateway, auth)
        return
    seen = converse(gateway, auth, look)
    if as_json:
        print_json(seen)
        return
    out = console()
    out.print(headline(seen), soft_wrap=True, markup=False)
    out.print(node_table(seen["nodes"]))
    out.print()
    out.print(function_table(seen["functions"]))


CALL_ID_BYTES = 16


def bytes_of(call_id: str) -> bytes:
    """Return the call id that is spelled so.

    Raises:
        click.BadParameter: It is none.
    """
    try:
        found = bytes.fromhex(call_id)
    except ValueError:
        found = b""
    if len(found) != CALL_ID_BYTES:
        raise click.BadParameter(
            f"the id of a call has {2 * CALL_ID_BYTES} hex digits, as `future.id` and the logs "
            "show it",
            param_hint="--call",
        )
    return found


def _explain(call_id: bytes, as_json: bool, gateway: str | None, auth: str | None) -> None:
    from ..errors import EasyRemoteError
    from ..wire.errors import ErrorCode
    from .ask import converse

    async def ask(conversation: Conversation) -> Any:
        return await conversation.ask("explain", call_id=call_id)

    try:
        told = converse(gateway, auth, ask)
    except EasyRemoteError as error:
        if error.code is not ErrorCode.NOT_FOUND:
            raise
        raise click.ClickException(
            "the gateway knows no call of yours with this id: it has ended, or never reached it"
        ) from None
    if as_json:
        print_json({**told, "call_id": call_id.hex()})
        return
    out = console()
    out.print(call_lines(told), soft_wrap=True, markup=False)
    if told.get("places"):
        out.print(place_table(told["places"]))


def call_lines(told: dict[str, Any]) -> str:
    """Return what a call waits for, one sentence a line."""
    head = f"{cell(told.get('function'))}: {cell(told.get('phase'))}"
    return "\n".join([head, *(f"  {cell(one)}" for one in told.get("sentences", ()))])


def place_table(places: list[dict[str, Any]]) -> Table:
    """Return the nodes that could run a call as a table."""
    rows = [
        (one.get("node_id"), one.get("state"), one.get("busy"), one.get("slots")) for one in places
    ]
    return table("nodes that could run it", ("node", "state", ">calls", ">slots"), rows)


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
    text += f"\nmemory: {_mib(gauges.get('rss_bytes'))}, {_mib(gauges.get('bytes_buffered'))} of "
    text += f"it calls; {gauges.get('open_fds', '?')} descriptors; "
    text += f"{gauges.get('connections', '?')} connections, {gauges.get('streams', '?')} streams"
    if (rate := gauges.get("calls_per_second")) is not None:
        text += f"\nlast 10 s: {rate:.1f} calls/s, {gauges.get('error_rate', 0.0):.1%} failed, "
        text += f"{_ms(gauges.get('response_s'))} each; routing "
        text += f"{_ms(gauges.get('routing_p50_s'))}, p99 {_ms(gauges.get('routing_p99_s'))}; "
        text += f"load balance {gauges.get('balance', 1.0):.2f}"
    if awaited := gauges.get("nodes_awaited"):
        text += f"\nit was restarted and waits for {count(awaited, 'node')} to come back"
    if parked := gauges.get("calls_parked"):
        text += f"\n{count(parked, 'call')} without their callers, who are away"
    return text + "\nthe gateway is stopping and takes no new calls" * bool(gauges.get("draining"))


def _ms(seconds: float | None) -> str:
    return "? ms" if seconds is None else f"{seconds * 1000.0:.3g} ms"


def _mib(size_bytes: Any) -> str:
    return "? MiB" if size_bytes is None else f"{size_bytes / (1 << 20):,.1f} MiB"


def node_table(nodes: list[dict[str, Any]]) -> Table:
    """Return the nodes as a table."""
    rows = [
        (
            one["node_id"], one.get("health"), len(one.get("functions", ())), one.get("in_flight"),
            one.get("slots"), one.get("rtt_ms"), one.get("last_heard_s"), one.get("lease_left_s"),
            one.get("owner"), one.get("since"),
            list(one.get("capabilities", ())),
        )
        for one in nodes
    ]  # fmt: skip
    columns = (
        "node", "health", ">functions", ">calls", ">slots", ">rtt ms", ">heard s ago", ">lease s",
        "owner", "since (UTC)",
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
