"""A node as real processes behind a real gateway: serving, dying, stopping."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
import trio

from easyremote.wire.errors import ErrorCode

from .caller import open_caller
from .conftest import Gateway, Run, in_thread, wait_until

pytestmark = pytest.mark.slow


async def test_sigterm_drains_and_leaves_nothing(gateway: Gateway, run: Run) -> None:
    """SIGTERM at the script lets the running call finish, then script and agent exit with 0."""
    script = run("""
        @node.register
        def drained_nap(seconds):
            time.sleep(seconds)
            return os.getpid()
        node.serve()
        print("the script goes on", flush=True)
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("drained_nap")
        call = caller.start("drained_nap", 1.0)
        await call.wait_started()
        os.kill(script.pid, signal.SIGTERM)

        assert script.pid == await call.result()
    assert await in_thread(script.wait) == 0
    await in_thread(script.wait_gone)
    assert "the script goes on" in script.said()


async def test_killed_script_fails_its_call_and_comes_back(gateway: Gateway, run: Run) -> None:
    """The call of a script that died has WORKER_DIED for an outcome; the next one is served."""
    script = run("""
        @node.register
        def killed_nap(seconds):
            time.sleep(seconds)
            return os.getpid()
        node.serve()
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("killed_nap")
        call = caller.start("killed_nap", 60.0)
        await call.wait_started()
        os.kill(script.pid, signal.SIGKILL)
        failure = await call.failure()
        again = await caller.call("killed_nap", 0.0)

        assert (failure.code, failure.maybe_executed) == (ErrorCode.WORKER_DIED, True)
        assert failure.detail == {"exit_code": None, "signal": None}
        assert again != script.pid
        os.kill(again, signal.SIGTERM)
        await in_thread(script.wait_gone)


async def test_dead_agent_ends_the_script_with_a_sentence(gateway: Gateway, run: Run) -> None:
    """A script whose agent was killed exits with an error and says why in one line."""
    script = run("""
        @node.register
        def orphaned():
            return 1
        node.serve()
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("orphaned")
    script.agent().kill()

    assert await in_thread(script.wait) != 0
    await in_thread(script.wait_gone)
    said = script.said()
    assert "is gone" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
async def test_process_pool_inside_a_function(gateway: Gateway, run: Run, method: str) -> None:
    """A function can use a process pool although the script has no main guard."""
    name = f"pool_{method}"
    script = run(f"""
        @node.register
        def {name}():
            import multiprocessing
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                return pool.map(abs, [-1, -2, 3])
        node.serve()
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for(name)

        assert await caller.call(name) == [1, 2, 3]
        os.kill(script.pid, signal.SIGTERM)
    assert await in_thread(script.wait) == 0
    await in_thread(script.wait_gone)


async def test_gateway_restart_is_survived(gateway: Gateway, run: Run) -> None:
    """A gateway that was killed and started again has the node back, without touching it."""
    script = run("""
        @node.register
        def survivor():
            return os.getpid()
        node.serve()
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("survivor")
        gateway.kill()
    gateway.start()
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("survivor")

        assert script.pid == await caller.call("survivor")


async def test_second_interrupt_ends_at_once(gateway: Gateway, run: Run) -> None:
    """A second Ctrl-C does not wait for the running call, whose caller is told."""
    script = run("""
        @node.register
        def stubborn():
            time.sleep(60.0)
        node.serve()
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("stubborn")
        call = caller.start("stubborn")
        await call.wait_started()
        os.kill(script.pid, signal.SIGINT)
        await in_thread(wait_until, lambda: "node stops" in script.said())
        await trio.sleep(0.6)  # Closer signals count as one.
        os.kill(script.pid, signal.SIGINT)
        failure = await call.failure()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.NODE_LOST, True)
    await in_thread(script.wait)
    await in_thread(script.wait_gone)


async def test_sigterm_drains_although_the_interpreter_is_held(gateway: Gateway, run: Run) -> None:
    """The agent hears of SIGTERM at once, while a function keeps the interpreter's lock."""
    script = run("""
        @node.register
        def holds(count):
            begun = open("begun", "w")
            begun.close()
            return sum(range(count))  # One instruction: no signal handler runs meanwhile.
        node.serve()
    """)
    begun = script.folder / "begun"
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("holds")
        call = caller.start("holds", 100_000_000)
        await in_thread(wait_until, begun.exists)
        os.kill(script.pid, signal.SIGTERM)
        await in_thread(wait_until, lambda: "node stops" in script.said())

        assert not call.over.is_set()
        assert await call.result() == 100_000_000 * 99_999_999 // 2
    assert await in_thread(script.wait) == 0


async def test_script_in_background_is_not_run_again(gateway: Gateway, run: Run) -> None:
    """Without a blocking serve() a dead script stays dead, and the agent ends with it."""
    script = run("""
        @node.register
        def background():
            return os.getpid()
        handle = node.serve(blocking=False)
        while True:
            time.sleep(1.0)
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("background")
        assert script.pid == await caller.call("background")
    os.kill(script.pid, signal.SIGKILL)
    await in_thread(script.wait_gone)

    assert "not started again" in script.said()


async def test_service_manager_restarts_by_itself(gateway: Gateway, run: Run) -> None:
    """Under a service manager the agent ends with the script, which is started by others."""
    script = run(
        """
        @node.register
        def service():
            return 1
        node.serve()
    """,
        env={"INVOCATION_ID": "0123456789abcdef0123456789abcdef"},
    )
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("service")
    os.kill(script.pid, signal.SIGKILL)
    await in_thread(script.wait_gone)

    assert "service manager" in script.said()


async def test_forked_child_does_not_hide_the_death(gateway: Gateway, run: Run) -> None:
    """A child that the script forked and that lives on does not keep the agent waiting."""
    script = run("""
        @node.register
        def forks():
            child = os.fork()
            if not child:
                time.sleep(120.0)
                os._exit(0)
            return child
        node.serve()
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("forks")
        child = await caller.call("forks")
        call = caller.start("forks")
        await call.result()
        os.kill(script.pid, signal.SIGKILL)
        assert psutil.pid_exists(child)
        await in_thread(wait_until, lambda: "starting it again" in script.said())

        assert psutil.pid_exists(await caller.call("forks"))


async def test_wrong_token_is_said_once_and_ends_the_node(gateway: Gateway, run: Run) -> None:
    """A node whose token is refused ends with the gateway's reason and leaves nothing."""
    script = run(
        """
        node.register(print)
        node.serve()
    """,
        head="""
import os, time
from easyremote.node import ComputeNode
from easyremote.identity.token import Token, TokenKind
node = ComputeNode({address!r}, {node_id!r}, token=Token.new(TokenKind.NODE).text())
""",
    )
    code = await in_thread(script.wait)
    await in_thread(script.wait_gone)

    assert code != 0
    assert "AuthenticationError" in script.said()


async def test_user_programs_are_not_taken_for_workers(gateway: Gateway, run: Run) -> None:
    """What a re-run script starts does not inherit the marker, and its children end with it."""
    script = run("""
        import subprocess
        @node.register
        def inherited():
            show = "import os; print([n for n in os.environ if n.startswith('EASYREMOTE_W')])"
            out = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True)
            return out.stdout.strip()
        @node.register
        def dies():
            os.kill(os.getpid(), signal.SIGKILL)
        node.serve()
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("inherited")
        await caller.start("dies").failure()

        assert await caller.call("inherited") == "[]"
        os.kill(script.agent().pid, signal.SIGTERM)
    await in_thread(script.wait_gone)
