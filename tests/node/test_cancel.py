"""Stopping calls: cancels, deadlines, callers that went away, bodies that do not look."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from easyremote.node import context, executor
from easyremote.node.task import TRANSITIONS, Input, Phase
from easyremote.wire.errors import ErrorCode

from .harness import WAIT_S, rig


def test_task_table_is_closed() -> None:
    """Every phase can be left or is the last one, and every pair leads to a phase of the table."""
    for phase, what in itertools.product(Phase, Input):
        target = TRANSITIONS.get((phase, what))
        assert target is None or isinstance(target, Phase)
    for phase in Phase:
        leads = {to for (begin, _), to in TRANSITIONS.items() if begin is phase}
        assert (leads <= {Phase.DONE}) == (phase is Phase.DONE) or phase in (
            Phase.RECEIVING, Phase.ABANDONED,
        )  # fmt: skip
    assert all((phase, Input.STOP) in TRANSITIONS or phase is Phase.RECEIVING for phase in Phase)


def test_cancelled_before_it_began_provably_did_not_run() -> None:
    """A queued call that is cancelled never starts, and says so."""
    with rig() as made:
        go, ran = threading.Event(), []
        made.register(lambda: go.wait(WAIT_S), name="hold")
        made.register(lambda: ran.append(1), name="second")
        agent = made.start()
        first = agent.call("hold")
        first.next("started")
        second = agent.call("second")
        second.cancel()
        failure = second.failure()
        go.set()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.CANCELLED, False)
        assert first.result() is True
        assert agent.call("hold").result() is True
        assert ran == []


def test_body_that_looks_is_cancelled_at_once() -> None:
    """A function that asks `cancelled()` and returns counts as cancelled."""
    with rig() as made:

        @made.register
        def work() -> str:
            while not context().cancelled():
                time.sleep(0.001)
            return "half"

        call = made.start().call("work")
        call.next("started")
        call.cancel(grace_ms=60_000)
        failure = call.failure()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.CANCELLED, True)


def test_body_that_returns_without_looking_has_a_result() -> None:
    """A cancel that comes too late to be noticed changes nothing: the result wins."""
    with rig() as made:
        go = threading.Event()
        made.register(lambda: go.wait(WAIT_S), name="hold")
        made.register(lambda: 1, name="one", max_concurrency=1)
        agent = made.start()
        call = agent.call("hold")
        call.next("started")
        call.cancel(grace_ms=60_000)
        assert agent.call("one").result() == 1  # The cancel has arrived before this call.
        go.set()

        assert call.result() is True


@pytest.mark.parametrize("strength", [0, 1])
def test_endless_loop_is_interrupted(strength: int) -> None:
    """A loop that never looks ends by an interrupt: at once by strength 1, else after the grace."""
    with rig() as made:
        cleaned = threading.Event()

        @made.register
        def spin() -> None:
            try:
                while True:
                    pass
            finally:
                cleaned.set()

        made.register(threading.get_ident, name="ident")
        agent = made.start()
        before = agent.call("ident").result()
        call = agent.call("spin")
        call.next("started")
        call.cancel(strength, grace_ms=50 if strength == 0 else 60_000)

        assert call.failure().code == ErrorCode.CANCELLED
        assert cleaned.wait(WAIT_S)
        assert agent.call("ident").result() == before


def test_stuck_body_is_settled_and_keeps_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a body does not return, its caller gets an outcome; its slot is free when it is gone."""
    monkeypatch.setattr(executor, "SETTLE_S", 0.05)
    with rig() as made:
        go = threading.Event()
        made.register(lambda: go.wait(WAIT_S), name="stuck")
        made.register(lambda: 1, name="one")
        agent = made.start()
        call = agent.call("stuck")
        call.next("started")
        call.cancel(strength=1, grace_ms=10)
        failure = call.failure()
        assert agent.offer()["stuck"] is True
        waiting = agent.call("one")
        assert waiting.events.empty()
        go.set()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.CANCELLED, True)
        assert waiting.result() == 1


def test_calls_behind_a_stuck_body_are_handed_back() -> None:
    """Before its process is ended a worker refuses what it has not begun: that has not run."""
    with rig() as made:
        go, ran = threading.Event(), []
        made.register(lambda: go.wait(WAIT_S), name="stuck")
        made.register(lambda: ran.append(1), name="second")
        agent = made.start()
        first = agent.call("stuck")
        first.next("started")
        second = agent.call("second")
        agent.drain("it is started again")
        failure = second.failure()
        go.set()

        assert (failure.code, failure.maybe_executed) == (ErrorCode.OVERLOADED, False)
        assert failure.retry_after_s == executor.RETRY_AFTER_S
        assert first.result() is True
        assert ran == []


def test_interrupt_never_hits_another_call() -> None:
    """Bodies that end just as they are interrupted harm nobody: every other call has its result."""
    with rig() as made:

        @made.register
        def short() -> int:
            return sum(range(2000))

        agent = made.start()
        for i in range(60):
            victim = agent.call("short")
            victim.cancel(strength=1, grace_ms=60_000)
            others = [agent.call("short") for _ in range(5)]
            assert [call.result() for call in others] == [sum(range(2000))] * 5, i
            victim.outcome()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_body_is_cancelled_where_it_waits(backend: str) -> None:
    """An async function is cancelled at its await, and its `finally` runs."""
    with rig() as made:
        cleaned = threading.Event()

        async def wait() -> None:
            try:
                if backend == "trio":
                    import trio

                    await trio.sleep_forever()
                await asyncio.sleep(3600)
            finally:
                cleaned.set()

        made.register(name="wait", async_backend=backend)(wait)
        call = made.start().call("wait")
        call.next("started")
        call.cancel(grace_ms=60_000)

        assert call.failure().code == ErrorCode.CANCELLED
        assert cleaned.wait(WAIT_S)


def test_asyncio_cancellation_of_its_own_is_an_error_of_the_function() -> None:
    """A CancelledError that nobody asked for is what the function raised."""
    with rig() as made:

        @made.register
        async def odd() -> None:
            raise asyncio.CancelledError

        failure = made.start().call("odd").failure()

        assert failure.code == ErrorCode.REMOTE_ERROR


@pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])
@pytest.mark.parametrize("how", ["cancel", "reset"])
def test_generator_is_closed_when_its_caller_leaves(kind: str, how: str) -> None:
    """A cancel or a reset raises GeneratorExit in a producer that waits for credit."""
    with rig() as made:
        closed = threading.Event()

        def produce() -> Iterator[int]:
            try:
                yield from itertools.count()
            except GeneratorExit:
                closed.set()
                raise

        async def produce_async() -> AsyncIterator[int]:
            try:
                for i in itertools.count():
                    yield i
            finally:
                closed.set()

        fn: Any = produce if kind == "sync" else produce_async
        made.register(name="produce", async_backend="trio" if kind == "trio" else "asyncio")(fn)
        made.register(lambda: 1, name="one")
        agent = made.start()
        call = agent.call("produce", credit=3)
        assert call.items(3) == [0, 1, 2]
        if how == "cancel":
            call.cancel()
            assert call.failure().code == ErrorCode.CANCELLED
        else:
            call.reset()

        assert closed.wait(WAIT_S)
        assert agent.call("one").result() == 1


@pytest.mark.parametrize("kind", ["spin", "wait", "queued"])
def test_deadline_reaches_the_call(kind: str) -> None:
    """A deadline ends running sync and async calls, and queued ones without running them."""
    with rig() as made:
        go = threading.Event()

        @made.register
        def spin() -> None:
            while not go.is_set():
                pass

        @made.register
        async def wait() -> None:
            await asyncio.sleep(3600)

        made.register(lambda: 1, name="queued")
        agent = made.start()
        if kind == "queued":
            agent.call("spin").next("started")
        call = agent.call(kind, deadline_ms=30)
        failure = call.failure()
        go.set()

        assert failure.code == ErrorCode.DEADLINE
        assert failure.maybe_executed == (kind != "queued")


def test_timeout_of_the_function_bounds_every_call() -> None:
    """`register(timeout=...)` ends a call that its caller gave no deadline."""
    with rig() as made:
        seen = []

        @made.register(timeout=0.05)
        def work() -> None:
            seen.append(context().remaining_s)
            while not context().cancelled():
                time.sleep(0.001)

        @made.register(timeout=0.05)
        async def work_async() -> None:
            await asyncio.sleep(3600)

        agent = made.start()

        assert agent.call("work").failure().code == ErrorCode.DEADLINE
        assert agent.call("work_async").failure().code == ErrorCode.DEADLINE
        assert seen[0] is not None and seen[0] <= 0.05


def test_every_stream_is_released_once() -> None:
    """After results, failures, cancels, resets and refusals the agent has all its stream credit."""
    with rig() as made:

        @made.register
        def work(how: str) -> str:
            if how == "fail":
                raise ValueError
            while how == "loop" and not context().cancelled():
                time.sleep(0.001)
            return how

        agent = made.start()
        first = agent.call("work", "ok")
        first.result()
        assert agent.link is not None
        before = agent.link.connection.streams_out - agent.link.connection.opened
        for how in ("ok", "fail", "loop", "loop", "missing"):
            call = agent.call("work" if how != "missing" else "missing", how)
            if how == "loop":
                call.next("started")
                call.cancel()
            call.outcome()
        gone = agent.call("work", "loop")
        gone.next("started")
        gone.reset()
        assert agent.call("work", "ok").result() == "ok"
        deadline = time.monotonic() + WAIT_S
        released = made.worker._executor.in_flight
        while released and time.monotonic() < deadline:
            released = made.worker._executor.in_flight

        assert released == 0
        streams_in = made.worker._link.connection.streams_in  # type: ignore[union-attr]
        assert before > 0
        assert streams_in is not None
