"""Functions with `isolation="process"`: each call in a process that can be ended alone."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from easyremote.wire.errors import ErrorCode

from .caller import open_caller
from .conftest import Gateway, Run, in_thread, wait_until

pytestmark = pytest.mark.slow

SCRIPT = """
    import subprocess
    @node.register(isolation="process")
    def isolated(seconds):
        time.sleep(seconds)
        return os.getpid()
    @node.register(isolation="process")
    def holds_lock():
        open("begun", "w").close()
        sum(range(10**12))  # Nothing else runs in this process from here on.
    @node.register(isolation="process")
    def exits(code):
        os._exit(code)
    @node.register(isolation="process")
    def has_child():
        open("child", "w").write(str(subprocess.Popen(["sleep", "300"]).pid))
        time.sleep(300)
    @node.register(isolation="process", max_concurrency=2)
    def pair(seconds):
        time.sleep(seconds)
        return os.getpid()
    @node.register
    def plain():
        return os.getpid()
    node.serve()
"""


async def test_replica_serves_call_after_call(gateway: Gateway, run: Run) -> None:
    """An isolated function runs in a process of its own, which stays for the next call."""
    script = run(SCRIPT)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("isolated", script.node_id)
        first = await caller.call(f"{script.node_id}.isolated", 0.0)
        second = await caller.call(f"{script.node_id}.isolated", 0.0)

        assert first == second != script.pid
        assert script.pid == await caller.call(f"{script.node_id}.plain")
    os.kill(script.pid, signal.SIGTERM)
    assert await in_thread(script.wait) == 0
    await in_thread(script.wait_gone)


async def test_cancel_kills_the_process_of_the_call_alone(gateway: Gateway, run: Run) -> None:
    """A body that holds the interpreter's lock is killed after the grace; the node goes on."""
    script = run(SCRIPT)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("plain", script.node_id)
        call = caller.start(f"{script.node_id}.holds_lock")
        await in_thread(wait_until, (script.folder / "begun").exists)
        assert call.stream is not None
        call.stream.cancel(0, 200)
        failure = await call.failure()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.CANCELLED, True)
        assert script.pid == await caller.call(f"{script.node_id}.plain")
        assert await caller.call(f"{script.node_id}.isolated", 0.0) != script.pid


async def test_deadline_kills_a_body_that_cannot_be_interrupted(gateway: Gateway, run: Run) -> None:
    """After its deadline the process of an isolated call is gone, whatever the body does."""
    script = run(SCRIPT)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("plain", script.node_id)
        call = caller.start(f"{script.node_id}.holds_lock", deadline_ms=2500)
        await in_thread(wait_until, (script.folder / "begun").exists)
        (replica,) = [p for p in script.members() if p.ppid() == script.agent().pid]
        failure = await call.failure()

        assert failure.code == ErrorCode.DEADLINE
        await in_thread(wait_until, lambda: not psutil.pid_exists(replica.pid))
        assert script.pid == await caller.call(f"{script.node_id}.plain")


async def test_exit_code_of_a_dead_replica_is_told(gateway: Gateway, run: Run) -> None:
    """A caller learns the exit code of the process that died with its call."""
    script = run(SCRIPT)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("exits", script.node_id)
        failure = await caller.start(f"{script.node_id}.exits", 3).failure()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.WORKER_DIED, True)
        assert failure.detail == {"exit_code": 3, "signal": None}


async def test_killed_replica_leaves_no_grandchild(gateway: Gateway, run: Run) -> None:
    """What an isolated body started is killed with its process."""
    script = run(SCRIPT)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("has_child", script.node_id)
        call = caller.start(f"{script.node_id}.has_child")
        path = script.folder / "child"
        await in_thread(wait_until, lambda: path.exists() and path.read_text() != "")
        child = int(path.read_text())
        assert psutil.pid_exists(child)
        assert call.stream is not None
        call.stream.cancel(2, 0)
        failure = await call.failure()

        assert failure.code == ErrorCode.CANCELLED
        await in_thread(wait_until, lambda: not psutil.pid_exists(child))


async def test_replicas_up_to_the_declared_concurrency(gateway: Gateway, run: Run) -> None:
    """max_concurrency is the number of processes of an isolated function, and no more run."""
    script = run(SCRIPT)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("pair", script.node_id)
        calls = [caller.start(f"{script.node_id}.pair", 0.3) for _ in range(6)]
        pids = [await call.result() for call in calls]

        assert len(set(pids)) == 2


async def test_call_that_waits_for_a_replica_can_be_cancelled(gateway: Gateway, run: Run) -> None:
    """A call that no process has begun yet ends at once and has provably not run."""
    script = run(SCRIPT)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("isolated", script.node_id)
        running = caller.start(f"{script.node_id}.isolated", 1.0)
        await running.wait_started()
        waiting = caller.start(f"{script.node_id}.isolated", 0.0)
        assert waiting.stream is not None
        waiting.stream.cancel(0, 5000)
        failure = await waiting.failure()

        assert failure.code == ErrorCode.CANCELLED
        assert not running.over.is_set()
        await running.result()


async def test_agent_killed_takes_its_replicas_along(gateway: Gateway, run: Run) -> None:
    """When the agent is killed nothing of the node survives."""
    script = run(SCRIPT)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("isolated", script.node_id)
        await caller.call(f"{script.node_id}.isolated", 0.0)
        script.agent().kill()
    await in_thread(script.wait)
    await in_thread(script.wait_gone)
