"""Who is let in, as whom, and for how long."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from easyremote.errors import (
    AccessDeniedError,
    AuthenticationError,
    EasyRemoteError,
    ProtocolViolationError,
)
from easyremote.gateway.offer import PLAIN_NODES_MAX
from easyremote.values import plain
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import Dispatch, Failure, Kind, Query, Register, Registered, Result

from .peers import Probe, World, function, new_id

pytestmark = pytest.mark.trio


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


# ---- clients -----------------------------------------------------------------------------------


async def test_good_token_is_welcomed_as_its_principal(
    world: World, autojump_clock: MockClock
) -> None:
    """The welcome says who one is and which gateway one talks to."""
    client = await world.client("member", "bob", levels=["x"])
    info = client.info

    assert info is not None
    assert (info["user"], info["role"], info["levels"]) == ("bob", "member", ["x"])
    assert info["gateway_id"] == world.gateway.state.gateway_id


@pytest.mark.parametrize("text", ["", "nonsense", "erc_0123456789_" + "0" * 49])
async def test_no_good_token_is_refused(world: World, autojump_clock: MockClock, text: str) -> None:
    """Without a token, with an unknown one or with garbage nobody is let in."""
    client = await world.client(token=text)
    await client.over.wait()

    assert client.info is None
    assert isinstance(client.error, AuthenticationError)


async def test_unknown_token_and_wrong_secret_get_the_same_answer(
    world: World, autojump_clock: MockClock
) -> None:
    """The refusal does not tell whether a token id exists."""
    from easyremote.identity.token import Token, TokenKind

    known = Token.parse(world.token("member", "bob"))
    forged = Token(known.kind, known.id, bytes(32)).text()
    unknown = Token.new(TokenKind.CLIENT).text()
    errors = [(await world.client(token=text)).error for text in (forged, unknown)]

    assert str(errors[0]) == str(errors[1])
    assert type(errors[0]) is type(errors[1])


async def test_expired_token_is_refused_and_ends_live_links(
    world: World, autojump_clock: MockClock
) -> None:
    """Who holds the right secret of an expired token hears that it has expired."""
    store = world.gateway.state.store
    now = store.clock()
    text = store.create_token("member", "bob", expires_s=100.0).text()
    client = await world.client(token=text)
    assert client.info is not None
    store.clock = lambda: now + 101.0
    with trio.fail_after(5):
        await client.over.wait()

    assert isinstance(client.error, AuthenticationError)
    assert client.error.code == ErrorCode.AUTH_EXPIRED
    assert (await world.client(token=text)).info is None


async def test_revoked_token_ends_live_links_within_seconds(
    world: World, autojump_clock: MockClock
) -> None:
    """Links that live on a revoked token are closed, their calls cancelled, new ones refused."""
    node = await world.node("n1", function("f"))
    text = world.token("member", "bob")
    client = await world.client(token=text)
    client.call("f")
    given = await node.wait_given()
    began = trio.current_time()
    world.gateway.state.store.revoke(text.split("_")[1])
    await client.over.wait()

    assert trio.current_time() - began < 5.0
    assert client.error is not None
    assert client.error.code == ErrorCode.AUTH_REVOKED
    await given.until(lambda: given.cancels)
    assert (await world.client(token=text)).info is None


async def test_nothing_is_looked_at_before_the_welcome(
    world: World, autojump_clock: MockClock
) -> None:
    """A peer that opens a stream before it was let in is cut off."""
    from easyremote.wire.frame import FrameType, pack

    client = await world.client(token="nonsense")
    await client.over.wait()
    ours = world._pair()
    early = pack(FrameType.OPEN, 1, Kind.QUERY, 1, b"\x80")
    ours.try_send(memoryview(b"\x89ER1\r\n\x1a\n" + early))
    await settle()
    answer = bytearray(4096)
    size = ours.try_receive_into(memoryview(answer))

    assert size is not None
    assert answer[12] == FrameType.GOAWAY
    assert world.gateway.status()["streams"] == 0


async def test_silent_peer_is_sent_away(world: World, autojump_clock: MockClock) -> None:
    """Who never says HELLO is gone after the handshake timeout."""
    world._pair()
    await settle()
    assert len(world.gateway.sessions) == 1
    await trio.sleep(11)

    assert not world.gateway.sessions


async def test_address_that_keeps_failing_waits(world: World, autojump_clock: MockClock) -> None:
    """After ten failures in a minute each answer takes a second, good or bad."""
    good = world.token("member", "bob")
    for _ in range(10):
        await world.client(token="nonsense")
    began = trio.current_time()
    await world.client(token="nonsense")
    between = trio.current_time()
    client = await world.client(token=good)

    assert between - began >= 1.0
    assert trio.current_time() - between >= 1.0
    assert client.info is not None


async def test_token_revoked_during_the_wait_is_refused(
    world: World, autojump_clock: MockClock
) -> None:
    """A token that becomes void between its check and the welcome lets nobody in."""
    text = world.token("member", "bob")
    for _ in range(11):
        await world.client(token="nonsense")
    came: list[Any] = []

    async def come() -> None:
        came.append(await world.client(token=text))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        await trio.sleep(0.5)
        world.gateway.state.store.revoke(text.split("_")[1])

    assert came[0].info is None
    assert came[0].error.code == ErrorCode.AUTH_REVOKED


async def test_node_revoked_while_the_old_one_is_asked_is_refused(
    world: World, autojump_clock: MockClock
) -> None:
    """A node whose token becomes void while it waits for its id does not get the id."""
    text = world.token("node", "bob")
    await world.node("n1", token=text)
    came: list[Any] = []

    async def come() -> None:
        came.append(await world.node("n1", token=text))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        await trio.sleep(0.5)
        world.gateway.state.store.revoke(text.split("_")[1])

    assert came[0].info is None
    assert came[0].error.code == ErrorCode.AUTH_REVOKED
    assert world.gateway.node_session("n1") is None


async def test_refusals_are_audited_without_secrets(
    world: World, autojump_clock: MockClock
) -> None:
    """A refused login leaves one entry with cause and address, and no part of the token."""
    token = world.token("member", "bob")
    world.gateway.state.store.revoke(token.split("_")[1])
    await world.client(token=token)
    await settle()
    rows = [row for row in world.gateway.state.store.audit_rows() if row.event == "login_refused"]

    assert len(rows) == 1
    assert rows[0].detail["cause"] == "revoked token"
    assert token.split("_")[2] not in str(rows[0])


async def test_node_token_is_no_client(world: World, autojump_clock: MockClock) -> None:
    """A token that enrols nodes calls nothing and sees nothing."""
    client = await world.client(token=world.token("node", "bob"))

    assert isinstance(client.error, AccessDeniedError)


async def test_worker_role_is_refused(world: World, autojump_clock: MockClock) -> None:
    """A gateway takes clients and nodes."""
    from .peers import Client

    peer = Client(world, world._pair())
    await world._greet(peer, "worker", {"token": world.token()}, {})

    assert isinstance(peer.error, ProtocolViolationError)


# ---- nodes -------------------------------------------------------------------------------------


async def test_node_enrols_once_and_needs_no_token_again(
    world: World, autojump_clock: MockClock
) -> None:
    """The first contact binds the id to the node's secret; the token may be gone afterwards."""
    node = await world.node("gpu-01", user="carol")
    assert node.info is not None
    assert node.info["node_id"] == "gpu-01"
    first_epoch = node.info["epoch"]
    await node.goodbye()
    again = await world.node("gpu-01", token="")

    assert again.info is not None
    assert again.info["user"] == "carol"
    assert again.info["epoch"] > first_epoch


async def test_wrong_node_secret_is_refused_and_disturbs_nobody(
    world: World, autojump_clock: MockClock
) -> None:
    """Another machine cannot take a node id, with a good token or without; the node stays."""
    node = await world.node("gpu-01", function("f"))
    thief = await world.node("gpu-01", secret=b"x" * 32)

    assert thief.info is None
    assert thief.error is not None
    assert thief.error.code == ErrorCode.FORBIDDEN
    assert "belongs to another machine" in str(thief.error)

    call = (await world.client()).call("f")
    (await node.wait_given()).answer(b"still here")

    assert (await call.outcome()).body == b"still here"
    causes = [row.detail.get("cause") for row in world.gateway.state.store.audit_rows()]
    assert "wrong node secret" in causes


async def test_same_agent_takes_its_old_link_over_at_once(
    world: World, autojump_clock: MockClock
) -> None:
    """An agent that reconnects does not wait for its dead link, and keeps its epoch."""
    boot = new_id()
    old = await world.node("n1", function("f"), boot=boot)
    began = trio.current_time()
    new = await world.node("n1", function("f"), boot=boot)

    assert trio.current_time() - began < 1.0
    assert old.over.is_set()
    assert new.info is not None
    assert old.info is not None
    assert new.info["epoch"] == old.info["epoch"]

    call = (await world.client()).call("f")
    (await new.wait_given()).answer(b"new link")

    assert (await call.outcome()).body == b"new link"


async def test_second_live_node_of_one_id_is_refused(
    world: World, autojump_clock: MockClock
) -> None:
    """A copy of a node with the same secret is refused while the first one lives."""
    first = await world.node("n1", function("f"))
    second = await world.node("n1", function("f"))

    assert second.info is None
    assert second.error is not None
    assert "is connected" in str(second.error)
    assert not first.over.is_set()


async def test_dead_link_makes_way_for_the_next_boot(
    world: World, autojump_clock: MockClock
) -> None:
    """A node that came back after a crash waits for one ping of its old link, no longer."""
    first = await world.node("n1", function("f"))
    first.link.flush = lambda: None  # type: ignore[method-assign]  # It says nothing more.
    await trio.sleep(1)
    second = await world.node("n1", function("f"))

    assert second.info is not None


async def test_node_token_bound_to_an_id_enrols_no_other(
    world: World, autojump_clock: MockClock
) -> None:
    """`--node ID` binds the token."""
    token = world.token("node", "carol", node_id="gpu-01")
    other = await world.node("gpu-02", token=token)
    right = await world.node("gpu-01", token=token)

    assert other.info is None
    assert right.info is not None


async def test_node_without_secret_is_refused(world: World, autojump_clock: MockClock) -> None:
    """A token alone makes no node."""
    from .peers import Node

    node = Node(world, world._pair(), "n1")
    credential = {"node_id": "n1", "token": world.token("node")}
    await world._greet(node, "node", credential, {})

    assert isinstance(node.error, AuthenticationError)


# ---- registrations -----------------------------------------------------------------------------


async def test_registration_is_answered_with_epoch_and_lease(
    world: World, autojump_clock: MockClock
) -> None:
    """A node hears its epoch, its lease and its owner."""
    node = await world.node("n1", user="carol")
    answer = await node.register(function("f"))

    assert isinstance(answer, Registered)
    assert answer.info["owner"] == "carol"
    assert answer.info["lease_s"] == 15.0


async def test_large_registration_comes_as_a_segment(
    world: World, autojump_clock: MockClock
) -> None:
    """A thousand functions with documentation register in one message."""
    node = await world.node("n1")
    body = plain.encode({"functions": [function(f"f{n}", doc="d" * 200) for n in range(1000)]})
    probe = Probe()
    probe.stream = node.link.open(
        Register(None, [len(body)]), [memoryview(bytearray(body))], handler=probe
    )
    await probe.until(lambda: probe.messages)

    assert isinstance(probe.messages[0], Registered)
    assert len(world.gateway.registry.nodes["n1"].offers) == 1000


HOSTILE: list[Any] = [
    None,
    [],
    {"functions": 7},
    {"functions": [7]},
    {"functions": [{}]},
    {"functions": [{"name": ""}]},
    {"functions": [{"name": "a" * 65}]},
    {"functions": [{"name": "<script>"}]},
    {"functions": [{"name": "a.b"}]},
    {"functions": [{"name": "f"}, {"name": "f"}]},
    {"functions": [{"name": "f", "slots": 0}]},
    {"functions": [{"name": "f", "slots": 10**9}]},
    {"functions": [{"name": "f", "slots": True}]},
    {"functions": [{"name": "f", "group": "x" * 500}]},
    {"functions": [{"name": "f", "doc": 7}]},
    {"functions": [{"name": "f", "timeout_s": -1}]},
    {"functions": [{"name": "f", "timeout_s": float("nan")}]},
    {"functions": [{"name": "f", "auth_required": "no"}]},
    {"functions": [{"name": "f", "access_level": ""}]},
    {"functions": [{"name": "f", "metadata": [0] * PLAIN_NODES_MAX}]},
    {"functions": [{"name": "f", "metadata": b"bytes"}]},
    {"capabilities": "all of them"},
    {"capabilities": {"x" * 500: 1}},
    {"labels": [""]},
    {"paused": 1},
    {"removed": ["../../etc"]},
]


@pytest.mark.parametrize("value", HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
async def test_hostile_registration_is_refused_whole(
    world: World, autojump_clock: MockClock, value: Any
) -> None:
    """Whatever a node says of itself, nothing of a bad registration is kept and nobody breaks."""
    node = await world.node("n1")
    probe = Probe()
    probe.stream = node.link.open(Register(plain.encode(value), []), handler=probe)
    outcome = await probe.outcome()

    assert isinstance(outcome, Failure)
    assert outcome.code == ErrorCode.BAD_ARGUMENT
    assert not world.gateway.registry.nodes["n1"].offers

    assert isinstance(await node.register(function("good")), Registered)


async def test_node_token_limits_the_names_it_may_register(
    world: World, autojump_clock: MockClock
) -> None:
    """A node whose token names patterns cannot squat other names."""
    from easyremote.identity.role import Scopes

    token = world.token("node", "carol", scopes=Scopes(functions=("train_*",)))
    node = await world.node("n1", token=token)

    assert isinstance(await node.register(function("process_payment")), Failure)
    assert isinstance(await node.register(function("train_model")), Registered)


async def test_updates_add_remove_pause_and_drain(world: World, autojump_clock: MockClock) -> None:
    """What a node changes holds for the next call."""
    node = await world.node("n1", function("f"), function("g"))
    client = await world.client()
    node.auto = lambda given: given.answer()

    await node.update(functions=[function("h")], removed=["g"])
    assert isinstance(await client.call("h").outcome(), Result)
    assert (await client.call("g").outcome()).code == ErrorCode.NOT_FOUND

    await node.update(paused=True)
    refused = await client.call("f").outcome()
    assert refused.code == ErrorCode.NO_NODE
    assert "n1 is paused" in refused.reason

    await node.update(paused=False)
    assert isinstance(await client.call("f").outcome(), Result)

    node.link.drain("going down")
    await settle()
    assert "n1 is draining" in (await client.call("f").outcome()).reason


async def test_client_cannot_register_and_node_cannot_ask(
    world: World, autojump_clock: MockClock
) -> None:
    """What a role may not open ends its link."""
    client = await world.client()
    client.link.open(Register(plain.encode({}), []), handler=Probe())
    await client.over.wait()
    node = await world.node("n1")
    node.link.open(Query("nodes", {}), handler=Probe(), end=True)
    await node.over.wait()

    assert isinstance(client.error, ProtocolViolationError)
    assert isinstance(node.error, ProtocolViolationError)


async def test_client_cannot_dispatch(world: World, autojump_clock: MockClock) -> None:
    """A forged Dispatch from a client ends its link."""
    client = await world.client()
    forged = Dispatch(new_id(), "f", "root", ["owner"], None, 0, 0, b"", 1, {}, b"", [])
    client.link.open(forged, handler=Probe(), end=True)
    await client.over.wait()

    assert isinstance(client.error, EasyRemoteError)
    assert client.error.code == ErrorCode.PROTOCOL


async def test_garbage_call_ends_the_link_and_nothing_else(
    world: World, autojump_clock: MockClock
) -> None:
    """Bytes that are no Call are a broken peer; others do not notice."""
    node = await world.node("n1", function("f"))
    node.auto = lambda given: given.answer()
    bad, good = await world.client(), await world.client()
    bad.link.open_encoded(Kind.CALL, b"\x81\x01", handler=Probe(), end=True)
    await bad.over.wait()

    assert bad.error is not None
    assert bad.error.code == ErrorCode.DECODE
    assert isinstance(await good.call("f").outcome(), Result)


async def test_refusal_that_repeats_a_long_wish_fits_into_a_frame(
    world: World, autojump_clock: MockClock
) -> None:
    """A capability of nearly a frame is refused, in a frame, and ends no link."""
    await world.node("n1", function("f"))
    client = await world.client("guest", "bob")
    with trio.fail_after(5):
        said = await client.call("f", options={"capability": "\x00" * 50_000}).outcome()

    assert type(said) is Failure
    assert said.code == ErrorCode.BAD_ARGUMENT
    assert not client.over.is_set()
