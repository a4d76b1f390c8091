"""Questions and orders by name: answers hold what the asker may see, and nothing else."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from trio.testing import MockClock

from easyremote.facts import FunctionInfo, NodeInfo
from easyremote.gateway.queries import ASYNC, OPERATIONS, SYNC
from easyremote.identity.join import JoinString
from easyremote.identity.role import ALLOWED, Operation, Role, Scopes
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import Failure

from .peers import World, function, new_id

ASKERS = [Role.VIEWER, Role.GUEST, Role.MEMBER, Role.OPERATOR, Role.OWNER]
ARGS: dict[str, dict[str, Any]] = {
    "call": {"call_id": new_id()},
    "explain": {"call_id": new_id()},
    "owners": {"call_ids": [new_id()]},
    "served": {"call_ids": [new_id()]},
    "resolve": {"function": "f"},
}


def test_every_query_has_one_answer_and_one_row() -> None:
    """The table of operations and the answers name the same queries."""
    assert set(SYNC) | set(ASYNC) == set(OPERATIONS)
    assert not set(SYNC) & set(ASYNC)


@pytest.mark.trio
@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("role", ASKERS)
async def test_matrix_of_roles_and_queries(
    world: World, autojump_clock: MockClock, role: Role, name: str
) -> None:
    """A role is forbidden exactly what its row of the closed table does not list."""
    await world.node("n1", function("f"))
    client = await world.client(role.value, "somebody")
    answer = await client.ask(name, **ARGS.get(name, {}))
    forbidden = isinstance(answer, Failure) and answer.code == ErrorCode.FORBIDDEN

    assert forbidden is (OPERATIONS[name] not in ALLOWED[role])


@pytest.mark.trio
async def test_unknown_query_does_not_exist(world: World, autojump_clock: MockClock) -> None:
    """What is not in the table is not found, whoever asks."""
    answer = await (await world.client("owner", "root")).ask("shutdown")

    assert isinstance(answer, Failure)
    assert answer.code == ErrorCode.NOT_FOUND


@pytest.mark.trio
async def test_discovery_shows_nodes_and_functions(world: World, autojump_clock: MockClock) -> None:
    """Registered nodes and functions are listed with the fields that programs rely on."""
    await world.node(
        "gpu-01",
        function("train", doc="Train it.", signature="(x: int) -> int", tags=["ml"]),
        user="carol",
        capabilities={"gpu": {"memory": "24GB"}},
    )
    client = await world.client()
    (node,) = [NodeInfo.from_plain(one) for one in await client.ask("nodes")]
    (found,) = [FunctionInfo.from_plain(one) for one in await client.ask("functions")]

    assert (node.node_id, node.owner, node.health) == ("gpu-01", "carol", "healthy")
    assert node.capabilities == {"gpu": {"memory": "24GB"}}
    assert (node.functions, node.in_flight) == (["train"], 0)
    assert (found.node_id, found.function_name) == ("gpu-01", "train")
    assert (found.description, found.signature) == ("Train it.", "(x: int) -> int")
    assert found.health_status == "healthy"
    assert found.facts["tags"] == ["ml"]
    assert isinstance(found.registered_at, datetime)
    assert found.registered_at.utcoffset() == timedelta(0)


@pytest.mark.trio
async def test_nodes_are_found_by_what_they_have_soonest_first(
    world: World, autojump_clock: MockClock
) -> None:
    """Capability, function and tags filter; a node that is away comes last, or not at all."""
    big = {"gpu": {"memory": "80GB"}, "specialization": ["training"]}
    gone = await world.node("n0", function("train"), capabilities=big)
    busy = await world.node("n1", function("train"), capabilities=big)
    await world.node("n2", function("train", billing={"mode": "per_request"}), capabilities=big)
    await world.node(
        "n3", function("train", tags=["fast"]), capabilities={"gpu": {"memory": "8GB"}}
    )
    client = await world.client()
    client.call("train", node_ids=["n1"])
    await busy.wait_given()
    await gone.cut()

    async def found(**args: Any) -> list[str]:
        return [one["node_id"] for one in await client.ask("nodes", **args)]

    assert await found(capability={"gpu.memory": ">=16GB"}) == ["n2", "n1", "n0"]
    assert await found(capability="training", fresh=True) == ["n2", "n1"]
    assert await found(function="train", capability="fast") == ["n3"]
    assert await found(capability="fast") == ["n3"]
    assert await found(function="other") == []
    assert await found(fresh=True) == ["n2", "n3", "n1"]
    told = {one["node_id"]: one for one in await client.ask("nodes")}
    assert (told["n1"]["load"], told["n2"]["load"]) == (1.0, 0.0)
    assert told["n2"]["prices"] == {"train": {"mode": "per_request"}}
    assert told["n2"]["callable"] == ["train"]


@pytest.mark.trio
async def test_nodes_that_may_not_be_seen_are_not_found(
    world: World, autojump_clock: MockClock
) -> None:
    """Neither by what they have nor by the tags of functions outside the asker's scopes."""
    await world.node("n1", function("open_f"), function("secret_f", tags=["hidden"]))
    await world.node("n2", function("secret_f"), capabilities={"gpu": True})
    client = await world.client(token=world.token("guest", "eve", scopes=Scopes(("open_*",))))

    assert await client.ask("nodes", capability="gpu") == []
    assert await client.ask("nodes", capability="hidden") == []
    assert await client.ask("nodes", function="secret_f") == []
    assert [one["node_id"] for one in await client.ask("nodes", function="open_f")] == ["n1"]


@pytest.mark.trio
@pytest.mark.parametrize("wanted", [3, {"gpu": ">=lots"}, ["x"] * 1000, {"a": ["w"] * 200}])
async def test_what_cannot_be_looked_for_is_refused(
    world: World, autojump_clock: MockClock, wanted: Any
) -> None:
    """A question that nobody can mean, or that costs too much, is the asker's error."""
    await world.node("n1", function("f"), capabilities={"a": ["v"] * 300})
    answer = await (await world.client()).ask("nodes", capability=wanted)

    assert isinstance(answer, Failure)
    assert answer.code == ErrorCode.BAD_ARGUMENT
    assert answer.reason


@pytest.mark.trio
async def test_offline_node_stays_visible_as_offline(
    world: World, autojump_clock: MockClock
) -> None:
    """A node that went away is shown as offline, with what it offered."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    await node.cut()
    (info,) = await client.ask("nodes")
    (found,) = await client.ask("functions")

    assert (info["health"], found["health_status"]) == ("offline", "offline")


@pytest.mark.trio
async def test_scopes_hide_nodes_and_functions(world: World, autojump_clock: MockClock) -> None:
    """Nothing outside the asker's scopes is listed, counted or resolved."""
    await world.node("n1", function("open_f"), function("secret_f"))
    await world.node("n2", function("secret_f"))
    text = world.token("guest", "eve", scopes=Scopes(functions=("open_*",)))
    client = await world.client(token=text)

    assert [node["node_id"] for node in await client.ask("nodes")] == ["n1"]
    assert (await client.ask("nodes"))[0]["functions"] == ["open_f"]
    assert [one["function_name"] for one in await client.ask("functions")] == ["open_f"]
    hidden = await client.ask("resolve", function="secret_f")
    missing = await client.ask("resolve", function="secret_g")
    assert hidden.reason.replace("_f", "") == missing.reason.replace("_g", "")


@pytest.mark.trio
async def test_resolve_answers_by_name_node_and_path(
    world: World, autojump_clock: MockClock
) -> None:
    """A stub learns the signature that it will call, in each of its spellings."""
    await world.node("n1", function("f", signature="(a)"))
    await world.node("n2", function("f", signature="(b)"))
    client = await world.client()

    assert (await client.ask("resolve", function="f", node_ids=["n2"]))["signature"] == "(b)"
    assert (await client.ask("resolve", function="n2.f"))["signature"] == "(b)"
    assert (await client.ask("resolve", function="f"))["function_name"] == "f"


@pytest.mark.trio
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("call", {"call_id": "text"}),
        ("owners", {"call_ids": "text"}),
        ("served", {"call_ids": [7]}),
        ("usage", {"call_ids": "text"}),
        ("usage", {"call_ids": []}),
        ("usage", {"call_ids": ["text"]}),
        ("owners", {"call_ids": ["text"]}),
        ("owners", {"call_ids": [bytes(16)] * 1001}),
        ("functions", {"node_id": 7}),
        ("resolve", {"function": "f", "node_ids": "n1"}),
        ("token.create", {"role": "emperor", "user": "x"}),
        ("token.create", {"role": "guest", "user": ""}),
        ("token.create", {"role": "guest", "user": "x", "expires_s": "soon"}),
        ("token.create", {"role": "guest", "user": "x", "levels": "all"}),
    ],
)
async def test_wrong_arguments_are_the_askers_error(
    world: World, autojump_clock: MockClock, name: str, args: dict[str, Any]
) -> None:
    """An argument of the wrong type or value is refused with a sentence, and nothing happens."""
    before = len(world.gateway.state.store.list_tokens())
    client = await world.client("owner", "root")
    made = len(world.gateway.state.store.list_tokens()) - before
    answer = await client.ask(name, **args)

    assert isinstance(answer, Failure)
    assert answer.code == ErrorCode.BAD_ARGUMENT
    assert len(world.gateway.state.store.list_tokens()) == before + made


@pytest.mark.trio
async def test_token_is_created_used_listed_and_revoked(
    world: World, autojump_clock: MockClock
) -> None:
    """A token made over the wire works at once; revoked, it works no more."""
    owner = await world.client("owner", "root")
    made = await owner.ask("token.create", role="member", user="zoe", levels=["x"])
    client = await world.client(token=made["token"])

    assert client.info is not None
    assert (client.info["user"], client.info["levels"]) == ("zoe", ["x"])
    assert JoinString.parse(made["join"]).token.text() == made["token"]
    listed = {one["id"]: one for one in await owner.ask("token.list")}
    assert listed[made["id"]]["created_by"] == "root"
    assert made["token"].split("_")[2] not in str(listed)

    assert await owner.ask("token.revoke", id=made["id"]) is True
    await client.over.wait()
    assert (await world.client(token=made["token"])).info is None


@pytest.mark.trio
async def test_operator_makes_no_token_that_can_do_more(
    world: World, autojump_clock: MockClock
) -> None:
    """Operators handle tokens of those below them; owners' tokens are for owners."""
    operator = await world.client("operator", "ops")
    owner_token = world.token("owner", "root").split("_")[1]
    for role in ("owner", "operator"):
        assert (await operator.ask("token.create", role=role, user="x")).code == 13
    assert (await operator.ask("token.revoke", id=owner_token)).code == 13
    assert "token" in await operator.ask("token.create", role="guest", user="x")


@pytest.mark.trio
async def test_forgotten_node_loses_its_link(world: World, autojump_clock: MockClock) -> None:
    """`node forget` frees the id and ends the session that lived on it."""
    node = await world.node("n1", function("f"))
    owner = await world.client("owner", "root")

    assert await owner.ask("node.forget", node_id="n1") is True
    await node.over.wait()
    other = await world.node("n1", secret=b"y" * 32)
    assert other.info is not None


@pytest.mark.trio
async def test_status_has_the_gauges_that_tests_read(
    world: World, autojump_clock: MockClock
) -> None:
    """Every gauge is there, and counts what is there."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    client.call("f")
    client.call("f")
    await node.wait_given()
    status = await client.ask("status")

    assert (status["calls_pending"], status["calls_running"], status["calls_queued"]) == (2, 1, 1)
    assert (status["connections"], status["connected_nodes"]) == (2, 1)
    assert status["functions"] == 1
    assert {"streams", "bytes_buffered", "trio_tasks", "uptime_s", "version"} <= set(status)


@pytest.mark.trio
async def test_state_of_a_call(world: World, autojump_clock: MockClock) -> None:
    """The owner of a call learns its state, place and expected wait."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    node.auto = lambda given: given.answer(seconds=2.0)
    await client.call("f").outcome()
    node.auto = None
    running, waiting = new_id(), new_id()
    probe = client.call("f", call_id=running)
    client.call("f", call_id=waiting)
    given = await node.wait_given(2)
    assert given.stream is not None
    given.stream.started()
    await probe.until(lambda: probe.started)
    first = await client.ask("call", call_id=running)
    second = await client.ask("call", call_id=waiting)

    assert (first["state"], first["node_id"], first["queue_position"]) == ("running", "n1", None)
    assert (second["state"], second["node_id"], second["queue_position"]) == ("queued", None, 0)
    assert second["eta_s"] == pytest.approx(2.0, abs=0.1)


@pytest.mark.trio
async def test_who_answered_is_known_whatever_the_node_says_later(
    world: World, autojump_clock: MockClock
) -> None:
    """The owner of the node that had a call stays known when the node no longer offers it."""
    node = await world.node("n1", function("f"))
    client = await world.client()
    ended, running = new_id(), new_id()
    node.auto = lambda given: given.answer()
    await client.call("f", call_id=ended).outcome()
    node.auto = None
    client.call("f", call_id=running)
    await node.wait_given(2)
    await node.update(removed=["f"])

    owner = (await client.ask("nodes"))[0]["owner"]
    assert isinstance(owner, str)
    asked = [ended, running, new_id()]
    assert await client.ask("owners", call_ids=asked) == [owner, owner, None]
    stranger = await world.client(user="mallory")
    assert await stranger.ask("owners", call_ids=asked) == [None, None, None]
    assert await stranger.ask("served", call_ids=asked) == []


@pytest.mark.trio
async def test_which_nodes_had_calls_and_what_they_are_for(
    world: World, autojump_clock: MockClock
) -> None:
    """A caller learns where its calls went, also those that are over; where one went, too."""
    train = await world.node("n1", function("f"), capabilities={"specialization": ["training", 3]})
    chess = await world.node("n2", function("g"), capabilities={"specialization": "chess"})
    client = await world.client()
    train.auto = chess.auto = lambda given: given.answer()
    ids = [new_id() for _ in range(4)]
    for call_id, name in zip(ids, "ffgf", strict=True):
        await client.call(name, call_id=call_id).outcome()

    assert await client.ask("served", call_ids=[*ids, new_id()]) == [
        {"node_id": "n1", "calls": 3, "specialization": ["training"]},
        {"node_id": "n2", "calls": 1, "specialization": ["chess"]},
    ]
    where = await client.ask("call", call_id=ids[2])
    assert (where["state"], where["node_id"]) == ("done", "n2")


def test_operations_of_queries_are_operations() -> None:
    """No query invents a right of its own."""
    assert set(OPERATIONS.values()) <= set(Operation)
