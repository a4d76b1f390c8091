"""Calls through a real link to a worker: results, errors, access, context."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from easyremote import seam, values
from easyremote.errors import EasyRemoteError, RemoteExecutionError
from easyremote.node import context
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import Result

from .harness import WAIT_S, open_body, rig


def test_worker_says_hello_and_registers_everything() -> None:
    """The agent learns who dialled and every function with its description."""
    with rig(capabilities={"gpu": {"model": "A100"}}, max_concurrency=3) as made:

        @made.register(tags=["math"], timeout=5)
        def add(a: int, b: int) -> int:
            """Add."""
            return a + b

        made.worker.start()
        offer = made.agent.offer()

        assert made.agent.hello is not None
        assert made.agent.hello.role == "worker"
        assert offer["node_id"] == "n1"
        assert offer["capabilities"] == {"gpu": {"model": "A100"}}
        (entry,) = offer["functions"]
        assert (entry["name"], entry["doc"], entry["group"], entry["slots"]) == (
            "add", "Add.", "main", 3,
        )  # fmt: skip
        assert entry["timeout_s"] == 5.0
        assert entry["tags"] == ["math"]


def test_functions_registered_later_are_offered_at_once() -> None:
    """An update follows each change, and names what was taken away."""
    with rig() as made:
        agent = made.start()
        made.register(lambda: 1, name="late")
        made.worker.update()
        assert [entry["name"] for entry in agent.offer()["functions"]] == ["late"]
        assert agent.call("late").result() == 1
        made.table.remove("late")
        made.worker.update(removed="late", paused=True)
        offer = agent.offer()

        assert (offer["functions"], offer["removed"], offer["paused"]) == ([], ["late"], True)
        assert agent.call("late").failure().code == ErrorCode.NOT_FOUND


def test_sync_async_and_trio_functions_return() -> None:
    """All three kinds of functions answer, with positional and keyword arguments."""
    with rig() as made:

        @made.register
        def add(a: int, b: int = 1) -> int:
            return a + b

        @made.register
        async def add_async(a: int, b: int = 1) -> int:
            await asyncio.sleep(0)
            return a + b

        @made.register(async_backend="trio")
        async def add_trio(a: int, b: int = 1) -> int:
            import trio

            await trio.lowlevel.checkpoint()
            return a + b

        agent = made.start()
        calls = [agent.call(name, 1, b=5) for name in ("add", "add_async", "add_trio")]

        assert [call.result() for call in calls] == [6, 6, 6]


def test_many_quick_calls_all_answer_in_order_of_submission() -> None:
    """A burst of calls on one slot runs in order and each gets its own answer."""
    with rig() as made:
        seen = []

        @made.register
        def note(i: int) -> int:
            seen.append(i)
            return i * i

        agent = made.start()
        calls = [agent.call("note", i) for i in range(200)]

        assert [call.result() for call in calls] == [i * i for i in range(200)]
        assert seen == list(range(200))


def test_sync_functions_run_one_at_a_time_on_one_thread() -> None:
    """Without `max_concurrency` every sync call runs on the same thread, the one that serves."""
    with rig() as made:
        made.register(threading.get_ident, name="ident")
        agent = made.start(main=False)
        calls = [agent.call("ident") for _ in range(5)]

        def stop() -> None:
            idents.extend(call.result() for call in calls)
            agent.close()

        idents: list[int] = []
        helper = threading.Thread(target=stop, daemon=True)
        helper.start()
        made.worker.run_main()
        helper.join(WAIT_S)

        assert idents == [threading.get_ident()] * 5


def test_declared_concurrency_runs_at_once() -> None:
    """`max_concurrency=3` lets three calls meet inside the function."""
    with rig() as made:
        barrier = threading.Barrier(3)

        @made.register(max_concurrency=3)
        def meet() -> int:
            barrier.wait(WAIT_S)
            return 1

        agent = made.start()
        calls = [agent.call("meet") for _ in range(3)]

        assert [call.result() for call in calls] == [1, 1, 1]


def test_async_functions_interleave_up_to_their_slots() -> None:
    """Async calls run at once; `max_concurrency` bounds them, and the rest waits its turn."""
    with rig() as made:
        running, most = [0], [0]

        @made.register(max_concurrency=2)
        async def work() -> int:
            running[0] += 1
            most[0] = max(most[0], running[0])
            for _ in range(5):
                await asyncio.sleep(0)
            running[0] -= 1
            return 1

        agent = made.start()
        calls = [agent.call("work") for _ in range(10)]

        assert [call.result() for call in calls] == [1] * 10
        assert most[0] == 2


def test_arrays_travel_both_ways_writable() -> None:
    """A large array arrives as a writable array that the function owns, and comes back equal."""
    with rig() as made:

        @made.register
        def double(x: Any) -> Any:
            x *= 2
            return x

        agent = made.start()
        sent = np.arange(500_000, dtype=np.float64)
        result = agent.call("double", sent).result()

        assert np.array_equal(result, sent * 2)


def test_large_plain_value_travels() -> None:
    """A body that does not fit one frame goes beside the message, both ways."""
    with rig() as made:
        made.register(lambda x: x[::-1], name="reverse")
        agent = made.start()
        value = list(range(100_000))

        assert agent.call("reverse", value).result() == value[::-1]


def test_exception_becomes_data() -> None:
    """What the function raises arrives with its type, text and traceback, without our frames."""
    with rig() as made:

        @made.register
        def fail(key: str) -> None:
            raise KeyError(key)

        failure = made.start().call("fail", "k1").failure()
        error = values.decode_exception(failure.detail)

        assert failure.code == ErrorCode.REMOTE_ERROR
        assert failure.maybe_executed
        assert isinstance(error, RemoteExecutionError)
        assert "k1" in str(error)
        assert "bodies.py" not in str(failure.detail)
        assert "test_worker.py" in str(failure.detail)


@pytest.mark.parametrize("kind", ["sync", "async", "trio"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_exit_of_a_body_does_not_end_the_worker(kind: str, error: type[BaseException]) -> None:
    """`sys.exit()` in a function fails its own call; the worker goes on."""
    with rig() as made:

        def leave() -> None:
            raise error

        async def leave_async() -> None:
            raise error

        backend = "trio" if kind == "trio" else "asyncio"
        fn = leave if kind == "sync" else leave_async
        made.register(name="leave", async_backend=backend)(fn)
        made.register(lambda: 1, name="one")
        agent = made.start()
        failure = agent.call("leave").failure()

        assert failure.code == ErrorCode.REMOTE_ERROR
        assert error.__name__ in failure.reason
        assert agent.call("one").result() == 1


def test_huge_exception_still_fits_a_frame() -> None:
    """An exception with a text of megabytes arrives cut, and the link survives."""
    with rig() as made:

        @made.register
        def fail() -> None:
            raise ValueError("x" * 3_000_000)

        made.register(lambda: 1, name="one")
        agent = made.start()

        assert agent.call("fail").failure().code == ErrorCode.REMOTE_ERROR
        assert agent.call("one").result() == 1


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, RecursionError])
@pytest.mark.parametrize("is_async", [False, True])
def test_result_that_breaks_its_own_encoding_fails_its_call_alone(
    error: type[BaseException], is_async: bool
) -> None:
    """A result whose pickling raises, whatever it raises, costs its call and not the slot."""
    with rig() as made:

        class Evil:
            def __reduce__(self) -> Any:
                raise error

        def make() -> Any:
            return Evil()

        async def make_async() -> Any:
            return Evil()

        made.register(name="make")(make_async if is_async else make)
        made.register(lambda: 1, name="one")
        agent = made.start()
        failure = agent.call("make").failure()

        assert failure.maybe_executed
        assert agent.call("one").result() == 1


def test_unknown_function_is_refused_without_having_run() -> None:
    """A name that is not registered is NOT_FOUND, and provably nothing ran."""
    with rig() as made:
        failure = made.start().call("missing").failure()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.NOT_FOUND, False)


@pytest.mark.parametrize(
    ("accept", "principal", "roles", "is_owner", "allowed"),
    [
        ("owner", "alice", ["member"], True, True),
        ("owner", "alice", ["member"], False, False),
        ("owner", "alice", ["guest"], True, False),
        ("members", "bob", ["member"], False, True),
        ("members", "bob", ["guest"], False, False),
        (True, "bob", ["operator"], False, True),
        (False, "alice", ["owner"], True, False),
        (("bob",), "bob", ["member"], False, True),
        (("bob",), "alice", ["member"], True, False),
    ],
)
def test_pickled_arguments_need_accept_code(
    accept: Any, principal: str, roles: list[str], is_owner: bool, allowed: bool
) -> None:
    """A pickle is loaded only from whom the node's owner named; else nothing of it is decoded."""

    class Canary:
        def __reduce__(self) -> Any:
            return loaded_canary, ()

    _LOADED.clear()
    with rig(accept_code=accept) as made:
        made.register(id, name="take")
        call = made.start().call(
            "take", Canary(), pickled=True, principal=principal, roles=roles,
            context={"owner": is_owner},
        )  # fmt: skip
        outcome = call.outcome()

    if allowed:
        assert isinstance(outcome, Result)
        assert _LOADED == [1]
    else:
        assert not isinstance(outcome, Result)
        assert outcome.code == ErrorCode.UNSUPPORTED_CODEC
        assert not outcome.maybe_executed
        assert _LOADED == []


_LOADED: list[int] = []


def loaded_canary() -> int:
    _LOADED.append(1)
    return 1


class Custom:
    """A type that plain data does not have."""


def test_pickled_result_goes_to_members_only() -> None:
    """A guest gets an error that names the place in the result; a member gets the object."""
    with rig() as made:
        made.register(lambda: {"a": [1, Custom()]}, name="make")
        agent = made.start()
        failure = agent.call("make", roles=["guest"]).failure()

        assert failure.code == ErrorCode.BAD_ARGUMENT
        assert failure.maybe_executed
        assert "result" in failure.reason
        assert isinstance(agent.call("make", roles=["member"]).result()["a"][1], Custom)


def test_access_is_checked_at_the_node_too() -> None:
    """`auth_required` refuses nobody in particular; `access_level` refuses who lacks the level."""
    with rig() as made:
        made.register(auth_required=True, name="private")(lambda: 1)
        made.register(access_level="gold", name="gold")(lambda: 1)
        agent = made.start()

        assert agent.call("private", principal="").failure().code == ErrorCode.AUTH_REQUIRED
        shared = agent.call("private", context={"shared": True})
        assert shared.failure().code == ErrorCode.AUTH_REQUIRED
        assert agent.call("private").result() == 1
        assert agent.call("gold").failure().code == ErrorCode.FORBIDDEN
        assert agent.call("gold", roles=["owner"]).result() == 1
        silver = agent.call("gold", context={"levels": ["silver"]})
        assert silver.failure().code == ErrorCode.FORBIDDEN
        assert agent.call("gold", context={"levels": ["gold"]}).result() == 1


def test_context_says_who_calls() -> None:
    """Inside a call the caller, its roles, the ids and the deadline are known."""
    with rig() as made:

        @made.register
        def who() -> list[Any]:
            ctx = context()
            assert ctx.remaining_s is not None and ctx.deadline is not None
            assert seam.current_ticket.get().hex() == ctx.call_id
            assert seam.current_deadline.get() == ctx.deadline
            return [ctx.principal, list(ctx.roles), ctx.node_id, ctx.function,
                    0 < ctx.remaining_s <= 30, list(ctx.gpu_ids), ctx.attempt]  # fmt: skip

        @made.register
        async def who_async() -> list[Any]:
            assert seam.current_lender.get() is None
            return await asyncio.to_thread(lambda: [context().principal, context().function])

        agent = made.start()
        call = agent.call("who", principal="bob", roles=["guest"], deadline_ms=30_000)

        assert call.result() == ["bob", ["guest"], "n1", "who", True, [], 0]
        assert agent.call("who_async").result() == ["alice", "who_async"]


def test_context_outside_a_call_says_what_to_do() -> None:
    """`context()` outside a call is an error that explains itself."""
    with pytest.raises(EasyRemoteError, match="inside a function"):
        context()


def test_context_variables_do_not_leak_between_calls() -> None:
    """What one call sets in a context variable, the next one on the same thread does not see."""
    with rig() as made:
        from contextvars import ContextVar

        variable: ContextVar[int] = ContextVar("variable", default=0)

        @made.register
        def bump() -> int:
            variable.set(variable.get() + 1)
            return variable.get()

        agent = made.start()

        assert [agent.call("bump").result() for _ in range(3)] == [1, 1, 1]


def test_progress_arrives_before_the_result() -> None:
    """Progress reports reach the caller; the newest is never lost behind an older one."""
    with rig() as made:

        @made.register
        def work() -> str:
            for i in range(1000):
                context().progress({"done": i})
            return "end"

        call = made.start().call("work")
        message, buffers = call.next("Progress")
        assert open_body(message, buffers)["done"] >= 0
        last = message
        while True:
            name, message, buffers = call.events.get(timeout=WAIT_S)
            if name == "Progress":
                last = message
            if name == "Result":
                break

        assert open_body(last, [])["done"] == 999
