"""Streams through a worker: what a function yields, and arguments that it iterates."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from easyremote import values
from easyremote.errors import RemoteExecutionError, TaskCancelledError
from easyremote.node import context
from easyremote.node.task import ITEM_BYTES_MAX
from easyremote.wire.errors import ErrorCode
from easyremote.wire.settings import Settings

from .harness import WAIT_S, AgentCall, rig

MIB = 1024 * 1024


class Custom:
    """A type that plain data does not have."""


def numbers(n: int) -> Iterator[int]:
    yield from range(n)
    return "value"  # type: ignore[return-value]


async def numbers_async(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


@pytest.mark.parametrize("fn", [numbers, numbers_async])
def test_items_come_in_order_then_the_value(fn: Any) -> None:
    """Every item arrives once, in order; what a generator returns is the result."""
    with rig() as made:
        made.register(fn, name="n")
        call = made.start().call("n", 500, credit=10_000)

        assert call.items(500) == list(range(500))
        assert call.result() == ("value" if fn is numbers else None)


@pytest.mark.parametrize("kind", ["sync", "async", "trio"])
def test_producer_never_runs_ahead_of_its_credit(kind: str) -> None:
    """With credit for 5 items the producer makes 5, not 6, until more is allowed."""
    with rig() as made:
        made_items = []

        def count() -> Iterator[int]:
            for i in range(100):
                made_items.append(i)
                yield i

        async def count_async() -> AsyncIterator[int]:
            for i in range(100):
                made_items.append(i)
                yield i

        backend = "trio" if kind == "trio" else "asyncio"
        fn = count if kind == "sync" else count_async
        made.register(name="count", async_backend=backend)(fn)
        agent = made.start()
        call = agent.call("count", credit=5)
        assert call.items(5) == [0, 1, 2, 3, 4]
        # A round trip through the same worker: had the producer gone on, it would be seen.
        made.register(lambda: 1, name="one", max_concurrency=1)
        assert agent.call("one").result() == 1
        assert len(made_items) == 5
        call.want(7)
        assert call.items(2) == [5, 6]
        assert agent.call("one").result() == 1
        assert len(made_items) == 7
        call.want(200)

        assert call.items(93) == list(range(7, 100))
        assert call.result() is None


def test_stream_true_streams_a_returned_iterable() -> None:
    """A plain function with `stream=True` streams what it returns, sync and async."""
    with rig() as made:
        made.register(stream=True, name="listed")(lambda n: list(range(n)))

        @made.register(stream=True)
        async def listed_async(n: int) -> list[int]:
            return list(range(n))

        made.register(stream=True, name="wrong")(lambda: 5)
        agent = made.start()

        for name in ("listed", "listed_async"):
            call = agent.call(name, 3, credit=10)
            assert call.items(3) == [0, 1, 2]
            assert call.result() is None
        failure = agent.call("wrong", credit=10).failure()
        assert failure.code == ErrorCode.REMOTE_ERROR
        assert "cannot be iterated" in failure.reason


@pytest.mark.parametrize("is_async", [False, True])
def test_exception_comes_after_the_items_before_it(is_async: bool) -> None:
    """Items that were yielded arrive before the error."""
    with rig() as made:

        def fail() -> Iterator[int]:
            yield 1
            raise ValueError("late")

        async def fail_async() -> AsyncIterator[int]:
            yield 1
            raise ValueError("late")

        made.register(name="fail")(fail_async if is_async else fail)
        call = made.start().call("fail", credit=10)

        assert call.items(1) == [1]
        assert "late" in call.failure().reason


def test_unsendable_item_ends_the_stream_and_closes_the_generator() -> None:
    """An item that a guest may not get fails the call, names the item, and runs `finally`."""
    with rig() as made:
        closed = threading.Event()

        @made.register
        def produce() -> Iterator[Any]:
            try:
                yield 1
                yield Custom()
            finally:
                closed.set()

        call = made.start().call("produce", credit=10, roles=["guest"])

        assert call.items(1) == [1]
        failure = call.failure()
        assert (failure.code, "item[1]" in failure.reason) == (ErrorCode.BAD_ARGUMENT, True)
        assert closed.wait(WAIT_S)


def test_reused_array_is_sent_as_it_was_when_yielded() -> None:
    """A producer that overwrites its buffer after each yield loses nothing."""
    with rig() as made:

        @made.register
        def frames() -> Iterator[Any]:
            frame = np.zeros(400_000)
            for i in range(5):
                frame[:] = i
                yield frame

        call = made.start().call("frames", credit=10)

        assert [(float(f[0]), float(f[-1])) for f in call.items(5)] == [
            (float(i), float(i)) for i in range(5)
        ]


class HoldingCall(AgentCall):
    """A caller that takes bytes but gives no credit for more."""

    relay = True


def test_large_items_wait_for_the_link_not_only_for_item_credit() -> None:
    """A caller with much item credit and a slow link costs the node bounded memory."""
    with rig() as made:
        made_items: list[int] = []
        enough = threading.Event()

        @made.register
        def frames() -> Iterator[Any]:
            for i in range(1000):
                made_items.append(i)
                if i * MIB > ITEM_BYTES_MAX:
                    enough.set()
                yield np.zeros(MIB, dtype=np.uint8)

        made.register(lambda: 1, name="one", max_concurrency=1)
        agent = made.start()
        call = agent.call("frames", credit=1000, handler=HoldingCall)
        assert enough.wait(WAIT_S)
        for _ in range(5):
            assert agent.call("one").result() == 1
        limit = (ITEM_BYTES_MAX + Settings().window_stream_bytes_max) // MIB + 2
        assert len(made_items) <= limit
        call.reset()


def test_stream_and_value_are_not_confused() -> None:
    """A call that expects a stream of a plain function, or the reverse, is told so at once."""
    with rig() as made:
        made.register(numbers)
        made.register(lambda: 1, name="one")
        agent = made.start()

        for call in (agent.call("numbers", 3), agent.call("one", credit=5)):
            failure = call.failure()
            assert (failure.code, failure.maybe_executed) == (ErrorCode.BAD_ARGUMENT, False)
            assert "stream=True" in failure.reason


def test_streamed_argument_is_iterated_lazily() -> None:
    """The function sees items as they come, and the caller never gets credit without bound."""
    with rig() as made:

        @made.register
        def total(items: Iterator[int], factor: int = 1) -> int:
            return sum(items) * factor

        @made.register
        async def total_async(items: AsyncIterator[int]) -> int:
            return sum([item async for item in items])

        agent = made.start()
        for name in ("total", "total_async"):
            call = agent.call(name, values.StreamArgument(1))
            sent, allowed = 0, 0
            while sent < 1000:
                while sent >= allowed:
                    want, _ = call.next("Want")
                    assert want.channel == 1
                    assert want.total <= sent + 256 + 1
                    allowed = want.total
                call.item(sent)
                sent += 1
            call.end_items()

            assert call.result() == sum(range(1000))


def test_two_streamed_arguments_keep_apart() -> None:
    """Each streamed argument is its own channel, in order."""
    with rig() as made:

        @made.register
        def pairs(a: Iterator[int], b: Iterator[int]) -> list[Any]:
            return [list(pair) for pair in zip(a, b, strict=True)]

        call = made.start().call("pairs", values.StreamArgument(1), b=values.StreamArgument(2))
        call.next("Want")
        for i in range(3):
            call.item(i * 10, channel=2)
        call.end_items(2)
        for i in range(3):
            call.item(i, channel=1)
        call.end_items(1)

        assert call.result() == [[0, 0], [1, 10], [2, 20]]


def test_error_of_the_callers_iterator_is_raised_in_the_function() -> None:
    """When the caller's iterator fails, the function gets that error where it iterates."""
    with rig() as made:

        @made.register
        def take(items: Iterator[int]) -> list[Any]:
            seen: list[Any] = []
            try:
                seen.extend(iter(items.__next__, "never"))
            except RemoteExecutionError as error:
                return [seen, str(error)]
            return [seen, "no error"]

        call = made.start().call("take", values.StreamArgument(1))
        call.next("Want")
        call.item(1)
        call.end_items(1, values.encode_exception(ValueError("camera broke")))
        seen, text = call.result()

        assert seen == [1]
        assert "camera broke" in text


def test_large_items_in_get_less_credit() -> None:
    """Credit follows the size of the items: large ones are never hundreds ahead."""
    with rig() as made:

        @made.register
        def sizes(items: Iterator[Any]) -> int:
            return sum(len(item) for item in items)

        call = made.start().call("sizes", values.StreamArgument(1))
        frame = np.zeros(1_000_000)
        call.next("Want")
        allowed = 0
        for sent in range(30):
            while allowed and sent >= allowed:
                allowed = call.next("Want")[0].total
            call.item(frame)
            if not allowed:
                allowed = 16
        call.end_items()
        assert call.result() == 30_000_000
        assert allowed <= 30 + 16


def test_items_beyond_the_credit_stop_the_call() -> None:
    """A caller that sends more than it was allowed loses the call, not the node its memory."""
    with rig() as made:

        @made.register
        def wait(items: Iterator[int]) -> None:
            try:
                while not context().cancelled():
                    time.sleep(0.001)
            finally:
                del items

        agent = made.start()
        call = agent.call("wait", values.StreamArgument(1))
        call.next("Want")
        for i in range(1000):
            call.item(i)

        assert call.failure().code == ErrorCode.PROTOCOL


def test_cancelled_consumer_is_released_where_it_waits() -> None:
    """A function that waits for an item that never comes is told so there when it is cancelled."""
    with rig() as made:
        seen = []

        @made.register
        def wait(items: Iterator[int]) -> None:
            try:
                next(items)
            except TaskCancelledError:
                seen.append("told")
                raise

        call = made.start().call("wait", values.StreamArgument(1))
        call.next("Want")
        call.cancel()

        assert call.failure().code == ErrorCode.CANCELLED
        assert seen == ["told"]
