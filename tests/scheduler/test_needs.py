"""What users write about resources."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.model import (
    NO_NEEDS,
    Device,
    Needs,
    Placement,
    Rejection,
    Resources,
    Scores,
    Unplaceable,
)
from easyremote.scheduler.needs import CUSTOM_MAX, GPUS_MAX, read_needs, read_resources

from .cluster import GB


def test_functions_and_calls_name_the_same_things() -> None:
    """Every spelling of a key is understood, and of two demands the larger one counts."""
    needs = read_needs(
        {"gpu_memory": ">=16GB", "cpu": 2, "memory": "1GB", "fpga": 1},
        {"num_cpus": 4, "memory": "512MB", "num_gpus": 2, "resources": {"fpga": 2, "disk": "1GB"},
         "timeout": 3, "gpu_model": None},
    )  # fmt: skip

    assert needs == Needs(4, GB, GB, 2, 16 * GB, "", (("fpga", 2.0),))
    assert needs.shown() == ("cpu 4, memory 1 GB, disk 1 GB, gpu 2, gpu_memory 16 GB, fpga 2")
    assert hash(needs) == hash(needs) and needs and not NO_NEEDS


@pytest.mark.parametrize("nothing", [None, {}, {"num_gpus": 0}, {"gpu": False}])
def test_nothing_is_needed_unless_somebody_says_so(nothing: dict[str, Any] | None) -> None:
    """No demand, and demands of nothing, are the same needs."""
    assert read_needs(nothing) == NO_NEEDS
    assert read_needs(None, nothing) == NO_NEEDS
    assert NO_NEEDS.shown() == "nothing"


def test_memory_or_model_of_a_gpu_implies_one() -> None:
    """Who wants a GPU's memory wants a GPU; the longer of two names of a model counts."""
    assert read_needs({"gpu_memory": "1GB"}).gpus == 1.0
    assert read_needs({"gpu_model": "a100"}, {"gpu_model": "A100-80GB"}) == Needs(
        gpus=1.0, gpu_model="a100-80gb"
    )
    assert read_needs({"gpu_model": "A100"}).shown() == "gpu 1, gpu_model a100"


def test_devices_and_shares() -> None:
    """A count takes devices whole, a fraction a part of one, and memory shares them."""
    alone, part, shared = Needs(gpus=2.0), Needs(gpus=0.5), Needs(gpus=1.0, gpu_memory_bytes=GB)

    assert [(one.devices, one.share) for one in (alone, part, shared, NO_NEEDS)] == [
        (2, 1.0), (1, 0.5), (1, 0.0), (0, 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given_", "sentence"),
    [
        ({"gpu_memory": "16 gigs"}, "gpu_memory is written as"),
        ({"gpu_memory": "<16GB"}, "reserves nothing"),
        ({"gpu": 1.5}, "a fraction of one device or a whole number"),
        ({"gpu": GPUS_MAX + 1}, "GPUs at most"),
        ({"gpu_model": 3}, "gpu_model is text"),
        ({"gpu_modle": "A100"}, "did you mean gpu_model"),
        ({"zzzzzz": "A100"}, "zzzzzz is a number"),
        ({"resources": "two"}, "resources is a map"),
        ({f"r{n}": 1 for n in range(CUSTOM_MAX + 1)}, "kinds of resources"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(
    given_: dict[str, Any], sentence: str
) -> None:
    """Errors say what is wrong, and what was probably meant."""
    with pytest.raises(ValueError, match=sentence):
        read_needs(given_)


def test_two_models_cannot_both_be_wanted() -> None:
    """A call that wants another GPU than its function has is a mistake."""
    with pytest.raises(ValueError, match="the function runs on a a100"):
        read_needs({"gpu_model": "A100"}, {"gpu_model": "H100"})


def test_declared_resources_are_read() -> None:
    """The known keys of `capabilities` are understood, whatever else there is."""
    read = read_resources(
        {
            "gpu": {"model": "RTX 4090", "memory": "24GB", "count": 2},
            "cpu": {"cores": 8, "threads": 16}, "memory": "64GB", "disk": "1TB",
            "resources": {"fpga": 2, "bad": "x", 3: 4}, "specialization": ["training"],
        }
    )  # fmt: skip

    assert read == Resources(
        16.0, 64 * GB, 1000 * GB,
        (Device(0, "RTX 4090", 24 * GB), Device(1, "RTX 4090", 24 * GB)), {"fpga": 2.0},
    )  # fmt: skip


def test_devices_that_are_listed_are_those_that_may_be_used() -> None:
    """A node lists what its owner lets calls use, with models that samples do not repeat."""
    declared = read_resources(
        {"gpu": {"devices": [
            {"index": 1, "model": "A100", "memory": "80GiB", "memory_bytes": 80 * GB},
            {"index": 2, "model": "A100"}, {"index": "3"}, "x",
        ]}}
    )  # fmt: skip
    assert declared.devices == (Device(1, "A100", 80 * GB), Device(2, "A100", 0))
    found = Resources(devices=(Device(0, "", 80 * GB), Device(1, "", 79 * GB), Device(2, "B", 1)))

    assert declared.over(found)[0].devices == (Device(1, "A100", 79 * GB), Device(2, "B", 1))
    assert read_resources({"gpu": {"devices": []}}).over(found)[0].devices == ()
    free = read_resources({"gpu": {"model": "A100", "memory": "80GB"}})
    assert free.over(found)[0].devices == (Device(0, "A100", 80 * GB), *(found.devices or ())[1:])


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=5)),
        lambda inner: st.dictionaries(
            st.sampled_from(["cpu", "gpu", "memory", "count", "cores", "resources", "devices"]),
            inner,
        ),
        max_leaves=8,
    )
)
def test_no_declaration_breaks_the_reader(tree: Any) -> None:
    """What a node declares is never an error."""
    read = read_resources(tree if isinstance(tree, dict) else {"gpu": tree, "cpu": tree})

    assert read.devices is None or len(read.devices) <= GPUS_MAX


def test_a_declaration_adds_what_was_not_detected_and_changes_nothing_else() -> None:
    """Detected values count; a declaration that is larger is named, one without GPUs is none."""
    declared = Resources(16.0, 64 * GB, None, (Device(0, "A", 24 * GB),) * 2, {"fpga": 1.0})
    found = Resources(8.0, None, 10 * GB, (Device(0, "A", 16 * GB),))

    assert declared.over(found) == (
        Resources(8.0, 64 * GB, 10 * GB, found.devices, {"fpga": 1.0}),
        ("cpu", "gpu", "gpu_memory"),
    )
    assert declared.over(Resources()) == (declared, ())
    assert Resources(8.0, devices=(Device(0, "A", 16 * GB),)).over(found)[1] == ()
    blind = Resources(devices=())
    assert declared.over(blind) == (declared, ("gpu", "gpu_memory"))
    assert Resources().over(blind)[0].devices == ()
    assert Resources().over(found) == (found, ())


def test_rejections_and_placements_are_shown() -> None:
    """People read sentences, programs plain data."""
    assert Rejection("full").shown() == "full"
    assert Rejection("lacks", "gpu", 2.0, 0).shown() == "has no gpu left (want 2)"
    assert Rejection("lacks", "cpu", 2.0).shown() == ("has not said how much cpu it has (want 2)")
    assert Rejection("lacks", "gpu_model", "a100", "RTX 4090", never=True).shown() == (
        "has RTX 4090 gpu_model (want a100)"
    )
    placed = Placement(
        "a", Scores(1.0, 1.0, 1.0, 1.0), 1.0, {"load": 0.3}, (0,), 2, {"b": Rejection("full")}
    )

    assert placed.as_data() == {
        "node_id": "a", "total": 1.0, "weights": {"load": 0.3}, "gpus": [0], "candidates": 2,
        "scores": {"resources": 1.0, "latency": 1.0, "load": 1.0, "capability": 1.0, "cheap": 1.0,
                   "ahead": 0.0, "slow": 0.0, "doubt": 0.0},
        "excluded": {"b": "full"},
    }  # fmt: skip
    assert not Unplaceable({}).never
    assert not Unplaceable({"a": Rejection("full")}).never
    assert Unplaceable({"a": Rejection("lacks", never=True)}).never
