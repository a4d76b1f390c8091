"""Smaller parts: threads for callbacks, capabilities, discovery."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from easyremote.client import offload as offload_module
from easyremote.client.capability import matches
from easyremote.client.client import Client
from easyremote.client.offload import THREADS_MAX, Offload, Serial

from .scripted import WAIT_S, ScriptedGateway
from .test_calls import until

# ---- threads for callbacks -----------------------------------------------------------------------


def test_jobs_may_wait_for_one_another() -> None:
    """A callback that waits for what another callback does finds a thread for that one."""
    threads = Offload()
    first, second = threading.Event(), threading.Event()
    threads.run(lambda: first.wait(WAIT_S) and second.set())  # type: ignore[func-returns-value]
    threads.run(first.set)

    assert second.wait(WAIT_S)


def test_many_jobs_share_a_bounded_number_of_threads(caplog: pytest.LogCaptureFixture) -> None:
    """Every job runs, also after one that raised."""
    threads = Offload()
    done = threading.Semaphore(0)
    seen: set[int] = set()

    def job() -> None:
        seen.add(threading.get_ident())
        done.release()

    threads.run(lambda: 1 / 0)
    for _ in range(1000):
        threads.run(job)
    for _ in range(1000):
        assert done.acquire(timeout=WAIT_S)

    assert len(seen) <= THREADS_MAX
    assert "ZeroDivisionError" in caplog.text


def test_idle_threads_leave_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has nothing to do has no threads for it."""
    monkeypatch.setattr(offload_module, "IDLE_S", 0.01)
    threads = Offload()
    for _ in range(3):
        done = threading.Event()
        threads.run(done.set)
        assert done.wait(WAIT_S)
        until(lambda: threads._threads == 0)


def test_serial_jobs_keep_their_order() -> None:
    """One after the other, whatever thread they run on."""
    serial = Serial(Offload())
    seen: list[int] = []
    done = threading.Event()
    for i in range(500):
        serial.run(lambda i=i: seen.append(i))  # type: ignore[misc]
    serial.run(done.set)

    assert done.wait(WAIT_S)
    assert seen == list(range(500))


# ---- capabilities --------------------------------------------------------------------------------

NODE = {
    "gpu": {"model": "A100", "memory": "24GB", "count": 2},
    "memory": {"total": "23.5GiB"},
    "specialization": ["training", "vision"],
    "os": "Linux",
    "quiet": True,
    "broken": False,
}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("training", True), ("lab", True), ("gpu", True), ("gpu.memory", True), ("tpu", False),
        ("os:linux", True), ("os:windows", False), ("quiet", True), ("broken", True),
        ("gpu.model:a100", True), (["gpu", "vision"], True), (["gpu", "tpu"], False),
        ({"gpu": {"memory": ">=16GB"}}, True), ({"gpu": {"memory": ">=32GB"}}, False),
        ({"gpu.memory": "24GB"}, True), ({"gpu": {"memory": "24000MB"}}, True),
        ({"memory.total": ">=23GiB"}, True), ({"memory.total": "<=23GiB"}, False),
        ({"gpu.count": 2}, True), ({"gpu.count": ">1"}, True), ({"gpu.count": "<2"}, False),
        ({"gpu.model": "!=H100"}, True), ({"gpu.model": "==A100"}, True),
        ({"gpu.model": ">=A"}, False), ({"specialization": ["vision"]}, True),
        ({"specialization": "vision"}, True), ({"gpu": 3}, False), ({"os": {"x": 1}}, False),
        (3, False), ({"nowhere": 1}, False),
    ],
    ids=str,
)  # fmt: skip
def test_capabilities_match_as_they_read(wanted: Any, expected: bool) -> None:
    """Text, lists and maps; quantities compare as quantities, whatever their unit."""
    assert matches(NODE, ["lab"], wanted) is expected


def node_info(node_id: str, capabilities: dict[str, Any], functions: list[str]) -> dict[str, Any]:
    return {
        "node_id": node_id, "capabilities": capabilities, "labels": [], "functions": functions,
        "in_flight": 0, "health": "healthy", "rtt_ms": 1.0, "owner": "alice", "since": 0,
    }  # fmt: skip


def test_discovery_finds_nodes_by_what_they_have(gateway: ScriptedGateway, client: Client) -> None:
    """By capability, by function, or both; `fresh` is passed on."""
    gateway.answers["nodes"] = [node_info("a", NODE, ["f"]), node_info("b", {}, ["f", "g"])]

    assert [node.node_id for node in client.nodes()] == ["a", "b"]
    assert [node.node_id for node in client.find_nodes("training")] == ["a"]
    assert [node.node_id for node in client.find_nodes(function="g")] == ["b"]
    assert client.find_nodes({"gpu.memory": ">=16GB"}, "g", fresh=True) == []
    assert gateway.asked[-1].args == {"fresh": True}
