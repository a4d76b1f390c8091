"""What a node says, believed with care."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.model import Device
from easyremote.scheduler.telemetry import STALE_AFTER, STALE_SHUT, NodeView

from .cluster import GB, gpu, sample


def view(*samples: dict[str, Any], calls: int = 0) -> NodeView:
    made = NodeView()
    for now, one in enumerate(samples):
        made.fold(one, float(now), calls)
    return made


def test_a_sample_is_taken_over_and_changes_alone_are_enough() -> None:
    """Keys that are not in a sample are as before."""
    made = view(sample(cpu=50.0, free=0.25), {"cpu_percent": 100.0}, {})

    assert made.cpu_used == 0.875  # 0.5, then half the way to 1.0 twice: 0.75, 0.875.
    assert made.memory_free == 0.25
    assert (made.cpus, made.invalid, made.sampled_at) == (8.0, 0, 2.0)
    assert made.bytes_of("disk_free_bytes") == 500 * GB
    assert made.devices == () and made.gpu_used is None


def test_two_samples_after_a_jump_three_quarters_are_seen() -> None:
    """A load that appears counts for most within two intervals."""
    made = view(sample(), sample(cpu=100.0), sample(cpu=100.0))

    assert made.cpu_used == 0.75


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 1e300, "50", None, True, [50]])
def test_a_number_that_cannot_be_is_forgotten_with_the_one_before(bad: Any) -> None:
    """Nobody keeps a good number by sending nonsense after it; the next good one counts."""
    made = view(sample(), {"cpu_percent": bad, "memory_available_bytes": bad})

    assert made.cpu_used is None and made.memory_free is None
    assert made.invalid == 2
    made.fold({"cpu_percent": 10.0, "memory_percent": 40.0}, 3.0, 0)
    assert made.cpu_used == 0.1 and made.memory_free == pytest.approx(0.6)


def test_more_free_than_there_is_cannot_be() -> None:
    """Parts are at most their whole."""
    made = view(sample(), {"memory_available_bytes": 65 * GB, "disk_free_bytes": 1001 * GB})

    assert made.memory_free is None and made.bytes_of("disk_free_bytes") is None
    assert made.invalid == 2


def test_counters_only_grow() -> None:
    """One that falls is counted as a lie, and begins anew."""
    made = view({"net_sent_bytes": 10}, {"net_sent_bytes": 5}, {"net_sent_bytes": 6})

    assert made.invalid == 1 and made.bytes_of("net_sent_bytes") == 6
    made.restarted()
    made.fold({"net_sent_bytes": 0}, 9.0, 0)
    assert made.invalid == 1


def test_a_whole_sample_says_all_there_is() -> None:
    """What it does not name is unknown from then on; counters go on growing."""
    made = view(sample(gpus=[gpu()], net_sent_bytes=9), {"full": True, "net_sent_bytes": 5})

    assert (made.cpu_used, made.memory_free, made.devices, made.invalid) == (None, None, None, 1)
    made.fold({"full": True, **sample(gpus=[gpu()])}, 3.0, 0)
    assert made.cpu_used == 0.0 and made.devices is not None


def test_gpus_are_read_one_by_one() -> None:
    """A device that cannot be is left out and counted, the others are taken."""
    bad: list[Any] = [
        "gpu", gpu(-1), gpu(64), gpu(total=0), gpu(1, memory_free_bytes=25 * GB),
        gpu(1, memory_foreign_bytes=-1), gpu(1, utilisation=math.nan), gpu(1, utilisation="x"),
        gpu(2), {**gpu(2), "memory_total_bytes": None},
    ]  # fmt: skip
    made = view({"gpus": [gpu(0, model=7), *bad]})

    assert made.devices == (
        Device(0, "", 24 * GB, 24 * GB, 0, 0.0), Device(2, "RTX 4090", 24 * GB, 24 * GB, 0, 0.0),
    )  # fmt: skip
    assert made.invalid == len(bad) - 1
    made = view({"gpus": [gpu(0, utilisation=1.0)]}, {"gpus": [gpu(0, utilisation=0)]})
    assert made.gpu_used == 0.5
    unknown = gpu(0, memory_free_bytes=None, memory_foreign_bytes=None)
    assert view({"gpus": [unknown]}).devices == (Device(0, "RTX 4090", 24 * GB),)


@pytest.mark.parametrize("told", ["none", [gpu(n % 60) for n in range(65)]])
def test_a_list_of_gpus_that_cannot_be_is_none(told: Any) -> None:
    """Then nothing is known of its devices."""
    made = view({"gpus": [gpu()]}, {"gpus": told})

    assert made.devices is None and made.gpu_used is None and made.invalid == 1


def test_what_a_call_costs_is_learned() -> None:
    """Calls that wait cost no processor, calls that compute cost one at most."""
    idle = view(*[sample(cpu=0.0)] * 30, calls=8)
    full = view(*[sample(cpu=100.0)] * 30, calls=8)

    assert NodeView().call_cores == 1.0
    assert idle.call_cores < 0.01
    assert full.call_cores == 1.0
    old = idle.call_cores
    idle.fold({}, 99.0, 8)
    assert idle.call_cores == old


@given(st.floats(0, 1000))
def test_silence_becomes_doubt(age_s: float) -> None:
    """Nothing for three intervals, everything after ten, and more each moment between."""
    made = view({})
    doubt = made.doubt(age_s)

    assert 0.0 <= doubt <= 1.0
    assert (doubt == 0.0) == (age_s <= STALE_AFTER)
    assert (doubt == 1.0) == (age_s >= STALE_SHUT)
    assert made.doubt(age_s + 1.0) >= doubt
    assert NodeView().doubt(age_s) == 0.0 and NodeView().age_s(age_s) is None


odd = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.just("x"))
anything = odd | st.lists(odd | st.dictionaries(st.sampled_from(sorted(gpu())), odd, max_size=5))


@given(st.lists(st.dictionaries(st.sampled_from(sorted(sample())), anything), max_size=5))
def test_no_sample_breaks_the_view(samples: list[dict[str, Any]]) -> None:
    """Whatever a node sends, shares are unknown or between 0 and 1."""
    made = view(*samples, calls=3)
    for share in (made.cpu_used, made.memory_free, made.gpu_used, made.call_cores):
        assert share is None or 0.0 <= share <= 1.0
    assert made.cpus >= 1.0 and made.invalid >= 0
