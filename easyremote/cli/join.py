"""`easyremote join` and `easyremote login`: keep a join string, look at it, take it apart.

Rules of this file. 1) Nothing here needs the network. 2) `join token` prints a secret, because
that is what it is for; nothing else does.
"""

from __future__ import annotations

import click

from .base import ArgumentGroup, Command
from .options import read_secret
from .output import cell, note


class _JoinGroup(ArgumentGroup):
    """`join STRING` beside `join show STRING`."""


@click.group(cls=_JoinGroup, subcommand_metavar="STRING | COMMAND STRING")
def join() -> None:
    """Keep a join string as this user's gateway.

    `easyremote join STRING` stores it; from then on nodes and clients of this user need no other
    configuration. A STRING of `-` is read from standard input.
    """


@click.command(cls=Command)
@click.argument("string")
def keep(string: str) -> None:
    """Keep a join string as this user's gateway."""
    from ..identity.profile import remember_join

    profile = remember_join(read_secret(string))
    note(
        f"{profile.addresses[0]} is the gateway of this user now (profile {profile.name}). "
        "`easyremote doctor` tries it"
    )


_JoinGroup.otherwise = keep


@join.command()
@click.argument("string")
def show(string: str) -> None:
    """Print what a join string says, without its secret."""
    from ..identity.join import JoinString

    for key, value in JoinString.parse(read_secret(string)).describe().items():
        click.echo(f"{key:9} {cell(value)}")


@join.command()
@click.argument("string")
def token(string: str) -> None:
    """Print the bare bearer token in a join string, for auth_token= and for REST."""
    from ..identity.join import JoinString

    click.echo(JoinString.parse(read_secret(string)).token.text())


@click.command(cls=Command)
@click.argument("name")
@click.option(
    "--join", "string", prompt="Join string", hide_input=True, metavar="STRING",
    help="The join string; `-` reads it from standard input, and without the option it is asked.",
)  # fmt: skip
def login(name: str, string: str) -> None:
    """Keep a join string under NAME, for auth="NAME" in a program."""
    from ..errors import EasyRemoteError
    from ..identity.join import JoinString
    from ..identity.profile import Profile, load_profile, save_profile

    made = Profile.from_join(name, JoinString.parse(read_secret(string)), "login")
    known = load_profile(name)
    if known is not None and known.origin != "login":
        raise EasyRemoteError(f"the name {name} is taken by a profile of EasyRemote itself")
    save_profile(made)
    note(f'auth="{name}" is {made.addresses[0]} now')
