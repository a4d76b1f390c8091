"""Why a call waits, and the gauges: what the gateway says to those who may know."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from easyremote.gateway.gauges import gauges
from easyremote.identity.role import Scopes
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import FLAG_DETACHED, Failure

from .peers import Client, World, function, new_id

COUNTED = (
    "connections", "streams", "calls_pending", "calls_queued", "calls_running", "calls_held",
    "calls_parked", "bytes_buffered", "bytes_parked", "trio_tasks",
)  # fmt: skip


async def explained(client: Client, call_id: bytes) -> dict[str, Any]:
    """Return what the gateway says of a call."""
    await trio.testing.wait_all_tasks_blocked()
    told: dict[str, Any] = await client.ask("explain", call_id=call_id)
    return told


@pytest.mark.trio
async def test_a_queued_call_hears_of_each_node_that_could_run_it(
    world: World, autojump_clock: MockClock
) -> None:
    """Busy with how many, draining, paused, lost: one row and one sentence a node."""
    busy, draining, paused, lost = [
        await world.node(name, function("f")) for name in ("busy", "draining", "paused", "lost")
    ]
    client = await world.client()
    running, waiting = new_id(), new_id()
    await draining.update(draining=True)
    await paused.update(paused=True)
    await lost.cut()
    client.call("f", call_id=running)
    await busy.wait_given()
    client.call("f", call_id=new_id())
    client.call("f", call_id=waiting)
    told = await explained(client, waiting)

    assert (told["phase"], told["state"], told["queue_position"]) == ("queued", "queued", 1)
    assert {row["node_id"]: row["state"] for row in told["places"]} == {
        "busy": "busy", "draining": "draining", "paused": "paused", "lost": "offline",
    }  # fmt: skip
    assert (told["places"][0]["busy"], told["places"][0]["slots"]) == (1, 1)
    text = " ".join(told["sentences"])
    assert "1 call waits before it" in text
    assert "busy is busy: 1 call for 1 slot" in text
    assert "draining is stopping" in text
    assert "paused is paused by its owner" in text
    assert "lost is not connected" in text


@pytest.mark.trio
async def test_only_nodes_that_the_asker_may_see_are_named(
    world: World, autojump_clock: MockClock
) -> None:
    """What is outside the scopes of a token is not mentioned, in rows or in sentences."""
    await world.node("seen", function("f"))
    await world.node("hidden", function("f"))
    client = await world.client(scopes=Scopes(nodes=("seen",)))
    client.call("f")
    waiting = new_id()
    client.call("f", call_id=waiting)
    told = await explained(client, waiting)

    assert [row["node_id"] for row in told["places"]] == ["seen"]
    assert "hidden" not in str(told)


@pytest.mark.trio
async def test_a_foreign_id_is_answered_as_one_that_does_not_exist(
    world: World, autojump_clock: MockClock
) -> None:
    """To the letter, for both questions about calls; an operator is no exception."""
    await world.node("n1", function("f"))
    owner = await world.client(user="alice")
    call_id = new_id()
    owner.call("f", call_id=call_id)
    assert (await explained(owner, call_id))["call_id"] == call_id
    for role in ("member", "operator"):
        stranger = await world.client(role, user="mallory")
        for name in ("call", "explain"):
            foreign = await stranger.ask(name, call_id=call_id)
            absent = await stranger.ask(name, call_id=new_id())

            assert isinstance(foreign, Failure)
            assert foreign.code == ErrorCode.NOT_FOUND
            assert foreign == absent


@pytest.mark.trio
async def test_a_call_at_its_node_is_followed_to_its_outcome(
    world: World, autojump_clock: MockClock
) -> None:
    """Dispatched, running, cancelling: who is waited for, and that a silent node is silent."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    call_id = new_id()
    probe = client.call("f", call_id=call_id, deadline_ms=600_000)
    given = await node.wait_given()
    told = await explained(client, call_id)
    assert (told["phase"], told["node_id"], told["attempt"]) == ("dispatched", "n1", 1)
    assert "given to n1" in told["sentences"][0]
    assert "deadline is in" in told["sentences"][-1]
    assert 599.0 < told["deadline_left_s"] <= 600.0

    assert given.stream is not None
    given.stream.started()
    await probe.until(lambda: probe.started)
    assert (await explained(client, call_id))["sentences"][0] == "It runs on n1, for 0.0 s now."
    await trio.sleep(3.0)
    told = await explained(client, call_id)
    assert told["since_s"] == pytest.approx(3.0, abs=0.1)
    assert told["sentences"][0] == "It runs on n1, for 3.0 s now."

    assert probe.stream is not None
    probe.stream.cancel(0, 60_000)
    await given.until(lambda: given.cancels)
    told = await explained(client, call_id)
    assert told["phase"] == "cancelling"
    assert "asked to stop" in told["sentences"][0]

    given.answer()
    await probe.outcome()
    assert isinstance(await client.ask("explain", call_id=call_id), Failure)


@pytest.mark.trio
async def test_bytes_that_nobody_takes_are_named(world: World, autojump_clock: MockClock) -> None:
    """Arguments that wait for the node's credit are counted."""
    node = await world.node("n1", function("f"))
    node.auto = lambda given: setattr(given, "relay", True)  # It never says `consumed`.
    client = await world.client()
    call_id = new_id()
    window = node.link.connection.settings.window_stream_bytes
    client.call("f", call_id=call_id, segments=[bytes(3 * window)])
    await node.wait_given()
    told = await explained(client, call_id)

    assert told["phase"] == "dispatched"
    assert told["bytes_waiting"]["for_node"] > 0
    assert "bytes of its arguments wait until n1 takes them" in told["sentences"][1]


@pytest.mark.trio
async def test_a_call_whose_caller_is_away_says_so(world: World, autojump_clock: MockClock) -> None:
    """The same user may ask from another link."""
    node = await world.node("n1", function("f"))
    client, other = await world.client(), await world.client()
    call_id = new_id()
    client.call("f", call_id=call_id, flags=FLAG_DETACHED)
    await node.wait_given()
    await client.cut()
    told = await explained(other, call_id)

    assert told["caller_away"]
    assert "caller has lost its link" in told["sentences"][-1]
    assert gauges(world.gateway)["calls_parked"] == 1


@pytest.mark.trio
async def test_a_call_that_is_held_after_a_restart_says_for_whom(
    world: World, autojump_clock: MockClock
) -> None:
    """How many nodes are awaited and for how long; when one is back, it runs there."""
    recovery = world.gateway.recovery
    recovery.expected.add("n1")
    client = await world.client()
    call_id = new_id()
    client.call("f", call_id=call_id)
    told = await explained(client, call_id)

    assert (told["phase"], told["state"]) == ("held", "queued")
    assert "restarted" in told["sentences"][0]
    assert "waits for 1 node, for 20 s at most" in told["sentences"][0]
    seen = gauges(world.gateway)
    assert (seen["calls_held"], seen["nodes_awaited"], seen["calls_pending"]) == (1, 1, 1)

    node = await world.node("n1", function("f"))
    await node.wait_given()
    assert (await explained(client, call_id))["phase"] == "dispatched"
    assert gauges(world.gateway)["calls_held"] == 0


@pytest.mark.trio
async def test_gauges_return_to_where_they_were(world: World, autojump_clock: MockClock) -> None:
    """What calls and clients take shows, and is gone when they are."""
    node = await world.node("n1", function("f"))
    before = gauges(world.gateway)
    client = await world.client()
    probes = [client.call("f") for _ in range(3)]
    await node.wait_given()
    busy = gauges(world.gateway)
    assert busy["calls_pending"] == 3
    assert (busy["calls_running"], busy["calls_queued"]) == (1, 2)
    assert busy["connections"] == before["connections"] + 1
    assert busy["streams"] > before["streams"]

    node.auto = lambda given: given.answer()
    node.given[0].answer()
    for probe in probes:
        await probe.outcome()
    await client.goodbye()
    await trio.testing.wait_all_tasks_blocked()
    after = gauges(world.gateway)
    for name in COUNTED:
        assert after[name] == before[name], name
    assert after["calls_total"] == before["calls_total"] + 3


@pytest.mark.trio
async def test_nodes_say_when_they_were_heard(world: World, autojump_clock: MockClock) -> None:
    """Seconds since the last sign of life, and what is left of the lease; none for the lost."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    (row,) = await client.ask("nodes")
    lease_s = world.gateway.limits.link.lease_s
    assert 0.0 <= row["last_heard_s"] < lease_s
    assert row["last_heard_s"] + row["lease_left_s"] == pytest.approx(lease_s)
    assert (row["draining"], row["paused"], row["busy"]) == (False, False, 0)

    await node.cut()
    await trio.sleep(7.0)
    (row,) = await client.ask("nodes")
    assert row["lease_left_s"] == 0.0
    assert row["last_heard_s"] >= 7.0
    assert row["health"] == "offline"


@pytest.mark.trio
async def test_a_stub_names_no_more_nodes_than_a_call(
    world: World, autojump_clock: MockClock
) -> None:
    """Each name is looked for among the labels of all nodes, so there are not many."""
    await world.node("n1", function("f"))
    client = await world.client("viewer", "vera")
    answer = await client.ask("resolve", function="f", node_ids=["x"] * 257)

    assert isinstance(answer, Failure)
    assert answer.code == ErrorCode.BAD_ARGUMENT


async def test_a_placement_is_of_a_call_of_the_asker(
    world: World, autojump_clock: MockClock
) -> None:
    """Two users may have calls of one id, and neither sees where the other's went."""
    await world.node("mine", function("f"), user="alice")
    await world.node("theirs", function("g"), user="bob")
    alice, bob = await world.client(user="alice"), await world.client(user="bob")
    call_id = new_id()
    alice.call("f", call_id=call_id)
    await trio.testing.wait_all_tasks_blocked()
    bob.call("g", call_id=call_id)
    await trio.testing.wait_all_tasks_blocked()
    shown = [
        (await client.ask("call", call_id=call_id))["placement"]["node_id"]
        for client in (alice, bob)
    ]

    assert shown == ["mine", "theirs"]
