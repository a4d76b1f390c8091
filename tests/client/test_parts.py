"""Smaller parts: threads for callbacks, capabilities, discovery."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from easyremote.client import offload as offload_module
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


# ---- discovery -----------------------------------------------------------------------------------


def node_info(node_id: str, capabilities: dict[str, Any], functions: list[str]) -> dict[str, Any]:
    return {
        "node_id": node_id, "capabilities": capabilities, "labels": [], "functions": functions,
        "in_flight": 0, "health": "healthy", "rtt_ms": 1.0, "owner": "alice", "since": 0,
    }  # fmt: skip


def test_the_gateway_finds_nodes_by_what_they_have(
    gateway: ScriptedGateway, client: Client
) -> None:
    """What is wanted travels in its plain form; what comes back is shown as it came."""
    gateway.answers["nodes"] = [node_info("b", {}, ["f", "g"]), node_info("a", {"gpu": {}}, ["f"])]

    assert [node.node_id for node in client.nodes()] == ["b", "a"]
    assert [node.node_id for node in client.find_nodes()] == ["b", "a"]
    assert gateway.asked[-1].args == {}
    client.find_nodes({"gpu.memory": ">=16GB"}, "g", fresh=True)
    assert gateway.asked[-1].args == {
        "capability": {"gpu.memory": ">=16GB"}, "function": "g", "fresh": True,
    }  # fmt: skip
    client.find_nodes(("training", "vision"))
    assert gateway.asked[-1].args == {"capability": ["training", "vision"]}


def test_what_no_node_can_have_is_said_before_anybody_is_asked(client: Client) -> None:
    """A slip of the pen is an error of its own, not an empty list."""
    with pytest.raises(ValueError, match=">=16GB"):
        client.find_nodes({"gpu.memory": ">=lots"})
    with pytest.raises(TypeError, match="a list of texts"):
        client.find_nodes(3)
