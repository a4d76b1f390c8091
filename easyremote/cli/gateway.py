"""`easyremote gateway`: make one, run one.

Rules of this file. 1) `init` prints join strings, because that is what it is for. 2) `run` prints
them only to a terminal (`gateway.banner`).
"""

from __future__ import annotations

from pathlib import Path

import click

from .base import Group

_state_dir = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where key, certificate and tokens are kept; else gateway/PORT of the home folder.",
)
_host = click.option(
    "--host",
    default="",
    metavar="H",
    help="Name or address to listen on, which join strings then carry; else every interface.",
)
_addresses = click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="NAME",
    help="Name or address under which others reach it, for join strings; behind a router or in a "
    "cloud it cannot know that by itself. Repeatable.",
)


@click.group(cls=Group)
def gateway() -> None:
    """Make and run a gateway."""


@gateway.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
    help="Where to listen; 0 lets the system choose.",
)  # fmt: skip
@_host
@_addresses
@_state_dir
@click.option(
    "--tls-cert", type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="A certificate of your own (PEM).",
)  # fmt: skip
@click.option(
    "--tls-key", type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Its key (PEM).",
)  # fmt: skip
def run(
    port: int, host: str, addresses: tuple[str, ...], state_dir: Path | None,
    tls_cert: Path | None, tls_key: Path | None,
) -> None:  # fmt: skip
    """Run a gateway until Ctrl-C or SIGTERM; the first start makes all that it needs."""
    from ..facts import TLSConfig
    from ..gateway.server import Server

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together.")
    tls = None if tls_cert is None or tls_key is None else TLSConfig(tls_cert, tls_key)
    Server(port, host, tls=tls, state_dir=state_dir, addresses=addresses).run()


@gateway.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8080, show_default=True,
    help="Where it is to listen.",
)  # fmt: skip
@_host
@_addresses
@_state_dir
def init(port: int, host: str, addresses: tuple[str, ...], state_dir: Path | None) -> None:
    """Make a gateway's key, certificate and tokens, and print join strings.

    Of a gateway that exists already, running or not, it prints the join strings again.
    """
    from contextlib import closing

    from ..config import Address
    from ..gateway.state import DATABASE_NAME, GatewayState, default_state_folder
    from ..identity.pin import pin_text

    folder = state_dir or default_state_folder(port)
    exists = (folder / DATABASE_NAME).is_file()
    if exists:
        state = GatewayState.attach(folder)
    else:
        state = GatewayState.open(folder, addresses or ([host] if host else []), port)
    with closing(state):
        click.echo(f"gateway  {Address(state.hosts[0], state.port)}")
        click.echo(
            f"state    {state.folder} ({'as it was' if exists else 'made; keep it private'})"
        )
        click.echo(f"key      {pin_text(state.pin)}")
        click.echo(f"nodes    EASYREMOTE_JOIN={state.node_join()} easyremote node FILE.py")
        click.echo(f"clients  easyremote join {state.client_join()}")
        click.echo(
            f"run it   easyremote gateway run {_run_arguments(port, host, addresses, state_dir)}"
        )


def _run_arguments(port: int, host: str, addresses: tuple[str, ...], state_dir: Path | None) -> str:
    import shlex

    words = ["--port", str(port)]
    if host:
        words += ["--host", host]
    for address in addresses:
        words += ["--address", address]
    if state_dir is not None:
        words += ["--state-dir", str(state_dir.absolute())]
    return shlex.join(words)
