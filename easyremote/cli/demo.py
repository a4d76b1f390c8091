"""`easyremote demo`: see it work, on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from .base import Command


@click.command(cls=Command)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default=Path("easyremote-demo.png"),
    show_default=True,
    help="Where the picture goes.",
)
def demo(output: Path) -> None:
    """Start a gateway and two nodes, draw a picture across them, send a large array.

    Everything runs in processes of its own on this machine and ends with the command; only the
    picture stays.
    """
    from ..demo.show import run

    run(output)
