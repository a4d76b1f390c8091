"""Many futures at once: gather, wait, as_completed, get, cancel."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio

from easyremote import Future, TaskCancelledError, as_completed, cancel, gather, get, wait
from easyremote.client.client import Client
from easyremote.client.options import NotAvailableError

from .scripted import WAIT_S, ScriptedGateway
from .test_calls import until
from .test_future import Work, later


def three() -> tuple[Future[int], Future[int], Future[int]]:
    return Future(), Future(), Future()


def test_gather_keeps_the_order_of_its_arguments() -> None:
    """Whatever the order in which they are done; a plain future is taken, too."""
    a, b, c = three()
    plain: cf.Future[int] = cf.Future()
    futures: list[Any] = [a, b, c, plain]
    all_of_them = gather(*futures)
    for value, future in ((3, c), (4, plain), (1, a), (2, b)):
        assert not all_of_them.done()
        future.set_result(value)

    assert all_of_them.result(0) == [1, 2, 3, 4]
    assert gather().result(0) == []


def test_the_first_failure_is_the_outcome_and_the_others_go_on() -> None:
    """As in asyncio: nothing is cancelled, nobody is asked to look at the rest."""
    a, b, c = three()
    whole = gather(a, b, c)
    b.set_exception(KeyError("b"))
    assert isinstance(whole.exception(0), KeyError)
    assert not a.done()
    c.set_exception(ValueError("later"))
    a.set_result(1)

    assert isinstance(whole.exception(0), KeyError)
    assert c._unseen is None


def test_errors_can_be_results() -> None:
    """With return_exceptions everything is waited for and given in its place."""
    a, b, c = three()
    whole = gather(a, b, c, return_exceptions=True)
    b.set_exception(KeyError("b"))
    a.set_result(1)
    c.cancel()
    first, second, third = whole.result(0)

    assert first == 1
    assert isinstance(second, KeyError)
    assert isinstance(third, TaskCancelledError)


def test_cancelling_a_gathering_cancels_its_parts() -> None:
    """Also when the await of it is cancelled."""
    works = [Work(), Work()]
    parts = [Future[int](work) for work in works]
    assert gather(*parts).cancel()
    assert [work.cancels for work in works] == [[(0, 5000)], [(0, 5000)]]
    assert all(part.cancelled() for part in parts)
    more = [Future[int](Work()), Future[int](Work())]

    async def leave() -> None:
        with trio.move_on_after(0.01):
            await gather(*more)

    trio.run(leave)
    assert all(part.cancelled() for part in more)


def test_gather_works_in_both_libraries() -> None:
    """It is itself a future: it can be awaited and nested."""

    async def main() -> Any:
        a, b, c = three()
        for i, future in enumerate((a, b, c)):
            later(lambda future=future, i=i: future.set_result(i))  # type: ignore[misc]
        return await gather(gather(a, b), c)

    assert asyncio.run(main()) == [[0, 1], 2]
    assert trio.run(main) == [[0, 1], 2]


def test_gather_says_how_it_is_used() -> None:
    """A list and a coroutine are the two common mistakes."""
    with pytest.raises(TypeError, match=r"gather\(\*calls\)"):
        gather([Future[int]()])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"asyncio\.gather"):
        gather(3)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("when", "done"),
    [(cf.ALL_COMPLETED, 3), (cf.FIRST_COMPLETED, 1), (cf.FIRST_EXCEPTION, 2)],
)
def test_wait_knows_the_constants_of_concurrent_futures(when: str, done: int) -> None:
    """All, the first, or the first that fails."""
    a, b, c = three()
    steps: list[Callable[[], object]] = [
        lambda: a.set_result(1), lambda: b.set_exception(KeyError()), lambda: c.set_result(3),
    ]  # fmt: skip
    go = threading.Semaphore(0)

    def work() -> None:
        for step in steps:
            go.acquire()
            step()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(done):
        go.release()
    finished, rest = wait([a, b, c], WAIT_S, when)
    for _ in range(3 - done):
        go.release()
    thread.join(WAIT_S)

    assert len(finished) >= (done if when != cf.FIRST_COMPLETED else 1)
    assert len(finished) + len(rest) == 3
    if when == cf.FIRST_EXCEPTION:
        assert b in finished
    assert b.exception(0) is not None


def test_wait_for_some_and_for_some_time() -> None:
    """num_returns counts; a timeout raises nothing; nobody is left waiting."""
    a, b, c = three()
    a.set_result(1)
    assert wait([a, b, c], num_returns=1).done == {a}
    later(lambda: b.set_result(2))
    assert wait([a, b, c], num_returns=2, timeout=WAIT_S).done == {a, b}
    finished, rest = wait([a, c], timeout=0.01)

    assert (finished, rest) == ({a}, {c})
    assert not c.has_waiters
    with pytest.raises(ValueError, match="constants"):
        wait([a], return_when="whenever")


def test_as_completed_gives_futures_as_they_come() -> None:
    """In the order in which they are done, each once; more can be added on the way."""
    a, b, c = three()
    coming = as_completed([a, b, a])
    b.set_result(2)
    assert next(coming) is b
    coming.add(c)
    coming.add(b)
    later(lambda: c.set_result(3))
    assert next(coming) is c
    later(lambda: a.set_result(1))
    assert next(coming) is a
    assert list(coming) == []


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_as_completed_can_be_awaited(library: str) -> None:
    """`async for`, with a timeout of its own."""

    async def main() -> list[int]:
        a, b, c = three()
        later(lambda: b.set_result(2))
        later(lambda: a.set_result(1), 0.1)
        coming = as_completed([a, b, c], timeout=1.0)
        found = [(await anext(coming)).result(), (await anext(coming)).result()]
        with pytest.raises(TimeoutError, match=r"1 \(of 3\)"):
            await anext(coming)
        assert not c.has_waiters
        return found

    assert (asyncio.run(main()) if library == "asyncio" else trio.run(main)) == [2, 1]


def test_as_completed_gives_up_after_its_timeout() -> None:
    """As in the standard library: TimeoutError, and the futures are left alone."""
    a, _, _ = three()
    coming = as_completed([a], timeout=0.01)
    with pytest.raises(TimeoutError, match=r"1 \(of 1\)"):
        next(coming)
    del coming

    assert not a.has_waiters
    assert not a.done()


def test_get_and_cancel_are_what_users_of_ray_type() -> None:
    """One or many results; a cancel of a future."""
    a, b, _ = three()
    a.set_result(1)
    later(lambda: b.set_result(2))
    assert get(a) == 1
    assert get([a, b], timeout=WAIT_S) == [1, 2]
    work = Work()
    future: Future[int] = Future(work)
    assert cancel(future, force=True)
    assert work.cancels == [(1, 5000)]

    with pytest.raises(NotAvailableError, match="spawn"):
        cancel(future, recursive=False)


def test_a_gathering_of_calls_settles_on_the_io_thread(
    gateway: ScriptedGateway, client: Client
) -> None:
    """It needs no thread of its own, whatever the number of its parts."""
    calls = [client.submit("f", i) for i in range(100)]
    whole = gather(*calls)
    before = threading.active_count()
    for _ in range(100):
        given = gateway.next_call()
        given.result(given.arguments[0][0])

    assert whole.result(WAIT_S) == list(range(100))
    assert threading.active_count() <= before
    until(lambda: not client.session.unsettled)
