"""Replicas wanted: growth by queue, shrinking after idling, bounds, and what users write."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.scaling import (
    GROW_S,
    REPLICAS_MAX,
    Load,
    Replicas,
    Scaling,
    read_scaling,
    step,
)

loads = st.builds(
    Load, st.integers(0, 500), st.integers(0, 100), st.integers(1, 8), st.integers(0, 32)
)
scalings = st.builds(
    lambda least, more, target, idle: Scaling(least, least + more, target, idle),
    st.integers(0, 4),
    st.integers(0, 8),
    st.floats(0.0, 10.0),
    st.floats(0.0, 100.0),
)


def test_a_waiting_call_starts_the_first_replica() -> None:
    """From none, one call is enough; without calls there is none."""
    scaling = Scaling()

    assert step(scaling, Replicas(), Load(0, 0, 1, 8), 0.0).wanted == 0
    assert step(scaling, Replicas(), Load(1, 0, 1, 8), 0.0).wanted == 1


def test_a_long_queue_doubles_the_replicas_with_pauses() -> None:
    """The number doubles until it is enough, and waits after each growth."""
    state, seen = Replicas(1), []
    for tick in range(7):
        state = step(Scaling(), state, Load(100, 1, 1, 10), tick * GROW_S / 2)
        seen.append(state.wanted)

    assert seen == [2, 2, 4, 4, 8, 8, 10]


def test_the_target_queue_is_no_reason_to_grow() -> None:
    """Two replicas of one slot hold two running and four waiting calls."""
    assert step(Scaling(), Replicas(2), Load(4, 2, 1, 8), 0.0).wanted == 2
    assert step(Scaling(), Replicas(2), Load(5, 2, 1, 8), 0.0).wanted == 3


def test_replicas_shrink_to_the_most_that_were_needed_while_calm() -> None:
    """After `idle_s` without a queue, as many stay as the busiest moment of that time needed."""
    scaling = Scaling(idle_s=10.0)
    state = step(scaling, Replicas(8), Load(0, 1, 1, 8), 0.0)
    state = step(scaling, state, Load(0, 3, 1, 8), 5.0)
    state = step(scaling, state, Load(0, 0, 1, 8), 9.0)
    assert state.wanted == 8
    state = step(scaling, state, Load(0, 0, 1, 8), 10.0)

    assert state.wanted == 3


@pytest.mark.parametrize("load", [Load(1, 0, 1, 8), Load(0, 4, 1, 8)])
def test_a_queue_or_busy_replicas_start_the_wait_again(load: Load) -> None:
    """Calm is counted from the last time when all replicas were of use."""
    scaling = Scaling(idle_s=10.0)
    state = step(scaling, Replicas(4), Load(0, 0, 1, 8), 0.0)
    state = step(scaling, state, load, 9.0)
    state = step(scaling, state, Load(0, 0, 1, 8), 11.0)
    state = step(scaling, state, Load(0, 0, 1, 8), 20.0)

    assert state.wanted == 4


def test_growth_waits_even_when_the_room_is_full() -> None:
    """A queue that cannot be helped leaves the number and its memory alone."""
    state = step(Scaling(max=2), Replicas(2), Load(100, 2, 1, 8), 50.0)

    assert state == Replicas(2)


@given(scalings, st.lists(st.tuples(loads, st.floats(0.0, 50.0)), max_size=40))
def test_the_number_stays_within_its_bounds(
    scaling: Scaling, history: list[tuple[Load, float]]
) -> None:
    """Whatever happens, it is between min and max, and never more than there is room for."""
    state, now = Replicas(), 0.0
    for load, later_s in history:
        now += later_s
        before = scaling.bound(state.wanted, load.room)
        state = step(scaling, state, load, now)

        assert scaling.max is not None
        assert min(scaling.min, load.room) <= state.wanted <= min(scaling.max, load.room)
        assert state.wanted <= max(1, 2 * before, scaling.min)
        assert state.wanted >= before or not load.waiting


@given(scalings, loads, st.integers(0, 12))
def test_a_steady_load_settles(scaling: Scaling, load: Load, start: int) -> None:
    """With the same load for ever the number moves one way and then stays: no flapping."""
    state, seen = Replicas(start), []
    for tick in range(60):
        state = step(scaling, state, load, tick * (GROW_S + scaling.idle_s))
        seen.append(state.wanted)

    assert seen[30:] == [seen[30]] * 30
    assert seen in (sorted(seen), sorted(seen, reverse=True))


def test_what_users_write_is_read() -> None:
    """ "auto", a number and a dict, each with its defaults."""
    assert read_scaling("auto") == Scaling(0, None)
    assert read_scaling(3) == Scaling(3, 3)
    assert read_scaling({"min": 1, "max": 4, "target_queue": 3, "idle_s": 5}) == Scaling(
        1, 4, 3.0, 5.0
    )
    assert read_scaling({}) == Scaling()


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("automatic", "'auto'"),
        (True, "number of replicas"),
        (None, "number of replicas"),
        (-1, "from 0"),
        (REPLICAS_MAX + 1, "from 0"),
        ({"maxx": 3}, "did you mean 'max'"),
        ({"zzz": 3}, "target_queue"),
        ({"min": 2.5}, "whole number"),
        ({"min": 3, "max": 2}, "at least 3"),
        ({"max": 0}, "at least 1"),
        ({"idle_s": -1}, "not negative"),
        ({"idle_s": math.nan}, "not negative"),
        ({"target_queue": "two"}, "not negative"),
        ({"target_queue": False}, "not negative"),
    ],
)
def test_what_cannot_be_meant_says_what_can(written: object, says: str) -> None:
    """A mistake is answered where it is made, with a sentence that helps."""
    with pytest.raises(ValueError, match=says):
        read_scaling(written)
