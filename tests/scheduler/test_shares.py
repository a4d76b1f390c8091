"""What users used: charges, estimates put right, decay, weights, forgetting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.shares import (
    COST_MAX_S,
    COST_MIN_S,
    HALF_LIVES_MAX,
    SWEEP_FROM,
    Share,
    Shares,
)


class Sorter:
    """Counts how often it is told that a key is smaller."""

    def __init__(self) -> None:
        self.told = 0

    def rekey(self) -> None:
        self.told += 1


def test_usage_is_worth_half_after_a_half_life() -> None:
    """Decay forgets: what was used long ago hardly counts."""
    shares = Shares(half_life_s=100.0)
    alice = shares.of("alice", 0.0)
    shares.charge(alice, 8.0, 0.0)

    assert shares.usage_s(alice, 0.0) == 8.0
    assert shares.usage_s(alice, 100.0) == pytest.approx(4.0)
    assert shares.usage_s(alice, 5000.0) < 1e-9


def test_time_alone_changes_no_key() -> None:
    """All usages decay alike, so a queue that sorted by keys stays sorted."""
    shares = Shares()
    alice = shares.of("alice", 0.0)
    shares.charge(alice, 8.0, 0.0)
    before = alice.key
    shares.worth(5000.0)

    assert alice.key == before


def test_a_weight_divides_the_key() -> None:
    """Who has twice the weight may use twice as much."""
    shares = Shares()
    alice = shares.of("alice", 0.0)
    sorter = Sorter()
    alice.lanes.append(sorter)
    shares.charge(alice, 8.0, 0.0)
    shares.weigh(alice, 2.0)

    assert (alice.key, sorter.told) == (4.0, 1)


@pytest.mark.parametrize(
    ("estimate_s", "actual_s", "told"), [(1.0, 5.0, 0), (5.0, 1.0, 1), (3.0, 0.0, 1)]
)
def test_an_estimate_is_put_right(estimate_s: float, actual_s: float, told: int) -> None:
    """After a call only what it used counts, and queues hear of keys that shrank."""
    shares = Shares(half_life_s=50.0)
    alice = shares.of("alice", 0.0)
    sorter = Sorter()
    alice.lanes.append(sorter)
    shares.charge(alice, estimate_s, 10.0)
    shares.settle(alice, estimate_s, 10.0, actual_s, 20.0)

    assert shares.usage_s(alice, 20.0) == pytest.approx(actual_s, abs=1e-12)
    assert alice.key == alice.used
    assert (alice.running, sorter.told) == (0, told)


@pytest.mark.parametrize(("cost_s", "counts"), [(0.0, COST_MIN_S), (1e300, COST_MAX_S)])
def test_wild_costs_are_bounded(cost_s: float, counts: float) -> None:
    """Nothing is free, and no number swallows the others."""
    shares = Shares()
    alice = shares.of("alice", 0.0)
    shares.charge(alice, cost_s, 0.0)

    assert alice.used == counts


def test_numbers_stay_small_for_years() -> None:
    """After hundreds of half-lives usages mean what they meant, and queues are told."""
    shares = Shares(half_life_s=1.0)
    alice = shares.of("alice", 0.0)
    sorter = Sorter()
    alice.lanes.append(sorter)
    now = 0.0
    for _ in range(9):
        now += HALF_LIVES_MAX / 3 + 1
        shares.charge(alice, 5.0, now)
        shares.settle(alice, 5.0, now, 4.0, now + 1.0)

        assert shares.usage_s(alice, now + 1.0) == pytest.approx(4.0)
        assert alice.used < 2.0 ** (HALF_LIVES_MAX + 3)
    assert sorter.told >= 3


def test_a_call_that_lasts_beyond_the_epoch_is_settled() -> None:
    """What was charged hundreds of half-lives ago is nothing now; what was used counts."""
    shares = Shares(half_life_s=1.0)
    alice = shares.of("alice", 0.0)
    shares.charge(alice, 5.0, 0.0)
    shares.settle(alice, 5.0, 0.0, 7.0, HALF_LIVES_MAX * 3)

    assert shares.usage_s(alice, HALF_LIVES_MAX * 3) == pytest.approx(7.0)


def test_idle_users_are_forgotten_when_there_are_many() -> None:
    """The table is bounded by users that matter: with usage, calls or a weight."""
    shares = Shares(half_life_s=1.0)
    kept = [shares.of(name, 0.0) for name in ("used", "running", "waiting", "weighed")]
    used, running, waiting, weighed = kept
    shares.charge(running, 1.0, 0.0)
    waiting.lanes.append(Sorter())
    shares.weigh(weighed, 3.0)
    shares.charge(used, 1.0, 100.0)
    shares.settle(used, 1.0, 100.0, 1.0, 100.0)
    for number in range(SWEEP_FROM):
        shares.of(f"user {number}", 100.0)

    assert len(shares) < 10
    assert [shares.of(share.user, 100.0) for share in kept] == kept


@given(
    st.lists(
        st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 100.0), st.floats(0.0, 20.0)), max_size=30
    )
)
def test_usage_is_the_decayed_sum_of_what_was_used(
    calls: list[tuple[float, float, float]],
) -> None:
    """However wrong the estimates were, a user's usage is what his calls really used."""
    half_life_s = 30.0
    shares = Shares(half_life_s)
    alice = shares.of("alice", 0.0)
    now, expected = 0.0, 0.0
    for estimate_s, actual_s, body_s in calls:
        shares.charge(alice, estimate_s, now)
        shares.settle(alice, estimate_s, now, actual_s, now + body_s)
        now += body_s
        expected = expected * 0.5 ** (body_s / half_life_s) + actual_s

        assert shares.usage_s(alice, now) == pytest.approx(expected, rel=1e-6, abs=1e-5)
        assert alice.used >= 0.0


def test_a_share_says_whose_it_is() -> None:
    """The same user has one share."""
    shares = Shares()
    share = shares.of("alice", 0.0)

    assert isinstance(share, Share)
    assert (share.user, shares.of("alice", 1.0) is share) == ("alice", True)
