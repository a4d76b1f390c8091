"""Calls with known answers: what clients ask for, and what came of it.

Theory. A plan says when which client makes which call, with which limits, and whether it is
cancelled or its caller leaves. Its answer follows from its number. The plan is drawn beforehand,
so that a fault does not change what is asked, only what comes of it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from easyremote.client.function import open_stream
from easyremote.client.options import route

from .functions import DECLARED, answer, nested_answer
from .hosts import ClientHost
from .scenario import (
    BODY_S_MAX,
    CROWD_BODY_S,
    CROWD_CALLS,
    FLOOD_BODY_S,
    FLOOD_CALLS,
    SCALED_CALLS,
    STEADY_CALLS,
    STEADY_EVERY_S,
    Scenario,
)

if TYPE_CHECKING:
    from .world import World


@dataclass(frozen=True, slots=True)
class CallPlan:
    """One call that will be made."""

    number: int
    at: float
    client: int
    fn: str
    args: tuple[Any, ...]
    deadline_s: float | None = None
    cancel_after_s: float | None = None
    force: bool = False
    grace_s: float = 1.0
    idempotent: bool = False
    detached: bool = False
    node: int | None = None
    items: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """What it asks of its place, and in the queue."""
    steady: bool = False
    """It is one of few calls of a user beside a crowd of another's."""


@dataclass(slots=True)
class CallRecord:
    """One call that was made, and what became of it."""

    plan: CallPlan
    client: str
    boot: int
    call_id: bytes
    made_at: float
    future: Any = None
    decided_at: float | None = None
    cancelled_at: float | None = None
    value: Any = None
    error: BaseException | None = None
    items: list[Any] = field(default_factory=list)
    orphaned: bool = False
    """Its client was killed before the outcome: nobody is left to be told."""

    @property
    def decided(self) -> bool:
        """Whether it has an outcome."""
        return self.decided_at is not None

    def outcome(self) -> str:
        """Return the outcome as one word."""
        if self.error is not None:
            return type(self.error).__name__
        return "result" if self.decided else "orphaned" if self.orphaned else "undecided"


MIX: tuple[tuple[str, int], ...] = (
    ("plain", 8), ("fail", 2), ("slow", 8), ("stubborn", 2), ("big", 2), ("crash", 1),
    ("count", 4), ("total", 2), ("mirror", 2), ("nested", 3),
)  # fmt: skip


MARKET: tuple[tuple[str, int], ...] = (
    ("licensed", 5), ("trained", 4), ("scaled", 3), ("metered", 5), ("timed", 3), ("lenient", 3),
)  # fmt: skip
"""What is called beside `MIX` where resources are asked for and use is counted."""

FIRST_MORE = 50_000
"""Number of the first call that is not one of `Scenario.calls`."""


def plan_calls(scenario: Scenario, rng: random.Random) -> list[CallPlan]:
    """Return the calls of a run, in order of time."""
    plans = []
    names, weights = zip(*(MIX + (MARKET if scenario.market else ())), strict=True)
    for number in range(scenario.calls):
        fn = rng.choices(names, weights)[0]
        if scenario.calm and fn == "crash":
            fn = "plain"
        plans.append(_plan(scenario, rng, number, fn))
    if scenario.flood:
        at, client = rng.uniform(2.0, 10.0), rng.randrange(scenario.clients)
        plans += [
            CallPlan(number, at, client, "slow", (number, FLOOD_BODY_S))
            for number in range(scenario.calls, scenario.calls + FLOOD_CALLS)
        ]
    if scenario.crowd:
        crowd = _plan_crowd(scenario, rng)
        others = {plan.client for plan in crowd if plan.steady}
        if scenario.calm:  # Whoever is measured beside the crowd has used nothing else.
            plans = [plan for plan in plans if plan.client not in others]
        plans += crowd
    return sorted(plans, key=lambda plan: (plan.at, plan.number))


def _plan_crowd(scenario: Scenario, rng: random.Random) -> list[CallPlan]:
    """Return many calls of one user at once, and few of another one beside them."""
    at, client = rng.uniform(2.0, 10.0), rng.randrange(scenario.clients)
    most = max(machine.licenses for machine in scenario.machines)
    asks = {"resources": {"license": 1}} if most and rng.random() < 0.5 else {}
    plans = [
        CallPlan(FIRST_MORE + index, at, client, "crowded", (FIRST_MORE + index, CROWD_BODY_S),
                 options={"priority": rng.choice((-3, 0, 0, 7)), **asks})
        for index in range(CROWD_CALLS)
    ]  # fmt: skip
    plans += [
        CallPlan(number, at, client, "scaled", (number, 2.0))
        for number in range(FIRST_MORE + 800, FIRST_MORE + 800 + SCALED_CALLS)
    ]
    if scenario.clients > 1:
        other = (client + 1) % scenario.clients
        plans += [
            CallPlan(number, at + STEADY_EVERY_S * (index + 0.5), other, "crowded",
                     (number, CROWD_BODY_S), options=asks, steady=True)
            for index, number in enumerate(range(FIRST_MORE + 500, FIRST_MORE + 500 + STEADY_CALLS))
        ]  # fmt: skip
    return plans


def _options_of(rng: random.Random, fn: str) -> dict[str, Any]:
    """Return what a call asks of its place; mostly nothing."""
    found: dict[str, Any] = {}
    if rng.random() < 0.3:
        found["priority"] = rng.choice((-1, 0, 5))
    if fn in DECLARED and rng.random() < 0.25:
        found["num_cpus"] = rng.choice((0.5, 1.0, 2.0, 3.0))
    if fn == "licensed" and rng.random() < 0.3:
        found["resources"] = {"license": rng.choice((2.0, 3.0))}
    if fn == "trained" and rng.random() < 0.4:
        found.update(rng.choice(({"num_gpus": 1.0}, {"num_gpus": 2.0}, {"gpu_memory": "20GB"})))
    if rng.random() < 0.1:
        found["capability"] = "fast"
    if rng.random() < 0.15:
        found["prefer"] = {"fast": True}
    if rng.random() < 0.15:
        found["load_balancing"] = rng.choice(
            ("round_robin", "least_loaded", "latency", "cost", "random", {"load": 1.0})
        )
    return found


def _plan(scenario: Scenario, rng: random.Random, number: int, fn: str) -> CallPlan:
    items = rng.choice((0, 1, 5, 40))
    args: dict[str, tuple[Any, ...]] = {
        "slow": (number, rng.choice((0.05, 0.5, 2.0, BODY_S_MAX))),
        "stubborn": (number, rng.choice((0.5, 3.0))),
        "big": (number, rng.choice((10, 70_000)),
                rng.choice((1_000, 100_000, 400_000, scenario.large_bytes))),
        "count": (number, items, rng.choice((0.0, 0.0, 0.1))),
        "nested": (number, rng.randint(1, 3)),
        **dict.fromkeys(DECLARED, (number, rng.choice((0.2, 1.0, 3.0)))),
    }  # fmt: skip
    limited = rng.random() < (0.0 if scenario.calm else 0.25)
    cancelled = rng.random() < (0.0 if scenario.calm else 0.2)
    return CallPlan(
        number, rng.uniform(1.0, scenario.safety_s), rng.randrange(scenario.clients), fn,
        args.get(fn, (number,)),
        deadline_s=rng.choice((0.01, 0.5, 2.0, 6.0)) if limited else None,
        cancel_after_s=rng.choice((0.0, 0.1, 1.0, 3.0)) if cancelled else None,
        force=rng.random() < 0.3, grace_s=rng.choice((0.0, 0.5, 2.0)),
        idempotent=fn in ("plain", "slow", "fail", "metered", "licensed") and rng.random() < 0.2,
        detached=fn in ("plain", "slow") and rng.random() < 0.1,
        node=rng.randrange(scenario.nodes) if rng.random() < 0.2 else None,
        items=items, options=_options_of(rng, fn) if scenario.market else {},
    )  # fmt: skip


async def run_workload(world: World, plans: list[CallPlan]) -> None:
    """Make the calls of a plan, each in its time."""
    world.plans.update({plan.number: plan for plan in plans})
    for plan in plans:
        await trio.sleep_until(plan.at)
        make_call(world, plan)


def make_call(world: World, plan: CallPlan) -> bool:
    """Let a client make a call; False if it cannot now."""
    client = world.clients[plan.client]
    if not client.up or client.frozen or client.session is None or client.nursery is None:
        world.reached["call not made: client away"] += 1
        return False
    client.spawn(_call, world, client, plan)
    return True


async def _items(number: int, count: int, pause_s: float) -> AsyncIterator[list[int]]:
    for index in range(count):
        if pause_s:
            await trio.sleep(pause_s)
        yield [number, index]


def _arguments(plan: CallPlan) -> tuple[Any, ...]:
    if plan.fn == "big":
        number, sent, wanted = plan.args
        return number, b"x" * sent, wanted
    if plan.fn in ("total", "mirror"):
        pause_s = 0.05 if plan.number % 2 else 0.0
        return plan.number, _items(plan.number, plan.items, pause_s)
    return plan.args


def _options(world: World, plan: CallPlan) -> dict[str, Any]:
    options: dict[str, Any] = {
        **plan.options, "idempotent": plan.idempotent, "detached": plan.detached,
    }  # fmt: skip
    if plan.deadline_s is not None:
        options["timeout"] = plan.deadline_s
    if plan.node is not None:
        options["node_id"] = world.nodes[plan.node].name
    return options


async def _call(world: World, client: ClientHost, plan: CallPlan) -> None:
    session = client.session
    assert session is not None
    to = route(plan.fn, _options(world, plan))
    stream = None
    try:
        if plan.fn in ("count", "mirror"):
            stream = open_stream(session, to, _arguments(plan), {})
            future = stream.future
        else:
            future = session.submit(to, _arguments(plan), {})
    except Exception as error:  # noqa: BLE001 - it is judged, whatever it is
        world.log.say(client.name, "call refused here", call=plan.number, error=repr(error))
        return
    source: Any = future._source
    record = CallRecord(plan, client.name, client.boots, source.call_id, trio.current_time())
    record.future = future
    world.calls.append(record)
    world.log.say(
        client.name, "calls", fn=plan.fn, call=plan.number, id=record.call_id.hex()[:8],
        deadline=plan.deadline_s,
    )  # fmt: skip
    if plan.cancel_after_s is not None:
        client.spawn(_cancel, world, client, record)
    try:
        if stream is not None:
            async for item in stream:
                record.items.append(item)
            value = stream.value
        else:
            value = await future
    except trio.Cancelled:
        record.orphaned = True
        raise
    except Exception as error:  # noqa: BLE001 - it is judged, whatever it is
        decide(world, record, None, error)
    else:
        decide(world, record, value, None)


async def _cancel(world: World, client: ClientHost, record: CallRecord) -> None:
    plan = record.plan
    await trio.sleep(plan.cancel_after_s or 0.0)
    if not record.decided:
        record.cancelled_at = trio.current_time()
        world.log.say(client.name, "cancels", call=plan.number)
        record.future.cancel(force=plan.force, grace=plan.grace_s)


def decide(world: World, record: CallRecord, value: Any, error: BaseException | None) -> None:
    """A call has its outcome."""
    if record.decided:
        world.violation("P1", f"call {record.plan.number} has a second outcome")
        return
    record.decided_at = trio.current_time()
    record.value, record.error = value, error
    record.call_id = record.future._source.call_id  # Of the last attempt.
    world.log.say(
        record.client, "outcome", call=record.plan.number, id=record.call_id.hex()[:8],
        outcome=record.outcome(), may_have_run=getattr(error, "may_have_run", None),
        why="" if error is None else str(error)[:120],
    )  # fmt: skip
    world.reached[f"outcome {record.outcome()}"] += 1


def right_value(record: CallRecord) -> bool:
    """Return whether a result is what the call must answer."""
    plan, value = record.plan, record.value
    if plan.fn == "count":
        return value is None and record.items == [[plan.number, i] for i in range(plan.args[1])]
    if plan.fn == "mirror":
        return record.items == [[plan.number, i] for i in range(plan.items)]
    if not isinstance(value, list):
        return False
    if plan.fn == "nested":
        return bool(value[0] == nested_answer(*plan.args))
    if value[0] != answer(plan.number):
        return False
    if plan.fn == "total":
        return bool(value[4:] == [plan.items])
    if plan.fn == "big":
        _, sent, wanted = plan.args
        return bool(value[4] == sent and value[5] == bytes([plan.number % 251]) * wanted)
    return True
