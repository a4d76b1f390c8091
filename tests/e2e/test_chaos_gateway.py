"""kill -9 of the gateway under load: everybody returns by themselves, results are delivered."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import Settings, run_campaign
from tests.chaos.report import report_of
from tests.chaos.world import Role

pytestmark = pytest.mark.slow

KILLS = 2
GAP_S = (3.0, 4.0)
RETURNED = 0.99
"""Of the calls that ran across a restart."""


def test_calls_that_run_across_a_restart_return_their_results(tmp_path: Path) -> None:
    """Fifty calls a second; the gateway is killed and comes back, twice, at once or soon.

    Nothing runs twice, nobody waits for ever, and what ran meanwhile returns its real result.
    """
    settings = Settings(
        seed=50, kills=KILLS, limit_s=120.0, targets=(Role.GATEWAY,), nodes=2, clients=2,
        rate=25.0, lease_s=15.0, gap_s=GAP_S, faults=False, kills_only=True, whole=True,
    )  # fmt: skip

    report = report_of(run_campaign(tmp_path, settings))

    assert report.violations == [], "\n".join(report.lines())
    assert report.campaign.kills == KILLS
    assert report.across > 0
    assert report.across_returned >= RETURNED * report.across, "\n".join(report.lines())
