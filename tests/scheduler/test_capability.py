"""What is wanted of a node: how it is said, when it is there, how well, and what is missing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.capability import (
    DEPTH_MAX,
    TEXT_CHARS_MAX,
    WISHES_MAX,
    Effort,
    TooMuch,
    degree,
    lacks,
    matches,
    read_wishes,
)

NODE: dict[str, Any] = {
    "gpu": {"model": "RTX 4090", "memory": "24GB", "count": 2},
    "gpus": [{"model": "A100", "memory": "80GB"}, {"model": "T4", "memory": "16GB"}],
    "specialization": ["deep_learning", "training"],
    "os": "Linux",
    "load": 0.25,
    "zone": -3,
    "battery": False,
    "sensors": [],
    "docker": True,
    "big": 1 << 1500,
    "odd": float("inf"),
    "nothing": None,
}
TAGS = ["lab-a", "fast"]


def has(wanted: Any) -> bool:
    return matches(read_wishes(wanted), NODE, TAGS)


@pytest.mark.parametrize(
    "wanted",
    [
        "lab-a",
        "training",
        "TRAINING",
        "gpu",
        "gpu.memory",
        "docker",
        "os:linux",
        "gpu.model:RTX 4090",
        "gpu.memory:24GB",
        "gpu.memory:>=16GB",
        "gpu.count:2",
        ["training", "gpu", ["fast"]],
        [],
        {},
        {"gpu": {"memory": ">=16GB"}},
        {"gpu": {"memory": "24000000000"}},
        {"gpu.memory": ">=16GiB", "os": "linux"},
        {"gpu": {}},
        {"gpu": []},
        {"gpu": True},
        {"docker": True, "battery": False, "sensors": False, "fpga": False, "nothing": None},
        {"gpus": {"model": "T4", "memory": "<=16GB"}},
        {"specialization": ["training", "deep_learning"]},
        {"specialization": ("training",)},
        {"load": "<0.5", "zone": "-3", "gpu.count": 2},
        {"zone": "<0", "load": 0.25},
        {"os": "!=windows", "gpu.count": "!=3", "load": "==0.25"},
        {"docker": "true"},
    ],
)
def test_a_node_has_what_it_declares(wanted: Any) -> None:
    """Every way to say it finds what is there."""
    assert has(wanted)
    assert lacks(read_wishes(wanted), NODE, TAGS) == []
    assert degree(read_wishes(wanted), NODE, TAGS) > 0.0


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        ("quantum", "no 'quantum'"),
        ("battery", "no 'battery'"),
        ("nothing", "no 'nothing'"),
        ("gpu.model:A100", "gpu.model is 'RTX 4090', not A100"),
        ("fpga:yes", "no fpga"),
        ({"gpu": {"memory": ">=32GB"}}, "gpu.memory is '24GB', not >=32GB"),
        ({"gpu": {"memory": ">24GB"}}, "gpu.memory is '24GB', not >24GB"),
        ({"gpu": {"memory": "<24GB"}}, "gpu.memory is '24GB', not <24GB"),
        ({"gpu": {"speed": {"mhz": 3}}}, "no gpu.speed"),
        ({"gpu": {"model": {"name": "x"}}}, "gpu.model is 'RTX 4090', without name x"),
        ({"gpu": {"count": {}, "fans": {}}}, "no gpu.fans"),
        ({"gpus": {"model": "T4", "memory": ">=32GB"}}, "gpus is ["),
        ({"os": {"kernel": {"major": 6}, "x": {}}}, "os is 'Linux', without kernel major 6, x"),
        ({"os": ">=3"}, "os is 'Linux', not >=3"),
        ({"os": "!=LINUX"}, "os is 'Linux', not !=LINUX"),
        ({"gpu": "RTX 4090"}, "gpu is {"),
        ({"gpu": False}, "gpu is {"),
        ({"fpga": True}, "no fpga"),
        ({"fpga": {}}, "no fpga"),
        ({"sensors": "camera"}, "sensors is [], not camera"),
        ({"load": "==0.5"}, "load is 0.25, not ==0.5"),
        ({"big": 3}, "big is "),
        ({"odd": ">3"}, "odd is inf, not >3"),
        ({"nothing": "x"}, "nothing is None, not x"),
        ({"os.version": "5"}, "no os.version"),
    ],
)
def test_what_is_missing_is_named(wanted: Any, missing: str) -> None:
    """A near miss says which value there is instead of which."""
    assert not has(wanted)
    assert degree(read_wishes(wanted), NODE, TAGS) == 0.0
    (line,) = lacks(read_wishes(wanted), NODE, TAGS)
    assert line.startswith(missing)


def test_of_several_wishes_only_those_that_fail_are_named() -> None:
    """What a node has is no news."""
    wishes = read_wishes(["training", {"gpu": {"memory": ">=32GB", "model": "A100"}}, "tpu"])

    assert lacks(wishes, NODE) == [
        "gpu.memory is '24GB', not >=32GB",
        "gpu.model is 'RTX 4090', not A100",
        "no 'tpu'",
    ]


def test_one_entry_of_a_list_must_fulfil_all_constraints() -> None:
    """Memory of one device and the model of another are no device."""
    assert has({"gpus": {"model": "A100", "memory": ">=32GB"}})
    assert not has({"gpus": {"model": "T4", "memory": ">=32GB"}})


def test_exactly_what_was_named_comes_before_more_of_it() -> None:
    """As a preference: the same value 1, one of several or a larger one 0.75, none 0; the mean."""
    wishes = read_wishes({"gpu": {"memory": ">=16GB"}, "specialization": "training"})
    small = {"gpu": {"memory": "16GB"}, "specialization": ["training"]}
    both = {"gpu": {"memory": "80GB"}, "specialization": ["training", "chess"]}
    half = {"gpu": {"memory": "80GB"}}

    assert [degree(wishes, one) for one in (small, both, half, {})] == [1.0, 0.75, 0.375, 0.0]
    assert degree(read_wishes({}), {}) == 1.0


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (3, "a text, a list of texts, or a map"),
        (b"gpu", "a text, a list of texts, or a map"),
        ("  ", "not empty"),
        ({"": 1}, "a text as its key"),
        ({3: 1}, "a text as its key"),
        ({"gpu": float("nan")}, "finite number"),
        ({"gpu": 1 << 1200}, "finite number"),
        ({"gpu": object()}, "a text or a number"),
        ({"gpu": [b"x"]}, "a text or a number"),
        ({"gpu": b"x"}, "a text or a number"),
        ({"gpu.memory": ">=lots"}, 'write ">=16GB"'),
        ({"gpu.memory": "=>16GB"}, 'write ">=16GB"'),
        ("x" * (TEXT_CHARS_MAX + 1), f"at most {TEXT_CHARS_MAX} characters"),
        ({"x" * (TEXT_CHARS_MAX + 1): 1}, f"at most {TEXT_CHARS_MAX} characters"),
        (["a"] * (WISHES_MAX + 1), "more than"),
        ({"a": ["b"] * WISHES_MAX}, "more than"),
    ],
)
def test_what_nobody_can_mean_is_refused_with_a_sentence(wanted: Any, says: str) -> None:
    """Reading says how a capability is written, and bounds what it takes."""
    with pytest.raises(ValueError, match=says):
        read_wishes(wanted)


def test_depth_is_bounded() -> None:
    """A caller cannot make us recurse as deep as it likes."""
    deep: Any = "x"
    for _ in range(DEPTH_MAX + 2):
        deep = {"a": deep}

    with pytest.raises(ValueError, match="deep"):
        read_wishes(deep)


def test_work_is_bounded_over_all_nodes_of_a_call() -> None:
    """Long lists against long lists end in an error, not in hours."""
    wishes = read_wishes({"a": [f"v{i}" for i in range(90)]})
    node = {"a": ["w"] * 200 + [f"v{i}" for i in range(90)]}
    effort = Effort(1000)

    with pytest.raises(TooMuch):
        matches(wishes, node, (), effort)
    with pytest.raises(TooMuch):
        matches(read_wishes("x"), {}, ["t"] * 10, Effort(5))
    assert matches(wishes, node)


def test_equal_wishes_are_equal_keys() -> None:
    """What was read tells requests apart, whatever they were read from."""
    assert hash(read_wishes(["a", {"b": 1}])) == hash(read_wishes(("a", {"b": 1})))
    assert read_wishes({"b": 1}) != read_wishes({"b": 2})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)


@given(wanted=plain, node=st.dictionaries(st.text(max_size=4), plain), tags=st.lists(st.text()))
def test_filter_grade_and_explanation_agree(wanted: Any, node: Any, tags: list[str]) -> None:
    """A node fulfils all wishes exactly if nothing is missing, and grades lie in [0, 1]."""
    try:
        wishes = read_wishes(wanted)
    except ValueError:
        return
    met = matches(wishes, node, tags)

    assert met == (not lacks(wishes, node, tags))
    assert 0.0 <= degree(wishes, node, tags) <= 1.0
    assert not met or degree(wishes, node, tags) >= 0.75
