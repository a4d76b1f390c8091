"""Quotas and bills at the gateway: who may go on, what is counted, what is written down."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from easyremote.gateway.accounts import IDLE_S, RETURN_S, TIDY_EVERY_S
from easyremote.gateway.calls import GatewayCall
from easyremote.gateway.database import StoreError
from easyremote.gateway.usage_store import AlreadyOpenError, Opened, list_usage, open_usage, totals
from easyremote.values import encode_call, plain
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import (
    CODEC_PLAIN,
    FLAG_STREAM,
    Failure,
    Item,
    Registered,
    Result,
    Update,
)

from .peers import Client, Node, World, function, new_id, open_world

BASE = 1_772_600_000.0
"""A morning in March, far from every end of a calendar window but that of its day and hour."""


class Wall:
    """A clock of records that goes with that of the test, and can be set forward."""

    def __init__(self) -> None:
        self.base = BASE - trio.current_time()

    def __call__(self) -> float:
        return self.base + trio.current_time()


def with_wall(world: World) -> World:
    world.gateway.state.store.clock = Wall()
    return world


def set_forward(world: World, seconds: float) -> None:
    clock = world.gateway.state.store.clock
    assert isinstance(clock, Wall)
    clock.base += seconds


@pytest.fixture
async def world(home: Path, tmp_path: Path) -> AsyncIterator[World]:
    """Open a gateway whose clocks are the test's."""
    async with open_world(tmp_path / "state") as opened:
        yield with_wall(opened)


def limited(name: str = "f", quota: Any = "2_calls_daily", **more: Any) -> dict[str, Any]:
    return function(name, quota=quota, **more)


def priced(name: str = "f", mode: str = "per_second", **more: Any) -> dict[str, Any]:
    slots = more.pop("slots", 4)
    return function(
        name, billing={"mode": mode, "price": 2.0, "currency": "EUR", **more}, slots=slots
    )


def answer_all(node: Node) -> None:
    node.auto = lambda given: given.answer()


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def usage(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await client.ask("usage")
    return found


async def left(client: Client, name: str = "f") -> list[float]:
    return [one["remaining"] for one in await client.ask("quota") if one["function"] == name]


def rows(world: World) -> list[tuple[Any, ...]]:
    return world.gateway.state.store.rows(
        "SELECT outcome, paid, price_nano FROM usage ORDER BY seq"
    )


# ---- quotas --------------------------------------------------------------------------------------


async def test_an_ordinary_call_is_not_accounted_for(world: World, autojump_clock: Any) -> None:
    """A function without a quota or a price writes nothing and waits for nothing."""
    node, client = await world.node("n1", function("f")), await world.client()
    answer_all(node)
    call_id = new_id()
    client.call("f", call_id=call_id)
    await node.wait_given()

    assert world.gateway.accounts.open == 0
    assert rows(world) == []


async def test_the_last_call_of_a_quota_is_followed_by_a_refusal(
    world: World, autojump_clock: Any
) -> None:
    """The refusal is typed, says when there is more, and proves that nothing ran."""
    node, client = await world.node("n1", limited()), await world.client()
    answer_all(node)
    for _ in range(2):
        assert isinstance(await client.call("f").outcome(), Result)
    refused = await client.call("f").outcome()

    assert refused.code == ErrorCode.QUOTA
    assert not refused.maybe_executed
    now = world.gateway.state.store.clock()
    assert now < refused.detail["resets_at"] <= now + 86_400
    assert refused.retry_after_s == pytest.approx(refused.detail["resets_at"] - now, abs=1)
    assert "2 calls of f per day" in refused.reason
    assert len(node.given) == 2
    assert await left(client) == [0]


async def test_each_user_has_a_quota_of_its_own(world: World, autojump_clock: Any) -> None:
    """What Alice uses is not Bob's, and a token is who one is, whatever an argument says."""
    node = await world.node("n1", limited(), user="carol")
    answer_all(node)
    for user in ("alice", "bob"):
        client = await world.client(user=user)
        outcomes = [await client.call("f").outcome() for _ in range(3)]
        assert [isinstance(one, Result) for one in outcomes] == [True, True, False]


async def test_a_call_that_never_ran_is_given_back(world: World, autojump_clock: Any) -> None:
    """Cancelled while it waited, or refused by its node unstarted: its place is free again."""
    node, client = await world.node("n1", limited(quota="3_calls_daily")), await world.client()
    first, second = client.call("f"), client.call("f")
    given = await node.wait_given()
    assert await left(client) == [1]
    assert second.stream is not None
    second.stream.cancel(1, 1000)
    assert (await second.outcome()).code == ErrorCode.CANCELLED
    assert await left(client) == [2]
    given.fail(ErrorCode.BAD_ARGUMENT)
    await first.outcome()
    await settle()

    assert await left(client) == [3]
    assert [one[0] for one in rows(world)] == ["never", "never"]


async def test_a_new_day_brings_a_new_quota(world: World, autojump_clock: Any) -> None:
    """What was used yesterday does not count today."""
    node, client = await world.node("n1", limited()), await world.client()
    answer_all(node)
    for _ in range(2):
        await client.call("f").outcome()
    refused = await client.call("f").outcome()
    set_forward(world, refused.retry_after_s + 1)

    assert isinstance(await client.call("f").outcome(), Result)


async def test_seconds_are_checked_again_when_a_call_would_start(
    world: World, autojump_clock: Any
) -> None:
    """A call that was accepted does not start when the running one has used the rest."""
    node = await world.node("n1", limited(quota="60_seconds_daily"))
    client = await world.client()
    first, second = client.call("f"), client.call("f")
    given = await node.wait_given()
    given.stream.started()  # type: ignore[union-attr]
    await trio.sleep(61)
    assert len(node.given) == 1  # No node holds such a call ahead of a free slot.
    given.answer(seconds=61.0)

    assert isinstance(await first.outcome(), Result)
    refused = await second.outcome()
    assert refused.code == ErrorCode.QUOTA
    assert not refused.maybe_executed
    assert len(node.given) == 1
    assert (await client.call("f").outcome()).code == ErrorCode.QUOTA


@pytest.mark.parametrize("user", ["alice", "bob"])
async def test_a_call_with_a_quota_in_seconds_comes_to_its_turn(
    world: World, autojump_clock: Any, user: str
) -> None:
    """Short calls that go ahead of a slot, of whomever, do not pass by one that waits for it."""
    node = await world.node("n1", limited(quota="60_seconds_daily"), function("g"))
    client, other = await world.client(), await world.client(user=user)
    node.auto = lambda given: given.answer(seconds=1e-5)
    for _ in range(8):
        await other.call("g").outcome()
    node.auto = None
    node.given.clear()
    flood = [other.call("g") for _ in range(4)]
    await node.wait_given(4)
    client.call("f")
    for number in range(30):
        flood.append(other.call("g"))
        await settle()
        node.given[number].answer(seconds=1e-5)
        await settle()
        if any(given.dispatch.function == "f" for given in node.given):
            break

    assert "f" in [given.dispatch.function for given in node.given]


async def test_running_calls_count_while_they_run(world: World, autojump_clock: Any) -> None:
    """Nobody starts a third call when two that run have used all seconds already."""
    node = await world.node("n1", limited(quota="60_seconds_daily", slots=3))
    client = await world.client()
    for number in range(2):
        client.call("f")
        (await node.wait_given(number + 1)).stream.started()  # type: ignore[union-attr]
    await trio.sleep(31)

    assert (await client.call("f").outcome()).code == ErrorCode.QUOTA
    assert await left(client) == [0]


async def test_hours_on_gpus_are_gpu_hours(world: World, autojump_clock: Any) -> None:
    """A second with two GPUs reserved takes two seconds of quota, and is billed as two."""
    terms = {
        **priced(mode="per_gpu_second"), "quota": "60_seconds_daily", "requirements": {"gpu": 2},
    }  # fmt: skip
    gpus = {"gpu": {"count": 2, "memory": "24GB"}}
    node, client = await world.node("n1", terms, capabilities=gpus), await world.client()
    call = client.call("f")
    given = await node.wait_given()
    given.stream.started()  # type: ignore[union-attr]
    await trio.sleep(10)
    assert await left(client) == [pytest.approx(40, abs=0.5)]
    given.answer(seconds=10.0)
    await call.outcome()

    (record,) = await usage(client)
    assert record["gpu_seconds"] == pytest.approx(20, abs=0.2)
    assert record["cost"] == pytest.approx(40, abs=0.4)
    assert await left(client) == [pytest.approx(40, abs=0.5)]


async def test_a_hard_quota_is_a_deadline(world: World, autojump_clock: Any) -> None:
    """The node is told what is left; where two calls share it, both are stopped in time."""
    node = await world.node(
        "n1", limited(quota={"seconds": 60, "per": "day", "mode": "hard"}, slots=2)
    )
    client = await world.client()
    alone = client.call("f")
    given = await node.wait_given()
    assert given.dispatch.deadline_ms == pytest.approx(60_000, abs=100)
    given.stream.started()  # type: ignore[union-attr]
    beside = client.call("f")
    (await node.wait_given(2)).stream.started()  # type: ignore[union-attr]

    begun = trio.current_time()
    for one in (alone, beside):
        assert (await one.outcome()).code == ErrorCode.DEADLINE
    assert 29 < trio.current_time() - begun < 32


async def test_bytes_are_limited(world: World, autojump_clock: Any) -> None:
    """Arguments, results and items count."""
    node = await world.node("n1", limited(quota={"bytes": 1000, "per": "day"}, stream=True))
    client = await world.client()
    call = client.call("f", b"x" * 100, flags=FLAG_STREAM)
    given = await node.wait_given()
    given.say(Item(0, CODEC_PLAIN, b"y" * 500, []))
    given.say(Item(0, CODEC_PLAIN, b"y" * 500, []))
    given.answer()
    await call.outcome()

    assert await left(client) == [0]
    assert (await client.call("f").outcome()).code == ErrorCode.QUOTA


async def test_all_quotas_of_the_places_hold_and_only_the_one_that_ran_counts(
    world: World, autojump_clock: Any
) -> None:
    """Nodes of two owners, named by a label: each owner's quota is asked, one is charged."""
    first = await world.node("n1", limited(quota="1_calls_daily"), user="carol", labels=["gpu"])
    second = await world.node("n2", limited(quota="1_calls_daily"), user="dave", labels=["gpu"])
    client = await world.client()
    outcome = client.call("f", node_ids=["gpu"])
    await outcome.until(lambda: outcome.accepted)
    await settle()
    assert sorted(await left(client)) == [0, 0]
    (given,) = first.given + second.given
    given.answer()
    await outcome.outcome()

    assert sorted(await left(client)) == [0, 1]
    assert (await client.call("f", node_ids=["gpu"]).outcome()).code == ErrorCode.QUOTA


async def test_a_changed_quota_knows_what_was_used_before(
    world: World, autojump_clock: Any
) -> None:
    """A provider who changes a quota does not give anybody a fresh one."""
    node, client = await world.node("n1", limited(quota="5_calls_daily")), await world.client()
    answer_all(node)
    for _ in range(3):
        await client.call("f").outcome()
    await node.update(functions=[limited(quota="4_calls_weekly")])

    assert await left(client) == [1]


async def test_what_memory_forgot_is_read_from_the_disk(world: World, autojump_clock: Any) -> None:
    """Accounts that nobody used for an hour cost no memory and lose nothing."""
    node = await world.node("n1", limited(quota="5_calls_monthly"))
    client = await world.client()
    answer_all(node)
    await client.call("f").outcome()
    await trio.sleep(IDLE_S + TIDY_EVERY_S + 2)
    assert world.gateway.accounts._balances == {}

    assert await left(client) == [4]


async def test_terms_that_cannot_be_read_refuse_the_registration(
    world: World, autojump_clock: Any
) -> None:
    """A limit that nobody understands does not become no limit; an unknown zone becomes UTC."""
    node = await world.node("n1")
    for wrong in ({"quota": "lots"}, {"quota": 3}, {"billing": "per_moon"}, {"billing": [1]}):
        assert (await node.register(function("f", **wrong))).code == ErrorCode.BAD_ARGUMENT
    quota = {"calls": 1, "per": "day", "tz": "Mars/Olympus"}

    assert isinstance(await node.register(function("f", quota=quota)), Registered)
    (state,) = await (await world.client()).ask("quota")
    assert state["timezone"] == "UTC"


# ---- bills ---------------------------------------------------------------------------------------


async def test_the_gateways_clock_decides_and_the_nodes_stands_beside(
    world: World, autojump_clock: Any
) -> None:
    """A node that claims an hour for ten seconds is paid ten seconds, and flagged."""
    node, client = await world.node("n1", priced()), await world.client()
    for claimed in (10.0, 3600.0):
        call = client.call("f")
        given = await node.wait_given(len(node.given) + 1)
        given.stream.started()  # type: ignore[union-attr]
        await trio.sleep(10)
        given.answer(seconds=claimed)
        await call.outcome()
    honest, liar = await usage(client)

    assert honest["seconds"] == pytest.approx(10, abs=0.1)
    assert honest["cost"] == pytest.approx(20, abs=0.2)
    assert not honest["flagged"]
    assert liar["seconds"] == pytest.approx(10, abs=0.1)
    assert liar["node_seconds"] == 3600.0
    assert liar["flagged"]


async def test_who_is_to_blame_decides_who_pays(world: World, autojump_clock: Any) -> None:
    """An exception of the function is paid; a node that is lost, and one that refuses, are not."""
    node, client = await world.node("n1", priced(mode="per_request")), await world.client()
    calls = [client.call("f") for _ in range(3)]
    await node.wait_given(3)
    node.given[0].fail(ErrorCode.REMOTE_ERROR, maybe=True)
    node.given[1].fail(ErrorCode.WORKER_DIED, maybe=True)
    await calls[1].outcome()
    await node.cut()
    assert (await calls[2].outcome()).code == ErrorCode.NODE_LOST
    await settle()

    assert rows(world) == [("error", 1, 2_000_000_000), ("lost", 0, 0), ("lost", 0, 0)]
    assert [one["outcome"] for one in await usage(client)] == ["error"]
    assert world.gateway.accounts.sums() == {
        "calls_billed": 1, "seconds_billed": pytest.approx(0, abs=0.1), "revenue": {"EUR": 2.0},
    }  # fmt: skip


async def test_errors_are_free_where_the_provider_says_so(
    world: World, autojump_clock: Any
) -> None:
    """Whether an exception of the function is paid is a part of the price rule."""
    node = await world.node("n1", priced(mode="per_request", bill_errors=False))
    client = await world.client()
    call = client.call("f")
    (await node.wait_given()).fail(ErrorCode.REMOTE_ERROR, maybe=True)
    await call.outcome()

    assert rows(world) == [("error", 0, 0)]


async def test_a_call_is_billed_until_its_node_has_done_with_it(
    world: World, autojump_clock: Any
) -> None:
    """A deadline settles the call for its caller; the body that goes on is still paid for."""
    node, client = await world.node("n1", priced()), await world.client()
    call = client.call("f", deadline_ms=1000)
    given = await node.wait_given()
    given.stream.started()  # type: ignore[union-attr]
    assert (await call.outcome()).code == ErrorCode.DEADLINE
    assert world.gateway.accounts.open == 1
    await trio.sleep(9)
    given.fail(ErrorCode.CANCELLED, maybe=True)
    await settle()

    (record,) = await usage(client)
    assert record["outcome"] == "deadline"
    assert record["seconds"] == pytest.approx(10, abs=0.2)


async def test_a_closed_record_does_not_change_and_a_paid_one_stays(
    world: World, autojump_clock: Any
) -> None:
    """The database itself refuses: records are immutable."""
    node, client = await world.node("n1", priced()), await world.client()
    answer_all(node)
    await client.call("f").outcome()
    await settle()
    connection = world.gateway.state.store._connection

    with pytest.raises(sqlite3.IntegrityError, match="does not change"):
        connection.execute("UPDATE usage SET price_nano = 0")
    with pytest.raises(sqlite3.IntegrityError, match="stays"):
        connection.execute("DELETE FROM usage")


async def test_the_totals_of_the_disk_are_those_of_memory(
    world: World, autojump_clock: Any
) -> None:
    """What a new start would read is what this one has counted."""
    node, client = (
        await world.node("n1", priced(), priced("g", "per_request")),
        await world.client(),
    )
    node.auto = lambda given: given.answer(seconds=0.25)
    for name in ("f", "g", "f"):
        await client.call(name).outcome()
    await usage(client)

    assert totals(world.gateway.state.store, "node_id") == world.gateway.accounts.revenue
    assert world.gateway.accounts.revenue_of("n1")["EUR"].calls == 3


async def test_a_node_is_told_what_it_has_earned(world: World, autojump_clock: Any) -> None:
    """Soon after a call was paid, and whenever it registers anew."""
    node, client = await world.node("n1", priced(mode="per_request")), await world.client()
    answer_all(node)
    assert world.gateway.accounts.earned("n1") is None
    for _ in range(3):
        await client.call("f").outcome()
    await trio.sleep(2)
    assert told(node) == [{"revenue": 6.0}]
    await node.cut()
    node = await world.node("n1", priced(mode="per_request"))
    await settle()

    assert told(node) == [{"revenue": 6.0}]


def told(node: Node) -> list[Any]:
    """Return what the gateway has said to a node beside that it is registered."""
    said = [one.info for one in node.registration.messages if type(one) is Update]
    return [plain.decode(info) for info in said if info is not None]


async def test_users_see_their_own_account_and_operators_all(
    world: World, autojump_clock: Any
) -> None:
    """Nobody reads or spends what is somebody else's."""
    node = await world.node("n1", priced(mode="per_request"), limited("g"), user="carol")
    answer_all(node)
    alice, bob = await world.client(user="alice"), await world.client("guest", user="bob")
    operator = await world.client("operator", user="oz")
    await alice.call("f").outcome()
    await bob.call("f").outcome()

    assert [one["user"] for one in await usage(alice)] == ["alice"]
    for asked in ({"user": "alice"}, {"everybody": True}):
        assert (await bob.ask("usage", **asked)).code == ErrorCode.FORBIDDEN
    assert (await bob.ask("quota", user="alice")).code == ErrorCode.FORBIDDEN
    assert (await bob.ask("usage", since="now")).code == ErrorCode.BAD_ARGUMENT
    assert (await bob.ask("usage", user=7)).code == ErrorCode.BAD_ARGUMENT
    assert [one["user"] for one in await operator.ask("usage", everybody=True)] == ["alice", "bob"]
    assert len(await operator.ask("usage", user="bob")) == 1
    assert (await operator.ask("quota", user="bob"))[0]["user"] == "bob"
    assert {one["event"] for one in await operator.ask("audit.list")} >= {"node_enrolled"}
    assert (await operator.ask("audit.list", after="x")).code == ErrorCode.BAD_ARGUMENT
    assert (await bob.ask("audit.list")).code == ErrorCode.FORBIDDEN


# ---- the disk, and crashes -----------------------------------------------------------------------


async def test_nothing_is_given_to_a_node_before_it_is_written_down(
    world: World, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is slow the call waits, and may be cancelled; then it was never counted."""
    node, client = await world.node("n1", limited()), await world.client()
    asked: list[Any] = []
    submit = world.gateway.store.submit
    monkeypatch.setattr(world.gateway.store, "submit", lambda *args: asked.append(args))
    call_id = new_id()
    first, second = client.call("f", b"12345", call_id=call_id), client.call("f")
    await first.until(lambda: first.accepted)
    assert world.gateway.dispatcher.bytes_buffered() == 9
    await settle()
    assert node.given == []
    assert len(asked) == 2
    assert "writes down" in (await client.ask("explain", call_id=call_id))["sentences"][0]
    assert second.stream is not None
    second.stream.cancel(1, 1000)
    assert (await second.outcome()).code == ErrorCode.CANCELLED
    assert await left(client) == [1]
    monkeypatch.undo()
    for args in asked:
        submit(*args)
    (await node.wait_given()).answer()

    assert isinstance(await first.outcome(), Result)
    await settle()
    assert [one[0] for one in rows(world)] == ["ok", "never"]
    assert len(node.given) == 1
    assert world.gateway.accounts.open == 0


async def test_a_disk_that_fails_refuses_the_call_and_counts_nothing(
    world: World, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be remembered does not happen."""
    node, client = await world.node("n1", limited()), await world.client()
    asked: list[Any] = []
    monkeypatch.setattr(world.gateway.store, "submit", lambda *args: asked.append(args))
    failing, gone = client.call("f"), client.call("f")
    await gone.until(lambda: gone.accepted)
    assert gone.stream is not None
    gone.stream.cancel(1, 1000)
    await gone.outcome()
    monkeypatch.undo()
    for then, *_ in asked:
        then(None, StoreError("the disk is full"))
    refused = await failing.outcome()

    assert (refused.code, refused.maybe_executed) == (ErrorCode.OVERLOADED, False)
    assert node.given == []
    assert await left(client) == [2]


async def test_the_end_of_a_call_is_written_down_when_the_disk_can_again(
    world: World, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a while when a call ends costs nobody a bill, or a user his time."""
    node = await world.node("n1", {**priced(), "quota": "1_hours_daily"})
    client = await world.client()
    call, store = client.call("f"), world.gateway.store
    given = await node.wait_given()
    await trio.sleep(2.0)
    refused: list[Any] = []

    def full(then: Any, *args: Any) -> None:
        refused.append(args)
        then(None, StoreError("the disk is full"))

    monkeypatch.setattr(store, "submit", full)
    given.answer()
    await call.outcome()
    await trio.sleep(3.0)
    assert [one[0] for one in rows(world)] == ["open"]
    assert len(refused) >= 3
    monkeypatch.undo()
    await trio.sleep(2.0)

    ((outcome, *_),) = rows(world)
    assert outcome == "ok"
    assert sum(one.price_nano for one in totals(store.reader).values()) == sum(
        one.price_nano for one in world.gateway.accounts.revenue.values()
    )
    assert [balance.charges for balance in world.gateway.accounts._balances.values()] == [0]


async def test_calls_that_come_while_their_node_comes_back_are_counted(
    world: World, autojump_clock: Any
) -> None:
    """A call that waits for its node, which is connected and has not said what it offers, is not
    past the quota when it has."""
    before, client = await world.node("n1", limited(slots=2)), await world.client()
    call = client.call("f")
    (await before.wait_given()).answer()
    await call.outcome()
    before.link.close(ErrorCode.NO_ERROR, "restart")
    await settle()
    node = await world.node("n1")
    first, second = client.call("f"), client.call("f")
    await settle()
    assert (first.messages, second.messages, node.given) == ([], [], [])
    await node.register(limited(slots=2))
    (await node.wait_given()).answer()

    assert isinstance(await first.outcome(), Result)
    refused = await second.outcome()
    assert (refused.code, refused.maybe_executed) == (ErrorCode.QUOTA, False)
    assert len(node.given) == 1
    assert [one[0] for one in rows(world)] == ["ok", "ok"]


async def test_a_call_id_is_counted_once_whoever_made_it_up(
    world: World, autojump_clock: Any
) -> None:
    """An id that was used and forgotten by memory is refused by the disk."""
    node, client = await world.node("n1", limited(quota="5_calls_daily")), await world.client()
    answer_all(node)
    call_id = new_id()
    await client.call("f", call_id=call_id).outcome()
    world.gateway.dispatcher.caller("alice")._over.clear()
    again = await client.call("f", call_id=call_id).outcome()

    assert (again.code, again.maybe_executed) == (ErrorCode.GATEWAY_LOST, True)
    assert len(node.given) == 1
    assert await left(client) == [4]
    store, opened = world.gateway.state.store, Opened(call_id, "alice", "", "f", BASE, 1, 0)
    with pytest.raises(AlreadyOpenError):
        open_usage(store, opened, [])
    open_usage(store, opened._replace(user="mallory"), [])  # Another user's ids are its own.


async def test_calls_that_never_come_back_are_unknown_and_free(
    home: Path, tmp_path: Path, autojump_clock: Any
) -> None:
    """What was open when the gateway died keeps its place in the quota, costs nothing, is told."""
    terms = {**priced(mode="per_request"), "quota": "2_calls_monthly"}
    async with open_world(tmp_path / "state") as world:
        with_wall(world)
        node, client = await world.node("n1", terms), await world.client()
        client.call("f")
        await node.wait_given()
    async with open_world(tmp_path / "state") as world:
        with_wall(world)
        client = await world.client()
        store = world.gateway.state.store
        assert [one[0] for one in rows(world)] == ["open"]
        await trio.sleep(RETURN_S + 2)
        assert rows(world) == [("unknown", 0, 0)]
        assert [one["outcome"] for one in list_usage(store)] == ["unknown"]
        assert "usage_unknown" in {row.event for row in store.audit_rows()}
        await world.node("n2", terms)
        assert await left(client) == [1]


async def test_rows_without_a_price_are_forgotten_in_time(
    world: World, autojump_clock: Any
) -> None:
    """What only had a quota is kept while its id may come again, and no longer."""
    node, client = await world.node("n1", limited(), priced("g")), await world.client()
    answer_all(node)
    await client.call("f").outcome()
    await client.call("g").outcome()
    set_forward(world, 4 * 86_400)
    await trio.sleep(TIDY_EVERY_S + 2)

    assert [one[1] for one in rows(world)] == [1]


# ---- the audit -----------------------------------------------------------------------------------


def audited(world: World, event: str) -> list[dict[str, Any]]:
    return [row.detail for row in world.gateway.state.store.audit_rows() if row.event == event]


async def test_changed_terms_are_in_the_audit(world: World, autojump_clock: Any) -> None:
    """Quota, price and levels: what they were and what they are; the same again is no entry."""
    node = await world.node("n1", limited(), function("plain"))
    await settle()
    assert [one["before"] for one in audited(world, "terms_changed")] == [None]
    await node.update(functions=[limited()])
    await node.update(functions=[function("plain", access_level="gold", auth_required=True)])
    await node.update(removed=["f"])
    first, level, gone = audited(world, "terms_changed")

    assert first["after"]["quota"]["calls"] == 2
    assert level["function"] == "plain"
    assert level["after"] == {"access_level": "gold", "auth_required": True}
    assert (gone["before"], gone["after"]) == (first["after"], None)
    await node.cut()
    await world.node("n1", function("plain", access_level="gold", auth_required=True))
    await settle()
    assert len(audited(world, "terms_changed")) == 3


async def test_a_denied_call_is_in_the_audit_once_an_hour(
    world: World, autojump_clock: Any
) -> None:
    """Who tries what is not for them is written down, and cannot fill the disk with it."""
    await world.node("n1", function("f", auth_required=True), user="carol")
    lab = await world.client("guest", user="lab", shared=True)
    for _ in range(3):
        assert (await lab.call("f").outcome()).code == ErrorCode.FORBIDDEN
    await settle()
    (entry,) = audited(world, "call_denied")
    assert entry["function"] == "f"
    assert "individual" in entry["reason"]
    await trio.sleep(3601)
    await lab.call("f").outcome()
    await settle()

    assert len(audited(world, "call_denied")) == 2


# ---- sub-accounts --------------------------------------------------------------------------------

PARAMETERS = [
    {"name": "x", "kind": "positional_or_keyword"},
    {"name": "user_id", "kind": "positional_or_keyword"},
]


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1, "ann"), {}, "ann"),
        ((1,), {"user_id": "bob"}, "bob"),
        ((1, 42), {}, "42"),
        ((1,), {}, ""),
        ((1, ["ann"]), {}, ""),
        ((1, {1: 2}), {}, ""),
        ((1, "x" * 129), {}, ""),
    ],
)
async def test_a_shared_token_has_sub_accounts(
    world: World, autojump_clock: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: str
) -> None:
    """The value of `user_id` divides what a shared token may use, by position and by name."""
    node = await world.node("n1", limited(parameters=PARAMETERS), user="carol")
    answer_all(node)
    body = encode_call(args, kwargs, allow_pickle=False).body
    lab = await world.client("guest", user="lab", shared=True)
    own = await world.client("guest", user="ann")
    for client in (lab, own):
        assert isinstance(await client.call("f", bytes(body)).outcome(), Result)

    used = {one["sub_account"]: one["used"] for one in await lab.ask("quota")}
    assert used == ({"": 0, expected: 1} if expected else {"": 1})
    assert [one["sub_account"] for one in await own.ask("quota")] == [""]


@pytest.mark.parametrize(
    ("body", "codec", "parameters"),
    [
        (b"\xff", 0, PARAMETERS),
        (b"\x01", 0, PARAMETERS),
        (b"\x82\x01\x02", 0, PARAMETERS),
        (b"pickle", 1, PARAMETERS),
        (b"\x82\x81\x63ann\xa0", 0, None),
        (b"\x82\x81\x63ann\xa0", 0, [{"name": "x"}, "odd"]),
    ],
)
async def test_what_cannot_be_read_has_no_sub_account(
    world: World, autojump_clock: Any, body: bytes, codec: int, parameters: Any
) -> None:
    """Nonsense and pickles are the whole token's, and open nothing at the gateway."""
    node = await world.node("n1", limited(parameters=parameters), user="carol")
    answer_all(node)
    lab = await world.client("member", user="lab", shared=True)
    await lab.call("f", body, codec=codec).outcome()

    assert {one["sub_account"]: one["used"] for one in await lab.ask("quota")} == {"": 1}


def test_calls_without_terms_have_no_field_of_their_own() -> None:
    """The charge of an ordinary call is an attribute of the class: it costs no memory."""
    assert GatewayCall.charge is None
    assert isinstance(Failure(0, "", False, None, {}), tuple)


async def test_a_quota_that_comes_late_is_no_way_around_it(
    world: World, autojump_clock: Any
) -> None:
    """A call that was counted before a node with a quota came does not run there uncounted."""
    first = await world.node("n1", priced(slots=1))
    client = await world.client()
    calls = [client.call("f") for _ in range(3)]
    await first.wait_given()
    late = await world.node("n2", limited(quota="1_calls_daily"))
    await settle()
    assert late.given == []
    for at in range(3):
        (await first.wait_given(at + 1)).answer()
    for call in calls:
        assert isinstance(await call.outcome(), Result)

    await first.cut()
    await trio.sleep(5.0)
    answer_all(late)
    said = [await client.call("f").outcome() for _ in range(2)]
    assert [type(one) for one in said] == [Result, Failure]
