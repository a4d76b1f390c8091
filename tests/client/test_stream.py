"""Streams: in order, held back, ended by whoever leaves; and iterators as arguments."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import numpy as np
import pytest
import trio

from easyremote import (
    EasyRemoteError,
    GatewayUnreachableError,
    NodeLostError,
    SerializationError,
    remote,
)
from easyremote.client.client import Client
from easyremote.client.stream import STREAM_ITEMS, STREAM_ITEMS_FIRST
from easyremote.values import decode_exception
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import FLAG_STREAM

from .scripted import WAIT_S, GivenCall, ScriptedGateway
from .test_calls import Custom, until


@remote(node_id="n")
def count(n: int) -> Iterator[int]:
    raise NotImplementedError


@remote(node_id="n")
def consume(items: Any, more: Any = None) -> Any:
    raise NotImplementedError


# ---- items that come -----------------------------------------------------------------------------


def test_items_come_in_order_with_the_value_at_the_end(
    gateway: ScriptedGateway, client: Client
) -> None:
    """The call says that it wants items; the return value is there when they are over."""
    stream = count(3)
    given = gateway.next_call()
    assert given.call.flags == FLAG_STREAM
    assert not given.ended
    for i in range(3):
        given.yield_(i)
    with pytest.raises(EasyRemoteError, match="last item"):
        _ = stream.value
    given.result("end")

    assert list(stream) == [0, 1, 2]
    assert stream.value == "end"
    until(lambda: given.ended)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_items_can_be_awaited(gateway: ScriptedGateway, client: Client, library: str) -> None:
    """`async for` waits in either library, for items that come later."""

    async def collect() -> list[int]:
        stream = count(3)
        feeder = threading.Thread(target=feed)
        feeder.start()
        async with stream:
            return [item async for item in stream]

    def feed() -> None:
        given = gateway.next_call()
        for i in range(3):
            time.sleep(0.01)
            given.yield_(i)
        given.result()

    assert (asyncio.run(collect()) if library == "asyncio" else trio.run(collect)) == [0, 1, 2]


def test_an_error_comes_after_the_items_before_it(gateway: ScriptedGateway, client: Client) -> None:
    """Nothing that was yielded is lost, and the error is raised as its own type."""
    stream = count(2)
    given = gateway.next_call()
    given.yield_(0)
    given.yield_(1)
    given.raise_(ValueError("tired"))
    items = iter(stream)

    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="tired"):
        next(items)


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_a_cut_is_an_error_and_never_an_end(
    gateway: ScriptedGateway, client: Client, how: str
) -> None:
    """A stream that is lost in the middle does not look complete."""
    stream = count(9)
    given = gateway.next_call()
    given.yield_(0)
    assert next(stream) == 0
    if how == "cut":
        gateway.cut()
    else:
        given.reset(ErrorCode.NODE_LOST)

    expected: type[EasyRemoteError] = GatewayUnreachableError if how == "cut" else NodeLostError
    with pytest.raises(expected) as caught:
        next(stream)
    assert caught.value.may_have_run is True


def test_a_stream_that_was_not_begun_goes_again(gateway: ScriptedGateway, client: Client) -> None:
    """Before the gateway has it, a loss of the link is not the caller's business."""
    stream = count(1)
    gateway.next_call()
    gateway.cut()
    given = gateway.next_call()
    given.yield_(5)
    given.result()

    assert list(stream) == [5]


def test_credit_is_renewed_as_items_are_taken(gateway: ScriptedGateway, client: Client) -> None:
    """The producer is allowed a few items at first, then at most a window ahead."""
    stream = count(1000)
    given = gateway.next_call()
    assert given.next("Want").total == STREAM_ITEMS_FIRST
    sent, allowed = 0, STREAM_ITEMS_FIRST
    for taken in range(1, 601):
        while sent < allowed:
            given.yield_(sent)
            sent += 1
        assert next(stream) == taken - 1
        gateway.do(lambda: None)
        while not given.events.empty():
            allowed = max(allowed, given.next("Want").total)
        assert allowed <= taken + STREAM_ITEMS

    assert allowed > STREAM_ITEMS_FIRST + STREAM_ITEMS
    stream.close()


def test_large_items_are_allowed_a_few_at_a_time(gateway: ScriptedGateway, client: Client) -> None:
    """What a consumer holds is bounded in bytes, too."""
    stream = count(1000)
    given = gateway.next_call()
    assert given.next("Want").channel == 0
    frame = np.zeros(20_000_000, np.uint8)
    for _ in range(STREAM_ITEMS_FIRST // 2 + 1):
        given.yield_(frame)
        assert next(stream).nbytes == frame.nbytes  # type: ignore[attr-defined]
    gateway.do(lambda: None)
    while not given.events.empty():
        given.next("Want")
    until(lambda: stream._call.allowed >= STREAM_ITEMS_FIRST)

    assert stream._call.allowed - stream._call.taken <= STREAM_ITEMS_FIRST
    stream.close()


@pytest.mark.parametrize("way", ["break", "close", "with", "error", "forget", "async break"])
def test_whoever_leaves_a_stream_stops_its_producer(
    gateway: ScriptedGateway, client: Client, way: str
) -> None:
    """`break`, `close()`, the end of a `with`, an error in the loop, dropping it: all the same."""
    kept = count(1000)
    given = gateway.next_call()
    given.yield_(0)
    given.yield_(1)
    if way == "break":
        for _ in kept:
            break
    elif way == "close":
        kept.close()
    elif way == "with":
        with kept:
            next(kept)
    elif way == "error":
        with pytest.raises(ZeroDivisionError):
            _fail_in_loop(kept)
        gc.collect()
    elif way == "forget":
        del kept
        gc.collect()
    else:
        asyncio.run(_break_async(kept))

    assert given.next("cancel") == (0, 5000)


def _fail_in_loop(stream: Any) -> None:
    for item in stream:
        _ = item / 0


async def _break_async(stream: Any) -> None:
    async for _ in stream:
        break


def test_a_stream_that_was_closed_gives_nothing_more(
    gateway: ScriptedGateway, client: Client
) -> None:
    """A second loop over it is empty, and its outcome is nobody's concern any more."""
    stream = count(9)
    given = gateway.next_call()
    given.yield_(0)
    for _ in stream:
        break
    assert list(stream) == []
    given.fail(ErrorCode.CANCELLED, maybe=True)
    until(lambda: not client.session.unsettled)


def test_leaving_after_the_end_cancels_nothing(gateway: ScriptedGateway, client: Client) -> None:
    """A loop that ran to its end leaves the outcome alone."""
    stream = count(1)
    given = gateway.next_call()
    given.yield_(0)
    given.result("end")
    assert list(stream) == [0]
    assert stream.value == "end"
    assert stream.future.state == "done"
    events = [given.events.get_nowait()[0] for _ in range(given.events.qsize())]

    assert "cancel" not in events


@pytest.mark.parametrize("owner", ["alice", "mallory"])
def test_pickled_items_wait_for_a_verdict(
    gateway: ScriptedGateway, client: Client, owner: str
) -> None:
    """They are opened only if the node is mine; plain items around them keep their order."""
    gateway.answers["owners"] = [owner]
    stream = count(3)
    given = gateway.next_call()
    given.yield_(0)
    given.yield_(Custom(), pickled=True)
    given.yield_(2)
    given.result("end")

    assert next(stream) == 0
    if owner == "alice":
        assert isinstance(next(cast("Iterator[Any]", stream)), Custom)
        assert list(stream) == [2]
        assert stream.value == "end"
    else:
        with pytest.raises(SerializationError, match="item 1"):
            next(stream)


# ---- items that go -------------------------------------------------------------------------------


def numbers(n: int, pulled: list[int] | None = None) -> Iterator[int]:
    for i in range(n):
        if pulled is not None:
            pulled.append(i)
        yield i


async def async_numbers(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


def want(given: GivenCall, channel: int, total: int) -> None:
    from easyremote.wire.message import Want

    given.say(Want(channel, total))


def test_an_iterator_is_pulled_only_as_far_as_it_is_wanted(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Nothing is pulled before the function asks, and never more than it asked for."""
    pulled: list[int] = []
    future = consume(numbers(100, pulled))
    given = gateway.next_call()
    assert [value.channel for value in given.arguments[0]] == [1]
    assert pulled == []
    want(given, 1, 3)
    assert [given.item() for _ in range(3)] == [0, 1, 2]
    want(given, 1, 5)
    assert [given.item() for _ in range(2)] == [3, 4]
    assert pulled == [0, 1, 2, 3, 4]
    given.result("enough")

    assert future.result(WAIT_S) == "enough"
    until(lambda: given.ended)


def test_several_iterators_have_channels_of_their_own(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Positional and named ones; the end of each is told, and the last one ends our direction."""
    future = consume(numbers(2), more=iter("ab"))
    given = gateway.next_call()
    want(given, 2, 9)
    assert [given.item(), given.item()] == ["a", "b"]
    assert given.next("ItemsEnd").channel == 2
    assert not given.ended
    want(given, 1, 9)
    assert [given.item(), given.item()] == [0, 1]
    assert given.next("ItemsEnd").channel == 1
    until(lambda: given.ended)
    given.result("both")

    assert future.result(WAIT_S) == "both"


@pytest.mark.parametrize("where", ["asyncio", "trio", "nowhere"])
def test_async_iterators_are_pulled_in_the_loop_of_the_call(
    gateway: ScriptedGateway, client: Client, where: str
) -> None:
    """Or in a loop of their own, where the call was made outside of any."""
    received: list[Any] = []

    def answer() -> None:
        given = gateway.next_call()
        want(given, 1, 100)
        received.extend(given.item() for _ in range(3))
        given.next("ItemsEnd")
        given.result("done")

    thread = threading.Thread(target=answer)
    thread.start()

    async def call() -> Any:
        return await consume(async_numbers(3))

    if where == "asyncio":
        result = asyncio.run(call())
    elif where == "trio":
        result = trio.run(call)
    else:
        result = consume(async_numbers(3)).result(WAIT_S)
    thread.join(WAIT_S)

    assert received == [0, 1, 2]
    assert result == "done"


def test_an_error_of_the_iterator_travels(gateway: ScriptedGateway, client: Client) -> None:
    """The function gets it where it waits for the next item."""

    def camera() -> Iterator[int]:
        yield 1
        raise OSError("unplugged")

    consume(camera())
    given = gateway.next_call()
    want(given, 1, 9)
    assert given.item() == 1
    detail = given.next("ItemsEnd").error

    error = decode_exception(detail)
    assert isinstance(error, OSError)
    assert "unplugged" in str(error)
    given.result()


def test_an_item_that_cannot_travel_ends_the_items(gateway: ScriptedGateway) -> None:
    """A guest's iterator must yield plain data; the function hears why it ended."""
    gateway.info = {"user": "eve", "role": "guest"}
    client = gateway.client()
    client.connect()
    client.submit("f", iter([Custom()]))
    given = gateway.next_call()
    want(given, 1, 9)

    assert "item[0]" in str(decode_exception(given.next("ItemsEnd").error))
    given.result()


def test_reused_memory_of_a_producer_is_copied(gateway: ScriptedGateway, client: Client) -> None:
    """A camera that fills the same buffer again and again sends different frames."""

    def frames() -> Iterator[Any]:
        buffer = np.zeros(2_000_000, np.uint8)
        for i in range(3):
            buffer[:] = i
            yield buffer

    consume(frames())
    given = gateway.next_call()
    want(given, 1, 9)

    assert [int(given.item()[-1]) for _ in range(3)] == [0, 1, 2]
    given.result()


def test_the_iterator_is_closed_when_the_call_is_over(
    gateway: ScriptedGateway, client: Client
) -> None:
    """A function that returns early lets the producer clean up."""
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    future = consume(endless())
    given = gateway.next_call()
    want(given, 1, 2)
    given.item()
    given.result("early")
    assert future.result(WAIT_S) == "early"

    assert closed.wait(WAIT_S)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_an_async_iterator_that_waits_is_stopped(
    gateway: ScriptedGateway, client: Client, library: str
) -> None:
    """One that waits for its own next item does not outlive the call."""
    stopped = threading.Event()

    async def silent() -> AsyncIterator[int]:
        try:
            if library == "asyncio":
                await asyncio.sleep(3600)
            else:
                await trio.sleep(3600)
            yield 1
        finally:
            stopped.set()

    def answer() -> None:
        given = gateway.next_call()
        want(given, 1, 2)
        time.sleep(0.05)
        given.result("early")

    async def call() -> Any:
        result = await consume(silent())
        if library == "asyncio":
            await asyncio.sleep(0.05)
        else:
            await trio.sleep(0.05)
        return result

    thread = threading.Thread(target=answer)
    thread.start()
    result = asyncio.run(call()) if library == "asyncio" else trio.run(call)
    thread.join(WAIT_S)

    assert result == "early"
    assert stopped.wait(WAIT_S)


def test_a_call_whose_items_have_left_does_not_go_again(
    gateway: ScriptedGateway, client: Client
) -> None:
    """An iterator cannot be rewound: a loss is an error."""
    future = consume(numbers(9))
    given = gateway.next_call()
    want(given, 1, 1)
    given.item()
    gateway.cut()

    assert isinstance(future.exception(WAIT_S), GatewayUnreachableError)


def test_producers_wait_while_much_is_unsent(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credit for many large items does not fill the memory of the caller."""
    from easyremote.client import feed

    monkeypatch.setattr(feed, "ITEM_BYTES_MAX", 3_000_000)
    pulled: list[int] = []

    def frames() -> Iterator[Any]:
        for i in range(20):
            pulled.append(i)
            yield np.full(1_000_000, i % 250, np.uint8)

    consume(frames())
    given = gateway.next_call()
    want(given, 1, 21)
    received = [int(given.item()[0]) for _ in range(20)]

    assert received == list(range(20))
    assert given.next("ItemsEnd").error is None
    given.result()
