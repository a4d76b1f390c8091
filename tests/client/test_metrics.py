"""What a client measures of its own calls: counts that are exact, and what follows from them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from easyremote import Future, TaskCancelledError, remote
from easyremote.client import tally as tally_module
from easyremote.client.call import OutgoingCall
from easyremote.client.client import Client
from easyremote.errors import GatewayUnreachableError
from easyremote.metrics import CLIENT_FEATURES, ClientMetrics
from easyremote.wire.errors import ErrorCode

from .scripted import WAIT_S, GivenCall, ScriptedGateway

ROLES: list[tuple[str, Any]] = [
    ("functions_called", int),
    ("avg_call_frequency", float),
    ("preferred_node_types", list[str]),
    ("avg_response_time", float),
    ("success_rate", float),
    ("cost_efficiency", float),
    ("retry_rate", float),
    ("feature_adoption", float),
]


def f(*args: Any) -> Any:
    """A stub."""
    raise NotImplementedError


def until(check: Callable[[], bool]) -> None:
    limit = time.monotonic() + WAIT_S
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.001)


def answer(given: GivenCall) -> None:
    """Fail if asked to, else give back what came."""
    (value,), _ = given.arguments
    if value == "fail":
        given.fail(ErrorCode.NOT_FOUND, "no")
    elif value == "again" and not given.call.options.get("attempt"):
        given.fail(ErrorCode.NO_NODE, "no", retry_after_s=0.0)
    else:
        given.result(value)


def test_the_fields_are_those_of_the_role_in_its_order() -> None:
    """Name, order and class of each; what is more stands behind and has a default."""
    found = [(one.name, one.type) for one in fields(ClientMetrics)]

    assert [name for name, _ in found[: len(ROLES)]] == [name for name, _ in ROLES]
    assert [str(kind).replace("typing.List", "list") for _, kind in found[: len(ROLES)]] == [
        str(kind) for _, kind in ROLES
    ]
    assert [kind for _, kind in found if kind in (int, float)] == [int] + [float] * 6


def test_a_client_that_has_done_nothing_has_defined_values(client: Client) -> None:
    """Rates of nothing are no division by zero."""
    found = client.metrics()

    assert found == ClientMetrics(0, 0.0, [], 0.0, 1.0, None, 0.0, 0.0)  # type: ignore[arg-type]


def test_calls_outcomes_and_attempts_are_counted(gateway: ScriptedGateway, client: Client) -> None:
    """Two that succeed, one of them after an attempt that failed; one that fails; one under way."""
    gateway.auto = answer
    done = [client.submit("f", value) for value in ("ok", "fail")]
    done.append(remote(function="f", retries=1)(f)("again"))
    outcomes = [future.exception(WAIT_S) for future in done]
    gateway.auto = None
    client.submit("f", "later")
    gateway.next_call()
    found = client.metrics()

    assert [outcome is None for outcome in outcomes] == [True, False, True]
    assert found.functions_called == 4
    assert found.success_rate == pytest.approx(2 / 3)
    assert found.retry_rate == 0.25
    assert found.avg_call_frequency > 0.0
    assert 0.0 < found.avg_response_time < WAIT_S


def test_a_call_that_was_cancelled_neither_succeeded_nor_failed(
    gateway: ScriptedGateway, client: Client
) -> None:
    """It was called, and that is all."""
    future = client.submit("f", 1)
    given = gateway.next_call()
    assert future.cancel()
    given.next("cancel")
    given.fail(ErrorCode.CANCELLED)
    with pytest.raises(TaskCancelledError):
        future.result(WAIT_S)
    until(lambda: client.metrics().features_used == ["cancel"])
    found = client.metrics()

    assert (found.functions_called, found.success_rate, found.avg_response_time) == (1, 1.0, 0.0)
    assert found.features_used == ["cancel"]


def test_a_call_that_ends_while_somebody_looks_is_counted_once(
    gateway: ScriptedGateway, client: Client
) -> None:
    """It was among those under way when the look began, and is among the ended ones now."""
    future, session = client.submit("f", 1), client.session
    seen = [one for one in session.unsettled if isinstance(one, OutgoingCall)]
    gateway.next_call().result(1)
    assert future.result(WAIT_S) == 1

    assert len(seen) == 1
    assert session.tally.metrics(session, seen).functions_called == 1


def test_calls_of_another_program_are_not_ours(gateway: ScriptedGateway, client: Client) -> None:
    """Whoever waits for a call that was made before has not called anything."""
    future = Future.from_id(bytes(16).hex())
    gateway.next_call().result(1)
    assert future.result(WAIT_S) == 1
    found = client.metrics()

    assert found.functions_called == 0
    assert found.features_used == ["reattach"]


def test_node_types_come_from_the_nodes_that_served(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Most used first; each call is asked about once, also when the first question found nobody."""
    gateway.auto = answer
    gateway.answers["served"] = GatewayUnreachableError("no")
    first = client.submit("f", 1)
    first.result(WAIT_S)
    assert client.metrics().preferred_node_types == []
    gateway.answers["served"] = [
        {"node_id": "n1", "calls": 1, "specialization": ["chess", "art"]},
        {"node_id": "n2", "calls": 2, "specialization": ["training"]},
    ]
    second = client.submit("f", 2)
    second.result(WAIT_S)

    assert client.metrics().preferred_node_types == ["training", "art", "chess"]
    told = [query.args for query in gateway.asked if query.name == "served"][-1]
    assert told == {"call_ids": [bytes.fromhex(first.id), bytes.fromhex(second.id)]}
    before = len(gateway.asked)
    assert client.metrics().preferred_node_types == ["training", "art", "chess"]
    assert len(gateway.asked) == before


def test_efficiency_is_successes_per_cost_of_closed_accounts(
    gateway: ScriptedGateway, client: Client
) -> None:
    """What is still open is asked again; free calls have no efficiency."""
    gateway.auto = answer
    ids = []
    for value in ("a", "fail", "b"):
        future = client.submit("f", value)
        future.exception(WAIT_S)
        ids.append(bytes.fromhex(future.id))
    rows = [
        {"call_id": ids[0], "outcome": "ok", "cost": 0.5},
        {"call_id": ids[1], "outcome": "raised", "cost": 0.25},
        {"call_id": ids[2], "outcome": "open", "cost": 0.0},
    ]
    gateway.answers["usage"] = rows
    assert client.metrics().cost_efficiency == pytest.approx(1 / 0.75)
    gateway.answers["usage"] = [{**rows[2], "outcome": "ok", "cost": 0.25}]
    assert client.metrics().cost_efficiency == pytest.approx(2.0)
    assert gateway.asked[-1].args == {"call_ids": [ids[2]]}
    gateway.answers["usage"] = GatewayUnreachableError("no")
    client.submit("f", "c").result(WAIT_S)
    assert client.metrics().cost_efficiency == pytest.approx(2.0)
    gateway.answers["usage"] = []
    assert client.metrics().cost_efficiency == pytest.approx(3.0)


def test_only_the_latest_calls_are_asked_about(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is never asked keeps no list without end."""
    monkeypatch.setattr(tally_module, "FOLD_AT", 2)
    gateway.auto = answer
    futures = [client.submit("f", n) for n in range(5)]
    assert [future.result(WAIT_S) for future in futures] == list(range(5))

    tally = client.session.tally
    assert tally._ended.maxlen == tally._unbooked.maxlen == tally_module.ENDED_MAX
    assert len(tally._fresh) < 2
    assert client.metrics().functions_called == 5


def test_features_are_counted_by_their_published_names(
    gateway: ScriptedGateway, client: Client
) -> None:
    """What a client uses is a part of the list; asking for the metrics uses nothing."""
    gateway.auto = lambda given: given.result(1)
    remote(
        node_id="n", capability="x", prefer={"y": 1}, num_cpus=1, priority=1, scaling="auto",
        load_balancing="latency", timeout=5, retries=1, detached=True,
    )(f)().result(WAIT_S)  # fmt: skip
    future = client.submit("g", np.zeros(100_000))
    future.result(WAIT_S)
    client.submit("g", iter([1])).result(WAIT_S)
    client.stream("g").close()
    assert (future.placement, future.progress) == (None, None)
    client.nodes()
    client.quota()
    client.why_waiting(future)
    found = client.metrics()

    assert set(CLIENT_FEATURES) - set(found.features_used) == {"reattach"}
    assert found.feature_adoption == pytest.approx(1 - 1 / len(CLIENT_FEATURES))
    assert client.metrics().features_used == found.features_used
    assert set(tally_module.OPTIONS.values()) <= set(CLIENT_FEATURES)
