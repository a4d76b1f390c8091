"""What the gateway hears and sees of nodes changes where calls go."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from easyremote.gateway.placing import PASS_S
from easyremote.scheduler.pending import PendingQueue
from easyremote.values import plain
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import Failure, Result, Telemetry, Update

from .peers import Node, World, function, new_id

pytestmark = pytest.mark.trio

GB = 10**9


def sample(cpu: float = 10.0, **more: Any) -> dict[str, Any]:
    return {
        "full": True, "cpu_percent": cpu, "cpu_count": 8, "memory_total_bytes": 32 * GB,
        "memory_available_bytes": 24 * GB, "gpus": [], **more,
    }  # fmt: skip


def gpus(*free_gb: float) -> list[dict[str, Any]]:
    return [
        {
            "index": index, "memory_total_bytes": 24 * GB, "memory_free_bytes": int(free * GB),
            "memory_foreign_bytes": int((24 - free) * GB), "utilisation": 0.0,
        }
        for index, free in enumerate(free_gb)
    ]  # fmt: skip


def say(node: Node, said: dict[str, Any]) -> None:
    assert node.registration.stream is not None
    node.registration.stream.send(Telemetry(said))


def replicas_wanted(node: Node, name: str) -> list[int]:
    """Return which numbers of replicas a node was asked for, in order."""
    told = [
        plain.decode(one.info or b"") for one in node.registration.messages if type(one) is Update
    ]
    return [one["replicas"][name] for one in told if "replicas" in one]


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_busy_node_gets_no_call_while_another_is_free(
    world: World, autojump_clock: MockClock
) -> None:
    """A node whose processors are busy is passed over as long as another one has room."""
    busy = await world.node("busy", function("f", slots=8))
    free = await world.node("free", function("f", slots=8))
    for _ in range(3):
        say(busy, sample(cpu=98.0))
        say(free, sample(cpu=5.0))
        await trio.sleep(1.0)
    client = await world.client()
    for _ in range(3):
        client.call("f")
    await settle()

    assert (len(busy.given), len(free.given)) == (0, 3)


async def test_three_calls_on_two_devices_run_two_at_once(
    world: World, autojump_clock: MockClock
) -> None:
    """Each GPU holds one call of 16 GB; the third waits, says why, and gets the free one."""
    needs = {"gpu_memory": "16GB"}
    node = await world.node("gpu", function("train", slots=3, requirements=needs))
    say(node, sample(gpus=gpus(24, 24)))
    await settle()
    client = await world.client()
    ids = [new_id() for _ in range(3)]
    calls = [client.call("train", call_id=call_id) for call_id in ids]
    await settle()

    assert [given.dispatch.context.get("gpus") for given in node.given] == [[0], [1]]
    told = await client.ask("explain", call_id=ids[2])
    assert told["queue_position"] == 0
    assert "gpu_memory" in " ".join(told["sentences"])

    node.given[0].answer()
    await settle()
    assert node.given[2].dispatch.context["gpus"] == [0]
    for given in node.given[1:]:
        given.answer()
    for call in calls:
        assert isinstance(await call.outcome(), Result)
    ledger = world.gateway.registry.nodes["gpu"].host.ledger
    assert ledger.reservations == 0


async def test_what_no_node_could_run_is_refused_with_what_each_has(
    world: World, autojump_clock: MockClock
) -> None:
    """A GPU that does not exist is an error at once, which names each node's offer."""
    small = await world.node("small", function("train", requirements={"gpu_memory": "16GB"}))
    none = await world.node("none", function("train", requirements={"gpu_memory": "16GB"}))
    say(
        small,
        sample(gpus=[{**gpus(24)[0], "memory_total_bytes": 8 * GB, "memory_free_bytes": 8 * GB}]),
    )
    say(none, sample())
    await settle()
    said = await (await world.client()).call("train").outcome()

    assert isinstance(said, Failure)
    assert (said.code, said.detail["class"]) == (ErrorCode.NO_NODE, "InfeasibleError")
    assert not said.maybe_executed
    assert "small has 8 GB gpu_memory (want 16 GB)" in said.reason
    assert "none has no gpu" in said.reason


async def test_options_of_a_call_are_reserved_too(world: World, autojump_clock: MockClock) -> None:
    """Two calls that each want five of eight cores do not run beside each other."""
    node = await world.node("n1", function("f", slots=4))
    say(node, sample())
    await settle()
    client = await world.client()
    calls = [client.call("f", options={"num_cpus": 5}) for _ in range(2)]
    plain = client.call("f")
    await settle()

    assert len(node.given) == 2, "the one without needs passes"
    for at in range(3):
        (await node.wait_given(at + 1)).answer()
    for call in [*calls, plain]:
        assert isinstance(await call.outcome(), Result)


async def test_a_node_is_kept_for_a_large_call_that_has_waited(
    world: World, autojump_clock: MockClock
) -> None:
    """Small calls pass a large one for a while, not for ever."""
    node = await world.node("n1", function("f", slots=8))
    say(node, sample())
    await settle()
    client = await world.client()
    client.call("f", options={"num_cpus": 4})
    await settle()
    large = new_id()
    client.call("f", options={"num_cpus": 8}, call_id=large)
    await settle()
    for at in range(12):  # Each overlaps with the next one: eight cores are never free at once.
        client.call("f", options={"num_cpus": 4})
        await settle()
        await trio.sleep(1.0)
        if at < len(node.given):
            node.given[at].answer()
        await settle()
    order = [given.dispatch.call_id for given in node.given]

    assert large in order
    assert order.index(large) >= 4, "others passed it for some seconds"


async def test_replicas_follow_the_queue(world: World, autojump_clock: MockClock) -> None:
    """A queue asks for more replicas within the bounds, and an idle function for fewer."""
    bounds = {"min": 1, "max": 3, "target_queue": 1, "idle_s": 5}
    node = await world.node("n1", function("f", slots=1, group="fn:f", scaling=bounds))
    client = await world.client()
    calls = [client.call("f") for _ in range(10)]
    await trio.sleep(8.0)

    assert replicas_wanted(node, "f") == [2, 3]

    for at in range(len(calls)):
        (await node.wait_given(at + 1)).answer()
        await settle()
    await trio.sleep(8.0)
    assert replicas_wanted(node, "f") == [2, 3, 1]


async def test_a_replica_that_nobody_asked_for_is_given_up(
    world: World, autojump_clock: MockClock
) -> None:
    """A node that started a replica for one short call is told so when it has been idle."""
    bounds = {"min": 0, "max": 3, "target_queue": 1, "idle_s": 5}
    node = await world.node("n1", function("f", slots=1, group="fn:f", scaling=bounds))
    client = await world.client()
    for _ in range(3):
        call = client.call("f")
        (await node.wait_given(len(node.given) + 1)).answer()
        await call.outcome()
        say(node, {"replicas": {"f": 1}})
        await trio.sleep(3.5)
        assert replicas_wanted(node, "f") == []
    await trio.sleep(4.0)
    assert replicas_wanted(node, "f") == [0]
    say(node, {"replicas": {"f": 0}})
    await trio.sleep(10.0)

    assert replicas_wanted(node, "f") == [0]


async def test_a_first_round_trip_that_was_long_is_forgotten(world: World) -> None:
    """What a node pays for a bad start is over once a shorter one was measured, even once."""
    await world.node("n1", function("f"))
    record = world.gateway.registry.nodes["n1"]
    assert record.link is not None
    for rtt_s in (0.2, 0.001):
        record.link.connection.rtt_s = rtt_s
        for second in range(40):
            world.gateway.watch.tick(trio.current_time() + second)

    assert record.host.rtt_s == pytest.approx(0.001, rel=0.02)


async def test_a_node_is_not_kept_for_a_call_that_is_gone(
    world: World, autojump_clock: MockClock
) -> None:
    """A call for which a node was kept and that is cancelled is forgotten at once."""
    needs = {"resources": {"license": 1}}
    node = await world.node(
        "n1", function("f", slots=4, requirements=needs),
        capabilities={"resources": {"license": 2}},
    )  # fmt: skip
    client = await world.client()
    first = client.call("f")
    large = client.call("f", options={"resources": {"license": 2}})
    await large.until(lambda: large.accepted)
    await trio.sleep(PASS_S + 1.0)
    say(node, sample())
    await settle()
    placer = world.gateway.dispatcher.placer
    assert len(placer.kept) == 1
    assert large.stream is not None
    large.stream.cancel(1, 1000)
    await large.outcome()

    assert placer.kept == {}
    node.given[0].answer()
    await first.outcome()


async def test_a_kept_node_goes_to_whoever_is_next_at_the_same_queue(
    world: World, autojump_clock: MockClock
) -> None:
    """A node that is kept for one user's call is given to another user's who is before it by now:
    they do not wait for each other."""
    needs = {"resources": {"license": 1}}
    node = await world.node(
        "n1", function("f", slots=4, requirements=needs),
        capabilities={"resources": {"license": 1}},
    )  # fmt: skip
    alice, bob = await world.client(), await world.client(user="bob")
    first, kept = alice.call("f"), alice.call("f")
    await trio.sleep(PASS_S + 1.0)
    say(node, sample())
    await settle()
    assert len(world.gateway.dispatcher.placer.kept) == 1
    earlier = bob.call("f")  # He has used nothing yet.
    await settle()
    for at, call in enumerate((first, earlier, kept)):
        (await node.wait_given(at + 1)).answer()
        assert isinstance(await call.outcome(), Result)

    assert trio.current_time() < PASS_S + 10.0


async def test_provider_says_which_function_goes_first(
    world: World, autojump_clock: MockClock
) -> None:
    """Of one user's waiting calls, those of the function with the higher priority go first."""
    node = await world.node("n1", function("late"), function("soon", priority=5))
    client = await world.client()
    for name in ("late", "late", "soon"):
        client.call(name)
        await settle()
    node.given[0].answer(seconds=1.0)
    await settle()

    assert [given.dispatch.function for given in node.given] == ["late", "soon"]


async def test_a_call_that_waits_for_what_a_node_had_is_refused(
    world: World, autojump_clock: MockClock
) -> None:
    """A node that turns out to have less than it said: nobody waits for that for ever."""
    node = await world.node("n1", function("f", slots=2, requirements={"gpu_memory": "20GB"}))
    say(node, sample(gpus=gpus(24)))
    await settle()
    client = await world.client()
    running, waiting = client.call("f"), client.call("f")
    await node.wait_given()
    say(node, sample())
    await trio.sleep(world.gateway.limits.offline_grace_s + 3.0)
    assert waiting.ended
    refused = await waiting.outcome()
    node.given[0].answer()

    assert (refused.code, refused.detail["class"]) == (ErrorCode.NO_NODE, "InfeasibleError")
    assert "n1" in refused.reason
    assert isinstance(await running.outcome(), Result)


async def test_pools_that_are_forgotten_leave_nothing_behind(
    world: World, autojump_clock: MockClock
) -> None:
    """Calls that waited for what they asked for leave no lane at their user when all is over."""
    node = await world.node("n1", function("f"), capabilities={"cpu": {"cores": 8}})
    client = await world.client()
    for at in range(3):
        calls = [client.call("f", options={"num_cpus": 1}) for _ in range(2)]
        for index, call in enumerate(calls):
            (await node.wait_given(2 * at + index + 1)).answer()
            await call.outcome()
        await trio.sleep(2.0)
    share = world.gateway.registry.cluster.shares.of("alice", trio.current_time())

    assert share.lanes == []


async def test_scores_of_a_placement_are_of_before_it(
    world: World, autojump_clock: MockClock
) -> None:
    """What a call reserves itself is taken off once: two of eight cores leave three quarters."""
    node = await world.node(
        "n1", function("f", slots=8, requirements={"num_cpus": 2}),
        capabilities={"cpu": {"cores": 8}},
    )  # fmt: skip
    client = await world.client()
    shown = []
    for at in range(4):
        call_id = new_id()
        client.call("f", call_id=call_id)
        await node.wait_given(at + 1)
        placement = (await client.ask("call", call_id=call_id))["placement"]
        shown.append(placement["scores"]["resources"])

    assert shown == [0.75, 0.5, 0.25, 0.0]


async def test_a_silent_node_is_better_than_none(world: World, autojump_clock: MockClock) -> None:
    """When the last other node leaves, calls that wait for it go to one that was shut out."""
    away = await world.node("away", function("f"))
    silent = await world.node("silent", function("f"))
    say(silent, sample())
    client = await world.client()
    for _ in range(15):
        say(away, sample())
        await trio.sleep(1.0)
    assert world.gateway.registry.nodes["silent"].host.shut
    client.call("f")
    await away.wait_given()
    waiting = client.call("f")
    await settle()
    assert silent.given == []
    await away.goodbye()
    (await silent.wait_given()).answer()

    assert isinstance(await waiting.outcome(), Result)


async def test_the_second_best_takes_what_the_best_does_not(
    world: World, autojump_clock: MockClock
) -> None:
    """A call that no node may hold ahead of a free slot goes to the free slot of a slow node."""
    quota = {"seconds": 1000, "per": "day"}
    fast = await world.node("fast", function("f", quota=quota))
    slow = await world.node("slow", function("f", quota=quota))
    for node_id, body_s in (("fast", 1e-4), ("slow", 30.0)):
        group = world.gateway.registry.nodes[node_id].groups["main"]
        for _ in range(10):
            group.learn(body_s)
    client = await world.client()
    for _ in range(2):
        client.call("f")
        await settle()

    assert (len(fast.given), len(slow.given)) == (1, 1)


async def test_a_node_is_not_kept_for_what_no_end_of_a_call_can_give(
    world: World, autojump_clock: MockClock
) -> None:
    """A call that wants more than other programs leave of a node waits, and holds nobody up."""
    node = await world.node(
        "n1", function("big", slots=8, requirements={"memory": "90GB"}),
        function("small", slots=8, requirements={"memory": "1GB"}),
    )  # fmt: skip
    said = sample(memory_total_bytes=100 * GB, memory_available_bytes=85 * GB, memory_own_bytes=0)
    say(node, said)
    await settle()
    alice, bob = await world.client(), await world.client(user="bob")
    running = bob.call("small")
    big = alice.call("big")
    for _ in range(10):
        await trio.sleep(1.0)
        say(node, said)
    await settle()
    small = bob.call("small")
    for at in range(2):
        (await node.wait_given(at + 1)).answer()
    assert isinstance(await running.outcome(), Result)
    assert isinstance(await small.outcome(), Result)

    say(node, {"memory_available_bytes": 95 * GB})
    (await node.wait_given(3)).answer()
    assert isinstance(await big.outcome(), Result)


async def test_a_node_is_not_kept_for_a_call_that_it_could_not_run_any_more(
    world: World, autojump_clock: MockClock
) -> None:
    """A node that takes a function back is free for the calls of its others."""
    offers = (
        function("big", slots=8, requirements={"resources": {"license": 2}}),
        function("small", slots=8, requirements={"resources": {"license": 1}}),
    )
    has = {"resources": {"license": 2}}
    nodes = [await world.node(name, *offers, capabilities=has) for name in ("n1", "n2")]
    client = await world.client()
    for name in ("n1", "n2"):
        client.call("small", node_ids=[name])
    client.call("big")
    await trio.sleep(PASS_S + 1.0)
    await nodes[0].update()
    placer = world.gateway.dispatcher.placer
    assert [record.node_id for record in placer.kept] == ["n1"]
    await nodes[0].update(removed=["big"])
    small = client.call("small", node_ids=["n1"])
    (await nodes[0].wait_given(2)).answer()

    assert isinstance(await small.outcome(), Result)


async def test_many_kinds_of_calls_are_looked_at_once(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many different amounts wait for a node, a look at it asks of each whether it fits
    a few times, not once for each of the others."""
    node = await world.node("n1", function("f", slots=500))
    say(node, sample())
    await settle()
    client = await world.client()
    client.call("f", options={"num_cpus": 8})
    await settle()
    for at in range(200):
        client.call("f", options={"num_cpus": 5 + at / 1000})
    await settle()
    asked = 0
    rank = PendingQueue.rank

    def counted(queue: PendingQueue[Any], now: float) -> tuple[float, float, int]:
        nonlocal asked
        asked += 1
        return rank(queue, now)

    monkeypatch.setattr(PendingQueue, "rank", counted)
    say(node, sample(cpu=11.0))
    await settle()
    assert asked <= 400

    node.given[0].answer()
    await node.wait_given(2)
    await settle()
    assert asked <= 2000
    assert len(node.given) == 2, "each takes more than half of what is there"
    await trio.sleep(PASS_S + 1.0)
    asked = 0
    say(node, sample(cpu=12.0))
    await settle()
    assert asked <= 600
    assert len(world.gateway.dispatcher.placer.kept) == 1


async def test_a_call_that_may_not_pass_by_another_goes_where_a_slot_is_free(
    world: World, autojump_clock: MockClock
) -> None:
    """A call that would be held ahead of a slot for which another one waits is no reason to wait
    where a slower node is idle."""
    quota = {"seconds": 1000, "per": "day"}
    fast = await world.node("fast", function("f"), function("g", quota=quota))
    slow = await world.node("slow", function("f"))
    for node_id, body_s in (("fast", 1e-4), ("slow", 30.0)):
        group = world.gateway.registry.nodes[node_id].groups["main"]
        for _ in range(10):
            group.learn(body_s)
    client = await world.client()
    for name in ("g", "g", "f"):
        client.call(name)
        await settle()

    assert [given.dispatch.function for given in fast.given] == ["g"]
    assert [given.dispatch.function for given in slow.given] == ["f"]


async def test_two_calls_do_not_wait_for_each_others_nodes(
    world: World, autojump_clock: MockClock
) -> None:
    """Of two calls for which a node each is kept, one that fits on the other's node runs there."""
    offers = (
        function("wide", slots=8, requirements={"memory": "50GB"}),
        function("deep", slots=8, requirements={"resources": {"license": 2}}),
        function("memory", slots=8, requirements={"memory": "60GB"}),
        function("license", slots=8, requirements={"resources": {"license": 1}}),
    )
    has = {"resources": {"license": 2}}
    nodes = [await world.node(name, *offers, capabilities=has) for name in ("n1", "n2")]
    said = sample(memory_total_bytes=100 * GB, memory_available_bytes=100 * GB, memory_own_bytes=0)
    client = await world.client()
    for node in nodes:
        say(node, said)
        await settle()
        for name in ("memory", "license"):
            client.call(name, node_ids=[node.node_id])
    waiting = {name: client.call(name) for name in ("wide", "deep")}
    await trio.sleep(PASS_S + 1.0)
    for node in nodes:
        say(node, said)
        await settle()
    kept = {r.node_id: one for r, one in world.gateway.dispatcher.placer.kept.items()}
    assert {one.message.function for one in kept.values()} == set(waiting)
    # What is in the way of a call stays on its node, and ends on the node of the other.
    for node in nodes:
        gone = "license" if kept[node.node_id].message.function == "wide" else "memory"
        next(one for one in node.given if one.dispatch.function == gone).answer()
    for node in nodes:
        (await node.wait_given(3)).answer()
    for call in waiting.values():
        assert isinstance(await call.outcome(), Result)


async def test_a_node_that_is_another_machine_each_time_is_sent_away(
    world: World, autojump_clock: MockClock
) -> None:
    """Samples are cheap, and those that change what could ever run on a node are not."""
    steady = await world.node("steady", function("f"))
    wild = await world.node("wild", function("f"))
    for at in range(300):
        say(steady, sample(cpu=at % 100, memory_available_bytes=GB + at))
        say(wild, sample(memory_total_bytes=32 * GB + at))
    await settle()

    assert wild.over.is_set()
    assert not steady.over.is_set()


async def test_long_calls_are_not_held_ahead_because_short_ones_were(
    world: World, autojump_clock: MockClock
) -> None:
    """A function that nobody knows waits at the gateway, where its users take turns."""
    node = await world.node("n1", function("short"), function("long"))
    client = await world.client()
    node.auto = lambda given: given.answer(seconds=1e-5)
    for _ in range(50):
        await client.call("short").outcome()
    node.auto = None
    group = world.gateway.registry.nodes["n1"].groups["main"]
    assert group.ahead > 10
    given = len(node.given)
    for _ in range(6):
        client.call("long")
    await settle()

    assert len(node.given) == given + 1
    assert world.gateway.dispatcher.placer.queued == 5


async def test_a_refusal_says_how_many_more_nodes_lack_it(
    world: World, autojump_clock: MockClock
) -> None:
    """Of many nodes some are named and the rest is counted; none is passed over in silence."""
    needs = {"gpu_memory": "16GB"}
    for number in range(10):
        node = await world.node(f"n{number}", function("train", requirements=needs))
        say(node, sample())
    await settle()
    said = await (await world.client()).call("train").outcome()

    assert isinstance(said, Failure)
    assert "n7 has no" in said.reason
    assert "n8 has no" not in said.reason
    assert "and 2 more" in said.reason
