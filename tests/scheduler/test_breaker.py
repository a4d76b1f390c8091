"""The breaker: its table, and that a node which fails gets fewer calls, then none, then a probe."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.breaker import (
    OPEN_MAX_S,
    OPEN_S,
    TABLE,
    Breaker,
    Input,
    State,
)
from easyremote.scheduler.host import Host
from easyremote.scheduler.place import Places

from .cluster import host, place, pool, sample


def state(one: Breaker) -> State:
    """Read it anew: type checkers believe that it stays what it was compared with."""
    return one.state


def opened(now: float = 0.0) -> Breaker:
    made = Breaker()
    for _ in range(5):
        made.failed(now)
    assert state(made) is State.OPEN
    return made


def test_the_table_is_complete() -> None:
    """Every pair of state and input has an answer."""
    assert set(TABLE) == set(product(State, Input))


def test_one_failure_is_doubt_and_five_are_open() -> None:
    """Few failures cost score; many among few calls cost all traffic."""
    made = Breaker()
    made.failed(0.0)
    assert state(made) is State.CLOSED and 0.0 < made.doubt(0.0) <= 0.25
    for _ in range(3):
        made.failed(0.0)
    assert state(made) is State.CLOSED
    made.failed(0.0)
    assert state(made) is State.OPEN and made.doubt(0.0) > 0.5


def test_failures_among_many_successes_do_not_open() -> None:
    """A busy node may lose some calls of many."""
    made = Breaker()
    for _ in range(100):
        made.succeeded(0.0)
    for _ in range(20):
        made.failed(0.0)

    assert state(made) is State.CLOSED


def test_old_failures_fade() -> None:
    """What happened long ago is no reason any more."""
    made = Breaker()
    for _ in range(4):
        made.failed(0.0)
    doubt = made.doubt(0.0)
    assert made.doubt(30.0) < doubt
    assert made.doubt(3600.0) < 0.001
    made.failed(3600.0)
    assert state(made) is State.CLOSED


def test_a_probe_decides() -> None:
    """After its time it is probed: success closes, failure opens for twice as long, to a bound."""
    made = opened()
    assert not made.tick(OPEN_S - 0.1)
    assert made.tick(OPEN_S) and state(made) is State.PROBING
    assert not made.tick(OPEN_S)
    made.failed(OPEN_S)
    assert state(made) is State.OPEN and made.open_s == 2 * OPEN_S
    made.succeeded(OPEN_S)  # Given before it opened.
    assert state(made) is State.OPEN
    now = OPEN_S
    for _ in range(10):
        now += made.open_s
        assert made.tick(now)
        made.failed(now)
    assert made.open_s == OPEN_MAX_S
    made.tick(now + OPEN_MAX_S)
    made.succeeded(now + OPEN_MAX_S)
    assert state(made) is State.CLOSED
    for _ in range(5):
        made.failed(now + OPEN_MAX_S)
    assert made.open_s == OPEN_S


def test_answers_that_come_far_later_than_claimed_are_failures() -> None:
    """A node that says a millisecond and takes a minute is found out; a slow second is none."""
    made = Breaker()
    made.succeeded(0.0, 0.9, 0.001)
    made.succeeded(0.0, 60.0, 20.0)
    made.succeeded(0.0, 60.0)
    assert made.late == 0
    for _ in range(5):
        made.succeeded(0.0, 60.0, -1.0)
    assert made.late == 5 and state(made) is State.OPEN


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=40))
def test_doubt_is_a_share_and_no_breaker_stays_open(steps: list[tuple[bool, float]]) -> None:
    """Whatever was seen, a node is probed within a bounded time."""
    made, now = Breaker(), 0.0
    for good, passed in steps:
        now += passed
        if good:
            made.succeeded(now)
        else:
            made.failed(now)
        assert 0.0 <= made.doubt(now) <= 1.0
    made.tick(now + OPEN_MAX_S)
    assert state(made) is not State.OPEN


def served(asked: Places, bad: Host, calls: int, now: float) -> int:
    """Calls that a failing node gets of some, one after the other."""
    got = 0
    for uses in range(calls):
        chosen = asked.choose()
        assert chosen is not None
        chosen.take(int(now * 1000) + uses + 1)
        chosen.release()
        if chosen.host is bad:
            got += 1
            bad.failed(now)
        else:
            chosen.host.succeeded(now)
    return got


def test_a_node_that_fails_loses_traffic_and_gets_it_back() -> None:
    """Few of many calls are lost to it; when it is well again, one call shows that."""
    places = [place(n, 4) for n in "abc"]
    asked, bad = pool(*places), places[0].host

    assert served(asked, bad, 100, 0.0) <= 5
    for _ in range(5):
        bad.failed(1.0)
    assert bad.shut and bad.health == "unhealthy"
    assert served(asked, bad, 50, 2.0) == 0
    for one in places:
        one.host.heard(sample(), 1.0 + OPEN_S)
    assert bad.tick(1.0 + OPEN_S) or bad.probing
    assert not bad.shut and bad.probing and bad.health == "degraded"
    places[0].take(1)
    assert asked.choose() is not places[0]
    places[0].release()
    bad.succeeded(1.0 + OPEN_S)
    assert bad.breaker.state is State.CLOSED and not bad.probing


def test_ticking_says_when_a_node_may_be_asked_again() -> None:
    """The gateway then fills it with what waits."""
    one = host()
    for _ in range(5):
        one.failed(0.0)
    assert one.shut
    assert not one.tick(1.0)
    assert one.tick(OPEN_S)
    quiet = host()
    quiet.tick(60.0)
    assert quiet.shut and quiet.health == "unhealthy"
    quiet.heard({}, 61.0)
    assert not quiet.shut and quiet.health == "healthy"
    quiet.heard(sample(free=0.01), 62.0)
    assert quiet.health == "degraded"
    assert not quiet.tick(62.5)
    quiet.tick(67.0)
    assert 0.0 < quiet.doubt < 1.0
    quiet.succeeded(67.0)
    assert quiet.doubt > 0.0
