"""Relaying bulk: verbatim, with back-pressure passed on, and every byte credited once."""

from __future__ import annotations

import hashlib
import random

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import Failure, Item, ItemsEnd, Result

from .peers import Client, Given, Node, Probe, World, function

pytestmark = pytest.mark.trio

MIB = 1024 * 1024
SIZE = 24 * MIB


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


def assert_credit_is_whole(world: World) -> None:
    """Every byte that the gateway received on its links has been credited."""
    for session in world.gateway.sessions:
        inflow = session.link.connection.inflow
        assert inflow.consumed == inflow.received
    assert world.gateway.status()["bytes_buffered"] == 0


async def pair(world: World) -> tuple[Client, Node]:
    node = await world.node("n1", function("f", slots=64))
    return await world.client(), node


async def test_large_array_passes_in_bounded_memory(
    world: World, autojump_clock: MockClock
) -> None:
    """Bytes arrive unchanged and in order while the gateway holds no more than a window."""
    client, node = await pair(world)
    data = random.Random(1).randbytes(SIZE)
    call = client.call("f", segments=[data])
    most = 0
    with trio.fail_after(60):
        while not (node.given and sum(map(len, node.given[0].data)) == SIZE):
            most = max(most, world.gateway.dispatcher.bytes_buffered())
            await trio.lowlevel.checkpoint()
    given = node.given[0]

    assert hashlib.sha256(b"".join(given.data)).digest() == hashlib.sha256(data).digest()
    assert most <= 16 * MIB

    given.answer()
    await call.outcome()
    await settle()
    assert_credit_is_whole(world)


async def test_stalled_caller_holds_back_its_node_and_nobody_else(
    world: World, autojump_clock: MockClock
) -> None:
    """A result that nobody reads stops at one window; other calls of the node go on."""
    client, node = await pair(world)
    call = client.call("f", stalled=True)
    given = await node.wait_given()
    given.say(Result(0, 0.1, None, [SIZE]), [memoryview(bytes(SIZE))], end=True)
    await settle()
    held = world.gateway.dispatcher.bytes_buffered()

    assert sum(map(len, call.data)) <= MIB
    assert held <= 2 * MIB

    other = await world.client(user="bob")
    second = other.call("f")
    (await node.wait_given(2)).answer(b"fast")

    assert (await second.outcome()).body == b"fast"


async def test_stalled_callers_cannot_use_up_a_nodes_link(
    world: World, autojump_clock: MockClock
) -> None:
    """More stalled results than the window of a link holds still leave it usable for others."""
    client, node = await pair(world)
    for _ in range(24):
        client.call("f", stalled=True)
    for index in range(24):
        given = await node.wait_given(index + 1)
        given.say(Result(0, 0.1, None, [2 * MIB]), [memoryview(bytes(2 * MIB))], end=True)
    await settle()
    second = (await world.client(user="bob")).call("f")
    given = await node.wait_given(25)
    given.say(Result(0, 0.1, None, [MIB // 2]), [memoryview(bytes(MIB // 2))], end=True)

    assert isinstance(await second.outcome(), Result)


async def test_waiting_calls_with_large_arguments_do_not_block_small_ones(
    world: World, autojump_clock: MockClock
) -> None:
    """Arguments of calls that wait for a slot do not use up their client's link."""
    await world.node("n1", function("busy"))
    free = await world.node("n2", function("f", slots=4))
    client = await world.client()
    for _ in range(24):
        client.call("busy", segments=[bytes(2 * MIB)])
    await settle()
    call = client.call("f", segments=[bytes(MIB // 2)])
    given = await free.wait_given()
    await given.until(lambda: sum(map(len, given.data)) == MIB // 2)
    given.answer(b"small")

    assert (await call.outcome()).body == b"small"


async def test_caller_that_vanishes_inside_a_result_returns_the_nodes_credit(
    world: World, autojump_clock: MockClock
) -> None:
    """What was on its way to a lost caller is dropped, and its credit comes back."""
    client, node = await pair(world)
    client.call("f", stalled=True)
    given = await node.wait_given()
    given.say(Result(0, 0.1, None, [SIZE]), [memoryview(bytes(SIZE))], end=True)
    await settle()
    await client.cut()
    await given.until(lambda: given.reset)
    await settle()
    assert_credit_is_whole(world)
    assert world.gateway.status()["calls_running"] == 0


async def test_caller_that_vanishes_inside_its_arguments_gives_the_call_up(
    world: World, autojump_clock: MockClock
) -> None:
    """Half of a request is never passed off as a whole one: the node's stream is reset."""
    client, node = await pair(world)
    node_streams: list[Given] = node.given
    call = client.call("f", segments=[bytes(SIZE)])
    with trio.fail_after(60):
        while not (node_streams and node_streams[0].data):
            await trio.lowlevel.checkpoint()
    client.memory.cut()
    given = node_streams[0]
    await given.until(lambda: given.reset)
    await settle()

    assert sum(map(len, given.data)) < SIZE
    assert call.lost is not None
    assert_credit_is_whole(world)
    assert world.gateway.status()["calls_running"] == 0


async def test_refused_call_swallows_its_arguments(world: World, autojump_clock: MockClock) -> None:
    """Arguments of a call that was refused are dropped and credited; the link stays usable."""
    client, node = await pair(world)
    call = client.call("nowhere", segments=[bytes(3 * MIB)])
    outcome = await call.outcome()
    await settle()

    assert isinstance(outcome, Failure)
    assert outcome.code == ErrorCode.NOT_FOUND
    assert_credit_is_whole(world)

    again = client.call("f")
    (await node.wait_given()).answer()

    assert isinstance(await again.outcome(), Result)


async def test_deadline_inside_the_arguments(world: World, autojump_clock: MockClock) -> None:
    """A deadline that passes while arguments still come frees the node and drops the rest."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    blocker = client.call("f")
    first = await node.wait_given()
    probe: Probe = client.call("f", segments=[bytes(8 * MIB)], deadline_ms=500)
    outcome = await probe.outcome()
    await settle()

    assert (outcome.code, outcome.maybe_executed) == (ErrorCode.DEADLINE, False)
    assert_credit_is_whole(world)

    first.answer()
    assert isinstance(await blocker.outcome(), Result)


async def test_caller_that_takes_nothing_is_given_up(
    world: World, autojump_clock: MockClock
) -> None:
    """A result that its caller leaves untouched for a minute is dropped, on both links."""
    client, node = await pair(world)
    call = client.call("f", stalled=True)
    given = await node.wait_given()
    given.say(Result(0, 0.1, None, [SIZE]), [memoryview(bytes(SIZE))], end=True)
    began = trio.current_time()
    await call.until(lambda: call.reset)
    await settle()

    assert call.reset is not None
    assert call.reset[0] == ErrorCode.STALLED
    assert 59 <= trio.current_time() - began <= 63
    assert given.reset is not None
    assert world.gateway.status()["bytes_buffered"] == 0
    assert world.gateway.dispatcher.buffers.used_bytes == 0


async def test_stream_credit_waits_until_the_caller_has_taken_its_outcome(
    world: World, autojump_clock: MockClock
) -> None:
    """Outcomes that nobody takes keep the stream credit that they cost."""
    client, node = await pair(world)
    call = client.call("f", stalled=True)
    given = await node.wait_given()
    size = MIB + MIB // 2
    given.say(Result(0, 0.1, None, [size]), [memoryview(bytes(size))], end=True)
    given.release()
    await settle()
    session = next(one for one in world.gateway.sessions if one.node is None)

    taken = sum(map(len, call.data))
    assert taken < size
    assert world.gateway.status()["calls_pending"] == 0
    assert session.link.connection.streams_in.released == 0

    assert call.stream is not None
    call.stream.consumed(taken)
    await settle()

    assert sum(map(len, call.data)) == size
    assert session.link.connection.streams_in.released == 1


async def test_streamed_arguments_wait_with_their_call(
    world: World, autojump_clock: MockClock
) -> None:
    """What a caller streams before its call has a node arrives there, whole and in order."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    blocker = client.call("f")
    first = await node.wait_given()
    call = client.call("f", end=False)
    assert call.stream is not None
    items = [b"%d" % number * 1000 for number in range(50)]
    for item in items:
        call.stream.send(Item(1, 0, item, []))
    call.stream.send(Item(1, 0, None, [300_000]), [memoryview(bytes(300_000))])
    call.stream.send(ItemsEnd(1, None), end=True)
    await settle()
    assert world.gateway.dispatcher.bytes_buffered() > 300_000
    first.answer(seconds=9.0)
    assert isinstance(await blocker.outcome(), Result)
    given = await node.wait_given(2)
    await given.until(lambda: given.ended)

    assert [m.body for m in given.messages if isinstance(m, Item)] == [*items, None]
    assert sum(map(len, given.data)) == 300_000

    given.answer()
    assert isinstance(await call.outcome(), Result)
    await settle()
    assert_credit_is_whole(world)


async def test_what_a_caller_says_after_the_outcome_is_dropped(
    world: World, autojump_clock: MockClock
) -> None:
    """Items that cross the outcome are credited and go nowhere."""
    client, node = await pair(world)
    call = client.call("f", end=False)
    given = await node.wait_given()
    assert call.stream is not None
    given.answer()
    call.stream.send(Item(1, 0, b"late", []))
    await call.outcome()
    call.stream.send(Item(1, 0, None, [200_000]), [memoryview(bytes(200_000))])
    call.stream.send(ItemsEnd(1, None), end=True)
    await given.until(lambda: given.ended)
    await settle()

    assert not [message for message in given.messages if isinstance(message, ItemsEnd)]
    assert_credit_is_whole(world)
