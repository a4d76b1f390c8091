"""`easyremote status` and `top`: what a gateway says, as tables and as JSON."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from easyremote.cli.output import cell, console, moment, print_json
from easyremote.cli.status import (
    call_lines,
    function_table,
    headline,
    node_table,
    place_table,
)
from easyremote.cli.top import calls_per_s, picture
from easyremote.gateway.server import Server

from .conftest import Run

START_S = 60.0

GAUGES = (
    "connections", "streams", "calls_pending", "calls_queued", "calls_held", "calls_running",
    "calls_parked", "bytes_buffered", "bytes_parked", "trio_tasks", "threads", "open_fds",
    "rss_bytes", "cpu_s", "uptime_s", "incarnation", "nodes_awaited",
)  # fmt: skip
"""The names that programs and tests go by."""

NODE: dict[str, Any] = {
    "node_id": "gpu-01",
    "capabilities": {"gpu": {"model": "RTX"}, "licence": True},
    "functions": ["train", "predict"],
    "in_flight": 3,
    "slots": 4,
    "health": "healthy",
    "rtt_ms": 1.234567,
    "last_heard_s": 2.5,
    "lease_left_s": 12.5,
    "owner": "ann",
    "since": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
}
FUNCTION: dict[str, Any] = {
    "node_id": "gpu-01",
    "function_name": "train",
    "signature": "(model: dict, epochs: int = 3)",
    "stream": True,
    "health_status": "healthy",
    "description": "Train a model.\n\nAt length.",
}
SEEN: dict[str, Any] = {
    "address": "gw.test:8080",
    "user": "alice",
    "role": "guest",
    "gateway": {
        "version": "0.1.0", "uptime_s": 3723.0, "connected_nodes": 1, "connected_clients": 2,
        "calls_running": 3, "calls_queued": 4, "calls_total": 50, "calls_pending": 7,
        "calls_failed_here": 1, "bytes_buffered": 2**21, "draining": False,
    },
    "nodes": [NODE, {**NODE, "node_id": "gpu-02", "in_flight": 9}],
    "functions": [FUNCTION],
}  # fmt: skip


def shown(what: Any, width: int = 200) -> str:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    out.print(what)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_nodes_are_shown_with_health_load_and_owner() -> None:
    """One row a node: what it is, how it is, how busy it is, whose it is."""
    text = shown(node_table([NODE]))
    row = text.splitlines()[2].split()

    assert text.startswith("1 node")
    assert row == [
        "gpu-01", "healthy", "2", "3", "4", "1.235", "2.5", "12.5", "ann", "2026-01-02",
        "03:04:05", "gpu,", "licence",
    ]  # fmt: skip


def test_functions_are_shown_as_they_are_called() -> None:
    """NODE.FUNCTION can be copied to `easyremote call`; of the docstring, the first line."""
    row = shown(function_table([FUNCTION])).splitlines()[2]

    assert row.split()[0] == "gpu-01.train"
    assert "(model: dict, epochs: int = 3)" in row
    assert "Train a model." in row
    assert "At length" not in row


def test_the_headline_says_who_asks_and_what_goes_on() -> None:
    """Gateway, version, uptime, principal, links and calls, and that it is stopping if it is."""
    text = headline(SEEN)

    assert "gw.test:8080, version 0.1.0, up 1h 2m; you are alice (guest)" in text
    assert "connected: 1 node, 2 clients; calls: 3 running, 4 queued, 50 so far" in text
    assert "stopping" not in text
    assert "stopping" in headline({**SEEN, "gateway": {**SEEN["gateway"], "draining": True}})


def test_the_headline_tells_of_what_is_out_of_the_ordinary() -> None:
    """Memory and descriptors always; nodes that are awaited and callers that are away if any."""
    gauges = {**SEEN["gateway"], "rss_bytes": 3 << 20, "open_fds": 17, "connections": 5}
    calm = headline({**SEEN, "gateway": {**gauges, "nodes_awaited": 0, "calls_parked": 0}})
    busy = headline({**SEEN, "gateway": {**gauges, "nodes_awaited": 2, "calls_parked": 1}})

    assert "memory: 3.0 MiB, 2.0 MiB of it calls; 17 descriptors; 5 connections" in calm
    assert "waits" not in calm and "away" not in calm
    assert "waits for 2 nodes to come back" in busy
    assert "1 call without their callers" in busy


def test_the_headline_shows_rates_where_the_gateway_measures_them() -> None:
    """The numbers of `server.metrics()` stand in one line; an older gateway has no such line."""
    rates = {
        "calls_per_second": 12.0, "error_rate": 0.25, "response_s": 0.5, "balance": 0.875,
        "routing_p50_s": 0.00025, "routing_p99_s": 0.001,
    }  # fmt: skip
    text = headline({**SEEN, "gateway": {**SEEN["gateway"], **rates}})

    assert "12.0 calls/s, 25.0% failed, 500 ms each; routing 0.25 ms, p99 1 ms;" in text
    assert "load balance 0.88" in text
    assert "calls/s" not in headline(SEEN)


TOLD: dict[str, Any] = {
    "function": "train", "phase": "queued",
    "sentences": ["It waits at the gateway.", "gpu-01 is busy.\x1b[2J"],
    "places": [{"node_id": "gpu-01", "state": "busy", "busy": 4, "slots": 4, "why": "busy"}],
}  # fmt: skip


def test_a_call_is_explained_in_sentences_and_rows() -> None:
    """One sentence a line, without control characters, and a row for each node."""
    assert call_lines(TOLD).splitlines() == [
        "train: queued", "  It waits at the gateway.", "  gpu-01 is busy.\\x1b[2J",
    ]  # fmt: skip
    assert shown(place_table(TOLD["places"])).splitlines()[2].split() == [
        "gpu-01",
        "busy",
        "4",
        "4",
    ]


def test_a_call_that_is_not_ours_is_one_that_is_not(run: Run, gateway: Server) -> None:
    """An unknown id is one sentence and exit code 1, something else is wrong usage."""
    unknown = run("status", "--call", "00" * 16)
    wrong = run("status", "--call", "train")

    assert unknown.exit_code == 1
    assert "no call of yours with this id" in unknown.stderr
    assert wrong.exit_code == 2
    assert "32 hex digits" in wrong.stderr


def test_a_gateway_that_says_less_is_shown_all_the_same() -> None:
    """An older gateway lacks some fields; nothing is made up and nothing fails."""
    bare = {**SEEN, "gateway": {}, "nodes": [{"node_id": "n"}], "functions": []}

    assert "connected: ? nodes" in headline(bare)
    assert "n" in shown(picture(bare, None))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("[bold red]x[/]", "[bold red]x[/]"),
        ("a\x1b[31mb\nc", "a\\x1b[31mb\\nc"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (None, "-"),
        ([], "-"),
        (0, "0"),
        (0.123456, "0.1235"),
        (["a", "b"], "a, b"),
    ],
)
def test_what_others_chose_cannot_repaint_the_terminal(value: Any, text: str) -> None:
    """Styles and control characters in names are shown, not obeyed."""
    assert cell(value) == text
    assert text in shown(node_table([{"node_id": value}]))


def test_json_is_json_whatever_nodes_say(capsys: pytest.CaptureFixture[str]) -> None:
    """Infinity is a number for Python and none for JSON."""
    print_json({"capabilities": [{"memory": float("inf"), "cores": 4}], "x": float("nan")})

    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told == {"capabilities": [{"memory": None, "cores": 4}], "x": None}


def test_moments_are_in_utc() -> None:
    """Times of a gateway elsewhere can be compared with its log."""
    assert moment(0.0) == "1970-01-01 00:00:00"
    assert moment(None) == "never"


def test_a_pipe_gets_whole_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is cut for a screen that is not there."""
    console().print(node_table([{**NODE, "node_id": "n" * 150}]))

    assert "n" * 150 in capsys.readouterr().out


def test_the_busiest_nodes_are_on_top() -> None:
    """What one looks for is in the first row; the rate is shown once it is known."""
    text = shown(picture(SEEN, 12.345))

    assert text.index("gpu-02") < text.index("gpu-01")
    assert "12.3 calls/s, 7 not finished, 1 failed at the gateway, 2.0 MiB under way" in text
    assert "calls/s" not in shown(picture(SEEN, None))


def test_rates_come_from_two_looks() -> None:
    """Calls per second are a difference over time; a gateway that started anew has none yet."""
    later = {"gateway": {"calls_total": 80}}

    assert calls_per_s(SEEN, later, 3.0) == 10.0
    assert calls_per_s(SEEN, {"gateway": {"calls_total": 2}}, 3.0) is None
    assert calls_per_s(SEEN, later, 0.0) is None


def test_status_of_a_live_gateway(run: Run, gateway: Server) -> None:
    """The owner of a gateway sees it without naming anything."""
    done = run("status")

    assert done.exit_code == 0, done.stderr
    assert f"gateway 127.0.0.1:{gateway.port}, version" in done.stdout
    assert "(owner)" in done.stdout
    assert "0 nodes" in done.stdout


def test_status_as_json_is_for_programs(run: Run, gateway: Server) -> None:
    """One JSON object with the gauges, the nodes and the functions."""
    seen = json.loads(run("status", "--json").stdout)

    gauges = seen["gateway"]
    assert gauges["port"] == gateway.port
    for name in GAUGES:
        assert gauges[name] >= 0, name
    assert gauges["rss_bytes"] > 1 << 20 and gauges["open_fds"] > 2
    assert (seen["nodes"], seen["functions"], seen["role"]) == ([], [], "owner")


def test_top_without_a_terminal_looks_once(run: Run, gateway: Server) -> None:
    """In a script `easyremote top` prints one picture and ends."""
    done = run("top")

    assert done.exit_code == 0, done.stderr
    assert "0 not finished" in done.stdout


def test_a_gateway_that_is_named_is_the_one_that_is_asked(run: Run, gateway: Server) -> None:
    """--gateway wins over every setting, and a wrong one fails."""
    good = run("status", "--gateway", f"localhost:{gateway.port}")
    wrong = run("status", "--gateway", "http://localhost")

    assert good.exit_code == 0, good.stderr
    assert wrong.exit_code == 1
    assert "leave http:// away" in wrong.stderr


@pytest.mark.slow
def test_top_in_a_terminal_goes_on_until_ctrl_c(gateway: Server) -> None:
    """It looks again and again; Ctrl-C ends it, without an error and with the screen as before."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "easyremote", "top", "--every", "100ms"],
        stdin=theirs, stdout=theirs, stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    )  # fmt: skip
    os.close(theirs)
    try:
        screen = b""
        until = time.monotonic() + START_S
        while screen.count(b"calls/s") < 2:
            ready, _, _ = select.select([ours], [], [], 1.0)
            assert time.monotonic() < until, screen
            if ready:
                screen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while (ready := select.select([ours], [], [], START_S)[0]) != []:
            try:
                screen += os.read(ours, 65536)
            except OSError:  # the terminal is gone: the process has ended
                break
        _, err = process.communicate(timeout=START_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
        os.close(ours)

    assert f"127.0.0.1:{gateway.port}".encode() in screen
    assert screen.count(b"\x1b[?1049h") == screen.count(b"\x1b[?1049l") == 1
    assert process.returncode == 0
    assert err == b""
