"""Calls through a whole gateway: placed, relayed, and settled with exactly one outcome."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from easyremote.gateway.limits import GatewayLimits
from easyremote.identity.role import Scopes
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import (
    CODEC_PICKLE,
    FLAG_DETACHED,
    FLAG_STREAM,
    Failure,
    Item,
    Result,
    Want,
)

from .peers import Given, Probe, World, function, new_id, open_world

pytestmark = pytest.mark.trio


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def failure(probe: Probe) -> Failure:
    outcome = await probe.outcome()
    assert isinstance(outcome, Failure), outcome
    return outcome


def assert_nothing_is_left(world: World) -> None:
    """No call, slot, stream or byte of any call is still held by the gateway."""
    gateway = world.gateway
    status = gateway.status()
    assert status["calls_pending"] == status["calls_queued"] == status["calls_running"] == 0
    assert status["bytes_buffered"] == 0
    for record in gateway.registry.nodes.values():
        for group in record.groups.values():
            assert group.busy == 0
            assert not group.pools
    for caller in gateway.dispatcher.callers.values():
        assert caller.queued == 0


# ---- the ordinary way ------------------------------------------------------------------------


async def test_call_reaches_the_node_and_its_result_the_caller(
    world: World, autojump_clock: MockClock
) -> None:
    """A call arrives with its body, principal, role and grant, and the result comes back."""
    node = await world.node("n1", function("add"))
    client = await world.client("member", "bob")
    call_id = new_id()
    call = client.call("add", b"1+1", call_id=call_id, deadline_ms=60_000)
    given = await node.wait_given()
    dispatch = given.dispatch

    assert (dispatch.call_id, dispatch.function, dispatch.body) == (call_id, "add", b"1+1")
    assert (dispatch.principal, dispatch.roles, dispatch.attempt) == ("bob", ["member"], 1)
    assert dispatch.context["owner"] is False
    assert dispatch.deadline_ms is not None
    assert 0 < dispatch.deadline_ms <= 60_000
    assert len(dispatch.grant) == 16

    given.answer(b"2")
    outcome = await call.outcome()

    assert isinstance(outcome, Result)
    assert outcome.body == b"2"
    await settle()
    assert_nothing_is_left(world)


async def test_owner_is_told_to_the_node(world: World, autojump_clock: MockClock) -> None:
    """The node learns whether the caller is the principal that enrolled it."""
    node = await world.node("n1", function("f"), user="carol")
    (await world.client(user="carol")).call("f")
    given = await node.wait_given()

    assert given.dispatch.context["owner"] is True


async def test_notices_pass_to_the_caller(world: World, autojump_clock: MockClock) -> None:
    """ACCEPTED and STARTED reach the caller when the outcome takes a while."""
    node = await world.node("n1", function("f"))
    call = (await world.client()).call("f")
    given = await node.wait_given()
    await call.until(lambda: call.accepted)
    assert given.stream is not None
    given.stream.started()
    await call.until(lambda: call.started)
    given.answer()

    assert isinstance(await call.outcome(), Result)


async def test_items_and_credit_pass_both_ways_in_order(
    world: World, autojump_clock: MockClock
) -> None:
    """A stream of items and the credit for it pass the gateway verbatim."""
    node = await world.node("n1", function("count", stream=True))
    call = (await world.client()).call("count", flags=FLAG_STREAM, end=False)
    given = await node.wait_given()
    assert call.stream is not None
    call.stream.send(Want(0, 3))
    await given.until(lambda: given.messages)

    assert given.messages == [Want(0, 3)]

    for number in range(3):
        given.say(Item(0, 0, b"%d" % number, []))
    given.answer(b"end")
    outcome = await call.outcome()

    assert [message.body for message in call.messages[:-1]] == [b"0", b"1", b"2"]
    assert isinstance(outcome, Result)
    await given.until(lambda: given.ended)


async def test_segments_pass_in_both_directions(world: World, autojump_clock: MockClock) -> None:
    """Raw segments of arguments and results arrive whole, in order, byte for byte."""
    node = await world.node("n1", function("f"))
    parts = [bytes([n]) * (300_000 + n) for n in range(3)]
    call = (await world.client()).call("f", segments=parts)
    given = await node.wait_given()
    await given.until(lambda: sum(map(len, given.data)) == sum(map(len, parts)))

    assert b"".join(given.data) == b"".join(parts)

    answer = [memoryview(bytes(700_000)), memoryview(b"x" * 11)]
    given.say(Result(0, 0.1, None, [len(one) for one in answer]), answer, end=True)
    given.release()
    await call.outcome()

    assert b"".join(call.data) == b"".join(answer)
    await settle()
    assert_nothing_is_left(world)


# ---- where calls go --------------------------------------------------------------------------


async def test_named_node_gets_the_call(world: World, autojump_clock: MockClock) -> None:
    """A call that names a node runs there and nowhere else."""
    await world.node("n1", function("f"))
    second = await world.node("n2", function("f"))
    client = await world.client()
    second.auto = lambda given: given.answer()
    client.call("f", node_ids=["n2"])
    await second.wait_given()
    client.call("n2.f")
    await second.wait_given(2)

    assert len(second.given) == 2


async def test_calls_go_to_the_node_with_the_fewest_in_flight(
    world: World, autojump_clock: MockClock
) -> None:
    """Equal nodes share equal work; a busy one gets less."""
    nodes = [await world.node(f"n{n}", function("f", slots=8)) for n in range(3)]
    client = await world.client()
    for _ in range(9):
        client.call("f")
    await settle()

    assert [len(node.given) for node in nodes] == [3, 3, 3]

    for given in nodes[1].given:
        given.answer()
    await settle()
    for _ in range(3):
        client.call("f")
    await settle()

    assert [len(node.given) for node in nodes] == [3, 6, 3]


async def test_calls_beyond_the_window_wait_and_keep_their_order(
    world: World, autojump_clock: MockClock
) -> None:
    """A node with one slot is given one call of unknown length; the rest waits its turn."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    ids = [new_id() for _ in range(5)]
    calls = [client.call("f", call_id=one) for one in ids]
    await settle()

    assert len(node.given) == 1
    state = await client.ask("call", call_id=ids[3])
    assert (state["state"], state["queue_position"]) == ("queued", 2)

    for index in range(5):
        (await node.wait_given(index + 1)).answer(seconds=10.0)
        await calls[index].outcome()

    assert [given.dispatch.call_id for given in node.given] == ids
    await settle()
    assert_nothing_is_left(world)


async def test_short_bodies_open_the_window(world: World, autojump_clock: MockClock) -> None:
    """Once bodies prove short, a node is sent calls ahead of its slots."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    node.auto = lambda given: given.answer(seconds=1e-5)
    for _ in range(8):
        await client.call("f").outcome()
    node.auto = None
    node.given.clear()
    for _ in range(40):
        client.call("f")
    await settle()

    assert len(node.given) == 40


async def test_first_come_first_served_across_functions(
    world: World, autojump_clock: MockClock
) -> None:
    """Functions that share slots share one order of arrival."""
    node = await world.node("n1", function("f"), function("g"))
    client = await world.client()
    names = ["f", "f", "g", "f", "g", "g"]
    calls = [client.call(name) for name in names]
    for index in range(6):
        (await node.wait_given(index + 1)).answer(seconds=10.0)
        await calls[index].outcome()

    assert [given.dispatch.function for given in node.given] == names


async def test_node_that_comes_takes_waiting_calls(world: World, autojump_clock: MockClock) -> None:
    """Calls that wait for a busy node go to a second one as soon as it registers."""
    first = await world.node("n1", function("f"))
    client = await world.client()
    calls = [client.call("f") for _ in range(2)]
    await first.wait_given()
    second = await world.node("n2", function("f"))
    (await second.wait_given()).answer(b"two")

    assert (await calls[1].outcome()).body == b"two"


async def test_capability_filters_nodes(world: World, autojump_clock: MockClock) -> None:
    """A wanted capability is a hard filter; without a match the error says who was near."""
    await world.node("n1", function("f"))
    gpu = await world.node("n2", function("f"), capabilities={"gpu": {"model": "A100"}})
    client = await world.client()
    client.call("f", options={"capability": "gpu.model:A100"})
    await gpu.wait_given()
    refused = await failure(client.call("f", options={"capability": "tpu"}))

    assert refused.code == ErrorCode.NO_NODE
    assert refused.detail["class"] == "NoCapableNodeError"
    assert "the capability 'tpu'. n1: no 'tpu'. n2: no 'tpu'" in refused.reason
    near = await failure(client.call("f", options={"capability": {"gpu": {"model": "H100"}}}))
    assert "n2: gpu.model is 'A100', not H100" in near.reason
    wrong = await failure(client.call("f", options={"capability": {"gpu": ">=lots"}}))
    assert wrong.code == ErrorCode.BAD_ARGUMENT


async def test_what_a_node_says_later_counts_for_the_next_call(
    world: World, autojump_clock: MockClock
) -> None:
    """Where calls with equal demands go is remembered, and forgotten when a node changes."""
    first = await world.node("n1", function("f"), capabilities={"tpu": 4})
    second = await world.node("n2", function("f"))
    client = await world.client()
    first.auto, second.auto = partial(Given.answer, body=b"1"), partial(Given.answer, body=b"2")
    options = {"capability": {"tpu": ">=2"}, "priority": 1}

    async def served(**options: Any) -> Any:
        return await client.call("f", options=options).outcome()

    assert [(await served(**options)).body for _ in range(2)] == [b"1", b"1"]
    await first.update(capabilities={})
    await second.update(capabilities={"tpu": 2})
    assert (await served(**options, attempt=2)).body == b"2"
    await second.update(capabilities={"tpu": True})
    assert (await served(**options)).code == ErrorCode.NO_NODE
    assert (await served(capability={"tpu": True})).body == b"2"
    assert "n2: tpu is True, not 1" in (await served(capability={"tpu": 1})).reason


async def test_name_alone_never_reaches_a_strangers_node(
    world: World, autojump_clock: MockClock
) -> None:
    """Who registers somebody else's function name later gets none of its calls."""
    owned = await world.node("n1", function("process_payment"), user="alice")
    squatter = await world.node("n2", function("process_payment"), user="mallory")
    client = await world.client(user="bob")
    owned.auto = squatter.auto = lambda given: given.answer()
    for _ in range(4):
        await client.call("process_payment").outcome()

    assert (len(owned.given), len(squatter.given)) == (4, 0)

    mine = await world.client(user="mallory")
    await mine.call("process_payment").outcome()

    assert len(squatter.given) == 1


# ---- what callers may see and do -------------------------------------------------------------


async def test_unknown_and_out_of_scope_functions_get_the_same_answer(
    world: World, autojump_clock: MockClock
) -> None:
    """A function outside the caller's scopes does not exist for it, to the letter."""
    await world.node("n1", function("secret_one"), function("open_one"))
    text = world.gateway.state.store.create_token(
        "guest", "eve", scopes=_scopes(functions=("open_*",))
    ).text()
    client = await world.client(token=text)
    hidden = await failure(client.call("secret_one"))
    missing = await failure(client.call("secret_two"))

    assert hidden.reason.replace("secret_one", "X") == missing.reason.replace("secret_two", "X")
    assert hidden._replace(reason="") == missing._replace(reason="")
    assert hidden.code == ErrorCode.NOT_FOUND
    assert "did you mean" not in hidden.reason


async def test_suggestions_name_what_the_caller_may_see(
    world: World, autojump_clock: MockClock
) -> None:
    """A misspelt name is answered with the visible names near it."""
    await world.node("n1", function("train_model"))
    missing = await failure((await world.client()).call("train_modell"))

    assert "did you mean train_model?" in missing.reason
    assert missing.maybe_executed is False


async def test_missing_level_is_forbidden_and_says_which(
    world: World, autojump_clock: MockClock
) -> None:
    """A visible function whose level the caller lacks is refused by name of the level."""
    node = await world.node("n1", function("f", access_level="verified"))
    refused = await failure((await world.client()).call("f"))

    assert refused.code == ErrorCode.FORBIDDEN
    assert "verified" in refused.reason

    (await world.client(user="dave", levels=["verified"])).call("f")
    given = await node.wait_given()

    assert given.dispatch.context["levels"] == ["verified"]


async def test_shared_token_may_not_call_what_needs_an_individual(
    world: World, autojump_clock: MockClock
) -> None:
    """`auth_required` wants an individual principal."""
    await world.node("n1", function("f", auth_required=True))
    refused = await failure((await world.client(user="team", shared=True)).call("f"))

    assert refused.code == ErrorCode.FORBIDDEN


async def test_guest_ships_no_pickle_as_argument(world: World, autojump_clock: MockClock) -> None:
    """A pickle of a guest is refused at the gateway; the node never sees it."""
    node = await world.node("n1", function("f"))
    guest = await world.client("guest", "eve")
    refused = await failure(guest.call("f", codec=CODEC_PICKLE))

    assert refused.code == ErrorCode.UNSUPPORTED_CODEC
    assert not node.given


async def test_guest_ships_no_pickle_in_a_stream(world: World, autojump_clock: MockClock) -> None:
    """A pickle in a streamed argument of a guest ends the call before the node gets it."""
    node = await world.node("n1", function("f"))
    guest = await world.client("guest", "eve")
    call = guest.call("f", end=False)
    given = await node.wait_given()
    assert call.stream is not None
    call.stream.send(Item(1, 0, b"plain", []))
    call.stream.send(Item(1, CODEC_PICKLE, b"evil", []))
    refused = await failure(call)
    await given.until(lambda: given.cancels)

    assert refused.code == ErrorCode.UNSUPPORTED_CODEC
    assert [message.body for message in given.messages] == [b"plain"]


async def test_member_may_ship_pickles(world: World, autojump_clock: MockClock) -> None:
    """Pickles of members pass, opaque; whether they are taken is the node's decision."""
    node = await world.node("n1", function("f"))
    (await world.client()).call("f", codec=CODEC_PICKLE)
    given = await node.wait_given()

    assert given.dispatch.codec == CODEC_PICKLE


async def test_viewer_may_not_call(world: World, autojump_clock: MockClock) -> None:
    """A viewer sees and does not call."""
    await world.node("n1", function("f"))
    refused = await failure((await world.client("viewer", "vera")).call("f"))

    assert refused.code == ErrorCode.FORBIDDEN


# ---- identity of calls -----------------------------------------------------------------------


async def test_same_id_of_somebody_else_is_another_call(
    world: World, autojump_clock: MockClock
) -> None:
    """A foreign call id behaves as one that does not exist: no error, no attachment."""
    first = await world.node("n1", function("f"))
    second = await world.node("n2", function("f"))
    call_id = new_id()
    mine = (await world.client(user="alice")).call("f", call_id=call_id)
    await settle()
    other = await world.client(user="bob")
    theirs = other.call("f", call_id=call_id)
    await settle()
    for node, body in ((first, b"1"), (second, b"2")):
        (await node.wait_given()).answer(body)
    results = {(await mine.outcome()).body, (await theirs.outcome()).body}

    assert results == {b"1", b"2"}


async def test_query_of_a_foreign_call_is_as_unknown_as_none(
    world: World, autojump_clock: MockClock
) -> None:
    """State of somebody else's call and of no call are the same answer."""
    await world.node("n1", function("f"))
    call_id = new_id()
    (await world.client(user="alice")).call("f", call_id=call_id)
    await settle()
    bob = await world.client(user="bob")

    assert await bob.ask("call", call_id=call_id) == await bob.ask("call", call_id=new_id())


async def test_same_id_again_while_it_runs_is_refused(
    world: World, autojump_clock: MockClock
) -> None:
    """One call id is one execution, also when a client sends it twice."""
    node = await world.node("n1", function("f", slots=8))
    client = await world.client()
    call_id = new_id()
    client.call("f", call_id=call_id)
    refused = await failure(client.call("f", call_id=call_id))
    await node.wait_given()
    await trio.testing.wait_all_tasks_blocked()

    assert refused.code == ErrorCode.BAD_ARGUMENT
    assert len(node.given) == 1


async def test_id_of_a_finished_call_is_not_run_again(
    world: World, autojump_clock: MockClock
) -> None:
    """A call that had its outcome is not executed a second time; the answer is honest."""
    node = await world.node("n1", function("f"))
    node.auto = lambda given: given.answer()
    client = await world.client()
    call_id = new_id()
    await client.call("f", call_id=call_id).outcome()
    refused = await failure(client.call("f", call_id=call_id))

    assert refused.code == ErrorCode.GATEWAY_LOST
    assert refused.maybe_executed is True
    assert len(node.given) == 1


# ---- cancel and deadline ---------------------------------------------------------------------


async def test_cancel_of_a_waiting_call_never_starts_it(
    world: World, autojump_clock: MockClock
) -> None:
    """A queued call that is cancelled is settled at once and reaches no node."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    client.call("f")
    waiting = client.call("f")
    await settle()
    assert waiting.stream is not None
    waiting.stream.cancel()
    refused = await failure(waiting)

    assert (refused.code, refused.maybe_executed) == (ErrorCode.CANCELLED, False)

    (await node.wait_given()).answer()
    await settle()

    assert len(node.given) == 1
    assert_nothing_is_left(world)


async def test_cancel_of_a_running_call_reaches_the_node(
    world: World, autojump_clock: MockClock
) -> None:
    """Strength and grace arrive as they were sent; the node's outcome is the outcome."""
    node = await world.node("n1", function("f"))
    call = (await world.client()).call("f")
    given = await node.wait_given()
    assert call.stream is not None
    call.stream.cancel(1, 2500)
    await given.until(lambda: given.cancels)

    assert given.cancels == [(1, 2500)]

    given.fail(ErrorCode.CANCELLED, maybe=True)
    outcome = await failure(call)

    assert (outcome.code, outcome.maybe_executed) == (ErrorCode.CANCELLED, True)


async def test_result_may_win_over_a_cancel(world: World, autojump_clock: MockClock) -> None:
    """A body that returns before it is stopped has its result as the outcome."""
    node = await world.node("n1", function("f"))
    call = (await world.client()).call("f")
    given = await node.wait_given()
    assert call.stream is not None
    call.stream.cancel()
    await given.until(lambda: given.cancels)
    given.answer(b"done")

    assert (await call.outcome()).body == b"done"


async def test_body_that_does_not_stop_is_cancelled_for_its_caller(
    world: World, autojump_clock: MockClock
) -> None:
    """Past the grace the caller has its outcome, while the node's slot stays taken."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    call = client.call("f")
    given = await node.wait_given()
    assert call.stream is not None
    began = trio.current_time()
    call.stream.cancel(0, 3000)
    outcome = await failure(call)

    assert (outcome.code, outcome.maybe_executed) == (ErrorCode.CANCELLED, True)
    assert 3.0 <= trio.current_time() - began <= 5.5

    later = client.call("f")
    await settle()
    assert len(node.given) == 1
    given.answer()
    await node.wait_given(2)
    node.given[1].answer(b"next")

    assert (await later.outcome()).body == b"next"


async def test_deadline_of_a_waiting_call(world: World, autojump_clock: MockClock) -> None:
    """A call that expires in the queue is settled in time and never dispatched."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    client.call("f")
    began = trio.current_time()
    outcome = await failure(client.call("f", deadline_ms=1500))

    assert (outcome.code, outcome.maybe_executed) == (ErrorCode.DEADLINE, False)
    assert 1.5 <= trio.current_time() - began < 2.0

    (await node.wait_given()).answer()
    await settle()

    assert len(node.given) == 1


async def test_deadline_of_a_running_call(world: World, autojump_clock: MockClock) -> None:
    """The caller has DEADLINE in time; the node is told to stop; a late result changes nothing."""
    node = await world.node("n1", function("f"))
    call = (await world.client()).call("f", deadline_ms=1000)
    given = await node.wait_given()
    outcome = await failure(call)
    await given.until(lambda: given.cancels)

    assert (outcome.code, outcome.maybe_executed) == (ErrorCode.DEADLINE, True)

    given.answer(b"late")
    await settle()

    assert call.messages == [outcome]
    assert_nothing_is_left(world)


async def test_passed_deadline_is_not_dispatched(world: World, autojump_clock: MockClock) -> None:
    """No time left is DEADLINE, not executed."""
    node = await world.node("n1", function("f"))
    outcome = await failure((await world.client()).call("f", deadline_ms=0))

    assert (outcome.code, outcome.maybe_executed) == (ErrorCode.DEADLINE, False)
    assert not node.given


# ---- losses ----------------------------------------------------------------------------------


async def test_lost_node_loses_what_it_was_given_and_nothing_else(
    world: World, autojump_clock: MockClock
) -> None:
    """Dispatched calls are NODE_LOST, maybe executed; waiting ones go to another node."""
    ids = [new_id() for _ in range(3)]
    nodes = [await world.node("n1", function("f")), await world.node("n2", function("f"))]
    client = await world.client()
    calls = [client.call("f", call_id=call_id) for call_id in ids]
    await settle()
    nodes.sort(key=lambda node: node.given[0].dispatch.call_id != ids[0])
    first, second = nodes
    await first.cut()
    lost = await failure(calls[0])

    assert (lost.code, lost.maybe_executed) == (ErrorCode.NODE_LOST, True)
    assert first.node_id in lost.reason

    (await second.wait_given()).answer(b"1")
    (await second.wait_given(2)).answer(b"2")

    assert [(await call.outcome()).body for call in calls[1:]] == [b"1", b"2"]
    await settle()
    assert_nothing_is_left(world)


async def test_node_lost_inside_its_answer_never_looks_like_a_short_one(
    world: World, autojump_clock: MockClock
) -> None:
    """A result that was cut is a reset with NODE_LOST, never a whole message."""
    node = await world.node("n1", function("f"))
    call = (await world.client()).call("f", stalled=True)
    given = await node.wait_given()
    given.say(Result(0, 0.1, None, [9_000_000]), [memoryview(bytes(9_000_000))], end=True)
    await settle()
    node.memory.cut()
    await call.until(lambda: call.reset or call.ended)

    assert call.reset is not None
    assert call.reset[0] == ErrorCode.NODE_LOST
    assert sum(map(len, call.data)) < 9_000_000
    await settle()
    assert_nothing_is_left(world)


async def test_calls_wait_a_while_for_the_last_node_to_come_back(
    world: World, autojump_clock: MockClock
) -> None:
    """Queued calls survive a short absence of their only node."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    client.call("f")
    waiting = client.call("f")
    await settle()
    await node.cut()
    await trio.sleep(10)
    back = await world.node("n1", function("f"))
    (await back.wait_given()).answer(b"back")

    assert (await waiting.outcome()).body == b"back"


async def test_calls_without_any_node_are_given_up(world: World, autojump_clock: MockClock) -> None:
    """When no node comes back, waiting calls hear so; nothing hangs."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    client.call("f")
    waiting = client.call("f")
    await settle()
    await node.cut()
    began = trio.current_time()
    outcome = await failure(waiting)

    assert (outcome.code, outcome.maybe_executed) == (ErrorCode.NO_NODE, False)
    assert outcome.detail["class"] == "NoHealthyNodesError"
    assert outcome.reason.startswith("No healthy nodes for f")
    assert trio.current_time() - began < 35

    refused = await failure(client.call("f"))

    assert refused.reason.startswith("No healthy nodes for f: n1 is offline")


@pytest.mark.parametrize("code", [ErrorCode.OVERLOADED, ErrorCode.SHUTTING_DOWN])
async def test_call_given_back_unstarted_goes_to_another_node(
    world: World, autojump_clock: MockClock, code: ErrorCode
) -> None:
    """A node that refuses before it began is not asked again; the caller notices nothing."""
    first = await world.node("n1", function("f"))
    call = (await world.client()).call("f")
    given = await first.wait_given()
    second = await world.node("n2", function("f"))
    given.fail(code)
    again = await second.wait_given()

    assert again.dispatch.attempt == 2
    assert again.dispatch.body == b"args"
    assert again.dispatch.grant != given.dispatch.grant

    again.answer(b"second")

    assert (await call.outcome()).body == b"second"
    await settle()
    assert_nothing_is_left(world)


async def test_refusal_is_the_outcome_when_there_is_no_other_node(
    world: World, autojump_clock: MockClock
) -> None:
    """With nowhere else to go, the caller hears the node's own refusal."""
    node = await world.node("n1", function("f"))
    call = (await world.client()).call("f")
    (await node.wait_given()).fail(ErrorCode.OVERLOADED, reason="full")
    outcome = await failure(call)

    assert (outcome.code, outcome.maybe_executed) == (ErrorCode.OVERLOADED, False)
    assert len(node.given) == 1


async def test_failure_after_the_start_is_never_tried_again(
    world: World, autojump_clock: MockClock
) -> None:
    """At most once: a call that may have run is not given to another node."""
    first = await world.node("n1", function("f"))
    call = (await world.client()).call("f")
    given = await first.wait_given()
    second = await world.node("n2", function("f"))
    given.fail(ErrorCode.OVERLOADED, maybe=True)
    outcome = await failure(call)
    await settle()

    assert outcome.maybe_executed is True
    assert not second.given


# ---- callers that go away --------------------------------------------------------------------


async def test_goodbye_cancels_at_once(world: World, autojump_clock: MockClock) -> None:
    """A client that leaves on purpose takes its calls along: waiting ones and running ones."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    client.call("f")
    client.call("f")
    given = await node.wait_given()
    await client.goodbye()
    await given.until(lambda: given.cancels)
    given.fail(ErrorCode.CANCELLED, maybe=True)
    await settle()

    assert len(node.given) == 1
    assert_nothing_is_left(world)


async def test_silence_keeps_calls_for_a_grace_and_then_cancels(
    world: World, autojump_clock: MockClock
) -> None:
    """Calls of a client that vanished go on for `CLIENT_GRACE`, then they are stopped."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    client.call("f")
    given = await node.wait_given()
    await client.cut()
    await trio.sleep(100)

    assert not given.cancels

    await trio.sleep(25)

    assert given.cancels
    given.fail(ErrorCode.CANCELLED, maybe=True)
    await settle()
    assert_nothing_is_left(world)


@pytest.mark.parametrize("late", [False, True])
async def test_caller_that_comes_back_has_its_result(
    world: World, autojump_clock: MockClock, late: bool
) -> None:
    """The same call, submitted again on a new link, attaches: one execution, one outcome."""
    node = await world.node("n1", function("f"))
    token = world.token("member", "bob")
    client = await world.client(token=token)
    call_id = new_id()
    client.call("f", call_id=call_id)
    given = await node.wait_given()
    await client.cut()
    if late:
        given.answer(b"kept")
        await settle()
    back = await world.client(token=token)
    again = back.call("f", call_id=call_id)
    await settle()
    if not late:
        given.answer(b"kept")

    assert (await again.outcome()).body == b"kept"
    assert len(node.given) == 1
    await settle()
    assert_nothing_is_left(world)


async def test_other_payload_under_the_same_id_is_refused(
    world: World, autojump_clock: MockClock
) -> None:
    """Attaching needs the same call: another body under the id is BAD_ARGUMENT."""
    node = await world.node("n1", function("f"))
    token = world.token("member", "bob")
    client = await world.client(token=token)
    call_id = new_id()
    client.call("f", b"one", call_id=call_id)
    await node.wait_given()
    await client.cut()
    back = await world.client(token=token)
    refused = await failure(back.call("f", b"two", call_id=call_id))

    assert refused.code == ErrorCode.BAD_ARGUMENT


async def test_detached_call_outlives_its_caller(world: World, autojump_clock: MockClock) -> None:
    """`detached` goes on after a goodbye, to its end."""
    node = await world.node("n1", function("f"))
    token = world.token("member", "bob")
    client = await world.client(token=token)
    call_id = new_id()
    client.call("f", call_id=call_id, flags=FLAG_DETACHED)
    given = await node.wait_given()
    await client.goodbye()
    await trio.sleep(300)

    assert not given.cancels

    given.answer(b"kept")
    await settle()
    back = await world.client(token=token)

    assert (await back.call("f", call_id=call_id, flags=FLAG_DETACHED).outcome()).body == b"kept"


async def test_results_that_nobody_fetches_are_forgotten(
    world: World, autojump_clock: MockClock
) -> None:
    """A kept result is dropped after its time; no call and no byte is left."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    client.call("f")
    given = await node.wait_given()
    await client.cut()
    given.answer(b"x" * 1000)
    await settle()

    assert world.gateway.dispatcher.parking.bytes_kept > 0

    await trio.sleep(700)

    assert world.gateway.dispatcher.parking.bytes_kept == 0
    assert_nothing_is_left(world)


async def test_reset_of_a_call_stops_its_work_and_holds_its_credit(
    world: World, autojump_clock: MockClock
) -> None:
    """A caller that resets gets its stream credit back when the node is done, not before."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    call = client.call("f")
    given = await node.wait_given()
    session = next(one for one in world.gateway.sessions if one.node is None)
    assert call.stream is not None
    call.stream.reset(ErrorCode.CANCELLED, "enough")
    await given.until(lambda: given.cancels)

    assert session.link.connection.streams_in.released == 0

    given.fail(ErrorCode.CANCELLED, maybe=True)
    await settle()

    assert session.link.connection.streams_in.released == 1
    assert_nothing_is_left(world)


# ---- nested calls ----------------------------------------------------------------------------


async def test_nested_call_runs_as_its_caller_and_ends_before_it(
    world: World, autojump_clock: MockClock
) -> None:
    """Principal and deadline travel; a node with one slot that calls itself does not wait."""
    node = await world.node("n1", function("outer"), function("inner"), user="carol")
    client = await world.client("member", "bob", levels=["x"])
    call = client.call("outer", deadline_ms=5000)
    outer = await node.wait_given()
    nested = node.call("inner", ticket=outer.dispatch.call_id, deadline_ms=60_000)
    inner = await node.wait_given(2)
    dispatch = inner.dispatch

    assert (dispatch.principal, dispatch.context["depth"]) == ("bob", 1)
    assert dispatch.context["levels"] == ["x"]
    assert dispatch.deadline_ms is not None
    assert dispatch.deadline_ms <= 5000

    inner.answer(b"in")
    assert (await nested.outcome()).body == b"in"
    outer.answer(b"out")

    assert (await call.outcome()).body == b"out"
    await settle()
    assert_nothing_is_left(world)


async def test_recursion_on_one_slot_goes_as_deep_as_allowed(
    world: World, autojump_clock: MockClock
) -> None:
    """Slots of bodies that wait for their own calls are lent, down to the depth limit."""
    node = await world.node("n1", function("f"))
    (await world.client()).call("f")
    for depth in range(1, 33):
        above = await node.wait_given(depth)
        node.call("f", ticket=above.dispatch.call_id)
    deepest = await node.wait_given(33)
    refused = await failure(node.call("f", ticket=deepest.dispatch.call_id))

    assert deepest.dispatch.context["depth"] == 32
    assert refused.code == ErrorCode.OVERLOADED


async def test_ticket_of_no_running_call_is_refused(
    world: World, autojump_clock: MockClock
) -> None:
    """A node calls for calls that run on it, and for no others."""
    first = await world.node("n1", function("f"))
    second = await world.node("n2", function("g"))
    (await world.client()).call("f")
    given = await first.wait_given()
    foreign = await failure(second.call("g", ticket=given.dispatch.call_id))
    none = await failure(second.call("g"))
    given.answer()
    await settle()
    over = await failure(first.call("g", ticket=given.dispatch.call_id))

    assert {foreign.code, none.code, over.code} == {ErrorCode.FORBIDDEN}
    assert foreign.reason == none.reason == over.reason


async def test_client_cannot_use_a_ticket(world: World, autojump_clock: MockClock) -> None:
    """A ticket in a client's call is refused: only nodes delegate."""
    node = await world.node("n1", function("f", slots=4))
    client = await world.client()
    client.call("f")
    given = await node.wait_given()
    refused = await failure(client.call("f", ticket=given.dispatch.call_id))

    assert refused.code == ErrorCode.FORBIDDEN


# ---- limits ----------------------------------------------------------------------------------


async def test_queue_is_bounded_and_says_so(
    home: Path, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Beyond the bound a call is refused at once, with a time to try again."""
    async with open_world(tmp_path / "state", GatewayLimits(queued_max=3)) as world:
        await world.node("n1", function("f"))
        client = await world.client()
        calls = [client.call("f") for _ in range(5)]
        refused = await failure(calls[-1])

        assert (refused.code, refused.maybe_executed) == (ErrorCode.OVERLOADED, False)
        assert refused.retry_after_s is not None


async def test_thousands_of_calls_in_flight_from_one_client(
    world: World, autojump_clock: MockClock
) -> None:
    """A client that holds back what exceeds its stream credit has all its calls answered."""
    nodes = [await world.node(f"n{n}", function("f", slots=2)) for n in range(2)]

    def answer(given: Given) -> None:
        given.answer(given.dispatch.body or b"", seconds=1e-5)

    for node in nodes:
        node.auto = answer
    client = await world.client()
    probes: list[Probe] = []
    with trio.fail_after(60):
        while len(probes) < 5000:
            if client.link.streams_available > 0:
                probes.append(client.call("f", b"%d" % len(probes)))
            else:
                await trio.sleep(0.001)
        for probe in probes:
            await probe.outcome()

    assert [probe.messages[0].body for probe in probes] == [b"%d" % n for n in range(5000)]
    assert min(len(node.given) for node in nodes) > 1000
    await settle()
    assert_nothing_is_left(world)


async def test_drain_lets_running_calls_end_and_takes_no_new_ones(
    world: World, autojump_clock: MockClock
) -> None:
    """A gateway that stops refuses new calls, waits for running ones, and says goodbye."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    call = client.call("f")
    given = await node.wait_given()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.gateway.drain, 10.0)
        await settle()
        refused = await failure(client.call("f"))
        given.answer(b"done")
        outcome = await call.outcome()

    assert refused.code == ErrorCode.SHUTTING_DOWN
    assert outcome.body == b"done"
    await client.over.wait()
    await node.over.wait()


async def test_hostile_node_cannot_give_two_outcomes(
    world: World, autojump_clock: MockClock
) -> None:
    """A second outcome, or an end without one, breaks the node's stream and nothing else."""
    node = await world.node("n1", function("f", slots=4))
    client = await world.client()
    call = client.call("f")
    given = await node.wait_given()
    given.say(Item(0, 0, b"x", []), end=True)
    outcome = await failure(call)

    assert (outcome.code, outcome.maybe_executed) == (ErrorCode.NODE_LOST, True)

    second = client.call("f")
    (await node.wait_given(2)).answer(b"fine")

    assert (await second.outcome()).body == b"fine"
    await settle()
    assert_nothing_is_left(world)


def _scopes(**kinds: tuple[str, ...]) -> Any:
    return Scopes(**kinds)


async def test_a_reused_id_does_not_hold_up_others(world: World, autojump_clock: MockClock) -> None:
    """A node has one call of an id at a time: another one is refused, and the rest goes on."""
    node = await world.node("n1", function("f", slots=2))
    alice, bob = await world.client(), await world.client(user="bob")
    call_id = new_id()
    alice.call("f", call_id=call_id)
    first = await node.wait_given()
    direct = await bob.call("f", call_id=call_id).outcome()
    assert (direct.code, direct.maybe_executed) == (ErrorCode.BAD_ARGUMENT, False)

    alice.call("f")
    second = await node.wait_given(2)
    queued, behind = bob.call("f", call_id=call_id), bob.call("f")
    await behind.until(lambda: behind.accepted)
    second.answer()
    refused = await queued.outcome()
    assert (refused.code, refused.maybe_executed) == (ErrorCode.BAD_ARGUMENT, False)
    (await node.wait_given(3)).answer(b"behind")
    assert (await behind.outcome()).body == b"behind"
    first.answer()
    await trio.testing.wait_all_tasks_blocked()
    assert world.gateway.status()["calls_queued"] == 0


async def test_a_detached_call_that_is_given_up_holds_its_credit_to_the_end(
    world: World, autojump_clock: MockClock
) -> None:
    """No sooner, or a client could have any number of calls; and not for ever."""
    node = await world.node("n1", function("f", slots=2))
    client = await world.client()
    session = next(one for one in world.gateway.sessions if one.node is None)
    credit = session.link.connection.streams_in
    before = credit.released
    call_id = new_id()
    for _ in range(3):
        probe = client.call("f", call_id=call_id, flags=FLAG_DETACHED)
        await probe.until(partial(getattr, probe, "accepted"))
        assert probe.stream is not None
        probe.stream.reset(ErrorCode.CANCELLED, "later")
        await trio.testing.wait_all_tasks_blocked()
    given = await node.wait_given()
    assert credit.released == before + 2, "one is held while it runs"
    given.answer()
    await trio.testing.wait_all_tasks_blocked()
    assert credit.released == before + 3
    assert len(node.given) == 1


async def test_arguments_of_a_waiting_call_outlast_the_link_of_its_caller(
    world: World, autojump_clock: MockClock
) -> None:
    """They were said in full and are held: the call comes to a node whole, and so does its result
    to a caller that is back."""
    node = await world.node("n1", function("f"))
    token = world.token("member", "bob")
    client = await world.client(token=token)
    client.call("f")
    first = await node.wait_given()
    parts, call_id = [b"x" * 600_000, b"y" * 100_000], new_id()
    client.call("f", segments=parts, call_id=call_id)
    await settle()
    client.memory.cut()
    await trio.sleep(1.0)
    back = await world.client(token=token)
    call = back.call("f", segments=parts, call_id=call_id)
    await settle()
    first.answer()
    given = await node.wait_given(2)
    await given.until(lambda: given.ended)

    assert b"".join(given.data) == b"".join(parts)
    given.answer(b"whole")
    assert (await call.outcome()).body == b"whole"
    await settle()
    record = world.gateway.registry.nodes["n1"]
    assert not record.running
    assert record.link is not None
    assert len(record.link.streams) == 1, "that of its registration"
    assert call_id not in world.gateway.dispatcher.callers["bob"].calls
