"""The bodies that run on the nodes of a simulation, and the record of every start.

Theory. The bodies are the ground truth. Each start of each body is written down before anything
else happens in it, in memory that no crash reaches. What a call may answer follows from its
arguments, so every result can be judged without knowing what went on.

Rules of this file. 1) A body finds its world in a context variable of its process. 2) Every body is
an async function under trio: it runs as a task of its host, and is frozen and killed with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from easyremote.client.options import Route
from easyremote.node.context import CallContext, current_task
from easyremote.node.options import parse
from easyremote.node.register import Function, FunctionTable, build
from easyremote.scheduler.model import Needs
from easyremote.scheduler.needs import read_needs

from .machines import Held, overcommitted

if TYPE_CHECKING:
    from .hosts import Script

SCRIPT: ContextVar[Script] = ContextVar("SCRIPT")


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a body."""

    at: float
    number: int
    call_id: bytes
    attempt: int
    node: str
    boot: int


NESTED_STEP = 1_000_000
"""Between the numbers of a call and of the one that it makes."""


class PlannedError(ValueError):
    """What the body of `fail` raises."""


def answer(number: int) -> int:
    """What a call with this number returns."""
    return number * 7 + 3


def _begin(name: str, number: int) -> list[Any]:
    """Note a start; return what the result says about where it was made."""
    task, script = current_task.get(), SCRIPT.get()
    assert task is not None
    world, node = script.host.world, script.host
    call = task.call
    start = Start(trio.current_time(), number, call.call_id, call.attempt, node.name, node.boots)
    world.starts.setdefault(number, []).append(start)
    world.log.say(
        node.name, "body starts", fn=name, call=number, id=start.call_id.hex()[:8],
        attempt=start.attempt,
    )  # fmt: skip
    return [answer(number), start.node, start.boot, start.call_id]


async def plain(number: int) -> list[Any]:
    """Return at once."""
    return _begin("plain", number)


async def fail(number: int) -> None:
    """Raise what is known beforehand."""
    _begin("fail", number)
    raise PlannedError(f"planned {number}")


async def slow(number: int, seconds: float) -> list[Any]:
    """Take some time, and stop when told to."""
    said = _begin("slow", number)
    await trio.sleep(seconds)
    return said


async def stubborn(number: int, seconds: float) -> list[Any]:
    """Take some time, whatever one is told."""
    said = _begin("stubborn", number)
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)
    return said


async def big(number: int, blob: bytes, size_bytes: int) -> list[Any]:
    """Take and return many bytes."""
    said = _begin("big", number)
    return [*said, len(blob), bytes([number % 251]) * size_bytes]


async def crash(number: int) -> None:
    """Die with the whole process."""
    _begin("crash", number)
    SCRIPT.get().die()
    await trio.sleep_forever()


async def count(number: int, items: int, pause_s: float) -> AsyncIterator[list[int]]:
    """Yield numbered items."""
    _begin("count", number)
    for index in range(items):
        if pause_s:
            await trio.sleep(pause_s)
        yield [number, index]


async def total(number: int, items: Any) -> list[Any]:
    """Take numbered items; return how many came in order."""
    said = _begin("total", number)
    seen = 0
    async for item in items:
        if item != [number, seen]:
            return [*said, "out of order", item, seen]
        seen += 1
    return [*said, seen]


async def mirror(number: int, items: Any) -> AsyncIterator[Any]:
    """Yield every item that comes."""
    _begin("mirror", number)
    async for item in items:
        yield item


async def nested(number: int, depth: int) -> list[Any]:
    """Call another function, several calls deep; return the sum of all answers."""
    said = _begin("nested", number)
    script = SCRIPT.get()
    if depth <= 0:
        return said
    future = script.session.submit(Route("nested"), (number + NESTED_STEP, depth - 1), {})
    below = await future
    return [said[0] + below[0], *said[1:]]


def nested_answer(number: int, depth: int) -> int:
    """What `nested` returns."""
    return sum(answer(number + level * NESTED_STEP) for level in range(depth + 1))


def needs_of(name: str, options: dict[str, Any]) -> Needs:
    """Return what a call uses of its machine while it runs."""
    return read_needs(DECLARED.get(name, {}).get("resource_requirements"), options)


@contextmanager
def _holding(name: str, number: int) -> Iterator[None]:
    """Use what a call needs of the machine that it runs on, and see that it is there."""
    host, task = SCRIPT.get().host, current_task.get()
    assert task is not None
    plan = host.world.plans.get(number)
    needs = needs_of(name, {} if plan is None else plan.options)
    gpus = CallContext(task).gpu_ids if needs.gpus else ()
    held = Held(number, needs, gpus, trio.current_time())
    if not needs:
        yield
        return
    host.held[id(held)] = held
    too_much = overcommitted(host)
    if too_much is not None and any(
        one.since < host.world.gateway.started_at for one in host.held.values()
    ):
        # What a call asked for itself is not known any more to a gateway that has started again.
        host.world.reached["more is used than the gateway can know of"] += 1
    elif too_much is not None:
        calls = ", ".join(str(one.number) for one in host.held.values())
        host.world.violation("FIT", f"{host.name} is to use {too_much}, for calls {calls}")
    if needs.gpus and len(held.gpus) != needs.devices:
        host.world.violation("FIT", f"call {number} needs {needs.devices} GPUs, got {held.gpus}")
    try:
        yield
    finally:
        host.held.pop(id(held), None)


def _working(name: str) -> Callable[..., Any]:
    async def work(number: int, seconds: float) -> list[Any]:
        """Take some time, and what the function requires."""
        said = _begin(name, number)
        with _holding(name, number):
            await trio.sleep(seconds)
        return said

    work.__name__ = work.__qualname__ = name
    return work


ZONE = {"per": "rolling_24h", "tz": "UTC"}
CALLS_MAX = 3
"""Calls of `metered` that each user has."""
SECONDS_MAX = {"timed": 3.0, "lenient": 2.0}
"""Seconds of these that each user has."""
SCALED_MIN, SCALED_MAX = 0, 3

DECLARED: dict[str, dict[str, Any]] = {
    "licensed": {
        "resource_requirements": {"resources": {"license": 1}, "memory": "3GB"},
        "billing": {"mode": "per_request", "price": 0.25, "currency": "EUR"},
    },
    "trained": {
        "resource_requirements": {"gpu_memory": "10GB"},
        "billing": {"mode": "per_gpu_second", "price": 0.125, "currency": "EUR"},
    },
    "crowded": {},
    "scaled": {
        "scaling": {"min": SCALED_MIN, "max": SCALED_MAX, "target_queue": 1, "idle_s": 3.0},
    },
    "metered": {"quota_per_user": {"calls": CALLS_MAX, **ZONE}},
    "timed": {"quota_per_user": {"seconds": SECONDS_MAX["timed"], **ZONE}, "quota_mode": "hard"},
    "lenient": {
        "quota_per_user": {"seconds": SECONDS_MAX["lenient"], **ZONE},
        "billing": {"mode": "per_second", "price": 1.5, "currency": "USD"},
    },
}  # fmt: skip
"""Functions that work for some time, and what their provider declares of them."""

BODIES: dict[str, Callable[..., Any]] = {
    fn.__name__: fn
    for fn in (plain, fail, slow, stubborn, big, crash, count, total, mirror, nested)
} | {name: _working(name) for name in DECLARED}

_built: dict[tuple[str, int | None], Function] = {}


def table(slots: int | None) -> FunctionTable:
    """Return the functions of a node.

    Args:
        slots: Calls at once of each function; None for as many as come.
    """
    made = FunctionTable()
    for name, fn in BODIES.items():
        own = None if name in ("nested", "scaled") else slots
        if name == "crowded" and own is None:
            own = 2
        function = _built.get((name, own))
        if function is None:
            keywords: dict[str, Any] = {"async_backend": "trio", **DECLARED.get(name, {})}
            if own is not None:
                keywords["max_concurrency"] = own
            function = _built[name, own] = build(fn, parse(keywords), 1)
        made.add(function, replace=True)
    return made
