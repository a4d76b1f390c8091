"""The gateway's parts as classes: live views, and calls that are made from inside."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import trio
import trio.testing

import easyremote.gateway as package
from easyremote import (
    AuthenticationError,
    EasyRemoteError,
    FunctionNotFoundError,
    NodeNotFoundError,
    NoHealthyNodesError,
    OverloadedError,
    SerializationError,
    Server,
)
from easyremote.gateway import (
    APIGenerator,
    ConnectedNode,
    FunctionRegistry,
    GatewayOrchestrator,
    LoadBalancer,
    NotAvailableError,
    SmartLoadBalancer,
)
from easyremote.gateway.live import only_server
from easyremote.identity.profile import gateway_profile_name, remove_profile
from easyremote.values import plain
from easyremote.values.exceptions import encode_exception
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import CODEC_PICKLE, CODEC_PLAIN, Failure, Item, Result

from .peers import Given, Node, World, function

LARGE = np.arange(300_000, dtype=np.float64)


class Beside:
    """Stands for the server of a gateway that lives in the loop of the test."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.thread = threading.get_ident()

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Ask on the loop's thread, whichever thread this is."""
        if threading.get_ident() == self.thread:
            return question(self.world.gateway)
        return trio.from_thread.run_sync(lambda: question(self.world.gateway))

    def begin(self, task: Callable[[Any], Awaitable[Any]]) -> Future[Any]:
        """Start a task in the loop."""
        answer: Future[Any] = Future()

        async def run() -> None:
            try:
                answer.set_result(await task(self.world.gateway))
            except EasyRemoteError as error:
                answer.set_exception(error)

        self.world.nursery.start_soon(run)
        return answer


@pytest.fixture
def server(world: World) -> Server:
    """The server of the gateway in `world`."""
    return cast("Server", Beside(world))


def echo(given: Given) -> None:
    """Answer with the arguments by name."""
    assert given.dispatch.body is not None
    args, kwargs = plain.decode(given.dispatch.body)
    assert args == []
    given.answer(plain.encode(kwargs))


async def joined(world: World, node_id: str, *more: dict[str, Any], **info: Any) -> Node:
    """Connect a node that gives arguments back."""
    node = await world.node(node_id, function("train", slots=4), *more, **info)
    node.auto = echo
    return node


# ---- names ---------------------------------------------------------------------------------------


def test_the_package_is_cheap_and_its_names_are_lazy() -> None:
    """Importing the package loads neither trio nor any module of it; a typo is an error."""
    script = (
        "import sys, easyremote.gateway as g\n"
        "loaded = [m for m in sys.modules if m.startswith('easyremote.gateway.')]\n"
        "assert not loaded and 'trio' not in sys.modules, loaded\n"
        "assert g.SmartLoadBalancer.__name__ == 'SmartLoadBalancer'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

    assert set(package.__all__) == set(package._MODULE_OF)
    assert set(package.__all__) <= set(dir(package))
    assert all(getattr(package, name).__doc__ for name in package.__all__)
    with pytest.raises(AttributeError, match="Orchestra"):
        package.__getattr__("Orchestra")


def test_without_a_gateway_it_is_said_what_to_do() -> None:
    """Nothing is guessed: no gateway, no answer."""
    with pytest.raises(RuntimeError, match="start one"):
        only_server()
    with pytest.raises(RuntimeError, match="start one"):
        FunctionRegistry().registered_functions  # noqa: B018


def test_of_several_gateways_one_is_to_be_named(home: Path, tmp_path: Path) -> None:
    """The only one that runs is found; of two none is guessed, and stopped ones do not count."""
    servers = [
        Server(port=0, host="127.0.0.1", state_dir=tmp_path / name).start_background()
        for name in ("first", "second")
    ]
    try:
        with pytest.raises(RuntimeError, match="several gateways"):
            only_server()
        assert FunctionRegistry(servers[1]).registered_functions == {}
        servers[0].stop(grace=0.0)
        assert only_server() is servers[1]
        assert GatewayOrchestrator().node_health == {}
        assert servers[1].metrics().connected_nodes == 0
    finally:
        for one in servers:
            one.stop(grace=0.0)
    assert home.exists()


# ---- the registry --------------------------------------------------------------------------------


async def test_the_registry_shows_what_nodes_offer(world: World, server: Server) -> None:
    """A record for each path, in the words of the roles, and what each node declared."""
    registry = FunctionRegistry(server)
    assert registry.registered_functions == {}
    await joined(
        world, "lab.gpu", function("fit", requirements={"gpu": 1}, metadata={"v": 2}),
        capabilities={"gpu": {"model": "A100"}},
    )  # fmt: skip

    seen = registry.registered_functions
    assert set(seen) == {"lab.gpu.train", "lab.gpu.fit"}
    record = seen["lab.gpu.fit"]
    assert datetime.now(UTC) >= record.pop("registered_at")
    assert record == {
        "node_id": "lab.gpu", "function_name": "fit", "metadata": {"v": 2},
        "requirements": {"gpu": 1}, "health_status": "healthy",
    }  # fmt: skip
    assert registry.node_capabilities == {"lab.gpu": {"gpu": {"model": "A100"}}}


async def test_more_may_be_said_of_what_a_node_offers(world: World, server: Server) -> None:
    """Metadata is shown, and requirements are reserved from then on."""
    registry = FunctionRegistry(server)
    node = await joined(world, "gpu-1")
    host = world.gateway.registry.nodes["gpu-1"].host
    host.heard({"cpu_count": 4, "cpu_percent": 0.0}, trio.current_time())
    await registry.register_function(
        "gpu-1", {"name": "train", "metadata": {"team": "a"}, "requirements": {"cpu": 3}}
    )
    assert registry.registered_functions["gpu-1.train"]["metadata"] == {"team": "a"}

    node.auto = None
    client = await world.client()
    client.call("train")
    second = client.call("train")
    await node.wait_given()
    await second.until(lambda: second.accepted)
    assert len(node.given) == 1  # Three of four processors are reserved.
    node.given[0].answer()
    await node.wait_given(2)


@pytest.mark.parametrize(
    ("node_id", "said", "error"),
    [
        ("nobody", {"name": "train"}, NodeNotFoundError),
        ("gpu-1", {"name": "missing"}, FunctionNotFoundError),
        ("gpu-1", {"name": "train", "requirements": {"memory": "much"}}, ValueError),
        ("gpu-1", {"name": "train", "metadata": 7}, ValueError),
    ],
)
async def test_a_gateway_offers_nothing_for_a_node(
    world: World, server: Server, node_id: str, said: dict[str, Any], error: type[Exception]
) -> None:
    """What a node does not offer, and what cannot be read, changes nothing."""
    await joined(world, "gpu-1")
    before = FunctionRegistry(server).registered_functions
    with pytest.raises(error):
        await FunctionRegistry(server).register_function(node_id, said)

    assert FunctionRegistry(server).registered_functions == before


async def test_rest_says_that_it_is_not_here(server: Server) -> None:
    """What belongs to REST is refused by a type of its own, with another way."""
    with pytest.raises(NotAvailableError, match=r"a\.f.*REST"):
        await FunctionRegistry(server).create_api_endpoint("a.f")
    with pytest.raises(NotImplementedError, match=r"a\.f"):
        await APIGenerator(object(), server).auto_generate_api({"node_id": "a", "name": "f"})


async def test_a_connected_node_is_a_handle(world: World, server: Server) -> None:
    """It tells how the node is, runs functions there, and knows when the node is gone."""
    node = await joined(world, "gpu-1")
    handle = FunctionRegistry(server).get_connected_node("gpu-1")
    assert isinstance(handle, ConnectedNode)
    assert handle.info.functions == ["train"]
    assert await handle.execute_function("train", {"a": 1}) == {"a": 1}
    await node.goodbye()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(NodeNotFoundError):
        _ = handle.info
    with pytest.raises(NodeNotFoundError):
        FunctionRegistry(server).get_connected_node("gpu-1")


# ---- calls from inside ---------------------------------------------------------------------------


async def test_a_request_is_a_call_of_the_owner(world: World, server: Server) -> None:
    """It runs on one of the nodes, with its arguments by name, and counts like any other."""
    nodes = [await joined(world, one) for one in ("a", "b")]
    orchestrator = GatewayOrchestrator(server)
    assert sorted(orchestrator.find_function_providers("train")) == ["a", "b"]
    for number in range(4):
        assert await orchestrator.route_request("train", {"x": number}) == {"x": number}

    assert [len(node.given) for node in nodes] == [2, 2]
    assert nodes[0].given[0].dispatch.principal == world.gateway.state.owner
    assert world.gateway.dispatcher.meter.finished_total == 4
    assert not world.gateway.dispatcher.callers[world.gateway.state.owner].calls


async def test_large_arguments_and_results_travel(world: World, server: Server) -> None:
    """Arrays of megabytes come back as they went."""
    node = await joined(world, "a")

    def answer(given: Given) -> None:
        async def when_there() -> None:
            await given.until(lambda: sum(map(len, given.data)) >= LARGE.nbytes)
            assert given.dispatch.body is not None
            body = plain.encode({"got": sum(map(len, given.data))})
            given.say(Result(CODEC_PLAIN, 0.1, None, [len(body)]), [memoryview(body)], end=True)
            given.release()

        world.nursery.start_soon(when_there)

    node.auto = answer
    got = await GatewayOrchestrator(server).execute_on_node("a", "train", {"data": LARGE})

    assert got == {"got": LARGE.nbytes}


async def test_requirements_of_a_request_are_options_of_the_call(
    world: World, server: Server
) -> None:
    """They are no argument, unless the function has a parameter of that name."""
    named = function("plan", slots=4, parameters=[{"name": "requirements"}])
    node = await joined(world, "a", named)
    world.gateway.registry.nodes["a"].host.heard({"cpu_count": 4}, trio.current_time())
    orchestrator = GatewayOrchestrator(server)
    request = {"x": 1, "requirements": {"cpu": 1, "prefer": ["gpu"]}}

    assert await orchestrator.route_request("train", request) == {"x": 1}
    assert await orchestrator.execute_on_node("a", "plan", request) == request
    assert await APIGenerator(None, server).route_to_node("a.train", {"y": 2}) == {"y": 2}
    assert len(node.given) == 3
    with pytest.raises(EasyRemoteError, match="cpu"):
        await orchestrator.execute_on_node("a", "train", {"requirements": {"cpu": 64}})


def raised() -> Failure:
    """Return the failure of a body that raised a KeyError."""
    detail = encode_exception(KeyError("k"))
    return Failure(int(ErrorCode.REMOTE_ERROR), "k", True, None, detail)


def gives_up(given: Given) -> None:
    """Reset the stream."""
    assert given.stream is not None
    given.stream.reset(ErrorCode.OVERLOADED, "no room")


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (lambda given: given.say(raised(), end=True), KeyError, "k"),
        (lambda given: given.fail(ErrorCode.OVERLOADED), OverloadedError, "no"),
        (lambda given: given.say(Result(CODEC_PICKLE, 0.1, b"x", []), end=True),
         SerializationError, "unpickles nothing"),
        (lambda given: given.say(Item(0, CODEC_PLAIN, b"x", [])), SerializationError, "yields"),
        (lambda given: given.answer(b"\xff"), SerializationError, "value"),
        (gives_up, EasyRemoteError, "no room"),
    ],
)  # fmt: skip
async def test_an_error_is_the_outcome(
    world: World, server: Server, answer: Any, error: type[Exception], text: str
) -> None:
    """What the body raised, what the node refused and what cannot be taken in: all are typed."""
    node = await joined(world, "a")
    node.auto = answer
    with pytest.raises(error, match=text):
        await GatewayOrchestrator(server).route_request("train", {})


async def test_what_cannot_be_sent_is_said_before(world: World, server: Server) -> None:
    """An argument that is no plain data, an unknown node or function: no call is made."""
    await joined(world, "a")
    orchestrator = GatewayOrchestrator(server)
    with pytest.raises(SerializationError, match="plain data"):
        await orchestrator.execute_on_node("a", "train", {"x": object()})
    with pytest.raises(NodeNotFoundError):
        await orchestrator.execute_on_node("b", "train", {})
    with pytest.raises(FunctionNotFoundError):
        await orchestrator.execute_on_node("a", "missing", {})
    with pytest.raises(FunctionNotFoundError):
        await orchestrator.route_request("missing", {})
    assert remove_profile(gateway_profile_name(8080))
    with pytest.raises(AuthenticationError, match="profile"):
        await orchestrator.route_request("train", {})

    assert world.gateway.dispatcher.calls_total == 0


async def test_a_stopping_gateway_lets_nobody_in(world: World, server: Server) -> None:
    """The refusal at the door is the error of the call."""
    await joined(world, "a")
    world.gateway.dispatcher.closing = True
    with pytest.raises(OverloadedError):
        await GatewayOrchestrator(server).route_request("train", {})
    world.gateway.dispatcher.closing = False


async def test_providers_that_are_not_healthy_are_named(world: World, server: Server) -> None:
    """The error has the promised words, and why each provider is out."""
    node = await joined(world, "a")
    await node.update(paused=True)
    orchestrator = GatewayOrchestrator(server)

    assert orchestrator.node_health == {"a": "paused"}
    with pytest.raises(NoHealthyNodesError, match="No healthy nodes for train: a is paused"):
        await orchestrator.route_request("train", {})


class Stubborn(LoadBalancer):
    """Takes one node, or none."""

    choice: str | None = "b"

    async def select_node(
        self, healthy_nodes: Sequence[str], request_requirements: Mapping[str, Any] | None = None
    ) -> str | None:
        assert set(healthy_nodes) == {"a", "b"}
        assert request_requirements == {}
        return self.choice


class Mine(GatewayOrchestrator):
    """Has a balancer of its own."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.load_balancer = Stubborn()


async def test_an_orchestrator_may_have_a_balancer_of_its_own(world: World, server: Server) -> None:
    """What it chooses is where the request runs."""
    nodes = [await joined(world, one) for one in ("a", "b")]
    mine = Mine(server)
    for number in range(3):
        await mine.route_request("train", {"x": number})
    assert [len(node.given) for node in nodes] == [0, 3]
    Stubborn.choice = None
    with pytest.raises(NoHealthyNodesError, match="none was chosen"):
        await mine.route_request("train", {})


# ---- a balancer that is asked by a program -------------------------------------------------------


async def test_a_balancer_answers_of_nodes_as_they_are(world: World, server: Server) -> None:
    """Beside placement it sees who could run a call now, and how each node is."""
    balancer = SmartLoadBalancer(server=server)
    await joined(world, "a", capabilities={"gpu": {"memory": "24GB"}}, labels=["lab"])
    await joined(world, "b", function("other"))
    paused = await joined(world, "c")
    await paused.update(paused=True)
    host = world.gateway.registry.nodes["a"].host
    host.heard({"cpu_count": 8, "cpu_percent": 50.0}, trio.current_time())
    host.saw_rtt(0.02)

    assert sorted(await balancer.find_capable_nodes("train", {})) == ["a", "b"]
    assert await balancer.find_capable_nodes("other", {}) == ["b"]
    assert await balancer.find_capable_nodes("train", {"gpu_memory": "16GB"}) == ["a"]
    assert await balancer.find_capable_nodes("train", {"capability": "lab"}) == ["a"]
    status = await balancer.get_node_status("a")
    assert (status.avg_latency, status.current_load, status.max_capacity) == (0.02, 0, 4)
    assert status.capabilities["tags"] == ["lab"]
    assert status.resources.cpu_free == 0.5
    assert await balancer.select_best_node("train", {"gpu_memory": "16GB"}) == "a"
    assert await balancer.select_best_node("missing", {}) is None
    assert await LoadBalancer(server=server).select_node(["b"]) == "b"
    assert balancer.score_resources(status.resources, {"cpu": 4}) == 0.5
    assert balancer.score_resources(status.resources, {"cpu": 64}) == 0.0
    with pytest.raises(NodeNotFoundError):
        await balancer.get_node_status("nobody")


def test_preferences_beyond_measure_score_nothing() -> None:
    """Wishes that take too long to look for are not met."""
    found = SmartLoadBalancer().score_capabilities(
        {"tags": ["x"] * 100_000}, {"prefer": [f"w{i}" for i in range(30)]}
    )

    assert found == 0.0
