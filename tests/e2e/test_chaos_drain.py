"""Stopping on purpose: SIGTERM loses no running call, and rolling restarts are not noticed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from easyremote import Client, OverloadedError
from tests.chaos.stage import LIMIT_S, Stage, on_stage, until
from tests.chaos.world import Role

pytestmark = pytest.mark.slow

LEASE_S = 3.0
RUNS_S = 1.5
"""Bodies run so long: far less than DRAIN (30 s)."""
ROUNDS = 2
RATE = 25.0


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A gateway and two nodes: `by-command` under `easyremote node`, `by-script` by itself."""
    with on_stage(tmp_path_factory.mktemp("drain"), LEASE_S) as made:
        made.start_node("by-command", by_command=True)
        made.start_node("by-script", by_command=False)
        yield made


@pytest.mark.parametrize(
    ("node_id", "role"),
    [
        ("by-command", Role.AGENT),
        ("by-command", Role.WORKER),
        ("by-script", Role.AGENT),
        ("by-script", Role.WORKER),
    ],
)
def test_a_node_that_is_told_to_stop_finishes_its_calls(
    stage: Stage, node_id: str, role: Role
) -> None:
    """Async, sync and isolated bodies return their results; new calls go elsewhere meanwhile."""
    keys = {name: f"{node_id}-{role}-{name}" for name in ("nap", "work", "alone")}
    running = {
        name: stage.client.submit(f"{node_id}.{name}", key, RUNS_S) for name, key in keys.items()
    }
    for key in keys.values():
        stage.wait_begun(key)
    stage.hit(role, node_id, signal.SIGTERM)
    until(lambda: stage.health(node_id) != "healthy", what="the drain")
    elsewhere = stage.client.submit("nap", f"{node_id}-{role}-new", 0.0)

    assert elsewhere.result(LIMIT_S) == f"{node_id}-{role}-new"
    assert stage.marks(f"{node_id}-{role}-new")[0].node_id != node_id
    for name, key in keys.items():
        assert running[name].result(LIMIT_S) == key
    assert stage.world.wait_gone(node_id, LIMIT_S) == []
    stage.start_node(node_id, by_command=stage.nodes[node_id])


def test_a_gateway_that_is_told_to_stop_delivers_what_runs(stage: Stage) -> None:
    """Running calls return their results, new ones are refused unstarted; then it ends."""
    running = [
        stage.client.submit(f"{node_id}.nap", f"gateway-{node_id}", RUNS_S)
        for node_id in stage.nodes
    ]
    for node_id in stage.nodes:
        stage.wait_begun(f"gateway-{node_id}")
    stage.hit(Role.GATEWAY, "gateway", signal.SIGTERM)
    until(lambda: "signal name=SIGTERM" in stage.log("gateway"), what="the gateway's drain")
    late = stage.client.submit("nap", "late", 0.0)

    error = late.exception(LIMIT_S)
    assert isinstance(error, OverloadedError) and not error.may_have_run
    assert [future.result(LIMIT_S) for future in running] == [
        f"gateway-{node_id}" for node_id in stage.nodes
    ]
    assert stage.world.wait_gone("gateway", LIMIT_S) == []
    assert stage.marks("late") == []
    stage.start_gateway()
    for node_id in stage.nodes:
        stage.wait_healthy(node_id)


def test_rolling_restarts_are_not_noticed(stage: Stage) -> None:
    """A client that calls all the time gets the result of every call, and each runs once."""
    stop = threading.Event()
    futures: dict[str, Any] = {}

    def call_all_the_time(client: Client) -> None:
        while not stop.wait(1.0 / RATE):
            key = f"rolling-{len(futures)}"
            futures[key] = client.submit("nap", key, 0.2)

    with Client(stage.world.address) as client:
        thread = threading.Thread(target=call_all_the_time, args=(client,))
        thread.start()
        try:
            for _ in range(ROUNDS):
                for node_id, by_command in list(stage.nodes.items()):
                    stage.hit(Role.AGENT, node_id, signal.SIGTERM)
                    assert stage.world.wait_gone(node_id, LIMIT_S) == []
                    stage.start_node(node_id, by_command=by_command)
        finally:
            stop.set()
            thread.join()

        assert len(futures) > ROUNDS * len(stage.nodes)
        for key, future in futures.items():
            assert future.result(LIMIT_S) == key
            assert len(stage.marks(key)) == 1
