"""Calls through real processes: order, errors, many at once, streams, arrays, cancel, nesting."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import trio

import easyremote
from easyremote import (
    FunctionNotFoundError,
    RemoteExecutionError,
    TaskCancelledError,
    TaskTimeoutError,
    as_completed,
    gather,
    remote,
    wait,
)

from .conftest import Cluster

pytestmark = pytest.mark.slow

NODE = """
import asyncio, itertools, threading, time
from easyremote import remote

@node.register
def add(a, b):
    return a + b

@node.register
def who():
    return threading.current_thread() is threading.main_thread()

@node.register
def fail(name):
    return {}[name]

@node.register
def mirror(x):
    return x

@node.register
async def later(x, seconds):
    await asyncio.sleep(seconds)
    return x

produced = itertools.count()
last = [0]

@node.register
def numbers(n):
    for i in range(n):
        last[0] = i
        yield i
    return "end"

@node.register
async def letters(text):
    for letter in text:
        yield letter

@node.register
async def how_far():
    return last[0]

@node.register(max_concurrency=4)
def total(items):
    return sum(items)

@node.register
def wait_for_cancel():
    while not context().cancelled():
        time.sleep(0.01)
    return "stopped"

@node.register(max_concurrency=2)
def report(n):
    for i in range(n):
        context().progress(i)
        time.sleep(0.02)
    return context().principal

@remote(node_id="node-1")
def fib(n):
    raise NotImplementedError

fib_stub = fib

def fib(n):
    if n < 2:
        return n
    return fib_stub(n - 1).result() + fib_stub(n - 2).result()

node.register(fib)

@node.register(isolation="process")
def alone():
    import os
    return os.getpid()
"""


@pytest.fixture(scope="module")
def cluster(cluster_factory: Callable[[], Cluster]) -> Cluster:
    """One gateway, one node with many functions."""
    made = cluster_factory()
    made.start_gateway()
    made.start_node("node-1", NODE)
    return made


@remote(node_id="node-1")
def add(a: int, b: int) -> int:
    raise NotImplementedError


@remote(node_id="node-1")
def fail(name: str) -> None:
    raise NotImplementedError


@remote(node_id="node-1")
def mirror(x: Any) -> Any:
    raise NotImplementedError


@remote(node_id="node-1")
async def later(x: int, seconds: float) -> int:
    raise NotImplementedError


@remote(node_id="node-1", stream=True)
def numbers(n: int) -> Iterator[int]:
    raise NotImplementedError


@remote(node_id="node-1", stream=True)
def letters(text: str) -> AsyncIterator[str]:
    raise NotImplementedError


def test_result_asyncio_and_trio_all_work(cluster: Cluster) -> None:
    """The three ways to wait for a call give the same value."""
    assert add(1, 2).result(timeout=10) == 3

    async def with_await() -> int:
        return await add(2, 3)

    assert asyncio.run(with_await()) == 5
    assert trio.run(with_await) == 5
    assert add.sync(3, 4) == 7


def test_sync_functions_run_on_the_main_thread(cluster: Cluster) -> None:
    """Thread-local state, GUI and CUDA libraries work as they do in a script."""
    assert remote("node-1", "who")().result(timeout=10) is True


def test_gather_keeps_order_and_five_thousand_calls_complete(cluster: Cluster) -> None:
    """Five thousand calls in flight at once from one client all succeed, in order."""
    calls = [add(i, 1) for i in range(5000)]

    assert gather(*calls).result(timeout=60) == [i + 1 for i in range(5000)]


def test_a_remote_exception_arrives_as_its_own_type(cluster: Cluster) -> None:
    """`except KeyError` works, and the remote traceback is shown."""
    with pytest.raises(KeyError) as caught:
        fail("missing").result(timeout=10)

    error = caught.value
    assert isinstance(error, RemoteExecutionError)
    assert error.args == ("missing",)
    assert "return {}[name]" in error.remote_traceback
    assert any("return {}[name]" in note for note in error.__notes__)


def test_gather_raises_the_first_failure_or_returns_all(cluster: Cluster) -> None:
    """`return_exceptions` has the meaning that it has in asyncio."""
    with pytest.raises(KeyError):
        gather(add(1, 1), fail("x"), add(2, 2)).result(timeout=10)

    mixed = gather(add(1, 1), fail("x"), return_exceptions=True).result(timeout=10)
    assert mixed[0] == 2
    assert isinstance(mixed[1], KeyError)


def test_waiters_of_the_standard_library_take_our_futures(cluster: Cluster) -> None:
    """A Future is a concurrent.futures.Future."""
    calls = [add(i, i) for i in range(20)]
    done, pending = cf.wait(calls, timeout=10)
    assert len(done) == 20
    assert not pending
    plain: list[cf.Future[int]] = list(calls)
    assert {f.result() for f in cf.as_completed(plain, timeout=10)} == {2 * i for i in range(20)}
    assert len(wait(calls, timeout=10).done) == 20
    assert sum(f.result() for f in as_completed(calls)) == 380

    async def in_asyncio() -> list[int]:
        return await asyncio.gather(*[asyncio.wrap_future(add(i, 1)) for i in range(5)])

    assert asyncio.run(in_asyncio()) == [1, 2, 3, 4, 5]


def test_map_keeps_order_and_bounds_what_is_in_flight(cluster: Cluster) -> None:
    """Endless input is consumed as results are taken."""
    taken = itertools.count()
    source = (next(taken) for _ in itertools.count())
    results = add.map(source, itertools.repeat(1))

    assert [next(results) for _ in range(10)] == list(range(1, 11))
    assert next(taken) < 10_000


def test_async_functions_run_side_by_side(cluster: Cluster) -> None:
    """A hundred sleeping coroutines take about as long as one."""
    begin = time.monotonic()

    assert gather(*[later(i, 0.3) for i in range(100)]).result(timeout=20) == list(range(100))
    assert time.monotonic() - begin < 15


def test_arrays_come_back_equal_and_writable(cluster: Cluster) -> None:
    """Any layout, any size; the receiver owns what it gets."""
    base = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    for array in (base, base[:, ::2], base.T, base[:0], np.float64(3.5), np.zeros((300, 500, 10))):
        back = mirror(array).result(timeout=20)
        assert np.array_equal(back, array)
        if isinstance(array, np.ndarray):
            assert back.dtype == array.dtype
            assert back.flags.writeable
            back += 0


def test_values_of_many_kinds_round_trip(cluster: Cluster) -> None:
    """Plain data arrives as what it was; text and bytes of any length too."""
    for value in (None, True, -(2**70), 1.5, "x" * 100_000, b"y" * 200_000, (1, [2, {3: {4}}])):
        assert mirror(value).result(timeout=20) == value


def test_a_stream_arrives_in_order_with_its_return_value(cluster: Cluster) -> None:
    """A hundred thousand items, none lost, none twice."""
    stream = numbers(100_000)

    assert list(stream) == list(range(100_000))
    assert stream.value == "end"


def test_a_producer_runs_no_further_ahead_than_its_credit(cluster: Cluster) -> None:
    """A slow consumer holds the producer back, and `break` stops it within a second."""
    how_far = remote("node-1", "how_far")
    stream = numbers(10_000_000)
    for item in stream:
        if item == 100:
            break
    time.sleep(0.3)
    ahead = how_far().result(timeout=10)
    assert ahead <= 100 + 2 * 256 + 1
    stream.close()

    assert add(1, 1).result(timeout=2) == 2, "the node's only slot is free again"


def test_async_generators_and_async_iteration(cluster: Cluster) -> None:
    """Both ends may be asynchronous."""

    async def collect() -> list[str]:
        return [letter async for letter in letters("remote")]

    assert asyncio.run(collect()) == list("remote")
    assert trio.run(collect) == list("remote")


def test_an_iterator_as_argument_is_streamed(cluster: Cluster) -> None:
    """Input larger than memory would be fine: items go as they are wanted."""
    total = remote("node-1", "total")

    assert total(iter(range(2000))).result(timeout=20) == sum(range(2000))


def test_progress_and_context(cluster: Cluster) -> None:
    """A running body reports how far it is, and knows for whom it runs."""
    seen: list[Any] = []
    call = remote("node-1", "report")(5)
    call.on_progress(seen.append)

    assert isinstance(call.result(timeout=10), str)
    assert seen[-1] == 4
    assert seen == sorted(seen)


def test_cancel_reaches_a_running_body(cluster: Cluster) -> None:
    """The cooperative signal ends the body; the caller sees a cancelled call."""
    call = remote("node-1", "wait_for_cancel")()
    until = time.monotonic() + 10
    while call.state != "running" and time.monotonic() < until:
        time.sleep(0.01)

    assert call.cancel()
    with pytest.raises((TaskCancelledError, cf.CancelledError)):
        call.result(timeout=10)
    assert add(1, 1).result(timeout=10) == 2


def test_a_timeout_is_a_typed_error_and_frees_the_slot(cluster: Cluster) -> None:
    """A deadline travels; the body gets the signal."""
    slow = remote("node-1", "wait_for_cancel").options(timeout=0.3)
    with pytest.raises(TaskTimeoutError):
        slow().result(timeout=10)

    assert add(1, 1).result(timeout=10) == 2


def test_leaving_the_scope_cancels_the_call(cluster: Cluster) -> None:
    """A trio scope or an asyncio timeout that is left takes its call along."""

    async def in_trio() -> None:
        with trio.move_on_after(0.3) as scope:
            await remote("node-1", "wait_for_cancel")()
        assert scope.cancelled_caught

    trio.run(in_trio)

    async def in_asyncio() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await remote("node-1", "wait_for_cancel")()

    asyncio.run(in_asyncio())
    assert add(1, 1).result(timeout=10) == 2


def test_a_nested_call_lends_its_slot(cluster: Cluster) -> None:
    """A recursive function on a node with one slot does not deadlock."""
    assert remote("node-1", "fib")(7).result(timeout=30) == 13


def test_a_missing_function_is_named_with_suggestions(cluster: Cluster) -> None:
    """A typo gets a typed error that helps."""
    with pytest.raises(FunctionNotFoundError, match="mirror"):
        remote("node-1", "miror")(1).result(timeout=10)


def test_wrong_arguments_fail_here_before_anything_is_sent(cluster: Cluster) -> None:
    """A call with wrong arguments is a TypeError, as with a local function."""
    with pytest.raises(TypeError):
        add(1, 2, 3)  # type: ignore[call-arg]


def test_isolated_functions_run_in_a_process_of_their_own(cluster: Cluster) -> None:
    """`isolation="process"` gives a worker that is neither the script nor its agent."""
    pid = remote("node-1", "alone")().result(timeout=30)
    script = cluster.nodes["node-1"].pid
    family = [script, *[c.pid for c in psutil.Process(script).children()]]

    assert pid != script
    assert psutil.pid_exists(pid)
    assert pid not in family[:1]


def test_many_threads_share_one_client(cluster: Cluster) -> None:
    """The default client is safe from any thread."""
    results: list[int] = []
    lock = threading.Lock()

    def work(base: int) -> None:
        value = gather(*[add(base, i) for i in range(50)]).result(timeout=30)
        with lock:
            results.extend(value)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)

    assert sorted(results) == sorted(100 * n + i for n in range(8) for i in range(50))


def test_discovery_shows_nodes_and_functions(cluster: Cluster) -> None:
    """What a client may call can be looked up."""
    client = easyremote.connect(cluster.address)

    assert {f.function_name for f in client.functions() if f.node_id == "node-1"} >= {"add", "fib"}
    assert [n.node_id for n in client.nodes()] == ["node-1"]
    assert [n.node_id for n in client.find_nodes(function="add")] == ["node-1"]
    assert client.execute("add", 2, 2) == 4
    assert client.submit("add", 2, 3).result(timeout=10) == 5
