"""The judge of a campaign: reads what clients and bodies wrote, and says what was broken.

Theory. Two kinds of witness that cannot talk to each other: clients wrote what they were told, and
bodies wrote that they ran. Whatever the processes in between did, the two must agree:

    one outcome for each call of a client that lived to see it
    one run at most, unless the call is idempotent
    `may_have_run=False` never beside a run; a result never without one; the right value, or none
    a typed error, not a bug (INTERNAL); in time where a deadline was given

Rules of this file. 1) Pure: text in, verdict out. 2) A half line at the end of a log is the last
act of a killed process and is left out.

Source. promises.md, P1 to P3, P5 and P14.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

DEADLINE_SLACK_S = 2.0
"""An outcome comes this long after its deadline at most, by what is promised."""
GRACE_S = 5.0
"""And after the grace that a running body is given to stop."""

IDEMPOTENT = frozenset({"again"})


class Mark(NamedTuple):
    """One line of a body: it began, or is about to return."""

    ended: bool
    key: str
    attempt: int
    pid: int
    node_id: str
    t: float


@dataclass(slots=True)
class Told:
    """What one client wrote about one call. Times are of the machine's monotonic clock."""

    key: str
    function: str
    submitted: float
    timeout_s: float | None
    outcomes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """What came of a campaign.

    Attributes:
        calls: Calls that clients made.
        results: Those that returned their value.
        errors: The others, by class.
        repeated: Idempotent calls that ran more than once, as they may.
        widowed: Calls of killed clients, which nobody can have told anything.
        honest: Errors with `may_have_run=False` and, in all, errors of calls without a run.
        violations: What must not be.
    """

    calls: int = 0
    results: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    widowed: int = 0
    runs: int = 0
    said_not_run: int = 0
    not_run: int = 0
    repeated: int = 0
    duplicates: int = 0
    hung: int = 0
    wrong_flags: int = 0
    lost: int = 0
    slowest_s: float = 0.0
    violations: list[str] = field(default_factory=list)


def read_marks(text: str) -> list[Mark]:
    """Read the file of the bodies."""
    marks = []
    for line in _whole_lines(text):
        what, key, attempt, pid, node_id, t = line.split()
        marks.append(Mark(what == "E", key, int(attempt), int(pid), node_id, float(t)))
    return marks


def read_log(text: str) -> tuple[dict[str, Told], bool, set[str]]:
    """Read the log of a client.

    Returns:
        Its calls, whether it lived to the end, and what it then still waited for.
    """
    calls: dict[str, Told] = {}
    over, waiting = False, set[str]()
    for line in _whole_lines(text):
        said = json.loads(line)
        key, event = said["key"], said["event"]
        if event == "submit":
            calls[key] = Told(key, said["function"], said["t"], said["timeout_s"])
        elif event in ("outcome", "broken"):
            calls[key].outcomes.append(said)
        elif event == "over":
            over, waiting = True, set(said["open"])
    return calls, over, waiting


def judge(logs: Iterable[str], markers: str) -> Verdict:
    """Compare what clients were told with what bodies did."""
    verdict = Verdict()
    runs: dict[str, list[Mark]] = {}
    for mark in read_marks(markers):
        if not mark.ended:
            verdict.runs += 1
            runs.setdefault(mark.key, []).append(mark)
    known: set[str] = set()
    functions: dict[str, str] = {}
    for text in logs:
        calls, over, waiting = read_log(text)
        known |= calls.keys()
        for call in calls.values():
            functions[call.key] = call.function
            verdict.calls += 1
            _judge_call(verdict, call, runs.get(call.key, []), over, call.key in waiting)
    for key, marks in runs.items():
        if key not in known:
            verdict.violations.append(f"{key}: ran, and nobody called it")
        _judge_runs(verdict, key, marks, functions.get(key, "?") in IDEMPOTENT)
    return verdict


def _judge_runs(verdict: Verdict, key: str, marks: list[Mark], idempotent: bool) -> None:
    if len(marks) > 1 and idempotent:
        verdict.repeated += 1
    elif len(marks) > 1:
        verdict.duplicates += 1
        where = ", ".join(f"attempt {m.attempt} on {m.node_id} at {m.t:.3f}" for m in marks)
        verdict.violations.append(f"{key}: ran {len(marks)} times ({where})")


def _judge_call(verdict: Verdict, call: Told, runs: list[Mark], over: bool, waiting: bool) -> None:
    outcomes = [said for said in call.outcomes if said["event"] == "outcome"]
    if not outcomes:
        if not over:
            verdict.widowed += 1
        elif waiting:
            verdict.hung += 1
            verdict.violations.append(f"{call.key}: {call.function} never had an outcome")
        else:
            verdict.lost += 1
            verdict.violations.append(f"{call.key}: its outcome was lost inside the client")
        return
    if len(outcomes) > 1:
        verdict.violations.append(f"{call.key}: {len(outcomes)} outcomes")
    if len(call.outcomes) > len(outcomes):
        verdict.violations.append(f"{call.key}: items lost, repeated or out of order")
    said = outcomes[0]
    took_s = said["t"] - call.submitted
    verdict.slowest_s = max(verdict.slowest_s, took_s)
    if call.timeout_s is not None and took_s > call.timeout_s + DEADLINE_SLACK_S + GRACE_S:
        verdict.violations.append(
            f"{call.key}: outcome {took_s:.1f} s after it was made, deadline {call.timeout_s} s"
        )
    if "error" not in said:
        verdict.results += 1
        if not said["right"] or not runs:
            why = "the wrong value" if runs else "a value although it never ran"
            verdict.violations.append(f"{call.key}: {call.function} returned {why}")
        return
    verdict.errors[said["error"]] += 1
    verdict.not_run += not runs
    verdict.said_not_run += said["may_have_run"] is False
    if not said["typed"] or said["code"] == "INTERNAL":
        verdict.violations.append(f"{call.key}: {said['error']}: {said['text']}")
    if said["may_have_run"] is False and runs:
        verdict.wrong_flags += 1
        verdict.violations.append(
            f"{call.key}: may_have_run=False, but it ran on {runs[0].node_id} at {runs[0].t:.3f}: "
            f"{said['error']}: {said['text']}"
        )


def _whole_lines(text: str) -> list[str]:
    lines = text.split("\n")
    return [line for line in lines[:-1] if line]
