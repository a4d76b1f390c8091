"""The io thread: order of posts, results and errors across threads, and its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio

from easyremote.bridge import IoThread
from easyremote.errors import NotConnectedError


@pytest.fixture
def io() -> Iterator[IoThread]:
    """A thread that runs for one test."""
    thread = IoThread("test-io")
    thread.start()
    yield thread
    thread.stop()
    assert not thread.alive


async def nothing() -> None:
    """A round through the thread."""
    await trio.lowlevel.checkpoint()


def test_posts_of_one_thread_keep_their_order(io: IoThread) -> None:
    """What was posted first runs first, and what a post posts runs, too."""
    seen: list[int] = []
    for number in range(1000):
        io.post(lambda number=number: seen.append(number))  # type: ignore[misc]
    io.post(lambda: io.post(lambda: seen.append(-1)))
    io.run(nothing)
    io.run(nothing)

    assert seen == [*range(1000), -1]


def test_posts_of_many_threads_all_run(io: IoThread) -> None:
    """No wake is lost, whoever races whom."""
    seen: list[int] = []

    def burst() -> None:
        for _ in range(500):
            io.post(lambda: seen.append(threading.get_ident()))

    threads = [threading.Thread(target=burst) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    io.run(nothing)

    assert len(seen) == 4000
    assert len(set(seen)) == 1


def test_run_returns_and_raises_what_the_function_does(io: IoThread) -> None:
    """A result and an error cross the threads as they are; so does a TimeoutError of its own."""

    async def double(number: int) -> int:
        return 2 * number

    async def fail(error: Exception) -> None:
        raise error

    assert io.run(double, 21) == 42
    for error in (ValueError("no"), TimeoutError("late")):
        with pytest.raises(type(error), match=str(error)):
            io.run(fail, error)


def test_whoever_waits_when_the_thread_stops_is_told() -> None:
    """A stop ends what runs, with an error that says what to do."""
    io = IoThread("test-io")
    io.start()
    running = threading.Event()

    async def forever() -> None:
        running.set()
        await trio.sleep_forever()

    told: list[BaseException] = []

    def wait() -> None:
        try:
            io.run(forever)
        except BaseException as error:  # noqa: BLE001 (what it is, is the question)
            told.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert running.wait(10)
    io.stop()
    waiter.join(10)

    assert [type(error) for error in told] == [NotConnectedError]


def test_a_thread_that_has_stopped_takes_nothing_and_hangs_nobody() -> None:
    """Late posts do no harm, a late run is a typed error, a second stop is none."""
    io = IoThread("test-io")
    io.start()
    io.stop()
    io.post(lambda: pytest.fail("nobody runs this"))
    with pytest.raises(NotConnectedError):
        io.run(nothing)
    io.stop()

    assert not io.alive


async def test_a_task_spawned_too_late_is_not_started() -> None:
    """Between the end of the tasks and that of the thread, a spawn is dropped."""
    io = IoThread("test-io")
    io._spawn(nothing, ())

    assert io._nursery is None
