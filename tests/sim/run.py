"""One seed from start to end: boot, safety, healing, liveness, silence, and the checks.

    boot -> SAFETY: load and faults -> heal -> LIVENESS: all decided, all back, probes answered
         -> silence until every timer has passed -> nothing is left

A run that takes more than `CPU_S_MAX` of the processor spins without the clock going on, and one
that takes longer than `REAL_S_MAX` waits for something that is not on the clock: both are bugs.
"""

from __future__ import annotations

import gc
import logging
import math
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import trio

from easyremote.client import client as client_module
from easyremote.errors import OverloadedError, WorkerCrashedError
from easyremote.node import telemetry
from easyremote.node.agent_session import GatewaySession

from .books import check_books
from .checkers import all_decided, check_all
from .coverage import Probes
from .faulting import heal_all, plan_faults, run_faults
from .hosts import client_link, this_node
from .leaks import check_leaks
from .machines import MachineSampling, distorted
from .scenario import Scenario, draw
from .seeded import Replacement, child, run
from .stage import install_queue
from .watching import Watcher
from .workload import CallPlan, CallRecord, make_call, plan_calls, run_workload
from .world import Template, World

CPU_S_MAX = 30
REAL_S_MAX = 600
STEP_S = 0.5


@dataclass
class Report:
    """What a run was like."""

    seed: int
    virtual_s: float = 0.0
    real_s: float = 0.0
    calls: int = 0
    starts: int = 0
    digest: str = ""
    violations: list[tuple[str, str]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)


class Bench:
    """The folder and the database that all runs of a process share. Use it as a context manager."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="easyremote-sim-")
        self.folder = Path(self._folder.name)
        self.template = Template(self.folder)
        gc.collect()
        gc.freeze()  # What was imported need not be looked at after each run.
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        self._folder.cleanup()

    def run_seed(self, seed: int, *, echo: bool = False) -> Report:
        """Run a seed."""
        scenario, report, probes, watcher = draw(seed), Report(seed), Probes(), Watcher()
        started = time.perf_counter()
        logging.disable(logging.NOTSET if echo else logging.CRITICAL)

        async def main() -> None:
            install_queue()
            async with trio.open_nursery() as nursery:
                world = World(seed, scenario, self.template, self.folder, nursery, echo=echo)
                probes.world = watcher.world = world
                nursery.start_soon(watcher.run, world)
                nursery.start_soon(world.timers.run)
                try:
                    await _play(world, scenario)
                finally:
                    _fill(report, world)
                nursery.cancel_scope.cancel()

        replacements: list[Replacement] = [
            *scenario.replacements(seed), *probes.replacements(), *watcher.replacements(),
            (client_module, "ClientLink", client_link),
            (MachineSampling, "host", staticmethod(this_node)),
            (telemetry, "Sampling", MachineSampling),
            (GatewaySession, "report", distorted(GatewaySession.report, this_node)),
        ]  # fmt: skip
        try:
            with _alarm():
                run(seed, main, replacements)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            text = "".join(traceback.format_exception(error))
            report.violations.append(("CRASH", f"the run broke\n{text}"))
        report.real_s = time.perf_counter() - started
        return report


class _SpinsError(BaseException):
    """The run takes too long: no `except Exception` holds it up."""


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _SpinsError(f"no end after {CPU_S_MAX} s of CPU or {REAL_S_MAX} s")

    timers = {
        signal.ITIMER_PROF: (signal.SIGPROF, CPU_S_MAX),
        signal.ITIMER_REAL: (signal.SIGALRM, REAL_S_MAX),
    }
    before = {number: signal.signal(number, ring) for number, _ in timers.values()}
    for timer, (_, limit_s) in timers.items():
        # Again and again: what a `finally` runs into may spin as well.
        signal.setitimer(timer, limit_s, 1.0)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _fill(report: Report, world: World) -> None:
    report.virtual_s = trio.current_time()
    report.calls, report.starts = len(world.calls), sum(map(len, world.starts.values()))
    report.digest = world.log.digest()
    report.violations = world.violations
    report.faults, report.reached = world.faults, world.reached
    report.lines = world.log.lines


async def _play(world: World, scenario: Scenario) -> None:
    rng = child(world.seed, "play")
    world.gateway.start()
    for host in (*world.nodes, *world.clients):
        await trio.sleep(rng.uniform(0.0, 0.2))
        host.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_workload, world, plan_calls(scenario, child(world.seed, "calls")))
        steps = plan_faults(scenario, child(world.seed, "faults"))
        nursery.start_soon(run_faults, world, steps, child(world.seed, "troubles"))
        await trio.sleep(scenario.safety_s)
    heal_all(world)
    await _live(world, scenario, rng)
    await trio.sleep(scenario.forget_s)
    await _until(lambda: _all_told(world), world.gateway.started_at + scenario.return_s + 3.0)
    check_all(world)
    if _all_back(world):
        check_leaks(world)
        check_books(world)
    for host in world.hosts:
        await host.kill()


async def _live(world: World, scenario: Scenario, rng: random.Random) -> None:
    """The liveness phase: nothing is wrong, so everything must come right."""
    healed_at = trio.current_time()
    await trio.sleep(scenario.notice_s)
    await _until(lambda: _all_back(world), healed_at + scenario.recovery_s)
    for host in world.hosts:
        if host in world.missing_hosts():
            world.violation("P7", f"{host.name} is not back {scenario.recovery_s:.0f} s after all "
                            "was healed")  # fmt: skip
    await _until(lambda: _none_stops(world), trio.current_time() + scenario.recovery_s)
    probes = _probe(world, scenario) if _all_back(world) else []
    await trio.sleep(STEP_S)
    await _until(lambda: _all_decided(world), healed_at + scenario.decision_s)
    all_decided(world)
    for plan in probes:
        record = next((one for one in world.calls if one.plan is plan), None)
        if scenario.flood and record is not None and isinstance(record.error, OverloadedError):
            continue  # The queue is still full of what was asked for at once.
        if record is not None and _beside_a_crash(world, record):
            continue  # A call that crashes its process had waited until now.
        if record is None or (record.decided and record.error is not None):
            said = "was not made" if record is None else f"has {record.error!r:.200}"
            world.violation("P7", f"probe {plan.number} {said} though nothing is wrong")


def _beside_a_crash(world: World, record: CallRecord) -> bool:
    """Return whether a call died with a process that another call was meant to crash."""
    if not isinstance(record.error, WorkerCrashedError):
        return False
    return any(
        one.plan.fn == "crash" and (one.decided_at or math.inf) >= record.made_at
        for one in world.calls
    )


def _probe(world: World, scenario: Scenario) -> list[CallPlan]:
    """Let every client call every node."""
    now, plans = trio.current_time(), list[CallPlan]()
    for client in range(scenario.clients):
        for node in range(scenario.nodes):
            plan = CallPlan(100_000 + len(plans), now, client, "plain", (100_000 + len(plans),),
                            node=node)  # fmt: skip
            make_call(world, plan)
            plans.append(plan)
    return plans


def _all_back(world: World) -> bool:
    return not world.missing_hosts()


def _none_stops(world: World) -> bool:
    """Whether all nodes are there, and none stops because it was told to when things went wrong."""
    gateway = world.gateway.gateway
    records = [] if gateway is None else gateway.registry.nodes.values()
    return _all_back(world) and not any(record.draining for record in records)


def _all_told(world: World) -> bool:
    """Whether the accounts wait for no call from before a restart."""
    gateway = world.gateway.gateway
    return gateway is not None and not gateway.accounts._returning


def _all_decided(world: World) -> bool:
    return all(record.decided or record.orphaned for record in world.calls)


async def _until(ready: Any, deadline: float) -> None:
    while not ready() and trio.current_time() < deadline:
        await trio.sleep(STEP_S)
