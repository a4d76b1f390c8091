"""The simulator in continuous integration: 200 short runs, and 20 of them twice."""

from __future__ import annotations

from .campaign import Campaign, run_campaign
from .coverage import missing

SEEDS = 200
TWICE = 20


def test_every_promise_holds_and_everything_was_reached() -> None:
    """P1 to P5, P7, P8, P11, P13 and P14 hold under every kind of trouble, no node is given more
    than it has, no quota is passed, the books add up, and all that is rare happened."""
    campaign = Campaign()
    run_campaign(campaign, 0, SEEDS, jobs=2, progress=False)

    assert campaign.seeds == SEEDS
    assert not campaign.violations, campaign.summary()
    assert campaign.virtual_s >= 60 * SEEDS
    assert missing(campaign.faults, campaign.reached, campaign.seeds) == []


def test_the_same_seed_has_the_same_events() -> None:
    """Two processes, in which texts hash differently, tell the same story of a seed."""
    campaign = Campaign()
    run_campaign(campaign, 0, TWICE, twice=True, progress=False)

    assert campaign.compared == TWICE
    assert campaign.different == []
