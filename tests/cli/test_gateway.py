"""`easyremote gateway`: made by one command, run by another, stopped by a signal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result

from easyremote.gateway.server import Server
from easyremote.identity.join import JoinString
from easyremote.identity.token import TokenKind

from .conftest import Run

START_S = 30.0
STRING = re.compile(r"er1_\w+")


def joins(text: str) -> list[JoinString]:
    return [JoinString.parse(found) for found in STRING.findall(text)]


def test_init_prints_a_line_for_nodes_and_one_for_clients(run: Run, tmp_path: Path) -> None:
    """One command makes the gateway's key and tokens and prints what other machines need."""
    folder = tmp_path / "state"
    done = run("gateway", "init", "--port", "9123", "--host", "gw.test", "--state-dir", str(folder))

    assert done.exit_code == 0
    node, client = joins(done.stdout)
    assert (node.token.kind, client.token.kind) == (TokenKind.NODE, TokenKind.CLIENT)
    for one in (node, client):
        assert (one.hosts, one.port) == (("gw.test",), 9123)
    assert node.pin == client.pin
    assert f"sha256:{node.pin.hex()}" in done.stdout
    run_it = f"easyremote gateway run --port 9123 --host gw.test --state-dir {folder}"
    assert run_it in done.stdout


def test_init_again_prints_the_same_strings(run: Run) -> None:
    """Whoever lost the line gets it again; no token is made twice."""
    first = run("gateway", "init", "--port", "9123")
    again = run("gateway", "init", "--port", "9123")

    assert again.exit_code == 0
    assert STRING.findall(first.stdout) == STRING.findall(again.stdout)


def test_init_works_beside_a_running_gateway(run: Run, gateway: Server) -> None:
    """The strings of a gateway that runs can be printed at any time."""
    done = run("gateway", "init", "--port", str(gateway.port))

    assert done.exit_code == 0
    assert {one.port for one in joins(done.stdout)} == {gateway.port}


def test_join_strings_carry_the_addresses_that_the_operator_names(run: Run) -> None:
    """Behind a router a gateway cannot know its own name: --address says it."""
    done = run("gateway", "init", "--port", "9123", "--address", "vps.test", "--address", "::1")

    assert {one.hosts for one in joins(done.stdout)} == {("vps.test", "::1")}
    assert "--address vps.test --address ::1" in done.stdout


def test_two_gateways_do_not_share_a_state_folder(run: Run, gateway: Server) -> None:
    """A second gateway with the same state is refused and told why."""
    folder = gateway._folder()
    done = run("gateway", "run", "--port", "0", "--host", "127.0.0.1", "--state-dir", str(folder))

    assert done.exit_code == 1
    assert "another gateway is running" in done.stderr


def test_a_port_that_is_taken_is_one_sentence(run: Run) -> None:
    """A gateway that cannot listen says so, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("gateway", "run", "--port", port, "--host", "127.0.0.1")

    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: cannot listen on port {port} of 127.0.0.1")


def test_certificate_and_key_go_together(run: Run, tmp_path: Path) -> None:
    """Half of a pair of files is wrong usage."""
    file = tmp_path / "x.pem"
    file.write_text("x")

    assert run("gateway", "run", "--tls-cert", str(file)).exit_code == 2


@contextlib.contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run `easyremote` as a process of its own, and see that it is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "easyremote", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until_it_answers(run: Run) -> Result:
    """Wait for the gateway of this user's home; between tries the process itself takes time."""
    until = time.monotonic() + START_S
    while (seen := run("status")).exit_code:
        assert time.monotonic() < until, seen.stderr
        time.sleep(0.02)
    return seen


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_runs_until_it_is_told_to_stop(run: Run, number: signal.Signals) -> None:
    """It answers while it runs, prints no secret into a pipe, and ends cleanly by a signal."""
    port = free_port()
    words = ("gateway", "run", "--port", str(port), "--host", "127.0.0.1")
    with running(*words) as process:
        seen = wait_until_it_answers(run)
        process.send_signal(number)
        out, err = process.communicate(timeout=START_S)

    assert f"gateway 127.0.0.1:{port}" in seen.stdout
    assert process.returncode == 0
    assert out == ""
    assert STRING.search(err) is None
    assert "Traceback" not in err


@pytest.mark.slow
def test_logs_are_json_where_that_is_asked(run: Run) -> None:
    """Every line of the log of --log-json is one JSON object with time, level and event."""
    port = free_port()
    words = ("--log-json", "gateway", "run", "--port", str(port), "--host", "127.0.0.1")
    with running(*words) as process:
        wait_until_it_answers(run)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=START_S)
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]

    assert lines
    assert all({"time", "level", "event"} <= set(line) for line in lines)
