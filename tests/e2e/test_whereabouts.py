"""What futures and clients show, of real calls: place, time, node, cost, and who can do what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

import easyremote
from easyremote import Client, Future, InfeasibleError, NoCapableNodeError, Placement, Usage, remote

from .conftest import Cluster

pytestmark = pytest.mark.slow

LIMIT_S = 20.0
HEAD = "node = ComputeNode({!r}, node_id={!r}, capabilities={!r})\n"
NODE = """
import time

@node.register
def hold(seconds):
    time.sleep(seconds)
    return seconds

@node.register(tags=["quick"])
async def add(a, b):
    return a + b
"""


@pytest.fixture(scope="module")
def cluster(cluster_factory: Callable[[], Cluster]) -> Cluster:
    """Two nodes with the same functions, one for training and one for chess."""
    made = cluster_factory()
    made.start_gateway()
    for node_id, what in (("big", "training"), ("small", "chess")):
        capabilities = {
            "specialization": [what],
            "gpu": {"model": "A100", "memory": "80GB" if node_id == "big" else "8GB"},
        }
        made.start_node(node_id, HEAD.format(made.address, node_id, capabilities) + NODE)
    return made


@pytest.fixture
def client(cluster: Cluster) -> Client:
    """A client of its own, so that its counts are of one test."""
    return easyremote.connect(cluster.address)


@remote
def add(a: int, b: int) -> int:
    """Somewhere."""
    raise NotImplementedError


def until(check: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_who_waits_sees_its_place_and_then_its_node(client: Client) -> None:
    """The first in line is number one, with a time; afterwards the node is known, and stays so."""
    hold = remote("big", "hold")
    hold(0.3).result(LIMIT_S)
    calls: list[Future[Any]] = [hold(1.0) for _ in range(8)]
    last = calls[-1]
    until(lambda: last.queue_position is not None)
    place, eta_s = last.queue_position, last.eta

    assert place is not None
    assert 1 <= place <= 7
    assert eta_s is not None
    assert eta_s > 0.0
    until(lambda: (last.queue_position or 0) < place)
    for call in calls[2:]:
        call.cancel()
    assert [call.result(LIMIT_S) for call in calls[:2]] == [1.0, 1.0]
    placement = calls[0].placement
    assert placement is not None
    assert placement.node_id == "big"
    assert calls[0].queue_position is None
    assert "big" in str(placement)


def test_a_placement_can_be_recomputed_by_hand(client: Client) -> None:
    """Four scores times their weights are the total, also when the call is over."""
    future = add(1, 2)
    assert future.result(LIMIT_S) == 3
    placement = future.placement

    assert placement is not None
    assert set(placement.scores) >= {"resources", "latency", "load", "capability", "total"}
    assert all(0.0 <= placement.scores[name] <= 1.0 for name in ("resources", "latency"))
    products = [weight * placement.scores[name] for name, weight in placement.weights.items()]
    assert placement.total == pytest.approx(sum(products), abs=1e-6)
    assert "comes from none of these" not in str(placement)
    assert placement.at == pytest.approx(time.time(), abs=2 * LIMIT_S)


def test_a_program_of_asyncio_sees_the_same(client: Client) -> None:
    """Looking inside an event loop answers, and holds it up for one round trip only."""

    async def look() -> tuple[Placement | None, Usage | None]:
        future = remote("small", "add")(1, 2)
        assert await future == 3
        return future.placement, future.usage

    placement, usage = asyncio.run(look())
    assert placement is not None
    assert usage is not None
    assert (placement.node_id, usage.node_id, usage.function) == ("small", "small", "add")
    assert 0.0 <= usage.seconds < LIMIT_S


def test_nodes_are_found_and_missed_by_what_they_have(client: Client) -> None:
    """The gateway filters; a call that no provider can take hears what each of them lacks."""
    found = client.find_nodes({"gpu": {"memory": ">=16GB"}}, "add", fresh=True)
    assert [node.node_id for node in found] == ["big"]
    assert set(found[0].facts["callable"]) == {"add", "hold"}
    assert {node.node_id for node in client.find_nodes("quick")} == {"big", "small"}
    assert add.options(capability="chess")(1, 2).result(LIMIT_S) == 3
    wanted = {"gpu": {"memory": ">=100GB"}}
    with pytest.raises(NoCapableNodeError, match=r"big: gpu\.memory is '80GB', not >=100GB"):
        add.options(capability=wanted)(1, 2).result(LIMIT_S)


def test_options_are_requirements(client: Client) -> None:
    """What no node could ever give is refused at once, with each node's offer; the rest runs."""
    began = time.monotonic()
    with pytest.raises(InfeasibleError, match="gpu_memory") as caught:
        add.options(gpu_memory="500GB")(1, 2).result(LIMIT_S)
    assert time.monotonic() - began < LIMIT_S / 2
    assert "big" in str(caught.value)
    assert "small" in str(caught.value)
    future = add.options(gpu_memory="40GB", num_cpus=0.5, priority=2, prefer={"x": "y"})(1, 2)
    assert future.result(LIMIT_S) == 3
    placement = future.placement
    assert placement is not None
    assert placement.node_id == "big"
    assert list(placement.gpus) == [0]


def test_a_client_knows_what_it_has_done(client: Client) -> None:
    """Counts are exact, and the nodes that served most come first."""
    for _ in range(3):
        remote("small", "add")(1, 2).result(LIMIT_S)
    remote("big", "add")(1, 2).result(LIMIT_S)
    with pytest.raises(TypeError):
        remote("big", "add")(1, "x").result(LIMIT_S)
    found = client.metrics()

    assert found.functions_called == 5
    assert found.success_rate == pytest.approx(0.8)
    assert found.preferred_node_types == ["chess", "training"]
    assert 0.0 < found.avg_response_time < LIMIT_S
    assert found.retry_rate == 0.0
    free: Any = found.cost_efficiency
    assert free is None
    assert "node_id" in found.features_used
