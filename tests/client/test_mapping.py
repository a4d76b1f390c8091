"""`.map` and `.starmap`: as many calls under way as are useful, results as they are wanted."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import Any

import pytest
import trio

from easyremote import remote
from easyremote.client.client import Client
from easyremote.client.mapping import MAP_AHEAD

from .scripted import WAIT_S, GivenCall, ScriptedGateway

f = remote("n", "f")


def add_up(given: GivenCall) -> None:
    given.result(sum(given.arguments[0]))


def test_results_come_in_the_order_of_the_arguments(
    gateway: ScriptedGateway, client: Client
) -> None:
    """The shortest iterable ends it, as with `map`."""
    gateway.auto = add_up

    assert list(f.map(range(1000), itertools.repeat(1))) == list(range(1, 1001))
    assert list(f.starmap([(1, 2), (3, 4)])) == [3, 7]
    assert list(f.map([])) == []
    assert list(client.map("f", [1, 2], [3, 4])) == [4, 6]


def test_endless_arguments_are_taken_only_as_needed(
    gateway: ScriptedGateway, client: Client
) -> None:
    """There is never more than the window under way."""
    gateway.auto = add_up
    taken = itertools.count()
    results = f.map(next(taken) for _ in itertools.count())

    assert [next(results) for _ in range(10)] == list(range(10))
    assert next(taken) <= MAP_AHEAD + 10


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_results_can_be_awaited(gateway: ScriptedGateway, client: Client, library: str) -> None:
    """`async for`, ordered and not."""
    gateway.auto = add_up

    async def main(ordered: bool) -> list[int]:
        return [value async for value in f.map(range(500), ordered=ordered)]

    for ordered in (True, False):
        found = asyncio.run(main(ordered)) if library == "asyncio" else trio.run(main, ordered)
        assert sorted(found) == list(range(500))
        assert found == list(range(500)) or not ordered


def test_results_can_come_as_they_are_ready(gateway: ScriptedGateway, client: Client) -> None:
    """A slow first call does not hold the others back."""
    results = f.map([1, 2, 3], ordered=False)
    one, two, three = (gateway.next_call() for _ in range(3))
    two.result("two")
    assert next(results) == "two"
    three.result("three")
    assert next(results) == "three"
    one.result("one")

    assert list(results) == ["one"]


def test_an_error_ends_a_map_or_is_a_result(gateway: ScriptedGateway, client: Client) -> None:
    """By default the first error is raised and the rest cancelled."""
    results = f.map([1, 2, 3])
    one, two, three = (gateway.next_call() for _ in range(3))
    one.result(1)
    two.raise_(KeyError("x"))
    assert next(results) == 1
    with pytest.raises(KeyError):
        next(results)
    assert three.next("cancel") == (0, 5000)
    assert list(results) == []
    mixed = f.map([1, 2], return_exceptions=True)
    gateway.next_call().raise_(KeyError("x"))
    gateway.next_call().result(2)

    first, second = mixed
    assert isinstance(first, KeyError)
    assert second == 2


def test_a_map_that_is_dropped_or_late_cancels_its_calls(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Nothing runs on for a consumer that has left."""
    results = f.map([1])
    given = gateway.next_call()
    del results
    gc.collect()
    assert given.next("cancel") == (0, 5000)
    late = f.map([1], timeout=0.02)
    given = gateway.next_call()
    with pytest.raises(TimeoutError):
        next(late)

    assert given.next("cancel") == (0, 5000)


def test_chunks_are_taken_together(gateway: ScriptedGateway, client: Client) -> None:
    """A chunk of arguments is pulled at a time, when there is room for all of it."""
    taken: list[int] = []

    def source() -> Any:
        for i in itertools.count():
            taken.append(i)
            yield i

    gateway.auto = add_up
    results = f.map(source(), chunksize=200)
    assert len(taken) == 200
    assert [next(results) for _ in range(143)] == list(range(143))
    assert len(taken) == 200
    next(results)
    assert len(taken) == 400

    with pytest.raises(ValueError, match="chunksize"):
        f.map([], chunksize=0)


def test_a_broadcast_reaches_every_node_that_has_the_function(
    gateway: ScriptedGateway, client: Client
) -> None:
    """One future for each of them, by id."""
    gateway.answers["nodes"] = [
        {"node_id": "a", "labels": ["lab"], "functions": ["g"], "owner": "x"},
        {"node_id": "b", "labels": [], "functions": ["g"], "owner": "x"},
        {"node_id": "c", "labels": ["lab"], "functions": [], "owner": "x"},
    ]
    gateway.auto = lambda given: given.result(given.call.node_ids)

    everywhere = remote(function="g")(lambda: None).broadcast()
    assert {node: future.result(WAIT_S) for node, future in everywhere.items()} == {
        "a": ["a"], "b": ["b"],
    }  # fmt: skip
    assert set(remote("lab", "g").broadcast()) == {"a"}
