"""Options that several commands share.

Rules of this file. 1) One spelling for one thing: `--gateway` is an address to dial, `--port` and
`--state-dir` name a gateway of this user on this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

GATEWAY_HELP = (
    "The gateway. Without it: EASYREMOTE_GATEWAY, EASYREMOTE_JOIN, the one that was joined, or "
    "that of this machine."
)
AUTH_HELP = "Whom to be: a profile that `easyremote login` kept, env:NAME or file:PATH."


def connection_options(command: F) -> F:
    """Add the options by which a command finds its gateway: `gateway` and `auth`."""
    command = click.option("--auth", metavar="NAME", help=AUTH_HELP)(command)
    return click.option("--gateway", metavar="HOST:PORT", help=GATEWAY_HELP)(command)


def state_options(command: F) -> F:
    """Add the options that name a gateway of this user on this machine, or one elsewhere."""
    command = click.option("--auth", metavar="NAME", help=AUTH_HELP)(command)
    command = click.option(
        "--gateway",
        metavar="HOST:PORT",
        help="Ask this gateway over the network, as an operator or owner of it.",
    )(command)
    command = click.option(
        "--state-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="The state folder of a gateway on this machine.",
    )(command)
    return click.option(
        "--port",
        type=click.IntRange(1, 65535),
        help="The port of a gateway of this user on this machine, if there are several.",
    )(command)


def json_option(command: F) -> F:
    """Add `--json`: `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def read_secret(text: str) -> str:
    """Return a secret argument; `-` stands for standard input, which no process list shows."""
    return sys.stdin.readline().strip() if text == "-" else text
