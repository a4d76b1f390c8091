"""Memory of workers: how limits are written, what counts, and silent workers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import trio

from easyremote import ComputeNode, NodeLimits
from easyremote.node import memory
from easyremote.node.options import parse
from easyremote.node.pools import SILENT_S, MainPool
from easyremote.timers import Timers

from .conftest import wait_until

MIB = 1 << 20


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("512MB", 512 * 10**6), ("512MiB", 512 * MIB), ("1.5 gib", 3 * 2**29), ("64k", 64_000),
        (4096, 4096), ("4096", 4096), ("<=2GB", 2 * 10**9), ("1TiB", 2**40),
    ],
)  # fmt: skip
def test_what_a_function_asks_for_is_its_limit(written: object, size_bytes: int) -> None:
    """Sizes are read in powers of ten and of two, plain numbers are bytes."""
    assert memory.limit_of({"memory": written}) == size_bytes


@pytest.mark.parametrize(
    "requirements", [None, {}, {"gpu": 1}, {"memory": ">=2GB"}, {"memory": None}]
)
def test_at_least_bounds_nothing(requirements: dict[str, Any] | None) -> None:
    """A requirement that says "at least", or nothing about memory, is no limit."""
    assert memory.limit_of(requirements) is None


@pytest.mark.parametrize("wrong", ["much", "12 parsecs", "-1GB", -5, 0, True, "", [1], "0B", 2**70])
def test_other_sizes_are_refused_where_they_are_written(wrong: object) -> None:
    """A limit that nobody could enforce is an error of the script, at once."""
    with pytest.raises(ValueError, match="a size is written as"):
        memory.parse_size(wrong)
    with pytest.raises(ValueError, match="resource_requirements, memory: a size is written as"):
        parse({"resource_requirements": {"memory": wrong}})


def test_limits_of_a_node_are_checked() -> None:
    """A node's own limit on memory is read like a function's."""
    with pytest.raises(ValueError, match="a size is written as"):
        ComputeNode("localhost", "n", limits=NodeLimits(memory="lots"))
    with pytest.raises(ValueError, match="indices of GPUs"):
        ComputeNode("localhost", "n", limits=NodeLimits(gpus=("first",)))  # type: ignore[arg-type]
    limits = NodeLimits(memory="8GB", gpus=(0,), hours="20:00-07:00")

    assert limits.unenforced() == ["hours"]


def test_requirements_are_enforced() -> None:
    """The gateway reserves what a function needs, so no start says that nothing enforces it."""
    for requires in ({"memory": "1GB"}, {"disk": "1GB", "gpu_memory": "8GB", "license": 1}):
        assert parse({"resource_requirements": requires}).unenforced() == []


PROGRAM = """
import os, sys
block = b"x" * (64 << 20)
for _ in range(3):
    if not os.fork():
        own = b"x" * (32 << 20)
        sys.stdin.read()
        os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("proc", [True, False])
def test_descendants_count_and_shared_pages_count_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, proc: bool
) -> None:
    """64 MiB shared by four processes and 32 MiB of three of them are about 160 MiB."""
    enough = 150 if proc else 60
    if not proc:
        monkeypatch.setattr(memory, "_PROC", tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_until(lambda: memory.used_bytes(process.pid, 0) > enough * MIB)
        exact = memory.used_bytes(process.pid, 0)
        cheap = memory.used_bytes(process.pid, 1 << 40)
    gone = memory.used_bytes(process.pid, 0)

    assert exact <= cheap
    assert gone == 0
    if proc:
        assert cheap > 3 * 64 * MIB
    assert 64 * MIB < exact < 240 * MIB


# ---- silent workers ------------------------------------------------------------------------------


class FakeCall:
    """A call as the pool sees it."""

    def __init__(self, timers: Timers, number: int, worker: Any, *, started: bool = False) -> None:
        self.timers = timers
        self.call_id = bytes([number])
        self.worker = worker
        self.started = started
        worker.calls[self.call_id] = self


class FakeWorker:
    """A worker as the pool sees it."""

    ready = True

    def __init__(self) -> None:
        self.calls: dict[bytes, FakeCall] = {}


@pytest.mark.parametrize(
    ("started", "stopped", "stuck"),
    [
        ([False], [0], True),  # It took the lock at once: nobody said that it began.
        ([True, False, False], [0], True),  # What waits behind it cannot run.
        ([True, True], [0], False),  # Another one runs, and is wanted.
        ([False, False], [1], False),  # What came before may be what holds the lock.
        ([True, True], [0, 1], True),
    ],
)
async def test_silent_worker_is_stuck_when_nothing_wanted_can_run(
    autojump_clock: trio.abc.Clock, started: list[bool], stopped: list[int], stuck: bool
) -> None:
    """A worker that settles no stopped call is replaced, unless a call that is wanted may run."""
    told: list[Any] = []
    worker, timers = FakeWorker(), Timers(trio.current_time)
    pool = MainPool(lambda _: None, told.append)
    pool.worker = worker  # type: ignore[assignment]
    calls = [FakeCall(timers, i, worker, started=said) for i, said in enumerate(started)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        for i in stopped:
            pool.stopping(calls[i], 1.0)  # type: ignore[arg-type]
        await trio.sleep(1.0 + SILENT_S - 0.1)
        assert told == []
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()

    assert bool(told) is stuck


async def test_worker_that_speaks_in_time_is_left_alone(autojump_clock: trio.abc.Clock) -> None:
    """A call that was settled within its time says nothing against its worker."""
    told: list[Any] = []
    worker, timers = FakeWorker(), Timers(trio.current_time)
    pool = MainPool(lambda _: None, told.append)
    pool.worker = worker  # type: ignore[assignment]
    call = FakeCall(timers, 1, worker, started=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        pool.stopping(call, 0.5)  # type: ignore[arg-type]
        await trio.sleep(1.0)
        del worker.calls[call.call_id]
        await trio.sleep(10.0)
        nursery.cancel_scope.cancel()

    assert told == []
