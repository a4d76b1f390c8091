"""A large array through a real gateway: equal, and the gateway's memory stays flat."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from easyremote import remote

from .conftest import Cluster

pytestmark = pytest.mark.slow

SIZE_BYTES = 1_000_000_000
GROWTH_BYTES_MAX = 64_000_000


@pytest.fixture(scope="module")
def cluster(cluster_factory: Callable[[], Cluster]) -> Cluster:
    """One gateway, one node that sends arrays back."""
    made = cluster_factory()
    made.start_gateway()
    made.start_node(
        "node-1",
        """
        @node.register
        def mirror(x):
            return x

        @node.register
        async def tick(i):
            return i
        """,
    )
    return made


@remote(node_id="node-1")
def mirror(x: Any) -> Any:
    raise NotImplementedError


@remote(node_id="node-1")
async def tick(i: int) -> int:
    raise NotImplementedError


def test_a_gigabyte_goes_there_and_back_while_small_calls_pass(cluster: Cluster) -> None:
    """The array comes back equal, the gateway holds a window of it, and small calls get through."""
    assert cluster.gateway is not None
    gateway = psutil.Process(cluster.gateway.pid)
    mirror(np.zeros(1_000_000)).result(timeout=30)
    tick(0).result(timeout=10)
    before = gateway.memory_info().rss
    peak = before
    waits: list[float] = []
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            begin = time.perf_counter()
            tick(1).result(timeout=30)
            waits.append(time.perf_counter() - begin)
            peak = max(peak, gateway.memory_info().rss)
            over.wait(0.01)

    watcher = threading.Thread(target=watch)
    array = np.random.default_rng(0).random(SIZE_BYTES // 8)
    watcher.start()
    try:
        back = mirror(array).result(timeout=120)
    finally:
        over.set()
        watcher.join(30)

    assert np.array_equal(array, back)
    assert peak - before < GROWTH_BYTES_MAX
    assert len(waits) > 20
    assert statistics.median(waits) < 1.0
