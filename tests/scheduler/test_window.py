"""The learned window: how much a node may hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.window import (
    AHEAD_MAX,
    AHEAD_S,
    LEARN_ALWAYS,
    LEARN_EVERY,
    LONG_BODY_S,
    Window,
)


def test_nothing_is_sent_ahead_before_anything_is_known() -> None:
    """A fresh window holds as many calls as there are slots."""
    window = Window(3)

    assert (window.limit, window.ahead) == (3, 0)


def test_short_bodies_open_the_window_by_doubling() -> None:
    """The window at most doubles with each sample, up to the most calls ahead."""
    window = Window(1)
    seen = []
    for _ in range(12):
        window.learn(1e-6)
        seen.append(window.ahead)

    assert seen == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512]
    assert window.limit == 1 + AHEAD_MAX


def test_one_long_body_closes_the_window_at_once() -> None:
    """A sample that makes the mean long takes everything back that was sent ahead."""
    window = Window(1)
    for _ in range(20):
        window.learn(1e-6)
    window.learn(60.0)

    assert window.limit == 1


@pytest.mark.parametrize(("body_s", "ahead"), [(0.001, 5), (0.004, 1), (0.02, 1), (1.0, 0)])
def test_the_amount_ahead_follows_the_mean(body_s: float, ahead: int) -> None:
    """Enough calls for `AHEAD_S` of work, at least one, and none for long bodies."""
    window = Window(2)
    for _ in range(200):
        window.learn(body_s)

    assert window.ahead == ahead
    assert window.limit == 2 + ahead


def test_the_first_samples_are_all_taken_and_later_ones_seldom() -> None:
    """Results are decoded while the window learns, and one in `LEARN_EVERY` afterwards."""
    window = Window(1)
    taken = [window.wants_sample() for _ in range(LEARN_ALWAYS + 10 * LEARN_EVERY)]

    assert all(taken[:LEARN_ALWAYS])
    assert sum(taken[LEARN_ALWAYS:]) == 10


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=50), st.integers(1, 64))
def test_no_number_of_a_node_breaks_the_window(bodies: list[float], slots: int) -> None:
    """Whatever a node says, the window stays between its slots and its bound, and finite."""
    window = Window(slots)
    for body_s in bodies:
        window.learn(body_s)

        assert slots <= window.limit <= slots + AHEAD_MAX
        assert window.mean_s is None or math.isfinite(window.mean_s)


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=100))
def test_what_is_ahead_is_never_much_work(bodies: list[float]) -> None:
    """Calls ahead of the slots are one, or no more work than `AHEAD_S` by the mean."""
    window = Window(1)
    for body_s in bodies:
        window.learn(body_s)
    mean_s = window.mean_s

    assert mean_s is not None
    assert window.ahead <= 1 or window.ahead * mean_s <= AHEAD_S
    assert window.ahead == 0 or mean_s <= LONG_BODY_S


def test_resizing_keeps_what_was_learned() -> None:
    """More slots move the limit and not the amount ahead."""
    window = Window(1)
    for _ in range(3):
        window.learn(1e-6)
    window.resize(8)

    assert (window.slots, window.limit) == (8, 12)
