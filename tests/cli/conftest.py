"""The command line, run inside the test process: quick, and with stdout and stderr apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from easyremote.cli.main import cli
from easyremote.gateway.server import Server

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Return a function that runs `easyremote` with arguments and, perhaps, standard input."""

    def run(*args: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, args, input=stdin, prog_name="easyremote")

    return run


@pytest.fixture
def gateway() -> Iterator[Server]:
    """Run a gateway of this test on a port of 127.0.0.1."""
    server = Server(0, "127.0.0.1", dashboard=False, rest=False)
    server.start(blocking=False)
    try:
        yield server
    finally:
        server.stop(grace=0.0)
