"""Options of calls as strangers send them: read once, bounded, equal demands are equal keys."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.gateway.demands import (
    HEEDED,
    NO_DEMAND,
    REMEMBERED_MAX,
    BadDemand,
    Demand,
    Demands,
    read_options,
)
from easyremote.scheduler.capability import read_wishes
from easyremote.scheduler.policy import ScoreWeights
from easyremote.scheduler.scaling import Scaling

GB = 10**9


def read(options: dict[str, Any]) -> Demand:
    demand = read_options(options)
    assert demand is not None
    return demand


@pytest.mark.parametrize(
    "options", [{}, {"attempt": 2}, {"optimization": "auto"}, {"priority": 0}, {"memory": None}]
)
def test_a_call_that_asks_for_nothing_has_no_demand(options: dict[str, Any]) -> None:
    """Most calls cost nothing here."""
    assert read_options(options) is None


def test_all_that_matters_is_in_the_demand() -> None:
    """Wishes, amounts, priority, strategy and bounds are read from their plain form."""
    demand = read(
        {
            "capability": {"gpu": {"memory": ">=16GB"}}, "prefer": {"zone": "eu"},
            "num_cpus": 2, "num_gpus": 1.0, "gpu_memory": 16 * GB, "memory": "4GB",
            "resources": {"tpu": 1, "disk": "1GB", "gpu_model": "A100"}, "priority": -3,
            "load_balancing": "least_loaded", "scaling": {"min": 1, "max": 4}, "attempt": 1,
        }
    )  # fmt: skip
    needs = demand.needs()

    assert demand.wishes == read_wishes({"gpu": {"memory": ">=16GB"}})
    assert demand.prefers == read_wishes({"zone": "eu"})
    assert (needs.cpus, needs.gpus, needs.gpu_memory_bytes) == (2.0, 1.0, 16 * GB)
    assert (needs.memory_bytes, needs.disk_bytes, needs.gpu_model) == (4 * GB, GB, "a100")
    assert needs.custom == (("tpu", 1.0),)
    assert (demand.priority, demand.scaling) == (-3, Scaling(1, 4))
    assert demand.policy is not None
    assert demand.policy.name == "least_loaded"


def test_the_larger_of_two_demands_is_reserved() -> None:
    """A call may ask for more than its function, and does not make it less."""
    demand = read({"num_cpus": 4, "memory": GB})
    needs = demand.needs({"cpu": 2, "memory": "2GB", "gpu_memory": "8GB"})

    assert (needs.cpus, needs.memory_bytes, needs.gpu_memory_bytes) == (4.0, 2 * GB, 8 * GB)
    assert read({"priority": 1}).needs({"cpu": 2}).cpus == 2.0


def test_equal_demands_are_one_key() -> None:
    """In whatever order a caller says it, the same is the same queue."""
    one = read({"num_cpus": 1, "resources": {"a": 1, "b": 2}})
    two = read({"resources": {"b": 2.0, "a": 1.0}, "num_cpus": 1.0})

    assert one == two
    assert hash(one) == hash(two)
    assert {one: 1}[two] == 1


def test_weights_of_a_callers_own_and_scaling_auto() -> None:
    """A strategy is named or weighed; `auto` leaves the bounds to the function."""
    demand = read({"load_balancing": {"latency": 1.0, "load": 0}, "scaling": "auto"})

    assert demand.policy is not None
    assert demand.policy.weights == ScoreWeights(latency=1.0, load=0)
    assert demand.scaling == Scaling()


def test_what_was_read_is_remembered_and_true_is_not_one() -> None:
    """The same words are read once; words that only look equal to Python are not the same."""
    demands = Demands()
    flag, number = {"capability": {"gpu": True}}, {"capability": {"gpu": 1}}

    assert demands.read(flag) is demands.read({**flag, "attempt": 2})
    assert demands.read(flag) == read_options(flag) != demands.read(number)
    assert demands.read({}) is None
    assert demands.read({"attempt": 3}) is None
    assert demands.read({"priority": 0}) is None
    with pytest.raises(BadDemand):
        demands.read({"priority": "high"})


def test_memory_for_what_was_read_is_bounded() -> None:
    """Neither many nor long options of strangers stay."""
    demands = Demands()
    for number in range(2 * REMEMBERED_MAX + 10):
        demands.read({"num_cpus": number + 1})
        assert len(demands._known) <= REMEMBERED_MAX
    known = len(demands._known)
    long = {"capability": ["x" * 200, "y" * 200, "z" * 200]}

    assert demands.read(long) == demands.read(long) == read_options(long)
    assert len(demands._known) == known


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"capability": 3}, "a text, a list of texts, or a map"),
        ({"capability": {"gpu": ">=lots"}}, "write"),
        ({"prefer": [[[[[[[[[["x"]]]]]]]]]]}, "deep"),
        ({"num_gpus": 1.5}, "a fraction of one device or a whole number"),
        ({"num_gpus": 1000}, "64 GPUs at most"),
        ({"num_cpus": -1}, "num_cpus is an amount"),
        ({"num_cpus": float("nan")}, "num_cpus is an amount"),
        ({"num_cpus": 1 << 5000}, "num_cpus is an amount"),
        ({"num_cpus": [1]}, "num_cpus is an amount"),
        ({"memory": "16 GBB"}, "did you mean"),
        ({"memory": "<8GB"}, "reserves nothing"),
        ({"memory": "9" * 129}, "memory is an amount"),
        ({"resources": [1]}, "resources is a map"),
        ({"resources": {f"r{i}": 1 for i in range(33)}}, "at most 32"),
        ({"resources": {3: 1}}, "no resource is called 3"),
        ({"resources": {"": 1}}, "no resource is called ''"),
        ({"resources": {"x" * 65: 1}}, "no resource is called"),
        ({"resources": {"resources": {"x": 1}}}, "no resource is called 'resources'"),
        ({"resources": {"memory": 1}, "memory": 2}, "asked for twice"),
        ({"priority": 1.5}, "priority is a whole number"),
        ({"priority": True}, "priority is a whole number"),
        ({"priority": 1001}, "priority is a whole number"),
        ({"load_balancing": "lest_loaded"}, "did you mean 'least_loaded'"),
        ({"load_balancing": 3}, "the name of a strategy"),
        ({"load_balancing": {"speed": 1}}, "the name of a strategy"),
        ({"load_balancing": {"load": "1"}}, "the name of a strategy"),
        ({"load_balancing": {"load": -1}}, "the weight of load"),
        ({"scaling": [3]}, 'scaling is "auto", a number'),
        ({"scaling": "automatic"}, "auto"),
        ({"scaling": {"most": 3}}, "most"),
        ({"scaling": {"max": "3"}}, "max"),
        ({"scaling": {"min": 3, "max": 2}}, "at least 3"),
    ],
)
def test_what_is_wrong_is_refused_with_a_sentence(options: dict[str, Any], says: str) -> None:
    """The caller hears which option it is, and how it is written."""
    with pytest.raises(BadDemand, match=says):
        read_options(options)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(options=st.dictionaries(st.sampled_from(sorted(HEEDED)), plain, max_size=3))
def test_whatever_comes_is_a_demand_or_refused(options: dict[str, Any]) -> None:
    """No plain data makes it fail otherwise, and what is read can be hashed and reserved."""
    try:
        demand = read_options(options)
    except BadDemand:
        return
    assert demand is None or (hash(demand), demand.needs(), demand != NO_DEMAND)[2]
