"""Reasons: counted, kept small, and written when somebody asks; and a decision by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.explain import (
    NAMED_MAX,
    Reasons,
    infeasible,
    offers,
    placement,
    sentence,
    why_not,
)
from easyremote.scheduler.filter import Request, rejection
from easyremote.scheduler.host import Host
from easyremote.scheduler.model import NO_NEEDS, Needs, Rejection, Unplaceable
from easyremote.scheduler.policy import DEFAULT, STRATEGIES, Policy, ScoreWeights, read_policy
from easyremote.scheduler.score import cheap, latency, load, resources, share

from .cluster import GB, gpu, host, place, pool, sample

rejections = st.builds(
    Rejection,
    st.sampled_from(["full", "lacks"]),
    st.sampled_from(["", "gpu"]),
    st.sampled_from([0.0, 1.0, "a100"]),
    st.one_of(st.none(), st.floats(allow_nan=False), st.text(max_size=3)),
    st.booleans(),
)


@given(st.dictionaries(st.text(max_size=3), rejections))
def test_reasons_are_kept_as_they_were(reasons: dict[str, Rejection]) -> None:
    """The arrays give back what was put in; of several places of one node the first counts."""
    kept = Reasons([*reasons.items(), *reasons.items()])

    assert dict(kept) == reasons and len(kept) == len(reasons)


def test_a_call_that_runs_nowhere_says_why_in_one_line() -> None:
    """Equal reasons are counted, the most frequent first, with the best offer."""
    needs = Needs(gpus=1.0, gpu_memory_bytes=20 * GB)
    small = [place(f"s{n}", gpus=[gpu(total=8 * GB)]) for n in range(3)]
    silent = place("silent", gpus=[gpu()])
    silent.host.tick(60.0)
    for one in small:
        one.host.heard({}, 60.0)
    found = why_not([*small, silent], needs)

    assert sentence(found, 5) == (
        "1 of 5 nodes: 3 lack gpu_memory (want 20 GB; the most is 8 GB), 1 stale"
    )
    assert not found.never
    assert sentence(why_not([small[0]], needs)) == (
        "0 of 1 node: 1 lacks gpu_memory (want 20 GB; the most is 8 GB)"
    )
    assert sentence(why_not([])) == "0 of 0 nodes: none known"


def test_what_is_left_now_is_told_from_what_there_is() -> None:
    """A node that has enough, but not now, says what it has left."""
    one = place("a", 4)
    assert one.host.reserve(Needs(cpus=7.0)) is not None
    needs = Needs(cpus=4.0)

    assert (
        sentence(why_not([one], needs)) == "0 of 1 node: 1 lacks cpu (want 4; the most is 1 left)"
    )
    assert one.host.reserve(Needs(cpus=1.0)) is not None
    assert sentence(why_not([one], needs)) == (
        "0 of 1 node: 1 lacks cpu (want 4; the most is nothing left)"
    )
    unheard = place("b")
    unheard.host.restarted()
    assert sentence(why_not([unheard], needs)) == "0 of 1 node: 1 lacks cpu (want 4)"


def test_what_no_node_can_ever_run_is_told_with_each_offer() -> None:
    """Each node is named with what it has; one that may be enough, or is unknown, is waited for."""
    needs = Needs(gpus=1.0, gpu_memory_bytes=16 * GB)
    small = [host(f"n{n:02}", gpus=[gpu(total=8 * GB)]) for n in range(NAMED_MAX)]
    found = infeasible(small, needs)
    assert found is not None and found.never
    assert offers(found)[0] == "n00 has 8 GB gpu_memory (want 16 GB)"
    assert len(offers(found)) == NAMED_MAX

    none = host("none")
    found = infeasible([*small, none], needs)
    assert found is not None
    assert offers(found)[-1] == "and 1 more"
    assert sentence(found).startswith("0 of 9 nodes: 9 lack gpu_memory (want 16 GB")
    assert infeasible([*small, host("large", gpus=[gpu()])], needs) is None
    assert infeasible([*small, Host("unheard")], needs) is None
    assert infeasible([], needs) is None
    assert infeasible(small, NO_NEEDS) is None
    assert offers(Unplaceable({"a": Rejection("full")})) == ["a is full"]


def test_a_decision_can_be_recomputed_by_hand() -> None:
    """The four scores follow from shown numbers, and their weighted sum is the total."""
    a, b, c = place("a", 4, 1, cpu=25.0, free=0.5), place("b", 4, 4), place("c", 4, cpu=100.0)
    a.host.saw_rtt(0.025)
    a.learn(0.025)
    c.learn(1.0)
    asked = pool(a, b, c)
    chosen = asked.choose()
    assert chosen is a
    told = placement(asked, chosen)

    # One call that was not in the sample takes one of eight processors: 1 - 0.25 - 0.125.
    assert told.scores.resources == pytest.approx((0.625 + 0.5) / 2)
    assert told.scores.latency == pytest.approx(1 / (1 + (0.025 + 0.025) / 0.05), abs=1e-12)
    assert told.scores.load == 0.75
    assert told.scores.capability == 1.0
    assert told.scores.slow == pytest.approx(math.log2(1 + 0.025 / 0.05))
    four = 0.3 * 0.5625 + 0.2 * 0.5 + 0.3 * 0.75 + 0.2 * 1.0
    assert told.total == pytest.approx(four - 0.6 * math.log2(1.5))
    assert (told.candidates, dict(told.excluded)) == (2, {"b": Rejection("full")})
    assert told.weights["load"] == 0.3


def test_a_decision_names_its_devices() -> None:
    """Before the reservation those that it will get, afterwards those that it has."""
    needs = Needs(gpus=1.0, gpu_memory_bytes=16 * GB)
    one, two = place("a", 4, gpus=[gpu(0), gpu(1)]), place("b", 4)
    asked = pool(one, two, needs=needs)
    assert placement(asked, one).devices == (0,)
    reservation = one.host.reserve(needs)
    assert placement(asked, one, reservation).devices == (0,)
    told = placement(asked, one)
    assert told.devices == (1,) and told.excluded["b"].key == "gpu_memory"
    one.host.reserve(needs)
    assert placement(asked, one).devices == ()


def test_filters_are_asked_in_the_order_that_helps_most() -> None:
    """What never fits comes before what does not fit now."""
    one = place("a", 1, 1)
    never, now = Needs(cpus=9.0), Needs(cpus=8.0)
    one.host.reserve(Needs(cpus=1.0))
    assert rejection(one, Request(never, {"a"})) == Rejection("lacks", "cpu", 9.0, 8.0, never=True)
    assert rejection(one, Request(now, {"a"})) == Rejection("excluded")
    assert rejection(one, Request(now)) == Rejection("full")
    one.release()
    assert rejection(one, Request(now)) == Rejection("lacks", "cpu", 8.0, 7.0)
    assert rejection(one, Request()) is None
    for _ in range(5):
        one.host.failed(0.0)
    assert rejection(one, Request()) == Rejection("suspect")
    assert rejection(one, Request(desperate=True)) is None
    one.host.tick(5.0)
    one.host.heard(sample(), 5.0)
    one.resize(4)
    assert rejection(one, Request()) is None
    one.take_back()
    assert rejection(one, Request()) == Rejection("suspect")


@given(st.one_of(st.none(), st.floats()), st.one_of(st.none(), st.floats()))
def test_scores_stay_between_0_and_1(first: float | None, second: float | None) -> None:
    """Whatever comes in, no score leaves its range."""
    for value in (
        share(first), resources(first, second), latency(first, second, 0.05),
        load(0 if first is None or not 0 <= first < 1e9 else int(first), 2),
        cheap(0.0 if first is None else first),
    ):  # fmt: skip
        assert 0.0 <= value <= 1.0


def test_policies_are_read() -> None:
    """A name, weights, a policy or a function; anything else says what there is."""
    weights = ScoreWeights(load=1.0)

    def mine(*_: object) -> None:
        return None

    assert read_policy(None) is DEFAULT
    assert read_policy("latency") is STRATEGIES["latency"]
    assert read_policy(weights).weights is weights
    assert read_policy(DEFAULT) is DEFAULT
    assert (read_policy(mine).name, read_policy(mine).chooser) == ("mine", mine)
    with pytest.raises(ValueError, match="did you mean 'round_robin'"):
        read_policy("roundrobin")
    with pytest.raises(ValueError, match="there is no strategy 'xyz'; there are score"):
        read_policy("xyz")
    with pytest.raises(TypeError, match="a strategy is a name"):
        read_policy(3)  # type: ignore[arg-type]
    for bad in (-1.0, float("nan"), 1e7):
        with pytest.raises(ValueError, match="the weight of load"):
            ScoreWeights(load=bad)
    with pytest.raises(ValueError, match="latency_ref_s"):
        Policy(latency_ref_s=0.0)
    with pytest.raises(ValueError, match="epsilon"):
        Policy(epsilon=float("nan"))


def test_a_host_takes_over_what_its_owner_declares() -> None:
    """Declared resources fill what was not detected, and exaggerations are flagged."""
    one = host("a")
    one.declare({"memory": "128GB", "resources": {"fpga": 1}, "price": 0.5})
    assert (one.exceeds, one.price) == (("memory",), 0.5)
    assert one.reserve(Needs(custom=(("fpga", 1.0),))) is not None
    assert one.reserve(Needs(memory_bytes=65 * GB)) is None
    one.declare({"price": "free"})
    assert one.price == 0.0
    unheard = Host("b")
    unheard.declare({"gpu": {"memory": "24GB"}, "cpu": {"cores": 4}})
    reservation = unheard.reserve(Needs(gpus=1.0, cpus=4.0))
    assert reservation is not None and reservation.devices == (0,)
    unheard.restarted()
    unheard.give_back(reservation)
    assert unheard.ledger.cpus == 0.0


def test_round_trips_are_smoothed_and_checked() -> None:
    """A measured time that cannot be changes nothing."""
    one = place("a")
    for rtt_s in (float("nan"), -1.0, 1e9):
        one.host.saw_rtt(rtt_s)
    assert one.host.rtt_s is None
    one.host.saw_rtt(0.1)
    one.host.saw_rtt(0.2)
    assert one.host.rtt_s == pytest.approx(0.125)
    one.take(1)
    one.host.restarted()
    assert one.busy == 0
