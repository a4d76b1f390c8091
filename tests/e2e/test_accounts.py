"""Quotas and bills with real processes: exact under parallel calls, and after a gateway's death."""

from __future__ import annotations

import csv
import io
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import easyremote
from easyremote import EasyRemoteError, Future, QuotaExceededError, TaskTimeoutError

from .conftest import Cluster, cluster_in

BODY = """
    import time

    def mark(name):
        with open("marks", "a") as file:
            file.write(name + "\\n")

    def limited(name, quota, **more):
        def body(seconds=0.0):
            mark(name)
            time.sleep(seconds)
            return name
        node.register(name=name, quota_per_user=quota, max_concurrency=4, **more)(body)

    limited("many", "20_calls_daily")
    limited("killed", "25_calls_daily")
    limited("again", {"calls": 3, "per": "month"})

    @node.register(quota_per_user="1_seconds_daily", max_concurrency=1)
    def timed(seconds):
        mark("timed")
        time.sleep(seconds)

    @node.register(quota_per_user="1_seconds_daily", quota_mode="hard", max_concurrency=2)
    def cut():
        mark("cut")
        for _ in range(3000):
            time.sleep(0.01)

    @node.register(quota_per_user="2_calls_daily")
    def team(user_id, other=0):
        mark(f"team {user_id}")
        return user_id

    @node.register(billing={"mode": "per_request", "price": 0.1, "currency": "EUR"})
    def priced(x):
        if x < 0:
            raise ValueError("negative")
        return x

    @node.register(billing={"mode": "per_second", "price": 2.5, "currency": "EUR"})
    def slow(seconds):
        time.sleep(seconds)

    @node.register()
    def free():
        return 1

    @node.register()
    def earned():
        return node.metrics().revenue_generated
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a gateway and one node."""
    with cluster_in(tmp_path_factory.mktemp("accounts")) as made:
        made.start_gateway()
        made.start_node("n1", BODY)
        yield made


def marks(running: Cluster, name: str) -> int:
    """Return how many bodies of this name have begun."""
    path = running.folder / "marks"
    return path.read_text().split("\n")[:-1].count(name) if path.exists() else 0


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Wait for something that is sure to happen."""
    until = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < until, what
        time.sleep(0.01)


def outcomes(futures: list[Future[Any]]) -> list[EasyRemoteError | None]:
    """Wait for all calls; return their errors, None for each that has a result."""
    found: list[EasyRemoteError | None] = []
    for future in futures:
        try:
            future.result(timeout=60)
        except EasyRemoteError as error:
            found.append(error)
        else:
            found.append(None)
    return found


def refusals(errors: list[EasyRemoteError | None], *, sent_once: bool = True) -> int:
    """Return how many calls were refused for their quota, with a time at which there is more.

    A call that was sent to a gateway which died is not said to have never run.
    """
    refused = [one for one in errors if isinstance(one, QuotaExceededError)]
    for one in refused:
        assert one.resets_at > time.time()
        assert not (sent_once and one.may_have_run)
        assert one.retry_after_s is not None
    return len(refused)


def test_a_limit_in_calls_holds_exactly_under_parallel_submits(running: Cluster) -> None:
    """Of 100 calls that come at once from many threads, as many run as the quota allows."""
    client = easyremote.connect(running.address)
    futures: list[Future[Any]] = []

    def submit() -> None:
        futures.extend(client.submit("many", 0.01) for _ in range(10))

    threads = [threading.Thread(target=submit) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = outcomes(futures)

    assert len(futures) == 100
    assert (errors.count(None), refusals(errors), marks(running, "many")) == (20, 80, 20)


def test_a_limit_in_calls_holds_exactly_when_the_gateway_is_killed(running: Cluster) -> None:
    """What was counted before a kill -9 stays counted, and what comes back is not counted twice."""
    client = easyremote.connect(running.address)
    first = [client.submit("killed", 0.3) for _ in range(15)]
    wait_until(lambda: marks(running, "killed") >= 5, "the bodies did not begin")
    assert running.gateway is not None
    running.gateway.send_signal(signal.SIGKILL)
    running.gateway.wait()
    second = [client.submit("killed", 0.01) for _ in range(85)]
    running.start_gateway()
    errors = outcomes(first + second)

    assert (errors.count(None), refusals(errors, sent_once=False)) == (25, 75)
    assert marks(running, "killed") == 25
    left = [one for one in client.quota() if one.function == "killed"]
    assert [(one.used, one.remaining) for one in left] == [(25, 0)]


def test_a_used_up_quota_stays_used_up_after_a_restart(running: Cluster) -> None:
    """A caller who has seen its quota end sees the same after the gateway was killed."""
    client = easyremote.connect(running.address)
    assert refusals(outcomes([client.submit("again") for _ in range(5)])) == 2
    assert running.gateway is not None
    running.gateway.send_signal(signal.SIGKILL)
    running.gateway.wait()
    running.start_gateway()
    running.wait_for_node("n1")
    client = easyremote.connect(running.address)

    assert refusals(outcomes([client.submit("again") for _ in range(3)])) == 3
    assert marks(running, "again") == 3


def test_no_call_starts_after_the_seconds_are_used_up(running: Cluster) -> None:
    """Calls that were accepted and wait are refused when the running ones have used the rest."""
    client = easyremote.connect(running.address)
    errors = outcomes([client.submit("timed", 0.4) for _ in range(8)])
    later = outcomes([client.submit("timed", 0.0)])

    ran = marks(running, "timed")
    assert 2 <= ran <= 3  # On a slow machine two of them may take the second together.
    assert (errors.count(None), refusals(errors), refusals(later)) == (ran, 8 - ran, 1)


def test_a_hard_quota_cuts_running_calls_off(running: Cluster) -> None:
    """Two calls share a second: neither runs on when it is over."""
    client = easyremote.connect(running.address)
    begun = time.monotonic()
    errors = outcomes([client.submit("cut"), client.submit("cut")])

    assert all(isinstance(one, TaskTimeoutError) for one in errors), errors
    assert time.monotonic() - begun < 15.0
    wait_until(
        lambda: all(one.remaining == 0 for one in client.quota() if one.function == "cut"),
        "its seconds were not counted",
    )
    assert refusals(outcomes([client.submit("cut")])) == 1
    assert marks(running, "cut") == 2


def test_an_argument_is_no_authority(running: Cluster) -> None:
    """`user_id` divides the quota of a shared token, and is data like any other under one's own."""
    own = easyremote.connect(running.address)
    errors = outcomes([own.submit("team", name) for name in ("ann", "bob", "cem")])
    assert refusals(errors) == 1

    made = running.cli(
        "token", "create", "--role", "guest", "--user", "lab", "--shared",
        "--port", str(running.port),
    )  # fmt: skip
    with easyremote.Client(running.address, join=made.stdout.split()[-1]) as lab:
        several = [lab.submit("team", "ann") for _ in range(3)]
        several += [lab.submit("team", other=1, user_id="bob") for _ in range(3)]
        errors = outcomes(several)
        assert [one is None for one in errors] == [True, True, False] * 2
        states = {one.sub_account: one.used for one in lab.quota() if one.function == "team"}
    assert states == {"": 0, "ann": 2, "bob": 2}


def records(running: Cluster, *words: str) -> list[dict[str, Any]]:
    """Return the usage records as the command line prints them."""
    found: list[dict[str, Any]] = json.loads(running.cli("usage", "--json", *words).stdout)
    return found


def gauges(running: Cluster) -> dict[str, Any]:
    """Return the gauges of the gateway as the command line prints them."""
    found: dict[str, Any] = json.loads(running.cli("status", "--json").stdout)["gateway"]
    return found


def test_the_sum_of_the_records_is_the_metric_and_all_views_agree(running: Cluster) -> None:
    """Each billed call has one record; Python, the command line, CSV and gauges say the same."""
    client = easyremote.connect(running.address)
    assert [client.execute("priced", x) for x in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="negative"):
        client.execute("priced", -1)
    client.execute("slow", 0.3)
    client.execute("free")

    usage = client.usage()
    assert sorted(one.function for one in usage) == ["priced"] * 6 + ["slow"]
    assert "priced" in repr(usage[0])
    assert sorted(one.outcome for one in usage) == ["error"] + ["ok"] * 6
    assert {(one.node_id, one.currency) for one in usage} == {("n1", "EUR")}
    (slow,) = [one for one in usage if one.function == "slow"]
    assert 0.29 < slow.seconds < 2.0
    assert slow.cost == pytest.approx(2.5 * slow.seconds)
    assert sum(one.cost or 0.0 for one in usage if one.function == "priced") == pytest.approx(0.6)

    listed = records(running)
    assert [one["call_id"] for one in listed] == [one.call_id for one in usage]
    rows = list(csv.DictReader(io.StringIO(running.cli("usage", "--csv").stdout)))
    nano = sum(one["cost_nano"] for one in listed)
    assert sum(int(row["cost_nano"]) for row in rows) == nano
    wait_until(lambda: gauges(running)["accounts_open"] == 0, "calls are still open")
    status = gauges(running)
    assert status["calls_billed"] == len(usage)
    assert status["revenue"] == {"EUR": nano / 1e9}
    assert status["seconds_billed"] == pytest.approx(sum(one.seconds for one in usage))
    wait_until(lambda: client.execute("earned") == nano / 1e9, "the node was not told")
    assert client.usage("1h") == usage
    assert records(running, "--since", "2000-01-01", "--all") == listed
    quota = json.loads(running.cli("quota", "--json").stdout)
    assert [(one["function"], one["used"]) for one in quota] == [
        (one.function, one.used) for one in client.quota()
    ]


def test_records_survive_a_kill_and_the_audit_is_whole(running: Cluster) -> None:
    """The metrics of a new start are the sum of the records of all starts."""
    client = easyremote.connect(running.address)
    client.execute("priced", 7)
    before = client.usage()
    assert running.gateway is not None
    running.gateway.send_signal(signal.SIGKILL)
    running.gateway.wait()
    running.start_gateway()
    running.wait_for_node("n1")
    client = easyremote.connect(running.address)

    assert client.usage() == before
    assert gauges(running)["calls_billed"] == len(before)
    assert "the audit is whole" in running.cli("audit", "verify").stdout
    entries = json.loads(running.cli("audit", "list", "--json").stdout)
    assert "node_enrolled" in {one["event"] for one in entries}
