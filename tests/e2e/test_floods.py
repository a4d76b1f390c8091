"""Floods of every kind against a real gateway: nobody else's call fails, and nothing stays behind.

How much slower honest calls become is the benchmark's business (`python -m benchmarks floods`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks.attacks import EVIL, FLOODS, Target, attackers
from easyremote import Future, connect
from easyremote.identity.join import JoinString

from .conftest import Cluster

pytestmark = pytest.mark.slow

FLOOD_S = 0.6
BACK_S = 10.0
GROWTH_BYTES_MAX = 96 * 1024 * 1024
"""A warm heap is kept, up to 64 MiB of it; a leak of any of these floods is more within seconds."""
CALL_S_MAX = 10.0

NODE = """
@node.register
def add(a, b):
    return a + b
"""


@pytest.fixture(scope="module")
def cluster(cluster_factory: Callable[[], Cluster]) -> Cluster:
    """A gateway and an honest node."""
    made = cluster_factory()
    made.start_gateway()
    made.start_node("honest", NODE)
    return made


@pytest.fixture(scope="module")
def target(cluster: Cluster) -> Target:
    """What the attackers have: valid tokens of their own."""
    texts = []
    for words in (("guest", "--nodes", EVIL), ("node", "--functions", EVIL)):
        made = cluster.cli("token", "create", "--user", "mallory", "--role", *words)
        texts.append(JoinString.parse(made.stdout.split()[-1]).token.text())
    return Target(cluster.port, *texts)


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attackers are started as a module of this repository."""
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize("kind", FLOODS)
@pytest.mark.usefixtures("at_root")
def test_a_flood_harms_nobody_else_and_leaves_nothing(
    cluster: Cluster, target: Target, kind: str
) -> None:
    """Honest calls succeed meanwhile; descriptors and memory are back soon after."""
    assert cluster.gateway is not None
    gateway = psutil.Process(cluster.gateway.pid)
    client = connect(cluster.address)
    try:

        def add(a: int, b: int) -> Future[int]:
            return client.submit("honest.add", a, b)

        assert add(1, 2).result(timeout=CALL_S_MAX) == 3
        descriptors, rss_bytes = gateway.num_fds(), gateway.memory_info().rss
        with attackers(kind, target) as attack:
            attack.order("go")
            until, calls = time.monotonic() + FLOOD_S, 0
            while time.monotonic() < until or calls < 5:
                assert add(calls, 1).result(timeout=CALL_S_MAX) == calls + 1
                calls += 1
            attack.order("stop")
        deadline = time.monotonic() + BACK_S
        while gateway.num_fds() > descriptors and time.monotonic() < deadline:
            time.sleep(0.05)

        assert gateway.num_fds() <= descriptors
        assert gateway.memory_info().rss - rss_bytes < GROWTH_BYTES_MAX
        assert add(2, 2).result(timeout=CALL_S_MAX) == 4
    finally:
        client.close()
