"""The promises, checked over everything that was written down in a run.

Rules of this file. 1) The truth about execution is what the bodies noted, never what the product
says. 2) What is checked stands in `CHECKS`, by the number of its promise in promises.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from easyremote.client.retry import ATTEMPTS_IDEMPOTENT
from easyremote.errors import (
    EasyRemoteError,
    InfeasibleError,
    NoCapableNodeError,
    QuotaExceededError,
    RemoteExecutionError,
    TaskCancelledError,
    TaskTimeoutError,
)

from .books import LIMITED
from .faulting import BUGS_OF_OURS
from .functions import needs_of
from .scenario import CROWD_BODY_S
from .workload import CallRecord, right_value

if TYPE_CHECKING:
    from .world import World

LATE_S = 2.0
"""After its deadline a call has an outcome within this time: the client's own backstop."""
SLACK_S = 0.5


def about(record: CallRecord) -> str:
    """Name a call in a sentence."""
    return f"call {record.plan.number} ({record.plan.fn}, {record.call_id.hex()[:8]})"


def one_right_outcome(world: World) -> None:
    """P1: an outcome is one of those that the call can have."""
    for record in world.calls:
        error = record.error
        if not record.decided:
            continue
        if error is None:
            if record.plan.fn in ("fail", "crash"):
                world.violation("P1", f"{about(record)} has a result")
            elif not right_value(record):
                world.violation("P1", f"{about(record)} has a wrong result: {record.value!r:.200}")
            elif not world.starts.get(record.plan.number):
                world.violation("P1", f"{about(record)} has a result and never ran")
        elif isinstance(error, RemoteExecutionError):
            planned = record.plan.fn == "fail" and f"planned {record.plan.number}" in str(error)
            if not planned and record.plan.fn != "nested":
                world.violation("P1", f"{about(record)} has an error of another: {error!r:.300}")
        else:
            _judge_error(world, record, error)


def _judge_error(world: World, record: CallRecord, error: BaseException) -> None:
    plan = record.plan
    if not isinstance(error, EasyRemoteError):
        world.violation("P1", f"{about(record)} has a foreign error: {error!r:.300}")
    elif error.code in BUGS_OF_OURS:
        world.violation("P1", f"{about(record)} has an error of ours: {error!r:.300}")
    elif isinstance(error, TaskCancelledError) and record.cancelled_at is None:
        world.violation("P1", f"{about(record)} is cancelled by nobody: {error!r:.300}")
    elif isinstance(error, TaskTimeoutError) and plan.deadline_s is None and plan.fn != "timed":
        world.violation("P1", f"{about(record)} has a deadline of nobody: {error!r:.300}")
    elif world.scenario.calm and not world.scenario.flood and not _may_fail(world, record):
        world.violation("P1", f"{about(record)} failed and nothing was wrong: {error!r:.300}")


def _may_fail(world: World, record: CallRecord) -> bool:
    """Return whether a call may fail although nothing is wrong: it asks for too much."""
    plan, error = record.plan, record.error
    machines = [node.machine for node in world.nodes]
    if plan.node is not None:
        machines = [machines[plan.node]]
    if "capability" in plan.options:
        machines = [machine for machine in machines if machine.fast]
        if not machines:
            return isinstance(error, NoCapableNodeError)
    if not any(machine.ever_fits(needs_of(plan.fn, plan.options)) for machine in machines):
        return isinstance(error, InfeasibleError)
    return isinstance(error, QuotaExceededError | TaskTimeoutError) and plan.fn in LIMITED


FAIR = 5.0
"""How much longer one user may wait because of another."""


def fair(world: World) -> None:
    """P13: where nothing goes wrong, a crowd of one user's calls does not hold another one up."""
    if not world.scenario.calm:
        return
    alone_s = CROWD_BODY_S + 4 * world.scenario.latency_s
    for record in world.calls:
        if record.plan.steady and record.outcome() == "result" and record.decided_at is not None:
            world.reached["a steady user beside a crowd"] += 1
            took_s = record.decided_at - record.made_at
            if took_s > FAIR * alone_s:
                world.violation("P13", f"{about(record)} took {took_s:.2f} s beside a crowd, and "
                                f"{alone_s:.2f} s alone")  # fmt: skip


def at_most_once(world: World) -> None:
    """P2: a body starts at most once per call id; and once in all, unless more was allowed."""
    idempotent = {record.plan.number for record in world.calls if record.plan.idempotent}
    for number, starts in world.starts.items():
        ids = Counter(start.call_id for start in starts)
        if len(starts) > 1 and (number not in idempotent or ids.most_common(1)[0][1] > 1):
            where = ", ".join(
                f"{s.node}/{s.boot} at {s.at:.2f} as {s.call_id.hex()[:8]}" for s in starts
            )
            world.violation("P2", f"call {number} started {len(starts)} times: {where}")


def honest_flag(world: World) -> None:
    """P3: `may_have_run` is never False beside a start."""
    for record in world.calls:
        if getattr(record.error, "may_have_run", None) is False and world.starts.get(
            record.plan.number
        ):
            world.violation("P3", f"{about(record)} ran and its error denies it: {record.error!r}")


def bounded_attempts(world: World) -> None:
    """P4: attempts of one call are bounded."""
    for number, starts in world.starts.items():
        if len(starts) > ATTEMPTS_IDEMPOTENT:
            world.violation("P4", f"call {number} started {len(starts)} times")


def nothing_hangs(world: World) -> None:
    """P5: with a deadline, an outcome comes within the deadline and a little more."""
    for record in world.calls:
        limit_s = record.plan.deadline_s
        if limit_s is None or record.decided_at is None or _was_away(world, record):
            continue
        took_s = record.decided_at - record.made_at
        if took_s > limit_s + LATE_S + SLACK_S:
            world.violation("P5", f"{about(record)}: deadline {limit_s} s, outcome {took_s:.2f} s")


def _was_away(world: World, record: CallRecord) -> bool:
    return any(host.name == record.client and host.frozen for host in world.clients)


def no_zombies(world: World) -> None:
    """P8: a result is of the last attempt, and was made where that attempt was started."""
    for record in world.calls:
        value, starts = record.value, world.starts.get(record.plan.number, [])
        if not record.decided or record.error or not isinstance(value, list) or len(value) < 4:
            continue
        node, boot, call_id = value[1:4]
        if (node, boot, call_id) not in {(s.node, s.boot, s.call_id) for s in starts}:
            world.violation("P8", f"{about(record)}: its result is of {node}, where it never ran")
        elif call_id != record.call_id:
            world.violation("P8", f"{about(record)}: its result is of an earlier attempt")


def whole_streams(world: World) -> None:
    """P14: items come in order, none twice, none lost before another."""
    for record in world.calls:
        if record.plan.fn in ("count", "mirror"):
            number = record.plan.number
            if record.items != [[number, index] for index in range(len(record.items))]:
                world.violation("P14", f"{about(record)}: items {record.items!r:.200}")


def all_decided(world: World) -> None:
    """P5, P7: after everything was healed and every bound has passed, nothing is undecided."""
    for record in world.calls:
        if not record.decided and not record.orphaned:
            world.violation(
                "P5", f"{about(record)} has no outcome since {record.made_at:.2f}; "
                f"it is {record.future.state}",
            )  # fmt: skip


Check = Callable[["World"], None]

CHECKS: dict[str, Check] = {
    "P1": one_right_outcome,
    "P2": at_most_once,
    "P3": honest_flag,
    "P4": bounded_attempts,
    "P5": nothing_hangs,
    "P8": no_zombies,
    "P13": fair,
    "P14": whole_streams,
}
"""What is checked when a run is over. P11 is watched by `coverage`, P7 and liveness by `run`,
what holds at every step by `watching`, accounts by `books`."""


def check_all(world: World) -> None:
    """Check everything."""
    for check in CHECKS.values():
        check(world)
