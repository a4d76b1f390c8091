"""Replicas of real scripts: on the devices that the gateway chose, and as many as it wants."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from easyremote.node.agent_replicas import Replicas

from .scripted_gateway import Node, open_node

pytestmark = pytest.mark.slow

Opener = Callable[..., AbstractAsyncContextManager[Node]]
FAKE_NVML = Path(__file__).with_name("fake_nvml")

TRAIN = """
@node.register(resource_requirements={"gpu_memory": "16GB"})
def train(until=""):
    while until and not os.path.exists(until):
        time.sleep(0.01)
    return [os.environ["CUDA_VISIBLE_DEVICES"], list(context().gpu_ids), os.getpid()]
"""

SCALED = """
@node.register(scaling={"min": 1, "max": 3, "idle_s": 1})
def scaled(until=""):
    while until and not os.path.exists(until):
        time.sleep(0.01)
    return os.getpid()

@node.register(scaling="auto")
def on_demand():
    return os.getpid()
"""


@pytest.fixture
def open_script(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Run a script on a machine with two GPUs of 24 GB, under an agent in this process."""
    monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.syspath_prepend(str(FAKE_NVML))
    monkeypatch.delitem(__import__("sys").modules, "pynvml", raising=False)
    env = {"PYTHONPATH": os.pathsep.join([str(root), str(FAKE_NVML)])}

    def opener(body: str, **node: Any) -> AbstractAsyncContextManager[Node]:
        return open_node(tmp_path, body, env=env, **node)

    return opener


async def test_a_call_sees_the_devices_that_the_gateway_chose(open_script: Opener) -> None:
    """One device, the other, or both: each in a process of its own that sees no other."""
    async with open_script(TRAIN) as node:
        gateway = node.gateway
        assert gateway.functions["train"]["group"] == "fn:train"
        assert gateway.functions["train"]["slots"] == 2
        seen = [
            await gateway.call("train", gpus=[1]),
            await gateway.call("train", gpus=[0]),
            await gateway.call("train", gpus=[1]),
            await gateway.call("train", gpus=[0, 1]),
            await gateway.call("train", gpus=[0]),
        ]

        assert [one[:2] for one in seen] == [
            ["1", [1]], ["0", [0]], ["1", [1]], ["0,1", [0, 1]], ["0", [0]],
        ]  # fmt: skip
        assert seen[0][2] == seen[2][2] != seen[1][2]
        assert len(node.pids("train")) <= 2


async def test_a_call_that_waits_for_other_devices_is_in_no_way(
    open_script: Opener, tmp_path: Path
) -> None:
    """Both devices are busy; the first that is free takes the first call that wants it."""
    async with open_script(TRAIN) as node:
        gateway = node.gateway
        running = [
            gateway.start("train", str(tmp_path / f"go{index}"), gpus=[index]) for index in (0, 1)
        ]
        for call in running:
            await call.wait_started()
        waiting = [gateway.start("train", gpus=[index]) for index in (0, 1)]
        (tmp_path / "go1").touch()
        assert (await waiting[1].result())[0] == "1"
        assert not running[0].over.is_set()
        (tmp_path / "go0").touch()

        assert (await waiting[0].result())[0] == (await running[0].result())[0] == "0"


async def test_calls_share_a_device_if_the_gateway_says_so(
    open_script: Opener, tmp_path: Path
) -> None:
    """It keeps the reservations; an idle process on another device makes room."""
    async with open_script(TRAIN) as node:
        gateway = node.gateway
        await gateway.call("train", gpus=[1])
        first = gateway.start("train", str(tmp_path / "go"), gpus=[0])
        await first.wait_started()
        assert (await gateway.call("train", gpus=[0]))[0] == "0"
        (tmp_path / "go").touch()

        assert (await first.result())[0] == "0"


async def test_an_idle_replica_makes_room_on_its_device(
    open_script: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds is reserved for nobody; a call of another function that needs it gets it."""
    said = tmp_path / "nvml.json"
    said.write_text("{}")
    monkeypatch.setenv("FAKE_NVML", str(said))
    other = TRAIN.replace("def train", "def other")
    async with open_script(TRAIN + other) as node:
        gateway = node.gateway
        kept = (await gateway.call("train", gpus=[1]))[2]
        idle = (await gateway.call("train", gpus=[0]))[2]
        await gateway.call("other", gpus=[0])
        assert sorted(node.pids("train")) == sorted([kept, idle])  # There was enough for both.
        os.kill(node.pids("other")[0], 9)
        await gateway.until(lambda: not node.pids("other"))

        said.write_text(json.dumps({"used": {"0": 10 * 10**9}}))
        await gateway.until(lambda: gateway.latest("gpus")[0]["memory_free_bytes"] < 16 * 10**9)
        assert (await gateway.call("other", gpus=[0]))[0] == "0"
        await gateway.until(lambda: node.pids("train") == [kept])


async def test_the_owner_decides_which_devices_may_be_used(open_script: Opener) -> None:
    """A device that is not allowed is neither announced nor sampled nor given to a call."""
    async with open_script(TRAIN, limits="NodeLimits(gpus=(1,))") as node:
        gateway = node.gateway
        assert [one["index"] for one in gateway.capabilities["gpu"]["devices"]] == [1]
        assert (await gateway.call("train", gpus=[0]))[:2] == ["1", [1]]
        await gateway.until(lambda: bool(gateway.latest("gpus")))

        assert [one["index"] for one in gateway.latest("gpus")] == [1]


async def test_replicas_grow_and_shrink_within_the_bounds(
    open_script: Opener, tmp_path: Path
) -> None:
    """As many as the gateway wants, never fewer or more than the owner said; none is left over."""
    async with open_script(SCALED) as node:
        gateway = node.gateway
        assert gateway.functions["scaled"]["slots"] == 1
        assert gateway.functions["scaled"]["scaling"]["max"] == 3
        await gateway.until(lambda: gateway.latest("replicas") == {"scaled": 1, "on_demand": 0})

        gateway.tell(replicas={"scaled": 100, "on_demand": -5, "none": 3, "scaled ": None})
        await gateway.until(lambda: gateway.latest("replicas")["scaled"] == 3)
        assert gateway.functions["scaled"]["slots"] == 3
        calls = [gateway.start("scaled", str(tmp_path / "go")) for _ in range(3)]
        for call in calls:
            await call.wait_started()
        grown = node.pids("scaled")

        gateway.tell(replicas={"scaled": 0})
        await gateway.until(lambda: gateway.functions["scaled"]["slots"] == 1)
        assert sorted(node.pids("scaled")) == sorted(grown)  # None is ended under a call.
        (tmp_path / "go").touch()
        assert sorted([await call.result() for call in calls]) == sorted(grown)
        await gateway.until(lambda: gateway.latest("replicas")["scaled"] == 1)
        await gateway.until(lambda: sum(map(psutil.pid_exists, grown)) == 1)


async def test_a_kept_replica_that_dies_is_replaced(open_script: Opener) -> None:
    """There is always one, and it serves."""
    async with open_script(SCALED) as node:
        before = await node.gateway.call("scaled")
        os.kill(before, 9)
        await node.gateway.until(lambda: before not in node.pids("scaled"))

        assert await node.gateway.call("scaled") != before


async def test_a_function_that_scales_to_nothing_starts_when_it_is_called(
    open_script: Opener,
) -> None:
    """No process is spent on a function that nobody calls; the first call starts one."""
    async with open_script(SCALED) as node:
        gateway = node.gateway
        assert node.pids("on_demand") == []
        (pid,) = {await gateway.call("on_demand"), await gateway.call("on_demand")}
        assert node.pids("on_demand") == [pid]

        gateway.tell(replicas={"on_demand": 0})
        await gateway.until(lambda: gateway.latest("replicas")["on_demand"] == 0)
        await gateway.until(lambda: not psutil.pid_exists(pid))


async def test_samples_are_deltas(open_script: Opener) -> None:
    """The first one is whole, later ones say what has changed, and each says that we are there."""
    async with open_script(TRAIN) as node:
        gateway = node.gateway
        await gateway.until(lambda: len(gateway.samples) >= 4)
        first, *later = gateway.samples

        assert first["full"] is True
        assert first["memory_total_bytes"] > first["memory_available_bytes"] > 0
        assert first["memory_own_bytes"] > 0
        assert first["calls_running"] == 0
        assert not any("full" in one or "memory_total_bytes" in one for one in later)
        assert not any("gpus" in one for one in later)


async def test_metrics_count_calls_wherever_they_ran(open_script: Opener) -> None:
    """In the script, in a replica, well or badly; the node asked inside a call says so, too."""
    body = (
        SCALED
        + """
@node.register
def inside(fails):
    if fails:
        raise ValueError("no")
    time.sleep(0.2)
    found = node.metrics()
    return [found.functions_executed, found.success_rate, found.calls_running, found.replicas,
            found.avg_execution_time, found.uptime, found.connection_stability,
            found.memory_own_bytes, found.user_satisfaction, found.revenue_generated]
"""
    )
    async with open_script(body) as node:
        gateway = node.gateway
        await gateway.until(lambda: bool(gateway.samples))
        await gateway.call("scaled")
        await gateway.start("inside", True).failure()
        gateway.tell(revenue=2.5)
        told = await gateway.call("inside", False)
        again = await gateway.call("inside", False)

    assert told[:4] == [2, 0.5, 1, {"scaled": 1, "on_demand": 0}]
    assert again[0] == 3
    assert 0.2 / 3 <= again[4] < 20
    assert 0.0 < told[5] < 60
    assert 0.0 < told[6] <= 1.0
    assert told[7] > 1 << 20
    assert 0.0 < told[8] <= 0.5
    assert told[9] == 2.5


@pytest.mark.parametrize(
    ("free_bytes", "left"),
    [({}, []), ({0: 3 * 10**9}, [(0,)]), ({0: 5 * 10**9}, [])],
    ids=["unknown", "too little", "enough"],
)
def test_idle_replicas_make_room_where_memory_is_known_to_be_short(
    free_bytes: dict[int, int], left: list[tuple[int, ...]]
) -> None:
    """A device that nobody measures is no full one: its replicas are not ended at every call."""
    told: list[tuple[int, ...]] = []
    other = SimpleNamespace(leave=told.append)
    family = SimpleNamespace(replica_pools=lambda: [other])
    offer = SimpleNamespace(functions={"f": {"requirements": {"gpu_memory": "4GB"}}})
    replicas = Replicas(cast("Any", family), cast("Any", offer), lambda: free_bytes)
    pool = SimpleNamespace(can_serve=lambda _: False)
    replicas._make_room(cast("Any", SimpleNamespace(function="f")), cast("Any", pool), (0,))

    assert told == left
