"""`easyremote usage`, `quota` and `audit list`: every record and digit, for people and programs."""

from __future__ import annotations

import csv
import io
import json
import time
from contextlib import closing
from typing import Any, cast

import pytest

import easyremote
from easyremote.client.account import read_since
from easyremote.facts import QuotaState, Usage
from easyremote.gateway.server import Server
from easyremote.gateway.state import GatewayState
from easyremote.gateway.store import Store
from easyremote.gateway.usage_store import Closed, Opened, close_usage, open_usage
from easyremote.identity.role import Role

from .conftest import Run

NOW = 1_772_600_000.0


def write(gateway: Server, count: int, user: str | None = None, function: str = "f") -> None:
    """Write closed records as the gateway does, beside it."""
    with closing(GatewayState.attach(None, gateway.port)) as state, state.store.transaction():
        for number in range(count):
            who = state.owner if user is None else user
            call_id = number.to_bytes(16, "big")
            at = NOW + number
            open_usage(state.store, Opened(call_id, who, "", function, at, 1, 10), [])
            rule = {"mode": "per_second", "price": 0.5, "currency": "EUR"}
            closed = Closed(
                call_id, who, "n1", "carol", at, at + 2, 2.0, 2.0, 0.0, 10, 20, "ok", True,
                1_000_000_001, rule, False,
            )  # fmt: skip
            assert close_usage(state.store, closed, [])
            assert not close_usage(state.store, closed, [])  # Once, whoever says it again.


def usage(run: Run, gateway: Server, *words: str) -> list[dict[str, Any]]:
    done = run("usage", "--json", "--gateway", f"127.0.0.1:{gateway.port}", *words)
    assert done.exit_code == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_all_pages_are_fetched_and_python_sees_the_same(run: Run, gateway: Server) -> None:
    """More records than fit into one answer are all there, in order, on both ways."""
    write(gateway, 2100)
    listed = usage(run, gateway)
    with easyremote.Client(f"127.0.0.1:{gateway.port}") as client:
        records = client.usage()

    assert [one["call_id"] for one in listed] == [n.to_bytes(16, "big").hex() for n in range(2100)]
    assert [one.call_id for one in records] == [one["call_id"] for one in listed]
    assert (records[0].seconds, records[0].bytes_in, records[0].bytes_out) == (2.0, 10, 20)
    assert records[0].cost == 1.000000001
    assert sum(one["cost_nano"] for one in listed) == 2100 * 1_000_000_001


def test_the_table_ends_with_the_sum(run: Run, gateway: Server) -> None:
    """People see the calls on stdout and, on stderr, what they make together."""
    write(gateway, 3)
    done = run("usage", "--gateway", f"127.0.0.1:{gateway.port}")

    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("n1") == 3
    assert "3 calls, 6.000 s, cost 3.000000 EUR" in done.stderr


def test_csv_holds_every_digit_and_no_formula(run: Run, gateway: Server) -> None:
    """A spreadsheet reads numbers; what a user chose as a name is never run by it."""
    write(gateway, 1, "=cmd|' /C calc'!A0")
    done = run("usage", "--csv", "--all", "--gateway", f"127.0.0.1:{gateway.port}")
    (row,) = csv.DictReader(io.StringIO(done.stdout))

    assert row["cost_nano"] == "1000000001"
    assert row["user"].startswith("'=")
    assert row["currency"] == "EUR"


def test_a_user_and_a_time_narrow_what_is_shown(run: Run, gateway: Server) -> None:
    """Operators see one user or all; `--since` is how long ago, or a date."""
    write(gateway, 2, "bob")
    write(gateway, 3, "ann")

    assert usage(run, gateway) == []
    assert len(usage(run, gateway, "--all")) == 5
    assert {one["user"] for one in usage(run, gateway, "--user", "bob")} == {"bob"}
    assert usage(run, gateway, "--all", "--since", "2100-01-01") == []
    assert len(usage(run, gateway, "--all", "--since", "2020-01-01T10:00")) == 5
    assert run("usage", "--since", "soon").exit_code != 0
    assert run("usage", "--csv", "--json").exit_code == 2


def test_quota_of_nothing_is_an_empty_table(run: Run, gateway: Server) -> None:
    """Where no function has a quota there is nothing to show, and nothing fails."""
    address = f"127.0.0.1:{gateway.port}"

    assert json.loads(run("quota", "--json", "--gateway", address).stdout) == []
    assert "0 quotas" in run("quota", "--user", "bob", "--gateway", address).stdout
    with easyremote.Client(address) as client:
        assert client.quota() == []


def test_the_audit_is_listed_beside_the_gateway_and_over_the_network(
    run: Run, gateway: Server
) -> None:
    """Both ways show the same entries; `--event` shows those of one kind."""
    with closing(GatewayState.attach(None, gateway.port)) as state, state.store.transaction():
        for number in range(1500):
            state.store.audit("test", "alice", {"number": number, "note": "", "none": None})
        Store.create_token(state.store, Role.GUEST, "bob")
    beside = run("audit", "list", "--json", "--port", str(gateway.port))
    remote = run("audit", "list", "--json", "--gateway", f"127.0.0.1:{gateway.port}")

    assert beside.exit_code == remote.exit_code == 0, remote.stderr
    entries = json.loads(beside.stdout)
    assert [one["seq"] for one in entries] == list(range(1, len(entries) + 1))
    assert json.loads(remote.stdout)[:1500] == entries[:1500]
    table = run("audit", "list", "--event", "test", "--port", str(gateway.port)).stdout
    assert "1500 entries" in table
    assert "number=7" in table
    assert "token_created" not in table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW - 90), ("1.5h", NOW - 5400), ("7d", NOW - 604_800), (" 2w ", NOW - 1_209_600),
        ("10m", NOW - 600), ("2026-03-01T12:00:00+00:00", 1_772_366_400.0),
    ],
)  # fmt: skip
def test_times_are_said_as_people_do(text: str, expected: float) -> None:
    """How long ago, or when."""
    assert read_since(text, NOW) == expected


def test_a_date_is_local_and_nonsense_is_refused() -> None:
    """A date without a zone is one of here; what is no time is an error that says what is."""
    assert time.localtime(read_since("2026-03-01", NOW))[:4] == (2026, 3, 1, 0)
    with pytest.raises(ValueError, match="write 24h or 7d"):
        read_since("yesterday", NOW)
    with pytest.raises(TypeError, match="24h"):
        read_since(cast("str", 3600), NOW)


def test_facts_keep_what_a_newer_gateway_says_more() -> None:
    """Unknown fields are kept in `facts`, and known ones are typed."""
    state = QuotaState.from_plain(
        {
            "function": "f", "unit": "calls", "limit": 2.0, "used": 1.0, "remaining": 1.0,
            "period": "day", "resets_at": 1.0, "novel": 3,
        }
    )  # fmt: skip
    record = Usage.from_plain({"function": "f", "call_id": b"\x01", "novel": 3})

    assert (state.mode, state.facts) == ("soft", {"novel": 3})
    assert (record.call_id, record.facts) == ("01", {"novel": 3})
