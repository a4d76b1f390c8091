"""A program as a typed user writes it; `assert_type` says what the checkers must make of it.

mypy checks it with all other files; `test_typing.py` runs mypy and pyright on it where they are
installed, and runs it.
"""

from __future__ import annotations

import concurrent.futures as cf
from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

from easyremote import (
    Client,
    ClientMetrics,
    Future,
    MapResult,
    NodeInfo,
    Placement,
    RemoteStream,
    Usage,
    as_completed,
    gather,
    get,
    remote,
    wait,
)


class Model:
    """A type of the user's own."""


@remote(node_id="gpu-01")
def train(model: dict[str, Any], epochs: int = 10) -> float:
    raise NotImplementedError


@remote
def name_of(model: Model) -> str:
    raise NotImplementedError


@remote(capability="gpu_training", timeout=3.0)
async def fine_tune(model: Model, *, rate: float) -> Model:
    raise NotImplementedError


@remote(stream=True)
def frames(count: int) -> Iterator[bytes]:
    raise NotImplementedError


@remote(node_id="camera")
async def events(kind: str) -> AsyncIterator[int]:
    raise NotImplementedError
    yield 0


@remote(node_id="sensor")
def unannotated(a, b=2):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
    pass


by_name = remote("gpu-01", "train")
stream_by_name = remote("camera", "frames", stream=True)


def what_calls_return() -> None:
    """`f(...)` is a `Future[R]` with the parameters of the stub."""
    assert_type(train({}), Future[float])
    assert_type(train({}, epochs=3), Future[float])
    assert_type(train.remote({}, 3), Future[float])
    assert_type(train.sync({}), float)
    assert_type(train.local({}), float)
    assert_type(train.spawn({}), Future[float])
    assert_type(train.options(timeout=1.0)({}), Future[float])
    assert_type(train.map([{}]), MapResult[float])
    assert_type(train.starmap([({}, 1)]), MapResult[float])
    assert_type(train.broadcast({}), dict[str, Future[float]])
    assert_type(name_of(Model()), Future[str])
    assert_type(fine_tune(Model(), rate=0.1), Future[Model])
    assert_type(by_name(1, "x", y=2), Future[Any])


def what_checkers_refuse() -> None:
    """Wrong arguments and unknown options are errors before the program runs."""
    train(1)  # type: ignore[arg-type]
    train({}, epochs="many")  # type: ignore[arg-type]
    train()  # type: ignore[call-arg]
    train({}, 1, 2)  # type: ignore[call-arg]
    fine_tune(Model(), 0.1)  # type: ignore[call-arg]
    train.options(tiemout=1.0)  # type: ignore[call-arg]
    remote("gpu-01", "train", priority="high")  # type: ignore[call-overload]
    train.options(num_gpus="one")  # type: ignore[arg-type]
    train.options(resources=["tpu"])  # type: ignore[arg-type]


def what_a_call_may_ask_for() -> None:
    """Requirements and preferences are options like others, and change no type."""
    assert_type(
        train.options(
            num_cpus=2, num_gpus=0.5, gpu_memory="16GB", memory=4_000_000_000,
            resources={"tpu": 1, "disk": "10GB"}, capability={"gpu": {"memory": ">=16GB"}},
            prefer={"zone": "eu"}, priority=3, load_balancing="latency", scaling={"max": 4},
        )({}),
        Future[float],
    )  # fmt: skip


def what_a_future_shows(client: Client) -> None:
    """Place, time, node and cost, each None while it is not known."""
    future = train({})
    assert_type(future.queue_position, int | None)
    assert_type(future.eta, float | None)
    assert_type(future.placement, Placement | None)
    assert_type(future.usage, Usage | None)
    if (placement := future.placement) is not None:
        assert_type(placement.node_id, str)
        assert_type(placement.total, float | None)
        assert_type(str(placement), str)
    if (usage := future.usage) is not None:
        assert_type(usage.seconds, float)
        assert_type(usage.cost, float | None)
    assert_type(client.metrics(), ClientMetrics)
    assert_type(client.metrics().preferred_node_types, list[str])
    assert_type(client.find_nodes({"gpu": True}, fresh=True), list[NodeInfo])


def what_streams_are() -> None:
    """A function that yields gives a stream of its items."""
    assert_type(frames(3), RemoteStream[bytes])
    for frame in frames(3):
        assert_type(frame, bytes)
    assert_type(stream_by_name(3), RemoteStream[Any])
    assert_type(frames.options(timeout=2.0)(3), RemoteStream[bytes])


async def what_await_gives() -> None:
    """Awaiting gives the result, one or many."""
    assert_type(await train({}), float)
    assert_type(await gather(train({}), name_of(Model())), tuple[float, str])
    assert_type(
        await gather(train({}), name_of(Model()), train({}), train({}), fine_tune(Model(), rate=1)),
        tuple[float, str, float, float, Model],
    )
    assert_type(await gather(*[train({}) for _ in range(9)]), list[float])
    assert_type(await gather(train({}), name_of(Model()), return_exceptions=True), list[Any])
    async for frame in frames(3):
        assert_type(frame, bytes)
    async for future in as_completed([train({})]):
        assert_type(future, Future[float])


def what_waiting_gives(client: Client) -> None:
    """`wait`, `as_completed`, `get`, `then` and the methods of a client keep the type."""
    assert_type(get(train({})), float)
    assert_type(get([train({}), train({})]), list[float])
    done, not_done = wait([train({})], num_returns=1)
    assert_type(done, set[cf.Future[float]])
    assert_type(not_done, set[cf.Future[float]])
    for future in as_completed([train({})]):
        assert_type(future, Future[float])
    assert_type(train({}).then(str), Future[str])
    assert_type(train({}).result(timeout=3), float)
    assert_type(client.submit(name_of, Model()), Future[str])
    assert_type(client.submit("train", {}), Future[Any])
    assert_type(client.gather([train({})]), list[float])


def what_untyped_stubs_are() -> None:
    """A stub without annotations is no error, and gives anything."""
    total: int = unannotated(1).result()
    assert_type(total, int)
