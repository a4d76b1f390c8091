"""`easyremote node FILE.py`: the agent is the parent of the script."""

from __future__ import annotations

import os
import signal

import pytest

from easyremote.wire.errors import ErrorCode

from .caller import open_caller
from .conftest import Gateway, Run, in_thread

pytestmark = pytest.mark.slow

SCRIPT = """
    @node.register
    def pid():
        return os.getpid()
    @node.register
    def nap(seconds):
        time.sleep(seconds)
        return os.getpid()
    @node.register(isolation="process")
    def isolated():
        return os.getpid()
    node.serve()
    print("the script goes on", flush=True)
"""


async def test_signal_of_a_dead_script_is_told(gateway: Gateway, run: Run) -> None:
    """The parent of the script sees which signal ended it, and starts it again."""
    script = run(SCRIPT, under_agent=True)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("nap", script.node_id)
        worker = await caller.call(f"{script.node_id}.pid")
        assert worker != script.pid
        call = caller.start(f"{script.node_id}.nap", 60.0)
        await call.wait_started()
        os.kill(worker, signal.SIGKILL)
        failure = await call.failure()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.WORKER_DIED, True)
        assert failure.detail == {"exit_code": None, "signal": 9}
        assert worker != await caller.call(f"{script.node_id}.pid")
        assert await caller.call(f"{script.node_id}.isolated") not in (worker, script.pid)


@pytest.mark.parametrize("whom", ["agent", "script"])
async def test_sigterm_drains(gateway: Gateway, run: Run, whom: str) -> None:
    """SIGTERM at the agent or at the script drains the node; both end with 0."""
    script = run(SCRIPT, under_agent=True)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("nap", script.node_id)
        worker = await caller.call(f"{script.node_id}.pid")
        call = caller.start(f"{script.node_id}.nap", 1.0)
        await call.wait_started()
        os.kill(script.pid if whom == "agent" else worker, signal.SIGTERM)

        assert worker == await call.result()
    assert await in_thread(script.wait) == 0
    await in_thread(script.wait_gone)
    assert "the script goes on" in script.said()


async def test_script_that_never_serves(gateway: Gateway, run: Run) -> None:
    """A script that ends without serving gives its exit code to the agent, which says so."""
    script = run("sys.exit(7)", under_agent=True)

    assert await in_thread(script.wait) == 7
    assert "without calling serve()" in script.said()


async def test_exit_code_of_the_script_is_passed_on(gateway: Gateway, run: Run) -> None:
    """What the script does after serve() runs to its end, and its exit code is the program's."""
    script = run(
        """
        @node.register
        def ends_soon():
            return os.getpid()
        with node.serve(blocking=False) as handle:
            handle.wait_ready(20)
        time.sleep(0.5)
        print("the last word", flush=True)
        sys.exit(9)
    """,
        under_agent=True,
    )

    assert await in_thread(script.wait) == 9
    assert "the last word" in script.said()
    await in_thread(script.wait_gone)


async def test_script_that_keeps_dying_is_given_up(gateway: Gateway, run: Run) -> None:
    """Past the restart intensity the agent gives up; a call that waited has not run."""
    script = run(
        """
        if os.path.exists("died"):
            sys.exit(5)
        @node.register
        def die():
            open("died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        node.serve()
    """,
        under_agent=True,
    )
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("die", script.node_id)
        first = caller.start(f"{script.node_id}.die")
        assert (await first.failure()).code == ErrorCode.WORKER_DIED
        second = caller.start(f"{script.node_id}.die")
        failure = await second.failure()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.WORKER_DIED, False)
    assert await in_thread(script.wait) != 0
    assert "keeps dying" in script.said()
    await in_thread(script.wait_gone)


async def test_restart_limit_is_a_setting(gateway: Gateway, run: Run) -> None:
    """EASYREMOTE_RESTARTS_MAX says how many deaths of its script a node takes in a row."""
    script = run(
        """
        @node.register
        def die():
            os.kill(os.getpid(), signal.SIGKILL)
        node.serve()
    """,
        under_agent=True,
        env={"EASYREMOTE_RESTARTS_MAX": "1"},
    )
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("die", script.node_id)
        for _ in range(2):
            failure = await caller.start(f"{script.node_id}.die").failure()
            assert failure.code == ErrorCode.WORKER_DIED
            assert failure.detail == {"exit_code": None, "signal": signal.SIGKILL}
    assert await in_thread(script.wait) != 0
    assert "after 1 restart within 60 s" in script.said()


async def test_agent_killed_takes_the_script_along(gateway: Gateway, run: Run) -> None:
    """When the agent is killed the script it started is gone, too."""
    script = run(SCRIPT, under_agent=True)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("pid", script.node_id)
    os.kill(script.pid, signal.SIGKILL)
    await in_thread(script.wait)
    await in_thread(script.wait_gone)


async def test_second_node_of_the_script_serves_by_itself(gateway: Gateway, run: Run) -> None:
    """Another serve() in a first run under an agent starts an agent of its own."""
    script = run(
        """
        other = ComputeNode(node._gateway, node.node_id + "-other")
        @other.register
        def other_pid():
            return os.getpid()
        @node.register
        def pid():
            return os.getpid()
        handle = other.serve(blocking=False)
        node.serve()
        handle.stop()
    """,
        under_agent=True,
    )
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("pid", script.node_id)
        await caller.wait_for("other_pid", f"{script.node_id}-other")
        mine = await caller.call(f"{script.node_id}.pid")

        assert mine == await caller.call(f"{script.node_id}-other.other_pid")
