"""The command `easyremote`: its options and the list of its commands.

Theory. A command line is used in scripts and shells that complete names, so it has to start
quickly. A command's module is imported when it is needed, and what that module needs, when it runs.

Rules of this file. 1) The table lists every command, in the order in which help shows them.
2) Options in front of the command are those that concern all: logs and the version.
"""

from __future__ import annotations

import importlib
import os

import click

from .. import __version__
from .base import RootGroup

COMMANDS = {
    "gateway": "gateway",
    "node": "node",
    "join": "join",
    "login": "join",
    "token": "token",
    "status": "status",
    "call": "call",
    "top": "top",
    "doctor": "doctor",
    "usage": "account",
    "quota": "account",
    "audit": "audit",
    "demo": "demo",
}
"""Each command and the module that holds it."""


class LazyGroup(RootGroup):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name, or None."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found = getattr(importlib.import_module(f".{module}", __package__), cmd_name)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named, or say which one may have been meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            if not near:
                raise
            text = f"There is no command {args[0]!r}; did you mean {near[0]!r}?"
            raise click.UsageError(text, error.ctx) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="easyremote")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What the log tells, on stderr. Also EASYREMOTE_LOG_LEVEL.",
)
@click.option("--log-json", is_flag=True, help="Log JSON, one object a line.")
def cli(log_level: str | None, log_json: bool) -> None:
    """Share functions from any machine and call them from anywhere.

    A gateway that everybody can reach connects nodes, which offer functions, with clients, which
    call them. `easyremote demo` shows it on this machine.
    """
    # By the environment, so that the processes that a command starts do the same.
    if log_level is not None:
        os.environ["EASYREMOTE_LOG_LEVEL"] = log_level
    if log_json:
        os.environ["EASYREMOTE_LOG"] = "json"


def main() -> None:
    """Run the command that the process was started with."""
    cli(prog_name="easyremote")
