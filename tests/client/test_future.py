"""A future: its table, its waiters of every kind, and what happens when they leave."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import gc
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from easyremote import EasyRemoteError, Future, TaskCancelledError
from easyremote.client.client import Client
from easyremote.client.future import (
    CANCELLED,
    FINISHED,
    PENDING,
    RUNNING,
    TRANSITIONS,
    Input,
    fail_in_child,
)
from easyremote.client.info import Whereabouts
from easyremote.facts import Usage
from easyremote.seam import current_lender
from easyremote.waiting import crossing_to

from .scripted import WAIT_S, ScriptedGateway

STATES = (PENDING, RUNNING, FINISHED, CANCELLED)


class Work:
    """A source that records what is asked of it."""

    call_id = b"\x01" * 16
    function = "work"

    def __init__(self, *, io_thread: bool = False) -> None:
        self.cancels: list[tuple[int, int]] = []
        self.io_thread = io_thread

    def request_cancel(self, strength: int, grace_ms: int) -> None:
        self.cancels.append((strength, grace_ms))

    def on_io_thread(self) -> bool:
        return self.io_thread

    def was_accepted(self) -> bool:
        return False

    def may_have_run(self) -> bool:
        return True

    def whereabouts(self) -> Whereabouts | None:
        return None

    def usage(self) -> Usage | None:
        return None

    def watch_progress(self, callback: Callable[[Any], object]) -> None:
        raise NotImplementedError

    def last_progress(self) -> Any:
        return None


def in_state(state: str) -> Future[int]:
    future: Future[int] = Future(Work())
    if state is not PENDING and state is not CANCELLED:
        future._step(Input.START)
    if state is FINISHED:
        future._step(Input.SETTLE, 1)
    if state is CANCELLED:
        future._step(Input.CANCEL, None, TaskCancelledError("own"))
    assert future._state is state
    return future


def later(fn: Callable[[], object], delay_s: float = 0.05) -> None:
    """Do something in another thread while the test waits for it."""
    threading.Timer(delay_s, fn).start()


# ---- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("what", Input)
@pytest.mark.parametrize("with_condition", [False, True])
def test_every_input_in_every_state(state: str, what: Input, with_condition: bool) -> None:
    """What the table has happens, what it does not have changes nothing."""
    future = in_state(state)
    if with_condition:
        assert future._condition is future._condition
    before = future._result
    after = TRANSITIONS.get((state, what))
    moved = future._step(what, 2, None if what is not Input.CANCEL else TaskCancelledError("x"))

    assert moved is (after is not None)
    assert future._state == (after or state)
    if after is None:
        assert future._result == before


def test_the_names_of_states_are_those_of_concurrent_futures() -> None:
    """done, running and cancelled mean what they mean in the base."""
    facts = [(f.done(), f.running(), f.cancelled()) for f in map(in_state, STATES)]

    assert facts == [
        (False, False, False), (False, True, False), (True, False, False), (True, False, True),
    ]  # fmt: skip
    assert [f.state for f in map(in_state, STATES)] == [
        "submitted", "running", "done", "cancelled",
    ]  # fmt: skip


def test_executors_settle_it_as_they_settle_their_own() -> None:
    """The methods that executors use behave as in the base."""
    future: Future[int] = Future()
    assert future.set_running_or_notify_cancel() is True
    future.set_result(1)
    assert future.result(0) == 1
    with pytest.raises(cf.InvalidStateError):
        future.set_result(2)
    with pytest.raises(cf.InvalidStateError):
        future.set_exception(ValueError())
    cancelled: Future[int] = Future()
    assert cancelled.cancel()

    assert cancelled.set_running_or_notify_cancel() is False


# ---- waiting -------------------------------------------------------------------------------------


def test_result_blocks_until_there_is_one() -> None:
    """Several threads may wait; all get it."""
    future: Future[int] = Future()
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(future.result(WAIT_S))) for _ in range(5)]
    for thread in threads:
        thread.start()
    future.set_result(7)
    for thread in threads:
        thread.join(WAIT_S)

    assert got == [7] * 5


def test_a_timeout_is_the_builtin_one_and_leaves_the_call_alone() -> None:
    """`except TimeoutError` catches it; nothing is cancelled."""
    work = Work()
    future: Future[int] = Future(work)
    with pytest.raises(TimeoutError, match="the call goes on"):
        future.result(0.01)
    with pytest.raises(TimeoutError):
        future.exception(0)
    future.set_result(1)

    assert work.cancels == []
    assert future.result() == 1
    assert not future.has_waiters


def test_waiters_of_the_standard_library() -> None:
    """`wait` and `as_completed` see results, errors and cancels."""
    good, bad, gone = (Future[int]() for _ in range(3))
    later(lambda: good.set_result(1))
    later(lambda: bad.set_exception(ValueError("x")))
    later(gone.cancel)
    done, pending = cf.wait([good, bad, gone], timeout=WAIT_S)
    assert done == {good, bad, gone}
    assert pending == set()
    first: Future[int] = Future()
    later(lambda: first.set_result(5))

    assert [f.result() for f in cf.as_completed([first], timeout=WAIT_S)] == [5]
    assert isinstance(bad.exception(), ValueError)


def test_await_suspends_and_resumes_in_both_libraries() -> None:
    """A future that is settled in another thread wakes its task."""

    async def main() -> int:
        future: Future[int] = Future()
        later(lambda: future.set_result(3))
        return await future

    assert asyncio.run(main()) == 3
    assert trio.run(main) == 3


def test_await_of_a_settled_future_and_of_an_error() -> None:
    """What is there is given at once; errors are raised as themselves."""
    good, bad = Future[int](), Future[int]()
    good.set_result(1)
    bad.set_exception(KeyError("x"))

    async def main() -> int:
        with pytest.raises(KeyError):
            await bad
        return await good

    assert asyncio.run(main()) == 1
    assert trio.run(main) == 1


def test_many_waits_of_one_loop_cross_over_once() -> None:
    """A burst of results wakes an event loop once, not once each."""

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        crossings = 0
        cross = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal crossings
            crossings += 1
            return cross(*args, **kwargs)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        futures = [Future[int]() for _ in range(100)]
        tasks = [asyncio.ensure_future(future) for future in futures]
        await asyncio.sleep(0)
        for i, future in enumerate(futures):
            future.set_result(i)
        results = list(await asyncio.gather(*tasks))
        assert crossings < 10
        return results

    assert asyncio.run(main()) == list(range(100))


def test_asyncio_takes_it_in_its_own_places() -> None:
    """`gather`, `wait_for` and `wrap_future` accept it."""

    async def main() -> Any:
        one, two, three = (Future[int]() for _ in range(3))
        for i, future in enumerate((one, two, three)):
            later(lambda future=future, i=i: future.set_result(i))  # type: ignore[misc]
        both = await asyncio.gather(one, two)
        return both, await asyncio.wait_for(asyncio.wrap_future(three), WAIT_S)

    assert asyncio.run(main()) == ([0, 1], 2)


def test_a_wait_without_a_loop_is_refused() -> None:
    """A coroutine that is driven by hand gets a sentence."""
    future: Future[int] = Future()
    with pytest.raises(RuntimeError, match="asyncio or trio"):
        next(iter(future.__await__()))


def test_a_loop_that_was_closed_under_its_waiter_hurts_nobody() -> None:
    """Settling a future whose waiters are gone neither raises nor blocks."""
    future: Future[int] = Future()
    loop = asyncio.new_event_loop()
    task = loop.create_task(_wait_for(future))
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    future.set_result(1)
    assert future.result(0) == 1
    task._log_destroy_pending = False  # type: ignore[attr-defined] # it is what this tests
    tokens: list[Any] = []

    async def remember() -> None:
        tokens.append(trio.lowlevel.current_trio_token())

    trio.run(remember)
    crossing_to(tokens[0]).send(lambda: None, tokens[0].run_sync_soon)


async def _wait_for(future: Future[int]) -> int:
    return await future


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_cancelling_the_only_wait_cancels_the_call(library: str) -> None:
    """A scope or task that is left takes its call along, and gets its library's own exception."""
    work = Work()
    future: Future[int] = Future(work)

    async def in_asyncio() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await future

    async def in_trio() -> None:
        with trio.move_on_after(0.01) as scope:
            await future
        assert scope.cancelled_caught

    if library == "trio":
        trio.run(in_trio)
    else:
        asyncio.run(in_asyncio())

    assert work.cancels == [(0, 5000)]
    assert future.cancelled()


def test_cancelling_one_of_several_waits_does_not() -> None:
    """Others still want the outcome: a task, a thread, or a callback."""
    work = Work()
    future: Future[int] = Future(work)

    async def main() -> int:
        loser = asyncio.ensure_future(future)
        winner = asyncio.ensure_future(future)
        await asyncio.sleep(0.01)
        loser.cancel()
        await asyncio.sleep(0.01)
        assert loser.cancelled()
        later(lambda: future.set_result(9))
        return await winner

    assert asyncio.run(main()) == 9
    assert work.cancels == []
    second: Future[int] = Future(work)
    second.add_done_callback(lambda _: None)

    async def leave() -> None:
        with trio.move_on_after(0.01):
            await second

    trio.run(leave)
    assert work.cancels == []
    assert not second.done()


def test_a_blocking_wait_in_a_loop_warns() -> None:
    """The loop stands still meanwhile; a result that is there is no wait."""
    future: Future[int] = Future()

    async def main() -> None:
        with pytest.warns(RuntimeWarning, match="write `await`"), pytest.raises(TimeoutError):
            future.result(0)
        future.set_result(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert future.result() == 1

    asyncio.run(main())


def test_the_io_thread_is_never_blocked(gateway: ScriptedGateway, client: Client) -> None:
    """Waiting for an outcome on the thread that brings it is refused."""
    future = client.submit("f")
    gateway.next_call()

    def wait() -> None:
        with pytest.raises(EasyRemoteError, match="cannot wait"):
            future.result(0)

    gateway.do(wait)


def test_a_wait_inside_a_worker_lends_its_slot() -> None:
    """The slot is lent exactly while the body blocks, and not for what is there already."""
    events: list[str] = []

    class Lender:
        @contextmanager
        def lend(self) -> Iterator[None]:
            events.append("lend")
            yield
            events.append("back")

    token = current_lender.set(Lender())
    try:
        future: Future[int] = Future()

        def settle() -> None:
            events.append("settled")
            future.set_result(1)

        later(settle)
        assert future.result(WAIT_S) == 1
        assert future.result() == 1
    finally:
        current_lender.reset(token)

    assert events == ["lend", "settled", "back"]


# ---- callbacks -----------------------------------------------------------------------------------


def test_callbacks_run_in_order_and_survive_each_other(caplog: pytest.LogCaptureFixture) -> None:
    """One that raises is logged; the next one runs."""
    future: Future[int] = Future()
    seen: list[str] = []
    future.add_done_callback(lambda _: seen.append("first"))
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda f: seen.append(str(f.result())))
    future.set_result(4)
    future.add_done_callback(lambda _: seen.append("late"))

    assert seen == ["first", "4", "late"]
    assert "ZeroDivisionError" in caplog.text


def test_callbacks_never_run_on_the_io_thread(gateway: ScriptedGateway, client: Client) -> None:
    """A callback may block, even for another call, and every call goes on."""
    link = gateway.link_of(client)
    gateway.auto = lambda given: given.result(given.arguments[0][0])
    where: list[bool] = []
    done = threading.Event()
    future = client.submit("f", 1)

    def callback(_: Any) -> None:
        where.append(link.on_io_thread())
        where.append(client.submit("f", 2).result(WAIT_S) == 2)
        done.set()

    future.add_done_callback(callback)

    assert done.wait(WAIT_S)
    assert where == [False, True]


def test_then_follows_and_passes_errors_on() -> None:
    """The continuation's value or error is the outcome of the derived future."""
    future: Future[int] = Future()
    text = future.then(lambda value: value + 1).then(str)
    broken = future.then(lambda value: value // 0)
    future.set_result(1)
    failed: Future[int] = Future()
    after = failed.then(lambda value: value + 1)
    failed.set_exception(KeyError("x"))

    assert text.result(WAIT_S) == "2"
    assert isinstance(broken.exception(WAIT_S), ZeroDivisionError)
    assert isinstance(after.exception(WAIT_S), KeyError)


def test_cancelling_what_follows_cancels_what_it_follows_from() -> None:
    """Unless somebody else waits for that."""
    work = Work()
    future: Future[int] = Future(work)
    assert future.then(str).cancel()
    assert work.cancels == [(0, 5000)]
    wanted: Future[int] = Future(work)
    follower = wanted.then(str)
    wanted.add_done_callback(lambda _: None)
    follower.cancel()

    assert work.cancels == [(0, 5000)]


# ---- failures that nobody looks at ---------------------------------------------------------------


def test_a_failure_that_nobody_looked_at_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Forgetting a future does not hide its error."""
    future: Future[int] = Future(Work())
    future.set_exception(ValueError("lost"))
    del future
    gc.collect()

    assert "nobody asked for its outcome" in caplog.text
    assert "ValueError: lost" in caplog.text
    assert ("01" * 16) in caplog.text


def test_a_failure_that_somebody_looked_at_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """result(), exception(), await and gather all count as looking."""
    from easyremote import gather

    for look in (lambda f: f.exception(), lambda f: gather(f).exception()):
        future: Future[int] = Future(Work())
        future.set_exception(ValueError("seen"))
        assert look(future) is not None
        del future
    failed: Future[int] = Future(Work())
    failed.set_exception(ValueError("seen"))
    with pytest.raises(ValueError, match="seen"):
        failed.result()
    del failed
    gc.collect()

    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_the_traceback_does_not_grow_with_each_look() -> None:
    """Raising the same error again does not collect the frames of everybody who asked."""
    future: Future[int] = Future()
    future.set_exception(ValueError("x"))
    depths: list[int] = []
    for _ in range(3):
        try:
            future.result()
        except ValueError as error:
            depth, frame = 0, error.__traceback__
            while frame is not None:
                depth, frame = depth + 1, frame.tb_next
            depths.append(depth)

    assert len(set(depths)) == 1


# ---- after a fork --------------------------------------------------------------------------------


def test_pending_futures_fail_in_a_forked_child(gateway: ScriptedGateway, client: Client) -> None:
    """A child never waits for what only its parent gets; the parent's call is untouched."""
    future = client.submit("f")
    given = gateway.next_call()
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            error = future.exception(1)
            from easyremote.client.default import defaults

            told = f"{type(error).__name__} {defaults._client is None}"
            os.write(write, told.encode())
        finally:
            os._exit(0)
    try:
        os.close(write)
        assert os.read(read, 1000) == b"GatewayUnreachableError True"
    finally:
        os.waitpid(pid, 0)
        os.close(read)
    given.result(1)

    assert future.result(WAIT_S) == 1


def test_failing_in_a_child_needs_no_lock_of_the_parent() -> None:
    """A lock that a thread of the parent held is not waited for."""
    future: Future[int] = Future(Work())
    condition = future._condition
    held = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with condition:
            held.set()
            release.wait(WAIT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(WAIT_S)
    began = time.monotonic()
    fail_in_child(future, EasyRemoteError("forked"))
    release.set()
    thread.join(WAIT_S)

    assert future.done()
    assert time.monotonic() - began < WAIT_S / 2
