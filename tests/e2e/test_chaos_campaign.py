"""Sixty kills: nothing lost, nothing twice, nothing hanging, nobody left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import Settings, run_campaign
from tests.chaos.report import report_of

pytestmark = pytest.mark.slow

KILLS = 30


@pytest.mark.parametrize("seed", [20260, 20261])
def test_thirty_kills_break_no_promise(seed: int, tmp_path: Path) -> None:
    """kill -9, stops, SIGTERM and faults of links at chosen points of calls and at random.

    Whoever lives is told one outcome of every call and in time, nothing runs twice,
    `may_have_run=False` is never said of what ran, everybody comes back, and no process is left.
    """
    settings = Settings(
        seed=seed, kills=KILLS, limit_s=240.0, nodes=3, clients=3, rate=8.0, lease_s=2.0,
        gap_s=(0.05, 0.5),
    )  # fmt: skip

    report = report_of(run_campaign(tmp_path, settings))

    assert report.violations == [], "\n".join(report.lines())
    assert report.campaign.kills == KILLS
    assert report.verdict.results > 0 and report.verdict.errors
