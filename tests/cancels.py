"""A campaign of cancels against real processes: `python -m tests.cancels --count 1000`.

Calls of bodies that look, spin, sleep, wait in C, hold the interpreter's lock and stream are told
to stop at random moments, in the three strengths that a caller has (ask; interrupt, then kill; kill
now) and by their deadline. Two things are judged: each call is decided within its grace and two
more seconds, and afterwards every node takes calls, and leaves no process when it ends.

A function of a node that shares the script's process can hold the interpreter's lock for as long
as it likes; the campaign's bodies do so for a few seconds, which is longer than grace and slack.

The exit code is 1 if a call was late, or had an outcome that nobody promised, or a process is left.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import easyremote
from easyremote import TaskCancelledError, TaskTimeoutError, WorkerCrashedError, remote

from .e2e.conftest import Cluster, cluster_in

NODES = 4
SLACK_S = 2.0
LOST_S = 40.0
"""A call without an outcome after this time counts as hung."""
QUIET_S = 120.0
"""Time in which the nodes must be as they were, after the last outcome. A body that was leaked
stays for ever; processes that are started again may need long on a busy machine."""
IDLE_SHARE = 0.05
"""Share of a core that a process without a call may use."""
LOOK_S = 1.0

BODIES = """
import asyncio, ctypes, time
libc = ctypes.PyDLL(None)  # Keeps the interpreter's lock while it waits.

def looks():
    while not context().cancelled():
        time.sleep(0.01)
def spins():
    while True:
        pass
def sleeps():
    while True:
        time.sleep(0.01)
def waits_in_c():
    time.sleep(4)
def holds_lock():
    for _ in range(5):
        libc.usleep(900_000)
def streams():
    for i in range(10**9):
        yield i
        time.sleep(0.001)
def stream_spins():
    yield 1
    while True:
        pass
async def awaits():
    await asyncio.sleep(60)
def swallows():
    until = time.monotonic() + 4
    while time.monotonic() < until:
        try:
            time.sleep(0.01)
        except BaseException:
            pass

for body in (looks, spins, sleeps, waits_in_c, holds_lock, streams, stream_spins, awaits, swallows):
    node.register(body)
    node.register(name="own_" + body.__name__, isolation="process")(body)
@node.register
def ready(): return True
"""
PLAIN = ("looks", "spins", "sleeps", "waits_in_c", "holds_lock", "awaits", "swallows")
STREAMS = ("streams", "stream_spins")
HOWS = ("ask", "force", "kill", "deadline")


@dataclass(frozen=True)
class Shot:
    """One call and how it is stopped."""

    node: str
    body: str
    how: str
    after_s: float
    grace_s: float


@dataclass
class Report:
    """What came of a campaign."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latest_s: float = 0.0
    wall_s: float = 0.0

    def lines(self) -> Iterator[str]:
        """Return the report as lines."""
        count = sum(self.outcomes.values())
        yield f"{count} cancels in {self.wall_s:.0f} s; {len(self.wrong)} promises broken"
        yield f"latest outcome {self.latest_s:.2f} s after its grace (promised: {SLACK_S:g} s)"
        yield from (f"  {number:5} {name}" for name, number in sorted(self.outcomes.items()))
        yield from self.wrong


def draw(rng: random.Random, node: str) -> Shot:
    """Return a random shot at a node."""
    body = rng.choice(PLAIN + STREAMS)
    name = body if rng.random() < 0.5 else f"own_{body}"
    how = rng.choice(HOWS)
    grace_s = 0.0 if how == "kill" else rng.choice((0.0, 0.1, 0.5))
    return Shot(node, name, how, rng.choice((0.0, 0.01, 0.3, 1.0)) * rng.random(), grace_s)


def fire(shot: Shot) -> tuple[str, float]:
    """Make a call and stop it; return its outcome and how long after its grace it was decided."""
    options: dict[str, Any] = {"timeout": shot.after_s + 0.01} if shot.how == "deadline" else {}
    due = time.monotonic() + shot.after_s + shot.grace_s
    try:
        if shot.body.removeprefix("own_") in STREAMS:
            _fire_stream(shot, options)
        else:
            future = remote(shot.node, shot.body, **options)()
            time.sleep(shot.after_s)
            if shot.how != "deadline":
                due = time.monotonic() + shot.grace_s
                future.cancel(force=shot.how != "ask", grace=shot.grace_s)
            future.result(LOST_S)
        outcome = "a result"
    except BaseException as error:  # noqa: BLE001 - every outcome is counted
        outcome = type(error).__name__
    return outcome, time.monotonic() - due


def _fire_stream(shot: Shot, options: dict[str, Any]) -> None:
    """Read a stream until another thread closes it, or its deadline ends it."""

    @remote(node_id=shot.node, function=shot.body, stream=True, **options)
    def items() -> Iterator[int]:
        raise NotImplementedError

    # The first item may be long in coming: the slot of the call before may be taken still.
    with items() as stream:
        closer = threading.Timer(shot.after_s, stream.close)
        if shot.how != "deadline":
            closer.start()
        for _ in stream:
            pass


def judge(shot: Shot, outcome: str, late_s: float) -> str | None:
    """Return what is wrong with an outcome, or None."""
    if late_s > SLACK_S:
        return f"{shot}: {outcome} came {late_s:.2f} s after the grace"
    allowed = {
        "a result",  # The body ended, or looked, just before it was told.
        TaskTimeoutError.__name__ if shot.how == "deadline" else TaskCancelledError.__name__,
        # Others that ran in the script's process when it was stuck and started again.
        WorkerCrashedError.__name__,
    }
    return None if outcome in allowed else f"{shot}: unexpected {outcome}"


def run(cluster: Cluster, count: int, seed: int) -> Report:
    """Fire `count` shots at the nodes of a cluster, one at a time at each node."""
    nodes = list(cluster.nodes)
    report = Report()
    begun = time.monotonic()

    def series(node: str, shots: int) -> None:
        rng = random.Random(f"{seed} {node}")
        for _ in range(shots):
            shot = draw(rng, node)
            outcome, late_s = fire(shot)
            report.outcomes[f"{shot.how}: {outcome}"] += 1
            report.latest_s = max(report.latest_s, late_s)
            wrong = judge(shot, outcome, late_s)
            if wrong is not None:
                report.wrong.append(wrong)

    with ThreadPoolExecutor(len(nodes)) as pool:
        shares = [count // len(nodes) + (i < count % len(nodes)) for i in range(len(nodes))]
        list(pool.map(series, nodes, shares))
    report.wrong += left_over(cluster)
    report.wall_s = time.monotonic() - begun
    return report


def left_over(cluster: Cluster) -> list[str]:
    """Wait until every node takes calls and no process runs a body; return what does not end."""
    for node in cluster.nodes:
        until = time.monotonic() + QUIET_S
        while True:
            try:
                assert remote(node, "ready", idempotent=True)().result(QUIET_S) is True
                break
            except easyremote.EasyRemoteError as error:
                if time.monotonic() > until:
                    return [f"{node} does not serve any more: {error!r}"]
                time.sleep(0.1)
    until = time.monotonic() + QUIET_S
    while busy := busy_ones(cluster):
        if time.monotonic() > until:
            return [f"a body was leaked: {process!r}" for process in busy]
    cluster.end_nodes()
    until = time.monotonic() + QUIET_S
    while (left := cluster.members()) and time.monotonic() < until:
        time.sleep(0.1)
    return [f"left over: {process!r}" for process in left]


def busy_ones(cluster: Cluster) -> list[psutil.Process]:
    """Return the processes of nodes that use the processor, though nobody calls anything."""

    def used() -> dict[psutil.Process, float]:
        times = {}
        for process in cluster.members():
            with suppress(psutil.Error):
                times[process] = sum(process.cpu_times()[:2])
        return times

    before = used()
    time.sleep(LOOK_S)
    return [p for p, at in used().items() if at - before.get(p, 0.0) > IDLE_SHARE * LOOK_S]


@contextmanager
def nodes_in(folder: Path, count: int = NODES) -> Iterator[Cluster]:
    """Start a gateway and the nodes of a campaign."""
    with cluster_in(folder, {"EASYREMOTE_RESTARTS_MAX": "1000000"}) as cluster:
        cluster.start_gateway()
        for number in range(count):
            cluster.start_node(f"cancel-{number}", BODIES)
        yield cluster


def main() -> int:
    """Run a campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, nodes_in(Path(folder)) as cluster:
        report = run(cluster, arguments.count, arguments.seed)
    sys.stdout.write("\n".join(report.lines()) + "\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
