"""A strategy of a user's own decides in a real gateway, and its metrics add up with the calls."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

import easyremote
from easyremote import Client, Server, remote
from easyremote.gateway import FunctionRegistry, GatewayOrchestrator, SmartLoadBalancer

from .conftest import Cluster

pytestmark = pytest.mark.slow

LIMIT_S = 30.0
NODE = """
node = ComputeNode({address!r}, node_id={node_id!r}, capabilities={{"price": {price}}})

@node.register
def where():
    return {node_id!r}

@node.register
def fail():
    raise KeyError("always")
"""


class Favourite(SmartLoadBalancer):
    """Prefers a node by its price: the cheapest one, or the dearest."""

    sign = -1.0
    breaks = False

    async def calculate_node_score(self, node: str, requirements: Mapping[str, Any]) -> float:
        if self.breaks:
            raise ZeroDivisionError
        return self.sign * (await self.get_node_status(node)).price


@pytest.fixture(scope="module")
def balancer() -> Favourite:
    """The strategy of the gateway."""
    return Favourite()


@pytest.fixture(scope="module")
def server(cluster_factory: Callable[[], Cluster], balancer: Favourite) -> Iterator[Server]:
    """A gateway in this process, with two nodes in processes of their own."""
    cluster = cluster_factory()
    made = Server(port=cluster.port, host="127.0.0.1", scheduler=balancer)
    made.start(blocking=False)
    try:
        for price, node_id in enumerate(("cheap", "dear"), start=1):
            source = NODE.format(address=cluster.address, node_id=node_id, price=price)
            cluster.start_node(node_id, source)
        yield made
        cluster.end_nodes()
    finally:
        easyremote.shutdown()
        made.stop(grace=0.0)


@pytest.fixture
def client(server: Server) -> Client:
    """A client of the owner."""
    return easyremote.connect(f"127.0.0.1:{server.port}")


@remote
def where() -> str:
    """Somewhere."""
    raise NotImplementedError


@remote
def fail() -> None:
    """Never."""
    raise NotImplementedError


def who_served(calls: int) -> dict[str, int]:
    """Return how many of some calls, one after another, each node served."""
    return dict(Counter(where().result(LIMIT_S) for _ in range(calls)))


@pytest.mark.usefixtures("client")
def test_the_strategy_decides_and_does_no_harm(balancer: Favourite) -> None:
    """All calls go where it says; when it breaks, they go on by the scores."""
    assert who_served(10) == {"cheap": 10}
    balancer.sign = 1.0
    assert who_served(10) == {"dear": 10}
    balancer.breaks = True
    assert sum(who_served(10).values()) == 10
    balancer.breaks, balancer.sign = False, -1.0
    assert who_served(3) == {"cheap": 3}


def test_metrics_add_up_with_the_calls(server: Server, client: Client) -> None:
    """What was called is what was counted, by client, gateway and status alike."""
    before = server.metrics()
    who_served(12)
    for _ in range(4):
        with pytest.raises(KeyError):
            fail().result(LIMIT_S)
    after = server.metrics()

    assert after.calls_finished - before.calls_finished == 16
    assert after.calls_failed - before.calls_failed == 4
    assert (after.connected_nodes, after.active_functions) == (2, 4)
    assert 0.0 < after.request_routing_p50 <= after.request_routing_p99 < 1.0
    assert after.uptime > before.uptime > 0.0
    until = time.monotonic() + LIMIT_S
    while (now := server.metrics()).requests_per_second == 0.0:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert 0.0 < now.avg_response_time < LIMIT_S
    assert 0.0 <= now.error_rate <= 1.0
    assert now.node_utilization_balance == 1.0
    assert client.metrics().functions_called >= 16


def test_a_program_uses_the_parts_of_its_gateway(server: Server) -> None:
    """Under asyncio: what is registered, how nodes are, and a request that is routed."""
    orchestrator = GatewayOrchestrator()
    before = server.metrics().calls_finished

    async def requests() -> list[str]:
        await FunctionRegistry().register_function(
            "cheap", {"name": "where", "metadata": {"team": "a"}}
        )
        return [await orchestrator.route_request("where", {}) for _ in range(4)]

    assert set(asyncio.run(requests())) <= {"cheap", "dear"}
    assert server.metrics().calls_finished - before == 4
    assert FunctionRegistry().registered_functions["cheap.where"]["metadata"] == {"team": "a"}
    assert orchestrator.node_health == {"cheap": "healthy", "dear": "healthy"}
    with pytest.raises(KeyError):
        asyncio.run(orchestrator.execute_on_node("dear", "fail", {}))
