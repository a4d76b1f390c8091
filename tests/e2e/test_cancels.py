"""Cancels against real processes: a short campaign."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests import cancels

pytestmark = pytest.mark.slow

COUNT = 48
SEED = 5


def test_every_cancel_is_decided_in_time_and_nothing_is_left(tmp_path: Path) -> None:
    """Whatever a body does, a call that is stopped is decided within its grace and two seconds.

    The long campaign is `python -m tests.cancels --count 1000`.
    """
    with cancels.nodes_in(tmp_path) as cluster:
        report = cancels.run(cluster, COUNT, SEED)

    assert report.wrong == [], "\n".join(report.lines())
    assert sum(report.outcomes.values()) == COUNT
    assert {how for name in report.outcomes for how in re.findall(r"^\w+", name)} == {*cancels.HOWS}


def test_judge_knows_what_was_promised() -> None:
    """A late outcome and one that nobody promised are found; the promised ones pass."""
    shot = cancels.Shot("n", "spins", "ask", 0.1, 0.5)

    assert cancels.judge(shot, "TaskCancelledError", 1.9) is None
    assert "2.10 s after" in str(cancels.judge(shot, "TaskCancelledError", 2.1))
    assert "TaskTimeoutError" in str(cancels.judge(shot, "TaskTimeoutError", 0.1))
    report = cancels.Report(Counter({"ask: TaskCancelledError": 1}), ["broken"])
    assert list(report.lines())[-1] == "broken"
