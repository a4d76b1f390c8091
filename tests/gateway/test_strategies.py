"""Strategies of a server: named, weighed, written by users, and harmless when they are wrong."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from easyremote import ScoreWeights, Server
from easyremote.gateway import LoadBalancer, NodeStatus, SmartLoadBalancer
from easyremote.gateway.balancing import (
    Question,
    Requirements,
    amounts,
    needs_of,
    wishes_of,
)
from easyremote.gateway.core import Gateway
from easyremote.gateway.pool import Pool
from easyremote.gateway.state import GatewayState
from easyremote.gateway.strategies import LEFT_OPEN, OwnStrategy, read_scheduler
from easyremote.scheduler.capability import read_wishes
from easyremote.scheduler.model import NO_NEEDS, Needs, NodeSnapshot, Scores
from easyremote.scheduler.policy import DEFAULT, STRATEGIES, Policy
from easyremote.wire.message import Result

from .peers import Given, World, function

GB = 10**9
GPU = {"gpu": {"model": "A100", "memory": "24GB", "count": 2}, "specialization": ["ai"]}


def snapshot(node_id: str, total: float = 1.0) -> NodeSnapshot:
    """Return a node as a strategy is shown it."""
    scores = Scores(1.0, 1.0, 1.0, 1.0)
    return NodeSnapshot(node_id, 4, 0, 8, None, None, None, 0.0, None, scores, total)


SHOWN = [snapshot("a"), snapshot("b")]


# ---- what a server takes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_name_is_that_policy(name: str) -> None:
    """A strategy is named as in the scheduler."""
    assert read_scheduler(name) == STRATEGIES[name]


def test_weights_are_those_of_the_score() -> None:
    """None and "score" are the same, with the weights that are given."""
    weights = ScoreWeights(latency=0.9)

    assert read_scheduler(None) is DEFAULT
    assert read_scheduler(None, weights) == read_scheduler("score", weights)
    assert read_scheduler("score", weights).weights == weights


@pytest.mark.parametrize(
    ("given", "weights", "error", "hint"),
    [
        ("leastloaded", None, ValueError, "did you mean 'least_loaded'"),
        ("random", ScoreWeights(load=1.0), ValueError, "leave one of the two out"),
        (Policy("x"), ScoreWeights(load=1.0), ValueError, "leave one of the two out"),
        (42, None, TypeError, "not 42"),
        (SmartLoadBalancer, None, TypeError, r"scheduler=SmartLoadBalancer\(\)"),
        (None, {"load": 1.0}, TypeError, "ScoreWeights"),
    ],
)
def test_what_is_wrong_is_said_where_it_is_written(
    given: Any, weights: Any, error: type[Exception], hint: str
) -> None:
    """The constructor of the server refuses it, with a way out."""
    more = {} if weights is None else {"weights": weights}
    with pytest.raises(error, match=hint):
        Server(scheduler=given, **more)


def test_policies_and_functions_of_users_are_wrapped() -> None:
    """Whatever has code of a user in it cannot raise into the scheduler."""

    def mine(nodes: Sequence[NodeSnapshot], needs: Needs) -> str:
        raise RuntimeError(f"{nodes} {needs}")

    for given in (mine, Policy("mine", chooser=mine)):
        policy = read_scheduler(given)
        assert policy.name == "mine"
        assert isinstance(policy.chooser, OwnStrategy)
        assert policy.chooser(SHOWN, NO_NEEDS) == LEFT_OPEN
        assert read_scheduler(policy) is policy
    assert read_scheduler(Policy("plain", epsilon=0.5)) == Policy("plain", epsilon=0.5)


# ---- what a strategy may do ----------------------------------------------------------------------


async def later(nodes: Sequence[NodeSnapshot], needs: Needs) -> str:
    """Decide at once, as a coroutine."""
    return nodes[-1].node_id


@pytest.mark.parametrize(
    ("chooser", "answer"),
    [
        (lambda nodes, *_: nodes[1], "b"),
        (lambda *_: "a", "a"),
        (lambda *_: None, None),
        (later, "b"),
    ],
)
def test_answers(chooser: Callable[..., Any], answer: str | None) -> None:
    """A snapshot, an id, None, and a coroutine that decides at once are answers."""
    assert OwnStrategy(chooser, "mine")(SHOWN, NO_NEEDS) == answer


async def waits(nodes: Sequence[NodeSnapshot], needs: Needs) -> str:
    """Take a nap."""
    await trio.sleep(1.0)
    return "a"


class Future:
    """Something awaitable that cannot be closed."""

    def __await__(self) -> Any:
        return iter([1])


def raises(nodes: Sequence[NodeSnapshot], needs: Needs) -> str:
    """Fail."""
    raise ZeroDivisionError("by zero")


def exits(nodes: Sequence[NodeSnapshot], needs: Needs) -> str:
    """End the program."""
    sys.exit(f"{nodes} {needs}")


@pytest.mark.parametrize(
    ("chooser", "cause"),
    [
        (raises, "ZeroDivisionError: by zero"),
        (exits, "SystemExit"),
        (waits, "it waits"),
        (lambda *_: Future(), "it waits"),
        (lambda *_: "c", "'c'"),
        (lambda *_: 17, "17"),
        (lambda *_: [], "which is none of the nodes"),
    ],
)
async def test_nonsense_is_said_once_and_leaves_the_choice(
    chooser: Callable[..., Any], cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer names no node, for a thousand calls there is one line."""
    strategy = OwnStrategy(chooser, "mine")
    with caplog.at_level(logging.ERROR):
        assert [strategy(SHOWN, NO_NEEDS) for _ in range(1000)] == [LEFT_OPEN] * 1000

    lines = [one.getMessage() for one in caplog.records]
    assert len(lines) == 1
    assert cause in lines[0]


def test_each_kind_of_failure_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A second kind of nonsense is not hidden by the first."""
    answers: list[Any] = [1, 2, "c", "d"]
    strategy = OwnStrategy(lambda *_: answers.pop(), "mine")
    with caplog.at_level(logging.ERROR):
        for _ in range(4):
            assert strategy(SHOWN, NO_NEEDS) == LEFT_OPEN

    assert len(caplog.records) == 2


# ---- in a gateway --------------------------------------------------------------------------------


@pytest.fixture
async def made(home: Path, tmp_path: Path) -> AsyncIterator[Callable[[Any], World]]:
    """Open gateways that place by a strategy."""
    async with trio.open_nursery() as nursery:
        states: list[GatewayState] = []

        def make(scheduler: Any) -> World:
            state = GatewayState.open(tmp_path / f"state{len(states)}", ["gateway.test"], 8080)
            states.append(state)
            gateway = Gateway(state, inline=True, policy=read_scheduler(scheduler))
            nursery.start_soon(gateway.run)
            return World(gateway, nursery)

        yield make
        nursery.cancel_scope.cancel()
    for state in states:
        state.close()


async def nodes_of(world: World, **more: dict[str, Any]) -> dict[str, Any]:
    """Connect a node for each keyword, with its capabilities; they answer at once."""
    found = {}
    for node_id, capabilities in more.items():
        node = await world.node(
            node_id, function("train", slots=4, tags=["deep"]), capabilities=capabilities
        )
        node.auto = Given.answer
        found[node_id] = node
    return found


async def call_each(world: World, calls: int) -> None:
    """Make some calls one after another."""
    client = await world.client()
    for _ in range(calls):
        assert isinstance(await client.call("train").outcome(), Result)


async def test_a_function_of_a_user_decides(made: Callable[[Any], World]) -> None:
    """Every call goes where it says."""
    world = made(lambda nodes, *_: max(nodes, key=lambda one: one.node_id))
    nodes = await nodes_of(world, a={}, b={}, c={})
    await call_each(world, 6)

    assert [len(nodes[one].given) for one in "abc"] == [0, 0, 6]


async def test_a_broken_strategy_breaks_nothing(made: Callable[[Any], World]) -> None:
    """All calls are served, as if there were no strategy."""
    world = made(raises)
    nodes = await nodes_of(world, a={}, b={})
    await call_each(world, 6)

    assert [len(nodes[one].given) for one in "ab"] == [3, 3]


async def test_a_strategy_that_never_wants_does_not_hold_up_for_ever(
    made: Callable[[Any], World],
) -> None:
    """Where nothing runs, None cannot mean to wait for something."""
    world = made(lambda *_: None)
    nodes = await nodes_of(world, a={})
    await call_each(world, 3)

    assert len(nodes["a"].given) == 3


class Recorder(SmartLoadBalancer):
    """The usual balancer, whose scores are kept."""

    seen: list[tuple[str, float, NodeStatus, dict[str, Any]]]

    def __init__(self) -> None:  # Without that of its base, as users do.
        self.seen = []

    async def calculate_node_score(self, node: str, requirements: Mapping[str, Any]) -> float:
        found = await super().calculate_node_score(node, requirements)
        self.seen.append((node, found, await self.get_node_status(node), dict(requirements)))
        return found


PROBES: list[dict[str, Any]] = [
    {},
    {"num_cpus": 2},
    {"gpu_memory": 16 * GB},
    {"num_gpus": 2, "memory": "1GB"},
    {"prefer": ["ai", {"gpu.memory": ">=8GB"}]},
    {"prefer": ["deep", "missing"], "num_cpus": 1},
]


@pytest.mark.parametrize("options", PROBES)
async def test_the_usual_balancer_has_the_scores_of_the_usual_policy(
    made: Callable[[Any], World], options: dict[str, Any]
) -> None:
    """Whatever a call asks for, method by method, the sum is the scheduler's own."""
    balancer = Recorder()
    world = made(balancer)
    nodes = await nodes_of(world, a=GPU, b={**GPU, "specialization": ["ai", "art"]}, c={})
    registry = world.gateway.registry
    sample = {
        "cpu_count": 8, "cpu_percent": 25.0, "memory_total_bytes": 64 * GB,
        "memory_available_bytes": 48 * GB, "load_1m": 1.0,
    }  # fmt: skip
    for index, node_id in enumerate("abc"):
        host = registry.nodes[node_id].host
        host.heard({**sample, "cpu_percent": 25.0 * index}, trio.current_time())
        host.saw_rtt(0.01 * (index + 1))
    nodes["b"].auto = None
    client = await world.client()
    for one in "bb":
        client.call("train", node_ids=[one])
    await nodes["b"].wait_given(2)
    balancer.seen.clear()
    totals: dict[str, float] = {}

    def look(snapshots: Sequence[NodeSnapshot], needs: Needs, pool: Pool | None) -> str | None:
        totals.update({one.node_id: one.total for one in snapshots})
        return choose(snapshots, needs, pool)

    strategy = registry.cluster.policy.chooser
    assert isinstance(strategy, OwnStrategy)
    choose = strategy.choose
    strategy.choose = look  # type: ignore[method-assign]
    assert isinstance(await client.call("train", options=options).outcome(), Result)

    assert totals
    assert {node: found for node, found, _, _ in balancer.seen} == pytest.approx(totals)
    best = max(totals.values())
    given = [node for node in "abc" if nodes[node].given and node != "b"]
    assert all(totals[node] >= best - balancer.epsilon for node in given)


class Cheapest(SmartLoadBalancer):
    """Overrides one step."""

    async def calculate_node_score(self, node: str, requirements: Mapping[str, Any]) -> float:
        return -(await self.get_node_status(node)).price


async def test_overriding_the_score_alone_changes_the_choice(made: Callable[[Any], World]) -> None:
    """The cheapest node gets all calls, with everything else as it was."""
    world = made(Cheapest())
    nodes = await nodes_of(world, a={"price": 3.0}, b={"price": 1.0}, c={"price": 2.0})
    await call_each(world, 5)

    assert [len(nodes[one].given) for one in "abc"] == [0, 5, 0]


class Picky(LoadBalancer):
    """Chooses among what it is given."""

    async def select_node(
        self, healthy_nodes: Sequence[str], request_requirements: Mapping[str, Any] | None = None
    ) -> str | None:
        assert request_requirements == {"cpu": 1.0}
        return sorted(healthy_nodes)[1]


async def test_a_balancer_may_override_select_node_alone(made: Callable[[Any], World]) -> None:
    """The simple kind of balancer is one, too; it hears what the call needs."""
    world = made(Picky())
    nodes = await nodes_of(world, a={}, b={}, c={})
    client = await world.client()
    for node_id in "abc":
        host = world.gateway.registry.nodes[node_id].host
        host.heard({"cpu_count": 8, "cpu_percent": 0.0}, trio.current_time())
    for _ in range(4):
        await client.call("train", options={"num_cpus": 1}).outcome()

    assert [len(nodes[one].given) for one in "abc"] == [0, 4, 0]


async def test_the_usual_balancers_share_equal_nodes(made: Callable[[Any], World]) -> None:
    """Equal nodes take turns, whether by the simple balancer or by the smart one."""
    for balancer in (LoadBalancer(), SmartLoadBalancer()):
        world = made(balancer)
        nodes = await nodes_of(world, a={}, b={}, c={})
        await call_each(world, 9)
        assert [len(nodes[one].given) for one in "abc"] == [3, 3, 3]


class Blind(SmartLoadBalancer):
    """Sees no node."""

    async def find_capable_nodes(
        self, function_name: str, requirements: Mapping[str, Any]
    ) -> list[str]:
        return []


async def test_none_of_the_nodes_lets_a_call_wait(made: Callable[[Any], World]) -> None:
    """A call waits while something runs, and is taken by what becomes free."""
    world = made(Blind())
    node = await world.node("a", function("train", slots=4))
    client = await world.client()
    client.call("train")
    first = await node.wait_given()
    second = client.call("train")
    await second.until(lambda: second.accepted)
    assert world.gateway.dispatcher.placer.queued == 1
    first.answer()
    await node.wait_given(2)

    assert world.gateway.dispatcher.placer.queued == 0


# ---- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "needs",
    [
        NO_NEEDS,
        Needs(cpus=2.5, memory_bytes=3 * GB, disk_bytes=7),
        Needs(gpus=0.5, gpu_memory_bytes=GB, gpu_model="a100"),
        Needs(gpus=2, custom=(("licence", 1.0),)),
    ],
)
def test_amounts_say_what_needs_are(needs: Needs) -> None:
    """What a balancer is told can be read again."""
    assert needs_of(amounts(needs)) == needs
    assert needs_of({**amounts(needs), "capability": "gpu", "prefer": ["x"]}) == needs


def test_wishes_may_be_read_already() -> None:
    """A balancer is told wishes as they were read, and users write them."""
    read = read_wishes(["gpu"])

    assert wishes_of({"prefer": ["gpu"]}, "prefer") == wishes_of({"prefer": read}, "prefer") == read
    assert wishes_of({}, "prefer") == ()


def test_a_question_without_a_pool_has_ids_alone() -> None:
    """A strategy that is asked outside a gateway knows what it is shown."""
    question = Question.of(SHOWN, Needs(cpus=1.0), None)

    assert question.nodes == ("a", "b")
    assert question.requirements == Requirements({"cpu": 1.0})
