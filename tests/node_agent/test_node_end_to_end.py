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


async def test_call_is_not_begun_twice_after_a_gateway_restart(gateway: Gateway, run: Run) -> None:
    """A call that the node had before its gateway was lost is not started a second time."""
    script = run("""
        @node.register
        def marks():
            with open("marks", "a") as file:
                file.write("x")
            time.sleep(0.2)
        node.serve()
    """)
    call_id = os.urandom(16)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("marks")
        await caller.start("marks", call_id=call_id).outcome()
        gateway.kill()
    gateway.start()
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("marks")
        failure = await caller.start("marks", call_id=call_id).failure()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.GATEWAY_LOST, True)
        await caller.call("marks")
    assert (script.folder / "marks").read_text() == "xx"


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


NESTED = """
    import contextvars, secrets, threading
    from easyremote import seam, values
    from easyremote.handlers import StreamHandler
    from easyremote.wire.message import BY_KIND, Call, Failure, Result, decode

    class Answer(StreamHandler):
        def __init__(self):
            self.over = threading.Event()
        def on_message(self, stream, kind, payload, more, end):
            if end:
                self.outcome = decode(BY_KIND[kind], payload)
                self.over.set()

    class Listener:
        def link_up(self, link):
            self.link = link
        def link_down(self, error):
            pass
        def link_credit(self):
            pass

    def nested(function, ticket, *args):
        body = values.encode_call(args, {}, allow_pickle=False).body
        call = Call(secrets.token_bytes(16), function, None, {}, None, 0, 0, ticket, body, [])
        answer, listener, calls = Answer(), Listener(), seam.injected()
        def send():
            calls.listen(listener)
            listener.link.open(call, handler=answer, end=True)
        calls.post(send)
        assert answer.over.wait(20)
        outcome = answer.outcome
        if isinstance(outcome, Failure):
            return [outcome.code, outcome.reason]
        return values.decode(outcome.body, [], allow_pickle=False)

    @node.register
    def outer(x):
        lender = seam.current_lender.get()
        with lender.lend():
            return nested("inner", seam.current_ticket.get(), x)
    @node.register
    def without_ticket():
        return nested("inner", b"", 1)
    @node.register
    def with_a_made_up_ticket():
        return nested("inner", bytes(16), 1)
    @node.register
    def inner(x):
        return x + 1
    node.serve()
"""


async def test_nested_calls_go_out_under_the_running_call_alone(gateway: Gateway, run: Run) -> None:
    """A function can call another one while it runs; without its ticket nothing gets out."""
    run(NESTED)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("outer")

        assert await caller.call("outer", 41) == 42
        for name in ("without_ticket", "with_a_made_up_ticket"):
            code, reason = await caller.call(name)
            assert code == ErrorCode.FORBIDDEN
            assert "connect()" in reason


async def test_functions_registered_later_are_offered(gateway: Gateway, run: Run) -> None:
    """A function that is registered or removed while the node serves appears or goes at once."""
    run("""
        @node.register
        def add_function():
            node.register(lambda: 7, name="added")
        @node.register
        def remove_function():
            node.unregister("added")
        node.serve()
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("add_function")
        await caller.call("add_function")
        await caller.wait_for("added")

        assert await caller.call("added") == 7
        await caller.call("remove_function")
        with trio.fail_after(20):
            while (await caller.start("added").outcome())._fields[0] != "code":
                await trio.sleep(0.05)


async def test_large_values_pass_both_ways(gateway: Gateway, run: Run) -> None:
    """Bytes beyond every window pass the agent in both directions."""
    run("""
        @node.register
        def doubled(data):
            return data + data
        @node.register(isolation="process")
        def isolated_length(data):
            return len(data)
        node.serve()
    """)
    data = os.urandom(6_000_000)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("doubled")

        assert await caller.call("doubled", data) == data + data
        assert await caller.call("isolated_length", data) == len(data)


async def test_call_held_during_a_restart_runs_afterwards(gateway: Gateway, run: Run) -> None:
    """A call that comes while the script is started again waits for it and is served."""
    script = run("""
        if os.path.exists("slow"):
            time.sleep(1.5)
        @node.register
        def held(x):
            return x
        @node.register
        def crash():
            open("slow", "w").close()
            os._exit(1)
        node.serve()
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("held")
        await caller.start("crash").failure()
        await in_thread(wait_until, lambda: "script started" in script.said())
        call = caller.start("held", 5)
        late = caller.start("held", 6, deadline_ms=300)
        failure = await late.failure()

        assert failure.code == ErrorCode.DEADLINE
        assert not call.over.is_set()
        assert await call.result() == 5


async def test_background_node_ends_with_its_script(gateway: Gateway, run: Run) -> None:
    """When the script is over, so is the node that it served in the background."""
    script = run("""
        @node.register
        def brief():
            return 1
        handle = node.serve(blocking=False)
        sys.exit(4)
    """)

    assert await in_thread(script.wait) == 4
    await in_thread(script.wait_gone)
    assert "died" not in script.said()


async def test_worker_whose_slots_are_all_stuck_is_started_again(
    gateway: Gateway, run: Run
) -> None:
    """A body that ignores everything costs its process, once nothing else runs there."""
    script = run("""
        @node.register
        def deaf():
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
        @node.register
        def hears():
            return os.getpid()
        node.serve()
    """)
    async with open_caller(gateway.address) as caller:
        await caller.wait_for("deaf")
        call = caller.start("deaf")
        await call.wait_started()
        assert call.stream is not None
        call.stream.cancel(0, 100)
        failure = await call.failure()

        assert failure.code == ErrorCode.CANCELLED
        assert await caller.call("hears") != script.pid
