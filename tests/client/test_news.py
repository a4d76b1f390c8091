"""What a future shows of its call: place, time, node and cost, asked for when somebody looks."""

from __future__ import annotations

import asyncio
import queue
import time
from typing import Any

import pytest

from easyremote.client import news
from easyremote.client.client import Client
from easyremote.errors import FunctionNotFoundError, GatewayUnreachableError
from easyremote.facts import Placement
from easyremote.wire.errors import ErrorCode

from .scripted import WAIT_S, GivenCall, ScriptedGateway

QUEUED = {"state": "queued", "queue_position": 0, "eta_s": 2.5, "node_id": None, "attempt": 0}
SCORES = {"resources": 1.0, "latency": 0.5, "load": 1.0, "capability": 1.0, "total": 0.9}
PLACED: dict[str, Any] = {
    "state": "running", "queue_position": None, "eta_s": None, "node_id": "n1", "attempt": 1,
    "placement": {
        "node_id": "n1", "scores": SCORES, "at": 1.0, "excluded": {"n2": "full"},
        "weights": {"resources": 0.3, "latency": 0.2, "load": 0.3, "capability": 0.2},
    },
}  # fmt: skip
GONE = FunctionNotFoundError("no call of yours has this id")


@pytest.fixture(autouse=True)
def always_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look asks, unless a test says otherwise."""
    monkeypatch.setattr(news, "FRESH_S", 0.0)


def asked(gateway: ScriptedGateway, name: str) -> int:
    return sum(query.name == name for query in gateway.asked)


def accepted(gateway: ScriptedGateway) -> GivenCall:
    given = gateway.next_call()
    given.accept()
    return given


def until(check: Any) -> None:
    limit = time.monotonic() + WAIT_S
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_the_next_one_in_line_is_number_one(gateway: ScriptedGateway, client: Client) -> None:
    """People count from one; the protocol counts the calls before."""
    future = client.submit("f")
    accepted(gateway)
    gateway.answers["call"] = QUEUED

    assert (future.queue_position, future.eta, future.placement) == (1, 2.5, None)
    gateway.answers["call"] = {**QUEUED, "queue_position": 4}
    assert future.queue_position == 5


def test_looking_in_a_loop_is_cheap(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer serves all looks of a while, at whatever they are."""
    monkeypatch.setattr(news, "FRESH_S", 60.0)
    future = client.submit("f")
    accepted(gateway)
    gateway.answers["call"] = QUEUED

    seen = {(future.queue_position, future.eta, future.placement) for _ in range(100)}
    assert seen == {(1, 2.5, None)}
    assert asked(gateway, "call") == 1


def test_a_placement_explains_itself_and_stays_known(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Of a call that is over it is asked once more, and never again."""
    future = client.submit("f")
    given = accepted(gateway)
    gateway.answers["call"] = PLACED
    placement = future.placement

    assert placement == Placement.from_plain(PLACED["placement"], 1)
    assert "not n2: full" in str(placement)
    given.result(1)
    assert future.result(WAIT_S) == 1
    before = asked(gateway, "call")
    assert future.placement == placement
    assert (future.placement, future.queue_position, future.eta) == (placement, None, None)
    assert asked(gateway, "call") == before + 1


def test_what_the_gateway_has_forgotten_is_kept_here(
    gateway: ScriptedGateway, client: Client
) -> None:
    """The last answer outlives the call at the gateway."""
    future = client.submit("f")
    given = accepted(gateway)
    gateway.answers["call"] = PLACED
    known = future.placement
    gateway.answers["call"] = GONE
    given.result(1)
    future.result(WAIT_S)

    assert [future.placement, future.placement] == [known, known]
    assert known is not None
    assert asked(gateway, "call") == 2


def test_a_node_without_scores_is_a_placement_too(gateway: ScriptedGateway, client: Client) -> None:
    """Where nothing was compared, the node is known all the same."""
    future = client.submit("f")
    accepted(gateway)
    gateway.answers["call"] = {**PLACED, "placement": None, "attempt": 2}

    assert future.placement == Placement("n1", 2)


def test_what_cannot_be_asked_is_not_known(gateway: ScriptedGateway, client: Client) -> None:
    """Without an answer, or without a link, a look raises nothing and waits for nothing."""
    future = client.submit("f")
    accepted(gateway)
    gateway.answers["call"] = GatewayUnreachableError("no")
    assert (future.queue_position, future.placement) == (None, None)
    gateway.unreachable = GatewayUnreachableError("away")
    gateway.cut()
    until(lambda: client.session._up is None)
    before = len(gateway.asked)

    assert (future.queue_position, future.eta, future.usage) == (None, None, None)
    assert len(gateway.asked) == before
    client.close()
    assert (future.placement, future.queue_position) == (None, None)


def test_an_event_loop_stands_still_for_one_short_wait(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late answer is there for the next look; meanwhile nobody asks or waits again."""
    monkeypatch.setattr(news, "LOOP_WAIT_S", 0.01)
    future = client.submit("f")
    accepted(gateway)
    gateway.answers["call"] = QUEUED
    gateway.hold.add("call")

    async def look() -> int | None:
        return future.queue_position

    assert [asyncio.run(look()), asyncio.run(look())] == [None, None]
    until(lambda: len(gateway.held) == 1)
    gateway.let_go()
    until(lambda: future.queue_position == 1)


def test_inside_an_event_loop_one_round_trip_is_waited_for(
    gateway: ScriptedGateway, client: Client
) -> None:
    """A program of asyncio sees its place as well as one of threads does."""
    future = client.submit("f")
    accepted(gateway)
    gateway.answers["call"] = QUEUED

    async def look() -> tuple[int | None, float | None]:
        return future.queue_position, future.eta

    assert asyncio.run(look()) == (1, 2.5)


def test_the_io_thread_never_waits_for_itself(gateway: ScriptedGateway, client: Client) -> None:
    """It gets what was known before, and the answer with the next look."""
    future = client.submit("f")
    accepted(gateway)
    gateway.answers["call"] = QUEUED
    seen: queue.Queue[int | None] = queue.Queue()
    client.session.link.post(lambda: seen.put(future.queue_position))

    assert seen.get(timeout=WAIT_S) is None
    until(lambda: future.queue_position == 1)


def test_another_attempt_is_asked_for_anew(gateway: ScriptedGateway, client: Client) -> None:
    """What was known of an attempt that failed says nothing about the next one."""
    from easyremote import remote

    future = remote(function="f", retries=1)(lambda: None).options()()
    given = accepted(gateway)
    gateway.answers["call"] = PLACED
    assert future.placement is not None
    gateway.answers["call"] = QUEUED
    given.fail(ErrorCode.NO_NODE, "gone", retry_after_s=0.0)
    again = accepted(gateway)

    assert again.call.call_id != given.call.call_id
    known = [future.placement, future.queue_position]
    assert known == [None, 1]
    assert gateway.asked[-1].args == {"call_id": again.call.call_id}


def test_usage_is_what_was_measured_and_what_the_account_says(
    gateway: ScriptedGateway, client: Client
) -> None:
    """A call that nobody bills has seconds and bytes; a billed one its cost, asked for once."""
    future = client.submit("f", b"x" * 100)
    given = accepted(gateway)
    gateway.answers["call"] = PLACED
    assert future.usage is None
    given.result(b"y" * 1000, seconds=0.5)
    future.result(WAIT_S)
    usage = future.usage

    assert usage is not None
    assert (usage.function, usage.node_id, usage.user) == ("f", "n1", "alice")
    assert (usage.seconds, usage.call_id, usage.cost) == (0.5, future.id, None)
    assert usage.bytes_in > 100
    assert usage.bytes_out > 1000


def test_the_cost_comes_with_the_account(gateway: ScriptedGateway, client: Client) -> None:
    """While the account is open it is asked again; then never."""
    future = client.submit("f")
    given = accepted(gateway)
    given.result(1, seconds=0.5)
    future.result(WAIT_S)
    row = {
        "function": "f", "node_id": "n1", "call_id": given.call.call_id, "outcome": "open",
        "seconds": 0.0, "mode": "per_second",
    }  # fmt: skip
    gateway.answers["usage"] = [row]
    still_open = future.usage
    assert still_open is not None
    assert (still_open.outcome, still_open.cost, still_open.seconds) == ("open", None, 0.5)
    closed = {**row, "outcome": "ok", "cost": 0.25, "gpu_seconds": 1.0, "seconds": 0.6}
    gateway.answers["usage"] = [closed]
    usage = future.usage
    before = asked(gateway, "usage")

    assert usage is not None
    assert (usage.outcome, usage.cost, usage.gpu_seconds, usage.seconds) == ("ok", 0.25, 1.0, 0.6)
    assert usage.facts == {"mode": "per_second"}
    assert future.usage == usage
    assert asked(gateway, "usage") == before


def test_a_future_that_is_no_call_is_nowhere(client: Client) -> None:
    """What follows from other futures has no place, node or cost of its own."""
    derived = client.submit("f").then(str)

    assert (derived.queue_position, derived.eta) == (None, None)
    assert (derived.placement, derived.usage) == (None, None)
