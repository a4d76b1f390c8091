"""Calls from before a restart: who gets them back, and who is told that they are lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from easyremote.gateway import callers
from easyremote.gateway.limits import GatewayLimits
from easyremote.gateway.offer import BadOffer
from easyremote.gateway.recovery import ASKED_S, RETURN_S, read_told
from easyremote.gateway.returning import ADRIFT_S
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import (
    FLAG_ATTACH,
    FLAG_DETACHED,
    FLAG_STREAM,
    Call,
    Result,
)

from .peers import Client, Given, Node, Probe, World, function, new_id, open_world

BOOT = b"boot-of-node-one"


@pytest.fixture
def state(home: Path, tmp_path: Path) -> Path:
    """Return the folder of a gateway that is started several times."""
    return tmp_path / "state"


def held(given: Given, **changed: Any) -> dict[str, Any]:
    """Return what an honest node lists of a call that it was given."""
    dispatch = given.dispatch
    return {
        "call_id": dispatch.call_id,
        "attempt": dispatch.attempt,
        "grant": dispatch.grant,
        "token": dispatch.context["token"],
        "depth": dispatch.context["depth"],
        "function": dispatch.function,
        "flags": dispatch.flags,
        "deadline_ms": dispatch.deadline_ms,
        **changed,
    }


class Before:
    """What was there before the restart."""

    token: str
    call_id: bytes
    given: Given


async def before_restart(
    state: Path, offer: dict[str, Any] | None = None, **options: Any
) -> Before:
    """Start a gateway, give one call to a node, and lose the gateway without a word."""
    was = Before()
    async with open_world(state) as world:
        was.token = world.token("member", "alice")
        node = await world.node("n1", offer or function("f", slots=4), boot=BOOT)
        client = await world.client(token=was.token)
        was.call_id = new_id()
        client.call("f", call_id=was.call_id, **options)
        was.given = await node.wait_given()
    return was


def again(client: Client, was: Before, since: int = 1, **more: Any) -> Probe:
    """Submit the call again, as its client does after a restart."""
    probe = Probe()
    fields: dict[str, Any] = {"function": "f", "flags": 0, "ticket": b"", **more}
    message = Call(
        was.call_id, fields["function"], None, {}, None, 0, fields["flags"], fields["ticket"],
        b"args", [], since,
    )  # fmt: skip
    probe.stream = client.link.open(message, handler=probe, end=True)
    return probe


async def node_back(world: World, was: Before, *calls: dict[str, Any], **more: Any) -> Node:
    """Let the node of before come back with the calls that it has."""
    return await world.node(
        "n1", function("f", slots=4), boot=BOOT, held=list(calls), spent=more.get("spent", b"")
    )


@pytest.mark.parametrize("first", ["node", "client"])
async def test_a_running_call_is_attached(
    state: Path, autojump_clock: MockClock, first: str
) -> None:
    """Whoever comes back first: the call goes on, its real result arrives, nothing runs twice."""
    was = await before_restart(state)
    async with open_world(state) as world:
        if first == "node":
            node = await node_back(world, was, held(was.given))
            outcome = again(await world.client(token=was.token), was)
        else:
            outcome = again(await world.client(token=was.token), was)
            await outcome.until(lambda: outcome.accepted)
            node = await node_back(world, was, held(was.given))
        attached = await node.wait_given()
        assert attached.dispatch.flags & FLAG_ATTACH
        assert attached.dispatch.body is None
        attached.answer(b"real")

        assert (await outcome.outcome()).body == b"real"
        assert len(node.given) == 1
        await trio.testing.wait_all_tasks_blocked()
        assert world.gateway.status()["calls_pending"] == 0
        assert world.gateway.registry.nodes["n1"].groups["main"].busy == 0


async def test_a_call_that_nobody_had_is_placed(state: Path, autojump_clock: MockClock) -> None:
    """It was queued when the gateway died: it runs now, once, when all nodes have spoken."""
    was = await before_restart(state)
    was.call_id = new_id()
    async with open_world(state) as world:
        outcome = again(await world.client(token=was.token), was)
        await outcome.until(lambda: outcome.accepted)
        node = await node_back(world, was)
        given = await node.wait_given()
        assert not given.dispatch.flags & FLAG_ATTACH
        given.answer(b"first time")

        assert (await outcome.outcome()).body == b"first time"


async def test_a_call_that_was_over_is_not_run_again(
    state: Path, autojump_clock: MockClock
) -> None:
    """Its result died with the gateway: an honest loss, and no second run."""
    was = await before_restart(state)
    async with open_world(state) as world:
        outcome = again(await world.client(token=was.token), was)
        node = await node_back(world, was, spent=was.call_id)
        failure = await outcome.outcome()

        assert failure.code == ErrorCode.GATEWAY_LOST
        assert failure.maybe_executed is True
        assert node.given == []


async def test_a_node_that_does_not_come_back(state: Path, autojump_clock: MockClock) -> None:
    """It may have the call: after a bounded time the call is lost, also for later starts."""
    was = await before_restart(state)
    async with open_world(state) as world:
        begin = trio.current_time()
        outcome = again(await world.client(token=was.token), was)
        failure = await outcome.outcome()
        assert failure.code == ErrorCode.GATEWAY_LOST
        assert failure.maybe_executed is True
        assert trio.current_time() - begin <= RETURN_S + 2.0
        await trio.sleep(2.0)
    async with open_world(state) as world:
        node = await world.node("n2", function("f"))
        failure = await again(await world.client(token=was.token), was).outcome()
        assert failure.code == ErrorCode.GATEWAY_LOST
        assert node.given == []


async def test_a_node_that_was_restarted_too(state: Path, autojump_clock: MockClock) -> None:
    """Its new boot remembers nothing, so nobody knows whether the call has run."""
    was = await before_restart(state)
    async with open_world(state) as world:
        outcome = again(await world.client(token=was.token), was)
        node = await world.node("n1", function("f"), boot=b"another boot")
        failure = await outcome.outcome()

        assert failure.code == ErrorCode.GATEWAY_LOST
        assert failure.maybe_executed is True
        assert node.given == []


async def test_a_node_that_has_had_too_many_calls(state: Path, autojump_clock: MockClock) -> None:
    """It says that it does not remember all of them: then what it does not name is lost, too."""
    was = await before_restart(state)
    async with open_world(state) as world:
        outcome = again(await world.client(token=was.token), was)
        node = await world.node("n1", function("f"), boot=BOOT, forgot=True)
        assert (await outcome.outcome()).code == ErrorCode.GATEWAY_LOST
        assert node.given == []


async def test_a_gateway_that_has_had_too_many_calls(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id that it may have forgotten is not a new call; after a while nobody asks for it."""
    monkeypatch.setattr(callers, "REMEMBERED_MAX", 4)
    node = await world.node("n1", function("f"))
    node.auto = lambda given: given.answer()
    client, was, since = await world.client(), Before(), world.gateway.state.incarnation
    was.call_id = new_id()
    await client.call("f", call_id=was.call_id).outcome()
    for _ in range(8):
        await client.call("f").outcome()
    runs = len(node.given)
    assert (await again(client, was, since).outcome()).code == ErrorCode.GATEWAY_LOST
    assert len(node.given) == runs
    await trio.sleep(ASKED_S + 1.0)
    was.call_id = new_id()
    assert isinstance(await again(client, was, since).outcome(), Result)


async def test_a_node_lost_shortly_before_the_gateway(
    state: Path, autojump_clock: MockClock
) -> None:
    """Its calls were settled as lost. Their callers may not have heard: they never run again."""
    was = Before()
    async with open_world(state) as world:
        was.token = world.token("member", "alice")
        node = await world.node("n1", function("f"), boot=BOOT)
        client = await world.client(token=was.token)
        was.call_id = new_id()
        client.call("f", call_id=was.call_id)
        await node.wait_given()
        await node.cut()
        await world.node("n1", function("f"), boot=b"another boot")
        await trio.sleep(1.0)
    async with open_world(state) as world:
        node = await world.node("n1", function("f"), boot=b"another boot")
        failure = await again(await world.client(token=was.token), was).outcome()
        assert failure.code == ErrorCode.GATEWAY_LOST
        assert node.given == []


async def test_new_calls_wait_for_their_nodes(state: Path, autojump_clock: MockClock) -> None:
    """Right after a restart an unknown function may be one whose node is on its way."""
    was = await before_restart(state)
    async with open_world(state) as world:
        client = await world.client(token=was.token)
        early, typo = client.call("f"), client.call("no_such_function")
        await early.until(lambda: early.accepted)
        node = await node_back(world, was)
        (await node.wait_given()).answer()

        assert isinstance(await early.outcome(), Result)
        missing = await typo.outcome()
        assert missing.code == ErrorCode.NOT_FOUND
        assert missing.maybe_executed is False


async def test_a_nested_call_that_came_back_lends_the_slot_of_its_parent(
    state: Path, autojump_clock: MockClock
) -> None:
    """Who made it is known when its node submits it again; until then both count."""
    was = Before()
    async with open_world(state) as world:
        was.token = world.token("member", "alice")
        node = await world.node("n1", function("f"), function("g"), boot=BOOT)
        (await world.client(token=was.token)).call("f")
        parent = await node.wait_given()
        was.call_id = new_id()
        node.call("g", call_id=was.call_id, ticket=parent.dispatch.call_id)
        child = await node.wait_given(2)
    async with open_world(state) as world:
        node = await world.node(
            "n1", function("f"), function("g"), boot=BOOT, held=[held(parent), held(child)]
        )
        await node.wait_given(2)
        main = world.gateway.registry.nodes["n1"].groups["main"]
        assert main.busy == 2
        outcome = again(node, was, function="g", ticket=parent.dispatch.call_id)
        await outcome.until(lambda: outcome.accepted)
        assert main.busy == 1
        node.given[1].answer(b"child")
        assert (await outcome.outcome()).body == b"child"
        await trio.testing.wait_all_tasks_blocked()
        assert main.busy == 1, "the parent has its slot again"
        node.given[0].answer(b"parent")
        await trio.testing.wait_all_tasks_blocked()
        assert main.busy == 0


async def attached_early(world: World, was: Before) -> Probe:
    """Ask for the call by its id alone, before its node is back."""
    found = again(await world.client(token=was.token), was, 0, function="", flags=FLAG_ATTACH)
    await found.until(lambda: found.accepted)
    return found


async def test_a_call_that_was_asked_for_early_keeps_its_deadline(
    state: Path, autojump_clock: MockClock
) -> None:
    """Who asks for a call by its id knows nothing of it; the node does."""
    was = await before_restart(state)
    async with open_world(state) as world:
        found = await attached_early(world, was)
        node = await node_back(world, was, held(was.given, deadline_ms=3000))
        attached = await node.wait_given()
        begin = trio.current_time()
        failure = await found.outcome()
        assert failure.code == ErrorCode.DEADLINE
        assert failure.maybe_executed is True
        assert trio.current_time() - begin <= 3.5
        await attached.until(lambda: attached.cancels)


async def test_a_call_that_was_asked_for_early_stays_detached(
    state: Path, autojump_clock: MockClock
) -> None:
    """It goes on when the one who asked is gone."""
    was = await before_restart(state, flags=FLAG_DETACHED)
    async with open_world(state) as world:
        client = await world.client(token=was.token)
        found = again(client, was, since=0, function="", flags=FLAG_ATTACH)
        await found.until(lambda: found.accepted)
        node = await node_back(world, was, held(was.given))
        attached = await node.wait_given()
        await client.cut()
        await trio.sleep(world.gateway.limits.client_grace_s * 2)
        assert attached.cancels == []


@pytest.mark.parametrize("listed", [True, False])
async def test_a_call_that_was_asked_for_before_it_is_submitted_again(
    state: Path, autojump_clock: MockClock, listed: bool
) -> None:
    """Its own client says what it is: then it is attached, or it runs if nobody has it."""
    was = await before_restart(state)
    if not listed:
        was.call_id = new_id()
    async with open_world(state) as world:
        found = await attached_early(world, was)
        outcome = again(await world.client(token=was.token), was)
        await outcome.until(lambda: outcome.accepted)
        assert found.reset is not None
        node = await node_back(world, was, *([held(was.given)] if listed else []))
        given = await node.wait_given()
        assert given.dispatch.body == (None if listed else b"args")
        given.answer(b"real")
        assert (await outcome.outcome()).body == b"real"
        assert world.gateway.dispatcher.bytes_buffered() == 0


async def test_held_calls_of_one_user_are_bounded(state: Path, autojump_clock: MockClock) -> None:
    """They count like calls that wait for a node; those of others are taken."""
    was = await before_restart(state)
    async with open_world(state, GatewayLimits(queued_user_max=2)) as world:
        client, stranger = await world.client(token=was.token), await world.client(user="bob")
        taken = [client.call("f"), client.call("f"), stranger.call("f")]
        refused = await client.call("f").outcome()
        assert refused.code == ErrorCode.OVERLOADED
        assert refused.maybe_executed is False
        assert refused.retry_after_s
        caller = world.gateway.dispatcher.callers["alice"]
        assert (caller.queued, caller.buffers.held_bytes) == (2, 8)
        assert world.gateway.dispatcher.bytes_buffered() == 12
        node = await node_back(world, was)
        node.auto = lambda given: given.answer()
        for given in node.given:
            given.answer()
        for one in taken:
            assert isinstance(await one.outcome(), Result)
        assert (caller.queued, caller.buffers.held_bytes) == (0, 0)


async def test_a_held_call_that_is_cancelled_counts_no_longer(
    state: Path, autojump_clock: MockClock
) -> None:
    """Its place is free at once."""
    was = await before_restart(state)
    async with open_world(state) as world:
        waiting = (await world.client(token=was.token)).call("f")
        await waiting.until(lambda: waiting.accepted)
        assert waiting.stream is not None
        waiting.stream.cancel()
        await waiting.outcome()
        caller = world.gateway.dispatcher.callers["alice"]
        assert (caller.queued, caller.buffers.held_bytes) == (0, 0)


async def test_a_held_call_is_cancelled(state: Path, autojump_clock: MockClock) -> None:
    """It is decided at once, and the node is told to stop when it comes back with it."""
    was = await before_restart(state)
    async with open_world(state) as world:
        outcome = again(await world.client(token=was.token), was)
        await outcome.until(lambda: outcome.accepted)
        assert outcome.stream is not None
        outcome.stream.cancel(1, 1000)
        failure = await outcome.outcome()
        assert failure.code == ErrorCode.CANCELLED
        assert failure.maybe_executed is True

        node = await node_back(world, was, held(was.given))
        attached = await node.wait_given()
        await attached.until(lambda: attached.cancels)
        attached.fail(ErrorCode.CANCELLED, maybe=True)
        await trio.testing.wait_all_tasks_blocked()
        assert world.gateway.status()["calls_pending"] == 0


async def test_a_call_that_nobody_asks_for_is_stopped(
    state: Path, autojump_clock: MockClock
) -> None:
    """A client that stays away loses its calls after the grace, as without a restart."""
    was = await before_restart(state)
    async with open_world(state) as world:
        begin = trio.current_time()
        node = await node_back(world, was, held(was.given))
        attached = await node.wait_given()
        await trio.sleep(world.gateway.limits.client_grace_s - 1.0)
        assert attached.cancels == []
        await trio.sleep(3.0)
        assert attached.cancels

        assert trio.current_time() - begin < world.gateway.limits.client_grace_s + 3.0


async def test_a_detached_call_runs_to_its_end(state: Path, autojump_clock: MockClock) -> None:
    """Its result waits, and is found by its id."""
    was = await before_restart(state, flags=FLAG_DETACHED)
    async with open_world(state) as world:
        node = await node_back(world, was, held(was.given))
        attached = await node.wait_given()
        await trio.sleep(world.gateway.limits.client_grace_s * 2)
        assert attached.cancels == []
        attached.answer(b"kept")
        await trio.sleep(30.0)

        client = await world.client(token=was.token)
        found = again(client, was, since=0, function="", flags=FLAG_ATTACH)
        assert (await found.outcome()).body == b"kept"
        stranger = await world.client(user="bob")
        unknown = again(stranger, was, since=0, function="", flags=FLAG_ATTACH)
        assert (await unknown.outcome()).code == ErrorCode.NOT_FOUND


@pytest.mark.parametrize(
    "changed",
    [
        {"grant": bytes(16)},
        {"attempt": 2},
        {"depth": 1},
        {"token": "other"},
        {"call_id": b"x" * 16},
    ],
    ids=str,
)
async def test_a_grant_is_needed(
    state: Path, autojump_clock: MockClock, changed: dict[str, Any]
) -> None:
    """A node cannot claim a call that it was not given, nor for somebody else."""
    was = await before_restart(state)
    async with open_world(state) as world:
        node = await node_back(world, was, held(was.given, **changed))
        await trio.testing.wait_all_tasks_blocked()

        assert node.given == []
        assert world.gateway.status()["calls_pending"] == 0


async def test_a_node_that_claims_many_calls_is_sent_away(
    state: Path, autojump_clock: MockClock
) -> None:
    """Ten void grants are no mistake."""
    was = await before_restart(state)
    async with open_world(state) as world:
        false = [held(was.given, call_id=new_id()) for _ in range(10)]
        node = await node_back(world, was, *false)
        await node.over.wait()

        assert node.error is not None
        assert node.error.code is ErrorCode.ABUSE


async def test_a_revoked_caller_gets_nothing_back(state: Path, autojump_clock: MockClock) -> None:
    """The call of a token that is no longer good is stopped on its node."""
    was = await before_restart(state)
    async with open_world(state) as world:
        world.gateway.state.store.revoke(was.given.dispatch.context["token"])
        node = await node_back(world, was, held(was.given))
        attached = await node.wait_given()
        await attached.until(lambda: attached.cancels)


async def test_the_deadline_goes_on(state: Path, autojump_clock: MockClock) -> None:
    """A call that comes back has the time that its node says is left, and no more."""
    was = await before_restart(state)
    async with open_world(state) as world:
        outcome = again(await world.client(token=was.token), was)
        node = await node_back(world, was, held(was.given, deadline_ms=3000))
        attached = await node.wait_given()
        # The call of the client has none of its own here: it was waiting, not made by the node.
        attached.answer()
        await outcome.outcome()
    was = await before_restart(state)
    async with open_world(state) as world:
        node = await node_back(world, was, held(was.given, deadline_ms=3000))
        attached = await node.wait_given()
        await attached.until(lambda: attached.cancels)
        assert trio.current_time() <= 30.0 + 3.5


async def test_a_link_that_still_looks_open_loses_its_call(
    world: World, autojump_clock: MockClock
) -> None:
    """A client knows first that its link is gone: what it submits again there is taken up."""
    node = await world.node("n1", function("f"))
    token, call_id = world.token(), new_id()
    first = (await world.client(token=token)).call("f", call_id=call_id)
    given = await node.wait_given()
    second = (await world.client(token=token)).call("f", call_id=call_id)
    await second.until(lambda: second.accepted)
    assert first.reset is not None
    assert first.reset[0] == ErrorCode.GATEWAY_LOST
    given.answer(b"once")

    assert (await second.outcome()).body == b"once"
    assert len(node.given) == 1


async def test_a_refusal_of_a_call_that_was_sent_before(
    world: World, autojump_clock: MockClock
) -> None:
    """Whatever the reason: it may have run before, and nobody says that it has not."""
    client = await world.client()
    was = Before()
    was.call_id = new_id()
    since = world.gateway.state.incarnation
    unknown = await again(client, was, since, function="nowhere").outcome()
    assert (unknown.code, unknown.maybe_executed) == (ErrorCode.NOT_FOUND, True)
    world.gateway.dispatcher.closing = True
    stopping = await again(client, was, since).outcome()
    assert (stopping.code, stopping.maybe_executed) == (ErrorCode.SHUTTING_DOWN, True)


async def test_an_outcome_that_a_node_has_kept_is_fetched(
    state: Path, autojump_clock: MockClock
) -> None:
    """It went down with the gateway: it is said again, and no second run is needed."""
    was = await before_restart(state)
    async with open_world(state) as world:
        outcome = again(await world.client(token=was.token), was)
        await outcome.until(lambda: outcome.accepted)
        node = await world.node(
            "n1", function("f", slots=4), boot=BOOT, kept=[held(was.given)], spent=was.call_id
        )
        asked = await node.wait_given()
        assert asked.dispatch.flags & FLAG_ATTACH
        assert asked.dispatch.call_id == was.call_id
        asked.answer(b"real")
        assert (await outcome.outcome()).body == b"real"

        later = again(await world.client(token=was.token), was)
        assert (await later.outcome()).code == ErrorCode.GATEWAY_LOST
        assert len(node.given) == 1
        assert world.gateway.registry.nodes["n1"].groups["main"].busy == 0


async def test_a_kept_outcome_closes_the_account_of_its_call(
    state: Path, autojump_clock: MockClock
) -> None:
    """A bill that a crash left open is written when the node is back, though no caller asks."""
    price = {"mode": "per_request", "price": 1}
    terms = function("f", slots=4, billing=price, quota="9_calls_daily")
    was = await before_restart(state, terms)
    async with open_world(state) as world:
        node = await world.node("n1", terms, boot=BOOT, kept=[held(was.given)], spent=was.call_id)
        (await node.wait_given()).answer(b"real", seconds=0.5)
        client = await world.client(token=was.token)
        (record,) = await client.ask("usage")
        assert (record["outcome"], record["cost"], record["call_id"]) == ("ok", 1.0, was.call_id)
        assert [one["used"] for one in await client.ask("quota")] == [1]
        assert world.gateway.accounts.open == 0
        late = again(client, was)
        assert (await late.outcome()).body == b"real"


@pytest.mark.parametrize("how", ["held", "kept"])
async def test_a_call_that_comes_back_is_counted_once(
    state: Path, autojump_clock: MockClock, how: str
) -> None:
    """By its node or by its caller, who waits for it: the row of before is closed, and no other."""
    terms = function("f", slots=4, billing="per_request", quota="9_calls_daily")
    was = await before_restart(state, terms)
    async with open_world(state) as world:
        client = await world.client(token=was.token)
        outcome = again(client, was)
        told: dict[str, Any] = {how: [held(was.given)]}
        node = await world.node("n1", terms, boot=BOOT, **told)
        (await node.wait_given()).answer(b"real", seconds=0.5)
        assert (await outcome.outcome()).body == b"real"
        assert [one["outcome"] for one in await client.ask("usage")] == ["ok"]
        assert [one["used"] for one in await client.ask("quota")] == [1]


async def test_a_call_that_never_began_is_counted_once(
    state: Path, autojump_clock: MockClock
) -> None:
    """Its row is open since before the restart; now it runs, under the same row."""
    terms = function("f", slots=4, quota="1_calls_daily", billing="per_request")
    was = await before_restart(state, terms)
    async with open_world(state) as world:
        client = await world.client(token=was.token)
        outcome = again(client, was)
        node = await world.node("n1", terms, boot=BOOT)
        (await node.wait_given()).answer(b"real")
        assert (await outcome.outcome()).body == b"real"
        assert [one["used"] for one in await client.ask("quota")] == [1]
        assert len(await client.ask("usage")) == 1
        assert (await client.call("f").outcome()).code == ErrorCode.QUOTA


@pytest.mark.parametrize("how", ["held", "kept"])
async def test_a_large_result_is_taken_up_again(
    state: Path, autojump_clock: MockClock, how: str
) -> None:
    """Whether all of it was written before the restart or a part: its node says all of it now."""
    was, value = await before_restart(state), bytes(3 * 1024 * 1024)
    async with open_world(state) as world:
        outcome = again(await world.client(token=was.token), was)
        told: dict[str, Any] = {how: [held(was.given)]}
        node = await world.node("n1", function("f", slots=4), boot=BOOT, **told)
        asked = await node.wait_given()
        asked.say(Result(0, 0.1, None, [len(value)]), [memoryview(value)], end=True)
        asked.release()
        result = await outcome.outcome()
        assert isinstance(result, Result)
        assert b"".join(outcome.data) == value
        await trio.testing.wait_all_tasks_blocked()
        assert world.gateway.dispatcher.bytes_buffered() == 0
        assert world.gateway.registry.nodes["n1"].groups["main"].busy == 0


@pytest.mark.parametrize("changed", [{}, {"grant": bytes(16)}], ids=["another user", "no grant"])
async def test_a_kept_outcome_is_for_its_user_and_from_its_node(
    state: Path, autojump_clock: MockClock, changed: dict[str, Any]
) -> None:
    """Who knows the id of somebody's call gets nothing; a node cannot make an outcome up."""
    was = await before_restart(state)
    async with open_world(state) as world:
        node = await world.node(
            "n1", function("f"), boot=BOOT, kept=[held(was.given, **changed)], spent=was.call_id
        )
        token = was.token if changed else world.token(user="bob")
        failure = await again(await world.client(token=token), was).outcome()
        assert failure.code == ErrorCode.GATEWAY_LOST
        assert node.given == []


async def test_a_held_call_that_cannot_be_taken_up_never_runs_again(
    state: Path, autojump_clock: MockClock
) -> None:
    """Its function was withdrawn while it ran: it is stopped there, and given to nobody."""
    was = await before_restart(state)
    async with open_world(state) as world:
        outcome = again(await world.client(token=was.token), was)
        other = await world.node("n2", function("f"))
        node = await world.node("n1", function("g"), boot=BOOT, held=[held(was.given)])
        failure = await outcome.outcome()
        assert (failure.code, failure.maybe_executed) == (ErrorCode.GATEWAY_LOST, True)
        await (await node.wait_given()).until(lambda: node.given[0].cancels)
        assert other.given == []
        assert world.gateway.status()["calls_pending"] == 0


async def test_the_outcome_of_a_stream_is_not_fetched(
    state: Path, autojump_clock: MockClock
) -> None:
    """Its items are lost, whatever a node has kept: an error, never a short success."""
    was = await before_restart(state, flags=FLAG_STREAM)
    async with open_world(state) as world:
        client = await world.client(token=was.token)
        outcome = again(client, was, flags=FLAG_STREAM)
        node = await world.node(
            "n1", function("f"), boot=BOOT, kept=[held(was.given)], spent=was.call_id
        )
        assert (await outcome.outcome()).code == ErrorCode.GATEWAY_LOST
        assert node.given == []


async def test_a_kept_outcome_whose_node_is_gone_again(
    state: Path, autojump_clock: MockClock
) -> None:
    """Nobody can say it: an honest loss, at once."""
    was = await before_restart(state)
    async with open_world(state) as world:
        node = await world.node(
            "n1", function("f"), boot=BOOT, kept=[held(was.given)], spent=was.call_id
        )
        await node.cut()
        failure = await again(await world.client(token=was.token), was).outcome()
        assert failure.code == ErrorCode.GATEWAY_LOST


async def test_nodes_forget_what_is_older_than_their_memory(
    state: Path, autojump_clock: MockClock
) -> None:
    """A call of a start that ended long ago is lost, though no node knows it."""
    was = await before_restart(state)
    async with open_world(state) as world:
        await node_back(world, was)
    async with open_world(state) as world:
        starts = [[1, 0.0], [2, 1.0], [3, world.gateway.state.store.clock()]]
        world.gateway.state.store.set_meta("starts", json.dumps(starts))
    async with open_world(state) as world:
        node = await node_back(world, was)
        failure = await again(await world.client(token=was.token), was, since=1).outcome()
        assert failure.code == ErrorCode.GATEWAY_LOST
        await again(await world.client(token=was.token), was, since=3).until(lambda: True)
        await node.wait_given()


async def test_a_caller_that_comes_back_too_late(world: World, autojump_clock: MockClock) -> None:
    """Its call is being stopped and keeps no outcome: it is told so, and does not wait for ever."""
    node = await world.node("n1", function("f"))
    token, call_id = world.token(), new_id()
    client = await world.client(token=token)
    client.call("f", call_id=call_id)
    given = await node.wait_given()
    await client.cut()
    await trio.sleep(world.gateway.limits.client_grace_s + 2.0)
    assert given.cancels
    failure = await (await world.client(token=token)).call("f", call_id=call_id).outcome()
    assert (failure.code, failure.maybe_executed) == (ErrorCode.GATEWAY_LOST, True)


class Adrift:
    """A call whose node lost its link a moment ago."""

    client: Client
    outcome: Probe
    given: Given
    lost_at: float


async def set_adrift(world: World) -> Adrift:
    """Give a call to a node, and cut the link of that node."""
    was = Adrift()
    node = await world.node("n1", function("f", slots=2), boot=BOOT)
    was.client = await world.client()
    was.outcome = was.client.call("f")
    was.given = await node.wait_given()
    was.lost_at = trio.current_time()
    await node.cut()
    return was


async def test_a_short_loss_of_the_link_costs_nothing(
    world: World, autojump_clock: MockClock
) -> None:
    """The node is back with the call: it goes on, and nothing has run twice."""
    was = await set_adrift(world)
    await trio.sleep(ADRIFT_S / 2)
    assert not was.outcome.ended
    node = await world.node("n1", function("f", slots=2), boot=BOOT, held=[held(was.given)])
    attached = await node.wait_given()
    attached.answer(b"real")

    assert (await was.outcome.outcome()).body == b"real"
    assert len(node.given) == 1
    await trio.sleep(ADRIFT_S * 2)
    assert world.gateway.registry.nodes["n1"].groups["main"].busy == 0
    assert world.gateway.status()["calls_pending"] == 0


async def test_an_outcome_on_its_way_when_the_link_broke(
    world: World, autojump_clock: MockClock
) -> None:
    """The node had written it: it is fetched when the node is back."""
    was = await set_adrift(world)
    node = await world.node("n1", function("f", slots=2), boot=BOOT, kept=[held(was.given)])
    asked = await node.wait_given()
    asked.answer(b"real")

    assert (await was.outcome.outcome()).body == b"real"


async def test_a_node_that_stays_away_loses_its_calls(
    world: World, autojump_clock: MockClock
) -> None:
    """Soon, and for good: what it brings later is stopped there."""
    was = await set_adrift(world)
    failure = await was.outcome.outcome()
    assert failure.code == ErrorCode.NODE_LOST
    assert failure.maybe_executed is True
    assert trio.current_time() - was.lost_at <= ADRIFT_S + 0.1

    node = await world.node("n1", function("f", slots=2), boot=BOOT, held=[held(was.given)])
    attached = await node.wait_given()
    assert attached.dispatch.flags & FLAG_ATTACH
    await attached.until(lambda: attached.cancels)


@pytest.mark.parametrize("boot", [BOOT, b"another boot"], ids=["same", "another"])
async def test_a_node_that_is_back_without_a_call(
    world: World, autojump_clock: MockClock, boot: bytes
) -> None:
    """It is lost at once, and not given to it again."""
    was = await set_adrift(world)
    node = await world.node("n1", function("f", slots=2), boot=boot)
    failure = await was.outcome.outcome()

    assert failure.code == ErrorCode.NODE_LOST
    assert failure.maybe_executed is True
    assert trio.current_time() - was.lost_at < ADRIFT_S
    assert node.given == []


async def test_a_goodbye_is_no_accident(world: World, autojump_clock: MockClock) -> None:
    """A node that leaves on purpose does not come back in a moment."""
    node = await world.node("n1", function("f"), boot=BOOT)
    outcome = (await world.client()).call("f")
    await node.wait_given()
    begin = trio.current_time()
    await node.goodbye()

    assert (await outcome.outcome()).code == ErrorCode.NODE_LOST
    assert trio.current_time() - begin < ADRIFT_S


async def test_a_call_adrift_is_cancelled(world: World, autojump_clock: MockClock) -> None:
    """Decided at once; the node hears of it when it is back."""
    was = await set_adrift(world)
    assert was.outcome.stream is not None
    was.outcome.stream.cancel(1, 1000)
    failure = await was.outcome.outcome()
    assert failure.code == ErrorCode.CANCELLED
    assert failure.maybe_executed is True

    node = await world.node("n1", function("f", slots=2), boot=BOOT, held=[held(was.given)])
    attached = await node.wait_given()
    await attached.until(lambda: attached.cancels)


async def test_lost_twice_in_a_row(world: World, autojump_clock: MockClock) -> None:
    """Each loss has its own time; an older one that runs out says nothing about the newer."""
    was = await set_adrift(world)
    await trio.sleep(ADRIFT_S * 0.6)
    for _ in range(2):
        node = await world.node("n1", function("f", slots=2), boot=BOOT, held=[held(was.given)])
        attached = await node.wait_given()
        await node.cut()
        await trio.sleep(ADRIFT_S * 0.6)
        assert not was.outcome.ended
    node = await world.node("n1", function("f", slots=2), boot=BOOT, held=[held(was.given)])
    attached = await node.wait_given()
    attached.answer(b"real")

    assert (await was.outcome.outcome()).body == b"real"


async def test_calls_of_long_ago_are_lost(state: Path, autojump_clock: MockClock) -> None:
    """What nodes have had is told for a while only; after that, doubt is loss."""
    was = await before_restart(state)
    async with open_world(state) as world:
        node = await node_back(world, was, spent=was.call_id)
        await trio.sleep(ASKED_S + 2.0)
        failure = await again(await world.client(token=was.token), was).outcome()

        assert failure.code == ErrorCode.GATEWAY_LOST
        assert node.given == []


GOOD = {
    "call_id": b"i" * 16, "attempt": 1, "grant": b"g", "token": "t", "depth": 0, "function": "f",
    "flags": 0, "deadline_ms": None, "gpus": [0],
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"held": 3}, {"held": [3]}, {"held": [{}]}, {"spent": "x"}, {"spent": b"short"},
        {"held": [{"call_id": b"i" * 16}]}, {"held": [None] * 70_000},
        {"held": [{**GOOD, "gpus": [[1]]}]}, {"held": [{**GOOD, "gpus": [-1]}]},
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_malformed_list_is_refused(wrong: dict[str, Any]) -> None:
    """Everything in it is checked before anything is made of it."""
    with pytest.raises(BadOffer):
        read_told(wrong)
    assert read_told({}) == ([], [], b"", False)
    assert read_told({"held": [GOOD]}).held[0].gpus == [0]


async def test_a_call_adrift_reserves_again_what_it_asked_for_itself(
    world: World, autojump_clock: MockClock
) -> None:
    """A node that lost its link for a moment has no more to give than before."""
    licenses: dict[str, Any] = {"capabilities": {"resources": {"license": 1}}}
    before = await world.node("n1", function("f", slots=2), boot=BOOT, **licenses)
    client = await world.client()
    asks = {"resources": {"license": 1}}
    first = client.call("f", options=asks)
    given = await before.wait_given()
    await before.cut()
    await trio.sleep(ADRIFT_S / 2)
    node = await world.node(
        "n1", function("f", slots=2), boot=BOOT, held=[held(given)], **licenses
    )  # fmt: skip
    second = client.call("f", options=asks)
    await trio.testing.wait_all_tasks_blocked()
    assert len(node.given) == 1
    node.given[0].answer(b"first")
    assert (await first.outcome()).body == b"first"
    (await node.wait_given(2)).answer(b"second")

    assert (await second.outcome()).body == b"second"
    assert node.given[0].dispatch.call_id == given.dispatch.call_id
    assert world.gateway.registry.nodes["n1"].host.ledger.reservations == 0


async def test_devices_of_calls_that_come_back_are_taken(
    state: Path, autojump_clock: MockClock
) -> None:
    """After a restart of the gateway, a call that still runs has its GPU, and a new one another."""
    needs = {"gpu_memory": "16GB"}
    told = function("train", slots=2, requirements=needs)
    listed = {"gpu": {"count": 2, "memory": "24GB"}}
    async with open_world(state) as world:
        node = await world.node("gpu", told, capabilities=listed, boot=BOOT)
        client = await world.client()
        client.call("train")
        await trio.testing.wait_all_tasks_blocked()
        (given,) = node.given
        assert given.dispatch.context["gpus"] == [0]
        listed_call = held(given, gpus=[1])
    async with open_world(state) as world:
        node = await world.node("gpu", told, capabilities=listed, boot=BOOT, held=[listed_call])
        client = await world.client()
        client.call("train")
        await trio.testing.wait_all_tasks_blocked()

        assert node.given[-1].dispatch.context["gpus"] == [0], "the other one is taken"


async def test_a_node_that_was_started_anew_and_came_twice_remembers_nothing(
    state: Path, autojump_clock: MockClock
) -> None:
    """Its first link broke before it said a word: on the second one it is no node of before."""
    was = await before_restart(state)
    async with open_world(state) as world:
        call = again(await world.client(token=was.token), was)
        await call.until(lambda: call.accepted)
        anew = b"another boot".ljust(16, b".")
        first = await world.node("n1", boot=anew)
        await first.cut()
        await trio.sleep(1.0)
        node = await world.node("n1", function("f", slots=4), boot=anew)
        said = await call.outcome()

        assert (said.code, said.maybe_executed) == (ErrorCode.GATEWAY_LOST, True)
        assert node.given == []
