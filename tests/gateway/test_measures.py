"""The gateway's own metrics add up with what was called, and are the same everywhere."""

from __future__ import annotations

import dataclasses

import trio

from easyremote.gateway.calls import CallState
from easyremote.gateway.gauges import gauges
from easyremote.gateway.measures import GAUGES, balance, measure
from easyremote.gateway.meter import ROUTING_EVERY
from easyremote.metrics import GatewayMetrics
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import Failure, Result

from .peers import Given, World, function

ROLES = {
    "connected_nodes": int,
    "active_functions": int,
    "requests_per_second": float,
    "node_utilization_balance": float,
    "request_routing_latency": float,
    "uptime": float,
    "error_rate": float,
    "avg_response_time": float,
}
"""What the roles of the project promise, in their order."""


def test_the_promised_fields_come_first_with_their_types() -> None:
    """A table of the class shows the promised fields, in order, and then what is more."""
    fields = dataclasses.fields(GatewayMetrics)

    assert {one.name: one.type for one in fields[: len(ROLES)]} == ROLES
    assert [one.name for one in fields[: len(ROLES)]] == list(ROLES)
    assert GatewayMetrics(1, 2, 3.0, 1.0, 0.1, 5.0, 0.0, 0.5).calls_queued == 0


async def test_outcomes_of_nodes_and_of_the_gateway_are_counted_once(world: World) -> None:
    """Results, failures and calls that the gateway settled itself add up; refused ones do not."""
    client = await world.client()
    node = await world.node("gpu-1", function("train", slots=64))
    meter = world.gateway.dispatcher.meter
    node.auto = Given.answer
    for _ in range(20):
        assert isinstance(await client.call("train").outcome(), Result)
    node.auto = lambda given: given.fail(ErrorCode.REMOTE_ERROR, maybe=True)
    assert isinstance(await client.call("train").outcome(), Failure)
    node.auto = None
    assert isinstance(await client.call("train", deadline_ms=1).outcome(), Failure)
    assert isinstance(await client.call("nothing").outcome(), Failure)
    lost = client.call("train")
    await node.wait_given(23)
    await node.goodbye()
    await lost.outcome()

    assert (meter.finished_total, meter.failed_total) == (23, 3)
    metrics = measure(world.gateway, trio.current_time())
    assert (metrics.calls_finished, metrics.calls_failed) == (23, 3)
    assert metrics.connected_nodes == metrics.active_functions == 0


async def test_only_calls_that_were_placed_at_once_have_a_routing_time(world: World) -> None:
    """One call in eight is measured; the time that a call waits is not routing."""
    client = await world.client()
    meter = world.gateway.dispatcher.meter
    node = await world.node("gpu-1", function("train", slots=200))
    node.auto = Given.answer
    for _ in range(2 * ROUTING_EVERY):
        await client.call("train").outcome()
    measured = len(meter.routing_s)
    assert measured == 2
    assert all(0.0 < one < 5.0 for one in meter.routing_s)

    node.auto = None
    await node.update(paused=True)
    other = await world.node("gpu-2", function("train", slots=1))
    probes = [client.call("train") for _ in range(8 * ROUTING_EVERY)]
    await other.wait_given()
    queued = [
        call
        for caller in world.gateway.dispatcher.callers.values()
        for call in caller.calls.values()
        if call.state is CallState.QUEUED
    ]
    assert queued
    assert len(meter.routing_s) < measured + 8
    assert len(probes) == 8 * ROUTING_EVERY


async def test_response_time_and_rate_are_those_of_the_window(world: World) -> None:
    """What is shown is what was counted in the last whole seconds, over their length."""
    client = await world.client()
    node = await world.node("gpu-1", function("train"))
    node.auto = Given.answer
    for _ in range(5):
        await client.call("train").outcome()

    later = int(trio.current_time()) + 1.5
    metrics = measure(world.gateway, later)

    assert 0.0 < metrics.requests_per_second <= 5.0
    assert metrics.error_rate == 0.0
    assert 0.0 <= metrics.avg_response_time < 5.0


async def test_balance_is_that_of_busy_slots(world: World) -> None:
    """Nothing to do is even; one of two nodes with all the work is half even."""
    client = await world.client()
    first = await world.node("gpu-1", function("train", slots=4))
    second = await world.node("gpu-2", function("other", slots=2))
    assert balance(world.gateway.registry) == 1.0

    for _ in range(2):
        client.call("train")
    await first.wait_given(2)
    assert balance(world.gateway.registry) == 0.5

    client.call("other")
    await second.wait_given()
    assert balance(world.gateway.registry) == 1.0


async def test_gauges_show_the_same_numbers(world: World) -> None:
    """`easyremote status` and `server.metrics()` cannot say different things."""
    client = await world.client()
    node = await world.node("gpu-1", function("train"))
    node.auto = Given.answer
    await client.call("train").outcome()

    seen = gauges(world.gateway)
    metrics = measure(world.gateway, trio.current_time())

    assert set(GAUGES) <= set(seen)
    assert seen["functions_active"] == metrics.active_functions == 1
    assert seen["balance"] == metrics.node_utilization_balance
    assert seen["routing_p99_s"] == metrics.request_routing_p99 > 0.0


async def test_replicas_are_those_that_nodes_say(world: World) -> None:
    """Replicas of scaled functions are shown by path, of connected nodes only."""
    await world.node("gpu-1", function("train"))
    world.gateway.registry.nodes["gpu-1"].sample = {"replicas": {"train": 3}}

    assert measure(world.gateway, trio.current_time()).replicas == {"gpu-1.train": 3}
