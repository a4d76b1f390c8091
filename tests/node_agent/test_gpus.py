"""Functions on the GPUs of a fake machine: which devices a call sees, and in which process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from .caller import open_caller
from .conftest import Gateway, Run, Script, in_thread, wait_until

pytestmark = pytest.mark.slow

FAKE_NVML = Path(__file__).with_name("fake_nvml")

SCRIPT = """
    from easyremote import context
    AT_IMPORT = os.environ.get("CUDA_VISIBLE_DEVICES")

    def told():
        return [AT_IMPORT, os.environ.get("CUDA_VISIBLE_DEVICES"), list(context().gpu_ids),
                os.getpid()]

    @node.register(resource_requirements={"gpu_memory": "16GB"})
    def train(name=""):
        if name:
            open(name, "w").close()
            while not os.path.exists("go"):
                time.sleep(0.01)
        return told()

    @node.register(resource_requirements={"gpu_memory": "80GB"})
    def too_large():
        return told()

    @node.register
    def plain():
        return told()

    node.serve()
"""


@pytest.fixture
def on_gpus(run: Run, root: Path) -> Any:
    """Run a script on a machine with two GPUs of 24 GB."""

    def start(body: str = SCRIPT, **env: str) -> Script:
        path = os.pathsep.join([str(root), str(FAKE_NVML)])
        return run(body, env={"PYTHONPATH": path, **env})

    return start


async def test_two_calls_run_at_once_on_different_devices(gateway: Gateway, on_gpus: Any) -> None:
    """Each runs in a process that has seen its own device, and no other, from the beginning."""
    script = on_gpus()
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("train", script.node_id)
        first, second = caller.start("train", "a"), caller.start("train", "b")
        await in_thread(
            wait_until, lambda: all((script.folder / name).exists() for name in ("a", "b"))
        )
        (script.folder / "go").touch()
        told = [await first.result(), await second.result()]

    assert sorted(one[1] for one in told) == ["0", "1"]
    assert sorted(one[2] for one in told) == [[0], [1]]
    for at_import, now, _, pid in told:
        assert at_import == now
        assert pid != script.pid
    await in_thread(os.kill, script.pid, 15)
    await in_thread(script.wait_gone)


async def test_what_fits_no_device_now_waits(gateway: Gateway, on_gpus: Any) -> None:
    """Of three calls of 16 GB on two devices of 24 GB two run at once, whatever the slots."""
    script = on_gpus("""
        from easyremote import context

        @node.register(resource_requirements={"gpu_memory": "16GB"}, max_concurrency=3)
        def fill(name):
            open(name, "w").close()
            while not os.path.exists("go " + name):
                time.sleep(0.01)
            return list(context().gpu_ids)

        node.serve()
    """)

    def begun() -> list[str]:
        return [name for name in "abc" if (script.folder / name).exists()]

    async with open_caller(gateway.address) as caller:
        await caller.wait_for("fill", script.node_id)
        calls = {name: caller.start("fill", name) for name in "abc"}
        await in_thread(wait_until, lambda: len(begun()) == 2)
        first, second = begun()
        await trio.sleep(0.5)
        assert begun() == [first, second]
        (third,) = set("abc") - {first, second}
        (script.folder / f"go {first}").touch()
        device = await calls[first].result()
        (script.folder / f"go {third}").touch()
        assert await calls[third].result() == device
        (script.folder / f"go {second}").touch()

        assert sorted([device, await calls[second].result()]) == [[0], [1]]


async def test_a_function_without_gpus_stays_in_the_script(gateway: Gateway, on_gpus: Any) -> None:
    """It sees what its owner made visible, also between calls that have devices."""
    script = on_gpus()
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("plain", script.node_id)
        await caller.call("train")

        assert await caller.call("plain") == [None, None, [], script.pid]


async def test_devices_are_those_that_the_owner_made_visible(
    gateway: Gateway, on_gpus: Any
) -> None:
    """Calls are told the owner's own entries, numbers or UUIDs, under the indexes 0, 1, ..."""
    script = on_gpus(CUDA_VISIBLE_DEVICES="GPU-00000001, 0")
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("train", script.node_id)
        told = [await caller.call("train")]
        first, second = caller.start("train", "a"), caller.start("train", "b")
        await in_thread(
            wait_until, lambda: all((script.folder / name).exists() for name in ("a", "b"))
        )
        (script.folder / "go").touch()
        told += [await first.result(), await second.result()]

    seen = {one[1]: one[2] for one in told}
    assert seen == {"GPU-00000001": [0], "0": [1]}


async def test_on_one_gpu_the_script_runs_it_itself(gateway: Gateway, on_gpus: Any) -> None:
    """There is nothing to gain by another process; the variable is set while the call runs."""
    script = on_gpus(CUDA_VISIBLE_DEVICES="1")
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("train", script.node_id)

        assert await caller.call("train") == ["1", "1", [0], script.pid]
        assert await caller.call("plain") == ["1", "1", [], script.pid]


async def test_the_gateway_hears_of_each_device(gateway: Gateway, on_gpus: Any) -> None:
    """Capabilities name the devices, samples say how busy each is, functions how many fit."""
    script = on_gpus()
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("train", script.node_id)
        with trio.fail_after(20):
            while True:
                (node,) = [n for n in await caller.query("nodes") if n["node_id"] == script.node_id]
                if len(node["sample"].get("gpus", ())) == 2:
                    break
                await trio.sleep(0.05)

    gpu = node["capabilities"]["gpu"]
    assert (gpu["count"], gpu["model"]) == (2, "Fake RTX 4090")
    for index, device in enumerate(node["sample"]["gpus"]):
        assert device["index"] == index
        assert device["memory_total_bytes"] == device["memory_free_bytes"] == 24 * 10**9
        assert device["memory_foreign_bytes"] == device["utilisation"] == device["processes"] == 0
        assert device["temperature_c"] == 40 + index


async def test_a_node_in_the_background_tells_its_metrics(gateway: Gateway, on_gpus: Any) -> None:
    """The program that serves reads them, of machine, link and calls; later it is told why not."""
    script = on_gpus("""
        @node.register
        def nap(seconds):
            time.sleep(seconds)
            return seconds

        from dataclasses import asdict
        from easyremote import ComputeNodeMetrics, EasyRemoteError
        handle = node.serve(blocking=False)
        while node.metrics().functions_executed < 3 or not node.metrics().data_transfer_rate:
            time.sleep(0.05)
        found = node.metrics()
        assert isinstance(found, ComputeNodeMetrics), found
        assert found.success_rate == 2 / 3, found
        assert 0.2 <= found.avg_execution_time < 10, found
        assert 0 < found.connection_stability <= 1, found
        assert 0 < found.memory_usage < 100 and 0 <= found.cpu_usage <= 100, found
        assert found.gpu_usage == 0 and len(found.gpus) == 2, found
        handle.stop()
        try:
            node.metrics()
        except EasyRemoteError as error:
            print("told:", error, flush=True)
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("nap", script.node_id)
        await caller.call("nap", 0.3)
        await caller.call("nap", 0.3)
        await caller.start("nap", "long").failure()
        await in_thread(script.wait)

    assert "told: node" in script.said()
    assert script.process.returncode == 0
