"""Peers of bad will at the gateway: what each of them may cost it, and others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import trio
import trio.testing
from trio.testing import MockClock

from easyremote.gateway.calls import CallInput, CallState
from easyremote.gateway.limits import GatewayLimits
from easyremote.gateway.timers import SWEEP_FROM, Timers
from easyremote.values import plain
from easyremote.wire.errors import ErrorCode
from easyremote.wire.frame import FrameType, pack
from easyremote.wire.message import (
    CODEC_PLAIN,
    Call,
    Item,
    Kind,
    Register,
    Result,
    Telemetry,
    Update,
    encode,
)

from .peers import Client, Node, Probe, World, function, new_id, open_world


def half_call(
    client: Client, name: str, segments: list[int], *, sent_bytes: int, slices: int = 1
) -> Probe:
    """A call that announces segments and sends no more than a part of them."""
    message = Call(new_id(), name, None, {}, None, 0, 0, b"", None, segments)
    probe = Probe()
    stream = client.link.open_encoded(Kind.CALL, encode(message), handler=probe, more=True)
    probe.stream = stream
    size = sent_bytes // slices
    for _ in range(slices):
        if size:
            stream.forward_data(memoryview(bytearray(16 + size)), last=False, end=False)
    return probe


def test_timers_of_settled_calls_do_not_pile_up() -> None:
    """Whoever cancels with an hour of grace keeps nothing in memory once the call is over."""

    class Some:
        state = CallState.SETTLED

    told: list[object] = []
    timers = Timers(lambda call, what: told.append((call, what)))
    running = Some()
    running.state = CallState.STARTED
    timers.at(9.0, running, CallInput.EXPIRE)  # type: ignore[arg-type]
    for _ in range(100_000):
        timers.at(3600.0, Some(), CallInput.GIVE_UP)  # type: ignore[arg-type]

    assert len(timers) <= 2 * SWEEP_FROM
    timers.fire(9.0)
    assert told == [(running, CallInput.EXPIRE)]


# ---- what is half said ---------------------------------------------------------------------------


async def quiet_for(seconds: float) -> None:
    """Let virtual time pass, so that whoever keeps house has looked."""
    await trio.sleep(seconds)
    await trio.testing.wait_all_tasks_blocked()


async def test_a_call_that_stops_inside_an_array_is_given_up(
    world: World, autojump_clock: MockClock
) -> None:
    """Its node's slot is free a minute later, and its caller is told why."""
    node = await world.node("n", function("f"))
    client = await world.client()
    half = half_call(client, "f", [100_000, 1 << 30], sent_bytes=50_000)
    given = await node.wait_given()
    await quiet_for(50)
    assert half.reset is None

    await half.until(lambda: half.reset)
    await given.until(lambda: given.reset)

    assert half.reset is not None
    assert half.reset[0] == ErrorCode.STALLED
    assert world.gateway.status()["calls_running"] == 0
    assert world.gateway.dispatcher.buffers.held_bytes == 0


async def test_a_queued_call_that_waits_with_a_full_window_is_not_given_up(
    world: World, autojump_clock: MockClock
) -> None:
    """Whoever cannot send because nobody takes it up is not to blame."""
    await world.node("n", function("f"))
    client = await world.client()
    client.call("f")
    waits = client.call("f", segments=[bytes(4 << 20)])
    await quiet_for(200)

    assert waits.reset is None
    assert not waits.ended
    assert world.gateway.status()["calls_queued"] == 1


async def test_a_node_that_stops_inside_its_answer_loses_the_call(
    world: World, autojump_clock: MockClock
) -> None:
    """The caller hears of it within a bounded time, though the node is alive and pings."""
    node = await world.node("n", function("f"))
    client = await world.client()
    probe = client.call("f")
    given = await node.wait_given()
    assert given.stream is not None
    result = Result(CODEC_PLAIN, 0.1, None, [1 << 20])
    connection = node.link.connection
    connection.send(given.stream.stream_id, Kind.RESULT, encode(result), more=True)
    connection.forward_data(
        given.stream.stream_id, memoryview(bytearray(16 + 1000)), last=False, end=False
    )
    node.world.outbox.mark(node.link)

    await probe.until(lambda: probe.reset)

    assert probe.reset is not None
    assert probe.reset[0] == ErrorCode.NODE_LOST
    assert world.gateway.dispatcher.buffers.held_bytes == 0
    assert not node.over.is_set()


# ---- memory --------------------------------------------------------------------------------------


async def test_one_user_fills_its_own_share_and_nobody_elses(
    home: Path, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Whoever holds most is refused first; another user's calls go on as before."""
    limits = GatewayLimits(buffered_bytes_max=8 << 20, user_bytes_max=2 << 20)
    async with open_world(tmp_path / "state", limits) as world:
        node = await world.node("n", function("f"), function("g", group="other"))
        mallory = await world.client(user="mallory")
        stuck = [mallory.call("f", segments=[bytes(4 << 20)]) for _ in range(20)]
        await quiet_for(1)
        buffers = world.gateway.dispatcher.buffers
        assert buffers.used_bytes <= 2 << 20
        refused = await mallory.call("f").outcome()
        assert refused.code == ErrorCode.OVERLOADED

        node.auto = lambda given: given.answer() if given.dispatch.function == "g" else None
        bob = await world.client(user="bob")
        assert isinstance(await bob.call("g").outcome(), Result)

        await mallory.goodbye()
        await quiet_for(1)
        assert (buffers.used_bytes, buffers.held_bytes) == (0, 0)
        assert all(one.lost or one.reset or one.ended for one in stuck)


async def test_whoever_goes_on_when_everything_is_full_is_parted_with(
    home: Path, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A user over its share of a gateway that is over its own limit draws on its abuse budget."""
    limits = GatewayLimits(buffered_bytes_max=1 << 20, user_bytes_max=1 << 19)
    async with open_world(tmp_path / "state", limits) as world:
        await world.node("n", function("f"))
        mallory = await world.client(user="mallory")
        half_call(mallory, "f", [1 << 30], sent_bytes=1)
        for _ in range(60):
            half_call(mallory, "f", [1 << 30], sent_bytes=300_000, slices=300)
        await mallory.over.wait()

        assert mallory.error is not None
        assert mallory.error.code is ErrorCode.ABUSE
        await quiet_for(1)
        assert world.gateway.dispatcher.buffers.held_bytes == 0


# ---- nodes ---------------------------------------------------------------------------------------


async def change(node: Node, *functions: dict[str, Any]) -> None:
    """Say a change that is too large for one message."""
    body = plain.encode({"functions": list(functions)})
    assert node.registration.stream is not None
    node.registration.stream.send(Update(None, [len(body)]), [memoryview(body)])
    await quiet_for(3)


async def test_answers_that_are_none_end_the_link_of_the_node(
    world: World, autojump_clock: MockClock
) -> None:
    """Ten broken answers at once are ABUSE, one now and then is not; callers hear of each."""
    node = await world.node("n", function("f", slots=64))
    client = await world.client()
    for _ in range(12):
        probe = client.call("f")
        given = await node.wait_given(len(node.given) + 1)
        given.say(Item(0, CODEC_PLAIN, b"", []), end=True)
        assert (await probe.outcome()).code == ErrorCode.NODE_LOST
        await quiet_for(1)
    assert not node.over.is_set()

    probes = [client.call("f") for _ in range(12)]
    await node.wait_given(24)
    for given in node.given[12:]:
        if node.link.ready:
            given.say(Item(0, CODEC_PLAIN, b"", []), end=True)
    await node.over.wait()

    assert node.error is not None
    assert node.error.code is ErrorCode.ABUSE
    assert {(await probe.outcome()).code for probe in probes} == {ErrorCode.NODE_LOST}


async def test_a_node_cannot_say_more_by_saying_it_in_parts(
    world: World, autojump_clock: MockClock
) -> None:
    """The bounds of a registration hold for all changes together, and groups do not pile up."""
    node = await world.node("n", function("f0"))
    record = world.gateway.registry.nodes["n"]
    for number in range(100):
        await node.update(functions=[function("f0", group=f"g{number}")])
        await quiet_for(0.1)
    assert list(record.groups) == ["g99"]

    big = {"blob": ["x" * 10_000] * 20}
    for number in range(1, 40):
        await change(node, function(f"f{number}", metadata=big))
        if node.registration.ended:
            break
    assert node.registration.messages[-1].code == ErrorCode.BAD_ARGUMENT
    assert 15 < len(record.offers) < 25


async def test_a_flood_of_registrations_samples_and_changes_is_abuse(
    world: World, autojump_clock: MockClock
) -> None:
    """Each is cheap to send and dear to take over; a newer registration replaces the older one."""
    for flood in ("register", "sample", "update"):
        node = await world.node(f"n-{flood}", function("f"))
        stream = node.registration.stream
        assert stream is not None
        for _ in range(20_000):
            if flood == "sample":
                stream.send(Telemetry({"load": 0.5}))
            elif flood == "update":
                stream.send(Update(plain.encode({"paused": False}), []))
            elif node.link.streams_available > 0:
                node.link.open(Register(plain.encode({}), []), handler=Probe())
            if not stream.is_open and flood != "register":
                break
            await trio.lowlevel.checkpoint()
            if node.over.is_set():
                break
        await node.over.wait()
        assert node.error is not None
        assert node.error.code is ErrorCode.ABUSE


async def test_absurd_telemetry_is_kept_out(world: World, autojump_clock: MockClock) -> None:
    """Only finite numbers under short names are kept, and not many of them."""
    node = await world.node("n", function("f"))
    assert node.registration.stream is not None
    sample = {"nan": math.nan, "inf": -math.inf, "text": "x", "k" * 65: 1, "load": 0.5, "n": -1}
    node.registration.stream.send(Telemetry({**sample, **{f"x{i}": i for i in range(500)}}))
    await quiet_for(1)

    kept = world.gateway.registry.nodes["n"].sample
    assert kept["load"] == 0.5
    assert not {"nan", "inf", "text", "k" * 65} & set(kept)
    assert len(kept) == 64


async def test_numbers_that_json_lacks_become_text_in_descriptions(
    world: World, autojump_clock: MockClock
) -> None:
    """A default of infinity is no reason to refuse a function, nor to break a reader of JSON."""
    await world.node("n", function("f", metadata={"timeout": math.inf, "x": [math.nan, 1.5]}))
    facts = world.gateway.registry.nodes["n"].offers["f"].entry.facts
    assert facts["metadata"] == {"timeout": "inf", "x": ["nan", 1.5]}


# ---- clients -------------------------------------------------------------------------------------


async def test_clients_of_one_user_are_limited(
    home: Path, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Over the limit a login is refused as overload; other users and later logins get in."""
    async with open_world(tmp_path / "state", GatewayLimits(clients_user_max=3)) as world:
        clients = [await world.client(user="mallory") for _ in range(3)]
        refused = await world.client(user="mallory")
        assert refused.error is not None
        assert refused.error.code is ErrorCode.OVERLOADED
        assert (await world.client(user="bob")).link.ready
        await clients[0].goodbye()
        await quiet_for(1)
        assert (await world.client(user="mallory")).link.ready


async def test_whoever_is_thrown_out_for_abuse_again_and_again_waits(
    world: World, autojump_clock: MockClock
) -> None:
    """Coming back after abuse is slow; others of the same address do not notice."""
    for _ in range(10):
        mallory = await world.client(user="mallory")
        mallory.link.connection.out.control(pack(FrameType.PING, 0, 0, 0, b"") * 300)
        world.outbox.mark(mallory.link)
        await mallory.over.wait()
    begin = trio.current_time()
    assert (await world.client(user="bob")).link.ready
    assert trio.current_time() - begin < 0.5
    assert (await world.client(user="mallory")).link.ready
    assert trio.current_time() - begin >= 1.0


async def test_asking_without_taking_the_answers_is_abuse(
    world: World, autojump_clock: MockClock
) -> None:
    """Large answers cost the asker, so that a few bytes cannot keep a gateway busy."""
    node = await world.node("n", function("f"))
    doc = "x" * 15_000
    await change(node, *(function(f"f{number}", doc=doc) for number in range(200)))
    client = await world.client()
    for _ in range(50):
        if not client.link.ready:
            break
        client.query("functions")
        await trio.testing.wait_all_tasks_blocked()

    await client.over.wait()
    assert client.error is not None
    assert client.error.code is ErrorCode.ABUSE
