"""What goes wrong, when, and how it is put right again.

Theory. The plan is drawn before the run. Faults of lines are steps of the language that the fault
proxy speaks too (`tests.faults`); troubles of hosts have no equal there. Everything heals by itself
after its time, and at the end of the safety phase at the latest: what follows is the liveness
phase, in which all that was promised must come true.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from easyremote.wire.errors import ErrorCode
from tests.faults import Direction, Fault, Step

from .network import Line
from .scenario import LINE_FAULTS, Kind, Scenario, Trouble
from .stage import Host

if TYPE_CHECKING:
    from .world import World

BASE_RATE = 2_000


@dataclass(frozen=True, slots=True)
class HostStep:
    """Something that goes wrong with a host, or with several."""

    at_s: float
    host: str
    trouble: Trouble
    duration_s: float


AnyStep = Step | HostStep


def plan_faults(scenario: Scenario, rng: random.Random) -> list[AnyStep]:
    """Return what goes wrong in a run, in order of time."""
    steps = [_step(scenario, rng, rng.choice(scenario.kinds)) for _ in range(scenario.faults)]
    return sorted(steps, key=lambda step: step.at_s)


def _step(scenario: Scenario, rng: random.Random, kind: Kind) -> AnyStep:
    at_s = rng.uniform(1.0, scenario.safety_s)
    lease_s = scenario.link.lease_s
    duration_s = rng.choice((0.1, 0.5 * lease_s, 1.5 * lease_s, 3.0 * lease_s))
    nodes = [f"node-{number}" for number in range(1, scenario.nodes + 1)]
    clients = [f"client-{number}" for number in range(1, scenario.clients + 1)]
    if kind in LINE_FAULTS:
        assert isinstance(kind, Fault)
        amounts = {
            Fault.LIMIT: rng.choice((1, 50, 500, 5_000)),
            Fault.TRICKLE: rng.choice((50, 500, BASE_RATE)),
            Fault.LATENCY: rng.choice((50, 400, 1_500)),
            Fault.SLICE: rng.choice((1, 7, 1_000)),
        }
        direction = rng.choice((Direction.UP, Direction.DOWN))
        return Step(
            at_s, rng.choice((*nodes, *clients)), kind, duration_s,
            direction if kind is Fault.ONE_WAY else Direction.BOTH, amounts.get(kind, 0),
        )  # fmt: skip
    assert isinstance(kind, Trouble)
    about = {
        Trouble.NODE_KILL: nodes, Trouble.NODE_FREEZE: nodes, Trouble.WORKER_KILL: nodes,
        Trouble.NODE_DRAIN: nodes,
        Trouble.CLIENT_KILL: clients,
    }  # fmt: skip
    return HostStep(at_s, rng.choice(about.get(kind, ["gateway"])), kind, duration_s)


async def run_faults(world: World, steps: list[AnyStep], rng: random.Random) -> None:
    """Play a plan."""
    async with trio.open_nursery() as nursery:
        for step in steps:
            await trio.sleep_until(step.at_s)
            if isinstance(step, Step):
                line_fault(world, world.network.lines[step.link], step)
            else:
                nursery.start_soon(_trouble, world, step, rng)


# ---- lines ---------------------------------------------------------------------------------------


def line_fault(world: World, line: Line, step: Step) -> None:
    """Begin a fault of a line; its end is a timer."""
    world.log.say(
        line.name, "fault", kind=step.fault.value, s=round(step.duration_s, 2),
        way=step.direction.value, amount=step.amount,
    )  # fmt: skip
    world.faults[step.fault.value] += 1
    match step.fault:
        case Fault.CUT:
            line.cut()
            return
        case Fault.CLOSE:
            line.close()
            return
        case Fault.LIMIT:
            line.left_bytes = step.amount
        case Fault.STALL:
            line.held |= {Direction.UP, Direction.DOWN}
        case Fault.ONE_WAY:
            line.held.add(step.direction)
        case Fault.BLACK_HOLE:
            line.swallows = True
        case Fault.TRICKLE:
            line.bytes_per_s = step.amount
        case Fault.LATENCY:
            line.latency_s = line.base_latency_s + step.amount / 1000
        case Fault.SLICE:
            line.slice_max = step.amount
    world.timers.after(step.duration_s, partial(heal_line, world, line, step.fault))


def heal_line(world: World, line: Line, fault: Fault | None = None) -> None:
    """End a fault of a line, or all of them."""
    if fault is None or fault in (Fault.STALL, Fault.ONE_WAY):
        line.held.clear()
    if fault is None or fault is Fault.LIMIT:
        line.left_bytes = None
    if fault is None or fault is Fault.TRICKLE:
        line.bytes_per_s = 0
    if fault is None or fault is Fault.LATENCY:
        line.latency_s = line.base_latency_s
    if fault is None or fault is Fault.SLICE:
        line.slice_max = 0
    if line.swallows and (fault is None or fault is Fault.BLACK_HOLE):
        line.swallows = False
        line.give_up("the connection was reset: its bytes were lost")
    world.log.say(line.name, "healed", kind="all" if fault is None else fault.value)
    line.move()


# ---- hosts ---------------------------------------------------------------------------------------


async def _trouble(world: World, step: HostStep, rng: random.Random) -> None:
    host = next(host for host in world.hosts if host.name == step.host)
    world.log.say(host.name, "trouble", kind=step.trouble.value, s=round(step.duration_s, 2))
    world.faults[step.trouble.value] += 1
    match step.trouble:
        case Trouble.GATEWAY_KILL | Trouble.NODE_KILL | Trouble.CLIENT_KILL:
            await _restart(host, step.duration_s)
        case Trouble.GATEWAY_FREEZE | Trouble.NODE_FREEZE:
            host.freeze()
            await trio.sleep(step.duration_s)
            host.thaw()
        case Trouble.NODE_DRAIN:
            drain_node(world, host)
        case Trouble.WORKER_KILL:
            kill_worker(world, host)
        case Trouble.DISK_FULL:
            _set_disk(world, full=True)
            await trio.sleep(step.duration_s)
            _set_disk(world, full=False)
        case Trouble.CLOCK_STEP:
            world.wall_offset_s += rng.choice((-3600.0, -5.0, 5.0, 3600.0))
        case Trouble.SWIZZLE:
            await _swizzle(world, step.duration_s, rng)


async def _restart(host: Host, after_s: float) -> None:
    await host.kill()
    await trio.sleep(after_s)
    host.start()


def drain_node(world: World, host: Host) -> None:
    """Tell a node to stop, as SIGTERM does; when it has drained it is started again."""
    node = next(node for node in world.nodes if node is host)
    if node.agent is not None:
        node.spawn(node.drain)


def kill_worker(world: World, host: Host) -> None:
    """Kill the newest worker of a node, whose agent lives on."""
    node = next(node for node in world.nodes if node is host)
    if node.scripts:
        node.scripts[-1].process.kill()


def _set_disk(world: World, *, full: bool) -> None:
    world.disk_full = full
    if world.gateway.store is not None:
        world.gateway.store.full = full


async def _swizzle(world: World, duration_s: float, rng: random.Random) -> None:
    """Stop some hosts one by one, and start them again in another order."""
    chosen = rng.sample(world.hosts, rng.randint(1, len(world.hosts)))
    for host in chosen:
        await host.kill()
        await trio.sleep(rng.uniform(0.0, 0.5))
    await trio.sleep(duration_s)
    for host in rng.sample(chosen, len(chosen)):
        host.start()
        await trio.sleep(rng.uniform(0.0, 0.5))


def heal_all(world: World) -> None:
    """Put everything right: nothing goes wrong from now on."""
    world.healed_at = trio.current_time()
    _set_disk(world, full=False)
    for line in world.network.lines.values():
        heal_line(world, line)
    for host in world.hosts:
        host.thaw()
        host.start()
    for node in world.nodes:
        if node.agent is not None:
            node.agent._reporter._delta.restart()  # The truth, all of it, takes over from lies.


BUGS_OF_OURS = frozenset(
    {
        ErrorCode.INTERNAL, ErrorCode.PROTOCOL, ErrorCode.DECODE, ErrorCode.FLOW_CONTROL,
        ErrorCode.STREAM_STATE, ErrorCode.ABUSE, ErrorCode.FRAME_TOO_LARGE,
    }
)  # fmt: skip
"""Codes that honest peers never cause, whatever happens to their links."""
