"""`easyremote top`: a gateway at work, refreshed while you watch.

Rules of this file. 1) Rates are differences of what the gateway counts, over the time between two
answers. 2) Where nobody watches (no terminal), one look is printed and that is all.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .base import Command
from .duration import duration_option
from .options import connection_options
from .output import console
from .status import headline, look, node_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .ask import Conversation


@click.command(cls=Command)
@click.option(
    "--every", callback=duration_option(bare_seconds=True), default="1s", show_default=True,
    metavar="TIME", help="How often to look.",
)  # fmt: skip
@connection_options
def top(every: float, gateway: str | None, auth: str | None) -> None:
    """Watch nodes and calls until Ctrl-C."""
    from .ask import converse

    if not sys.stdout.isatty():
        seen = converse(gateway, auth, look)
        console().print(picture(seen, None))
        return

    async def watch(link: Conversation) -> None:
        await _watch(link, max(every, 0.1))

    try:
        converse(gateway, auth, watch)
    except* KeyboardInterrupt:
        pass


async def _watch(link: Conversation, every_s: float) -> None:
    import trio
    from rich.live import Live

    seen, at = await look(link), trio.current_time()
    out = console()
    with Live(picture(seen, None), console=out, auto_refresh=False, screen=True) as live:
        while True:
            live.refresh()
            await trio.sleep(every_s)
            before, before_at = seen, at
            seen, at = await look(link), trio.current_time()
            live.update(picture(seen, calls_per_s(before, seen, at - before_at)))


def calls_per_s(before: dict[str, Any], now: dict[str, Any], seconds: float) -> float | None:
    """Return the calls that came each second between two looks; None if the gateway is new."""
    count = now["gateway"].get("calls_total", 0) - before["gateway"].get("calls_total", 0)
    return count / seconds if seconds > 0 and count >= 0 else None


def picture(seen: dict[str, Any], rate: float | None) -> RenderableType:
    """Return one look at the gateway, the busiest nodes first."""
    from rich.console import Group
    from rich.text import Text

    gauges = seen["gateway"]
    nodes = sorted(seen["nodes"], key=lambda one: (-one.get("in_flight", 0), one["node_id"]))
    speed = "" if rate is None else f"{rate:.1f} calls/s, "
    line = (
        f"{speed}{gauges.get('calls_pending')} not finished, {gauges.get('calls_failed_here')} "
        f"failed at the gateway, {gauges.get('bytes_buffered', 0) / 2**20:.1f} MiB under way"
    )
    return Group(Text(headline(seen)), Text(line), Text(), node_table(nodes))
