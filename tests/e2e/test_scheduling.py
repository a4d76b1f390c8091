"""Placement as users see it, with real processes: it explains itself, spreads, and is fair."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import easyremote
from easyremote import (
    Client,
    FunctionNotFoundError,
    Future,
    InfeasibleError,
    NoCapableNodeError,
    NodeInfo,
    NoHealthyNodesError,
    Placement,
    remote,
)

from .conftest import Cluster, end

pytestmark = pytest.mark.slow

LIMIT_S = 60.0
_log = logging.getLogger(__name__)
"""Figures that nothing is asserted of: `pytest --log-cli-level=info` shows them."""
FAKE_NVML = Path(__file__).parents[1] / "node_agent" / "fake_nvml"

HEAD = """
import itertools, os, time
if {cores!r}:
    os.sched_setaffinity(0, {cores!r})
ME = {node_id!r}
node = ComputeNode({address!r}, node_id=ME, capabilities={capabilities!r}, max_concurrency={slots})

def wait_for(name):
    until = time.monotonic() + 60
    while not os.path.exists(name) and time.monotonic() < until:
        time.sleep(0.005)
"""

PLAIN = """
@node.register
def hold(name):
    wait_for(name)
    return ME

@node.register
def where():
    return ME
"""

SEVERAL = """
@node.register(max_concurrency=1)
def one_by_one(seconds):
    time.sleep(seconds)
    return ME

@node.register(max_concurrency=5)
def five_at_once(seconds):
    time.sleep(seconds)
    return ME

@node.register
def leave():
    node.pause()
"""

TURNS = """
turns = itertools.count()

@node.register
def hold(name):
    wait_for(name)

@node.register
def turn():
    return next(turns)
"""

GPU = """
@node.register(resource_requirements={"gpu_memory": "16GB"})
def train(seconds):
    time.sleep(seconds)

@node.register(resource_requirements={"gpu_memory": "16GB"})
def devices(name):
    open(name + ".began", "w").close()
    wait_for(name)
    return list(context().gpu_ids), os.environ.get("CUDA_VISIBLE_DEVICES")
"""


def start_node(
    cluster: Cluster, node_id: str, body: str = PLAIN, *, slots: int = 4,
    cores: set[int] | None = None, **capabilities: Any,
) -> None:  # fmt: skip
    """Begin to start a node; `ready` waits for all of them."""
    head = HEAD.format(
        cores=cores or set(), node_id=node_id, address=cluster.address, capabilities=capabilities,
        slots=slots,
    )  # fmt: skip
    cluster.start_node(node_id, head + body, wait=False)


def ready(cluster: Cluster) -> Cluster:
    for node_id in cluster.nodes:
        cluster.wait_for_node(node_id)
    return cluster


def end_together(cluster: Cluster) -> None:
    """Ask all nodes at once to end; the fixture of clusters waits for them."""
    for process in cluster.nodes.values():
        process.terminate()


def until(check: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + LIMIT_S
    while not check():
        assert time.monotonic() < limit, what
        time.sleep(0.01)


def done(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(timeout=LIMIT_S) for future in futures]


def placed(future: Future[Any]) -> Placement:
    until(lambda: future.placement is not None, "it was placed nowhere")
    placement = future.placement
    assert placement is not None
    return placement


# ---- three nodes of unequal free capacity --------------------------------------------------------


@pytest.fixture(scope="module")
def unequal(cluster_factory: Callable[[], Cluster]) -> Iterator[Cluster]:
    """Three nodes with 2, 4 and 8 slots, of which one is in use but at the largest."""
    made = cluster_factory()
    made.start_gateway()
    for node_id, slots in (("n2", 2), ("n4", 4), ("n8", 8)):
        start_node(made, node_id, slots=slots)
    yield ready(made)
    end_together(made)


def scores_by_hand(node: NodeInfo, function: str) -> dict[str, float]:
    """Compute the scores of a node from what `find_nodes` shows of it."""
    seen = node.facts
    body_ms = seen["usual_ms"].get(function, 0.0)
    latency = 1.0 / (1.0 + ((seen["usual_rtt_ms"] or 0.0) + body_ms) / 50.0)
    return {
        "resources": (seen["cpu_free"] + seen["memory_free"]) / 2.0,
        "latency": latency,
        "load": 1.0 - seen["busy"] / seen["slots"],
        "capability": 1.0,
        "slow": math.log2(1.0 + body_ms / 50.0),
    }


WEIGHTS = {"resources": 0.3, "latency": 0.2, "load": 0.3, "capability": 0.2, "slow": -0.6}
NEAR = 0.015
"""Totals that differ less may be equal: equal ones take turns, and a number may just have moved."""


def totals_by_hand(client: Client, function: str) -> dict[str, float]:
    totals = {}
    for node in client.find_nodes(function=function):
        scores = scores_by_hand(node, function)
        totals[node.node_id] = sum(WEIGHTS[name] * score for name, score in scores.items())
    return totals


def test_a_placement_can_be_recomputed_from_what_nodes_show(unequal: Cluster) -> None:
    """The four scores, what is taken off and the total are those of a reader with a pencil.

    A sample that comes between looking and calling changes the numbers; then one looks again.
    """
    client = easyremote.connect(unequal.address)
    gate = unequal.folder / "unequal"
    busy = [client.submit(f"{node_id}.hold", gate.name) for node_id in ("n2", "n4")]
    until(lambda: all(one.state == "running" for one in busy), "the nodes are not busy")
    nodes: list[NodeInfo] = []
    found: Placement | None = None
    limit = time.monotonic() + LIMIT_S
    by_hand: dict[str, dict[str, float]] = {}
    while found is None:
        assert time.monotonic() < limit, "the numbers never stood still"
        nodes = client.find_nodes(function="where")
        if any(None in (n.facts["cpu_free"], n.facts["memory_free"]) for n in nodes):
            continue
        by_hand = {node.node_id: scores_by_hand(node, "where") for node in nodes}
        future = client.submit("where")
        assert future.result(timeout=LIMIT_S) in by_hand
        placement = placed(future)
        mine = by_hand[placement.node_id]
        if placement.scores["resources"] == pytest.approx(mine["resources"], abs=1e-6):
            found = placement
    pinned = [client.submit(f"{node_id}.where") for node_id in ("n2", "n4", "n8")]
    assert done(pinned) == ["n2", "n4", "n8"]
    gate.touch()
    done(busy)

    assert [placed(one).scores["load"] for one in pinned] == [0.5, 0.75, 1.0]
    assert {"resources", "latency", "load", "capability", "total"} <= set(found.scores)
    mine = by_hand[found.node_id]
    for name in set(found.scores) - {"total"}:
        assert found.scores[name] == pytest.approx(mine[name], abs=1e-3), name
    weights = found.weights
    assert weights == {name: WEIGHTS[name] for name in weights}
    totals = {
        node_id: sum(WEIGHTS[name] * score for name, score in scores.items())
        for node_id, scores in by_hand.items()
    }
    assert found.total == pytest.approx(totals[found.node_id], abs=2e-3)
    assert found.total == pytest.approx(max(totals.values()), abs=0.02)
    shown = str(found)
    assert all(name in shown for name in ("resources", "latency", "load", "capability", "total"))


# ---- live load -----------------------------------------------------------------------------------


@contextmanager
def burning(core: int) -> Iterator[None]:
    """Keep one processor busy with a process that gives way to everything else on it."""
    program = f"""
import os
os.sched_setaffinity(0, {{{core}}})
if hasattr(os, "SCHED_IDLE"):
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        end(process)


TRIAL_S = 8.0
SPELL_S = 1.5
"""Longer than a node is silent: the calls go elsewhere by more than one sample."""


def test_live_load_moves_calls_away(cluster_factory: Callable[[], Cluster]) -> None:
    """A node whose processor burns was the best one, and is passed over as soon as that is seen.

    Each node is confined to one processor, for a machine's load is everybody's. The others have
    one call to hold, so that without the fire the calls would go on to go to the one that burns.
    Where the machine has nothing to spare, they do anyway: every call goes to the best by hand.
    """
    made = cluster_factory()
    made.start_gateway()
    first, *_, last = sorted(os.sched_getaffinity(0))
    start_node(made, "burnt", slots=20, cores={first})
    for node_id in ("cool-1", "cool-2"):
        start_node(made, node_id, slots=20, cores={last})
    ready(made)
    client = easyremote.connect(made.address)
    gate = made.folder / "cool"
    busy = [client.submit(f"cool-{number}.hold", gate.name) for number in (1, 2)]

    def call() -> str:
        return str(client.execute("where"))

    until(lambda: call() == "burnt", "the node got no calls before it burnt")
    until(
        lambda: all(node.facts["cpu_free"] is not None for node in client.nodes()),
        "the nodes told nothing",
    )
    checked = 0
    with burning(first):
        began = last_burnt = now = time.monotonic()
        while now - last_burnt < SPELL_S and now - began < TRIAL_S:
            before, chosen = totals_by_hand(client, "where"), call()
            after = totals_by_hand(client, "where")
            if all(abs(after[name] - total) < NEAR / 5 for name, total in before.items()):
                checked += 1
                assert before[chosen] >= max(before.values()) - NEAR, before
            now = time.monotonic()
            if chosen == "burnt":
                last_burnt = now
            time.sleep(0.05)  # Else these calls themselves burn all processors.
        seen = {node.node_id: node.facts["cpu_free"] for node in client.nodes()}
    _log.info("calls moved away within %.2f s: %s", last_burnt - began, seen)
    assert checked > 5
    assert seen["burnt"] < 0.3
    until(lambda: call() == "burnt", "the calls did not come back")
    gate.touch()
    assert done(busy) == ["cool-1", "cool-2"]


# ---- bursts over equal nodes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def equal(cluster_factory: Callable[[], Cluster]) -> Iterator[Cluster]:
    """Four nodes that are alike."""
    made = cluster_factory()
    made.start_gateway()
    for number in range(4):
        start_node(made, f"node-{number}", PLAIN + SEVERAL, specialization=["chess"])
    yield ready(made)
    end_together(made)


@pytest.mark.parametrize(("function", "seconds"), [("one_by_one", 0.03), ("five_at_once", 0.2)])
def test_a_burst_spreads_over_equal_nodes(equal: Cluster, function: str, seconds: float) -> None:
    """Of 100 calls at once no node gets more than 30."""
    client = easyremote.connect(equal.address)
    counts = Counter(done([client.submit(function, seconds) for _ in range(100)]))

    _log.info("calls: %s", dict(counts))
    assert sum(counts.values()) == 100
    assert max(counts.values()) <= 30


# ---- what cannot be ------------------------------------------------------------------------------


def test_what_no_node_could_ever_run_is_refused_at_once(equal: Cluster) -> None:
    """A GPU that nobody has is an error right away, which says what each node has."""
    ask = remote(function="where", gpu_memory="16GB")(where)
    easyremote.connect(equal.address)
    took_s, told = [], ""
    for _ in range(5):
        began = time.perf_counter()
        with pytest.raises(InfeasibleError, match="gpu_memory") as caught:
            ask().result(timeout=LIMIT_S)
        took_s.append(time.perf_counter() - began)
        told = str(caught.value)

    assert all(f"node-{number}" in told for number in range(4))
    assert max(took_s) < LIMIT_S / 2
    _log.info("refused_ms: %s", [round(1000 * one, 1) for one in took_s])


def where() -> str:
    """Somewhere."""
    raise NotImplementedError


def test_a_miss_says_how_near_it_was(equal: Cluster) -> None:
    """What no provider has names what each of them lacks; a misspelt name, the right one."""
    client = easyremote.connect(equal.address)
    somewhere = remote(function="where")(where)
    assert somewhere.options(capability="chess")().result(timeout=LIMIT_S).startswith("node-")
    with pytest.raises(NoCapableNodeError, match="node-3") as caught:
        somewhere.options(capability=["chess", "poker"])().result(timeout=LIMIT_S)
    assert "poker" in str(caught.value)
    with pytest.raises(FunctionNotFoundError, match="did you mean where"):
        client.execute("wheer")


def test_providers_that_take_no_calls_are_named_with_their_state(equal: Cluster) -> None:
    """Nobody is healthy: an error at once that says so, and not a wait without end."""
    client = easyremote.connect(equal.address)
    client.execute("node-0.leave")
    until(
        lambda: {n.node_id: n.health for n in client.nodes()}["node-0"] == "paused",
        "the node was not paused",
    )
    with pytest.raises(NoHealthyNodesError, match="node-0 is paused"):
        client.execute("node-0.where")
    assert client.execute("where") != "node-0"


# ---- users beside each other ---------------------------------------------------------------------


@contextmanager
def user(cluster: Cluster, name: str) -> Iterator[Client]:
    """Somebody with a token of his own."""
    words = ("token", "create", "--role", "member", "--user", name)
    with Client(cluster.address, join=cluster.cli(*words).stdout.split()[-1]) as client:
        yield client


@pytest.fixture(scope="module")
def shared(cluster_factory: Callable[[], Cluster]) -> Iterator[Cluster]:
    """A node with one slot, one with a GPU that it declares, and one with two that it has."""
    made = cluster_factory()
    made.start_gateway()
    start_node(made, "turns", TURNS, slots=1)
    start_node(made, "declared", GPU, gpu={"model": "A100", "memory": "24GB"})
    root = str(Path(__file__).parents[2])
    made.settings["PYTHONPATH"] = os.pathsep.join([root, str(FAKE_NVML)])
    start_node(made, "detected", GPU)
    yield ready(made)
    end_together(made)


FLOOD = 10_000
FLOODED = 150
"""Calls of the flood that wait at the gateway itself; the client holds the others back."""


def test_a_flood_of_one_user_does_not_hold_up_another(shared: Cluster) -> None:
    """Alice has 10,000 calls waiting; those of Bob that come then take turns with hers."""
    gate = shared.folder / "flood"
    with user(shared, "alice") as alice, user(shared, "bob") as bob:
        held = alice.submit("turns.hold", gate.name)
        until(lambda: held.state == "running", "the node is not busy")
        flood = [alice.submit("turns.turn") for _ in range(FLOOD)]
        until(lambda: (flood[FLOODED].queue_position or 0) >= FLOODED, "the flood does not wait")
        late = [bob.submit("turns.turn") for _ in range(5)]
        until(lambda: all(one.state == "queued" for one in late), "the late calls do not wait")
        gate.touch()
        turns_of_bob = done(late)
        turns_of_alice = done(flood)

    assert sorted(turns_of_alice + turns_of_bob) == list(range(FLOOD + 5))
    _log.info("turns_of_bob: %s", turns_of_bob)
    assert max(turns_of_bob) < FLOODED / 2


def test_who_waits_for_a_gpu_sees_its_place_and_how_long(shared: Cluster) -> None:
    """Alice holds the GPU: Bob is queued, first in line, knows when, and what he waits for."""
    body_s = 2.0
    with user(shared, "alice") as alice, user(shared, "bob") as bob:
        alice.execute("declared.train", body_s)
        alice.execute("declared.train", body_s)
        submitted = time.monotonic()
        first = alice.submit("declared.train", body_s)
        until(lambda: first.state == "running", "the call of Alice does not run")
        running = time.monotonic()
        second = bob.submit("declared.train", body_s)
        until(lambda: second.queue_position is not None, "the call of Bob does not wait")
        until(lambda: second.state == "queued", "the call of Bob is not queued")
        asked = time.monotonic()
        state, position, eta_s = second.state, second.queue_position, second.eta
        told = bob.why_waiting(second)
        answered = time.monotonic()
        done([first])
        waited_s = time.monotonic() - asked
        done([second])

    assert (state, position) == ("queued", 1)
    assert eta_s is not None
    _log.info("eta_s and waited_s: %s", (round(eta_s, 2), round(waited_s, 2)))
    assert 0.5 * (body_s - (answered - submitted)) <= eta_s
    assert eta_s <= 1.5 * (body_s - (asked - running)) + 0.5
    assert "declared" in told
    assert "gpu_memory" in told
    assert [place["state"] for place in told.data["places"]] == ["lacks"]


def test_three_calls_on_two_gpus_run_two_at_once(shared: Cluster) -> None:
    """Each has a device of its own; the third waits for one, and says so."""
    client = easyremote.connect(shared.address)
    names = ["a", "b", "c"]
    calls = {name: client.submit("detected.devices", name) for name in names}

    def began() -> list[str]:
        return [name for name in names if (shared.folder / f"{name}.began").exists()]

    until(lambda: len(began()) == 2, "two calls did not begin")
    (third,) = set(names) - set(began())
    until(lambda: calls[third].state == "queued", "the third call does not wait")
    assert "gpu_memory" in client.why_waiting(calls[third])
    earlier = began()
    assert len(earlier) == 2
    (shared.folder / earlier[0]).touch()
    first = calls[earlier[0]].result(timeout=LIMIT_S)
    until(lambda: len(began()) == 3, "the third call did not begin")
    for name in names:
        (shared.folder / name).touch()
    second, last = calls[earlier[1]].result(timeout=LIMIT_S), calls[third].result(timeout=LIMIT_S)

    assert sorted([first[0], second[0]]) == [[0], [1]]
    assert last == first
    assert [ids for ids, _ in (first, second)] == [[int(shown)] for _, shown in (first, second)]
    placement = placed(calls[third])
    assert list(placement.gpus) == last[0]
