"""`easyremote node`: run a script as a node, and free the id of one that is gone."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .base import ArgumentGroup, Command
from .options import state_options
from .output import note


class _NodeGroup(ArgumentGroup):
    """`node FILE.py` beside `node forget ID`."""


@click.group(cls=_NodeGroup, subcommand_metavar="FILE.py [ARGS]... | forget ID")
def node() -> None:
    """Run a script that calls node.serve(), and start it again if it dies.

    The arguments after FILE.py are the script's own.
    """


@click.command(
    cls=Command,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("file", metavar="FILE.py")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(context: click.Context, file: str, args: tuple[str, ...]) -> None:
    """Run a script as a node."""
    from ..errors import EasyRemoteError
    from ..log import configure

    if sys.platform == "win32":
        raise EasyRemoteError("a node needs Linux or macOS; on Windows, run it inside WSL")
    from ..node.launch import run_script_under_agent

    configure()
    context.exit(run_script_under_agent(file, args))


_NodeGroup.otherwise = run


@node.command()
@click.argument("node_id", metavar="ID")
@state_options
def forget(
    node_id: str, port: int | None, state_dir: Path | None, gateway: str | None, auth: str | None
) -> None:
    """Free a node id, so that another machine may enrol under it."""
    from ..errors import NodeNotFoundError
    from .admin import administer

    if not administer(port, state_dir, gateway, auth).forget_node(node_id):
        raise NodeNotFoundError(f"no node has enrolled as {node_id!r}; see: easyremote status")
    note(f"the id {node_id} is free now")
