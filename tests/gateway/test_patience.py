"""The loss of a client with many calls: told in turns, and to nobody who asks too late."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from easyremote.gateway.calls import CallState, GatewayCall
from easyremote.loss import STREAMS_PER_TURN
from easyremote.scheduler.pending import PendingQueue
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import Failure, Result

from .peers import Client, Node, Probe, World, function, new_id, open_world

CALLS = 200


class Lost:
    """A client that has just lost its link, with calls that were not told so yet.

    Attributes:
        token: With which it may come back.
        node: Has all of its calls.
        ids: Of its calls.
        go_on: Lets the others be told; until then nobody is who does not ask.
    """

    def __init__(self, token: str, node: Node, ids: list[bytes], go_on: Callable[[], None]) -> None:
        self.token = token
        self.node = node
        self.ids = ids
        self.go_on = go_on


async def lose_client(world: World, deadline_ms: int | None = None) -> Lost:
    """Let a client make many calls and lose its link; return before all of it was told."""
    token = world.token("member", "alice")
    node = await world.node("n1", function("f", slots=CALLS))
    client = await world.client(token=token)
    ids = [new_id() for _ in range(CALLS)]
    for call_id in ids:
        client.call("f", call_id=call_id, deadline_ms=deadline_ms)
    await node.wait_given(CALLS)
    await trio.testing.wait_all_tasks_blocked()
    lane = world.gateway.dispatcher.caller("alice").lane
    await lane.acquire()
    client.memory.cut()
    await trio.testing.wait_all_tasks_blocked()
    assert untold(world) == CALLS - STREAMS_PER_TURN
    return Lost(token, node, ids, lane.release)


def untold(world: World) -> int:
    """Return how many streams of clients were not told that their link is lost."""
    losses = [one.link.loss for one in world.gateway.sessions if one.node is None]
    return sum(len(loss.untold) for loss in losses if loss is not None)


def calls_of(world: World) -> dict[bytes, GatewayCall]:
    return world.gateway.dispatcher.callers["alice"].calls


async def fetch(client: Client, lost: Lost) -> list[Probe]:
    """Submit all calls again and wait until each is over."""
    probes = [client.call("f", call_id=call_id) for call_id in lost.ids]
    for probe in probes:
        await probe.outcome()
    return probes


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    """Return the folder of a gateway."""
    return tmp_path / "state"


async def test_a_client_with_many_calls_is_lost_in_turns(
    folder: Path, autojump_clock: MockClock
) -> None:
    """No turn of the loop tells all of them, and in the end each call waits for its caller."""
    async with open_world(folder) as world:
        (await lose_client(world)).go_on()
        left = [untold(world)]
        with trio.fail_after(60):
            while left[-1]:
                await trio.lowlevel.checkpoint()
                left.append(untold(world))
        steps = [before - after for before, after in itertools.pairwise(left)]
        assert max(steps) <= 2 * STREAMS_PER_TURN  # Tasks of one pass run in any order.
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.gateway.dispatcher.parking) == CALLS
        assert all(call.up is None for call in calls_of(world).values())
        assert len(world.gateway.sessions) == 1


async def test_an_outcome_in_between_is_kept_for_its_caller(
    folder: Path, autojump_clock: MockClock
) -> None:
    """A node answers a call whose stream was not told of the loss: the result is not lost."""
    async with open_world(folder) as world:
        lost = await lose_client(world)
        for given in lost.node.given:
            given.answer()
        await trio.testing.wait_all_tasks_blocked()
        assert not untold(world)
        lost.go_on()
        client = await world.client(token=lost.token)
        probes = await fetch(client, lost)
        assert all(isinstance(probe.messages[-1], Result) for probe in probes)
        assert not calls_of(world)


async def test_an_outcome_of_the_gateway_in_between_is_kept_for_its_caller(
    folder: Path, autojump_clock: MockClock
) -> None:
    """A deadline passes before the stream was told of the loss: the caller hears that later."""
    async with open_world(folder) as world:
        lost = await lose_client(world, deadline_ms=60_000)
        for call in list(calls_of(world).values()):
            world.gateway.dispatcher._expire(call)
        assert not untold(world)
        lost.go_on()
        await trio.testing.wait_all_tasks_blocked()
        client = await world.client(token=lost.token)
        for probe in await fetch(client, lost):
            failure = probe.messages[-1]
            assert isinstance(failure, Failure)
            assert failure.code == ErrorCode.DEADLINE


async def test_who_is_back_before_its_loss_was_told_has_its_calls(
    folder: Path, autojump_clock: MockClock
) -> None:
    """The old streams are told later, and disturb nothing."""
    async with open_world(folder) as world:
        lost = await lose_client(world)
        client = await world.client(token=lost.token)
        probes = [client.call("f", call_id=call_id) for call_id in lost.ids]
        await trio.testing.wait_all_tasks_blocked()
        assert untold(world)
        lost.go_on()
        await trio.testing.wait_all_tasks_blocked()
        assert not untold(world)
        assert {call.state for call in calls_of(world).values()} == {CallState.DISPATCHED}
        for given in lost.node.given:
            given.answer()
        for probe in probes:
            assert isinstance(await probe.outcome(), Result)


async def test_a_gateway_that_stops_tells_everybody(
    folder: Path, autojump_clock: MockClock
) -> None:
    """A session that is cancelled in the middle of it leaves no stream untold."""
    async with open_world(folder) as world:
        await lose_client(world)
        sessions = [one for one in world.gateway.sessions if one.node is None]
        assert sessions
        world.nursery.cancel_scope.cancel()
    for session in sessions:
        assert session.link.loss is not None
        assert not session.link.loss.untold
        assert not session.welcomed


async def test_the_loss_of_a_node_does_not_search_the_queue_for_each_of_its_calls(
    folder: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that wait stay where they are while the places of a lost node become free."""
    async with open_world(folder) as world:
        node = await world.node("n1", function("f", slots=50))
        client = await world.client()
        for _ in range(CALLS):
            client.call("f")
        await trio.testing.wait_all_tasks_blocked()
        assert len(node.given) < CALLS
        waiting = world.gateway.dispatcher.placer.queued
        assert waiting
        taken: list[GatewayCall] = []
        leave = PendingQueue.leave

        def counted(queue: PendingQueue[GatewayCall], call: GatewayCall) -> None:
            taken.append(call)
            leave(queue, call)

        monkeypatch.setattr(PendingQueue, "leave", counted)
        await node.cut()
        assert world.gateway.dispatcher.placer.queued >= waiting
        assert not taken
