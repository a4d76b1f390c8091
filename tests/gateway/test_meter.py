"""What the gateway measures of its own work."""

from __future__ import annotations

import pytest

from easyremote.gateway.meter import ROUTING_EVERY, WINDOW_S, Meter, Rates, jain


def test_rate_is_that_of_the_last_whole_seconds() -> None:
    """Two hundred calls in ten whole seconds are twenty a second; those of this second wait."""
    meter = Meter()
    for i in range(200):
        meter.finished(100.0 + i / 20.0, 0.5, failed=i % 4 == 0)
    meter.finished(110.0, 9.0, failed=True)

    assert meter.rates(110.5, 60.0) == Rates(20.0, 0.25, 0.5)
    assert (meter.finished_total, meter.failed_total) == (201, 51)


def test_old_load_is_forgotten() -> None:
    """After the window an idle gateway measures nothing."""
    meter = Meter()
    meter.finished(5.0, 1.0, failed=True)

    assert meter.rates(6.0, 60.0).per_second == 1.0 / WINDOW_S
    assert meter.rates(6.0 + WINDOW_S, 60.0) == Rates(0.0, 0.0, 0.0)


def test_young_gateway_divides_by_its_age() -> None:
    """A gateway of two seconds that had four calls has had two a second."""
    meter = Meter()
    for _ in range(4):
        meter.finished(1.5, 0.1, failed=False)

    assert meter.rates(3.2, 2.0).per_second == 2.0


def test_a_step_of_the_clock_backwards_loses_nothing() -> None:
    """The total grows whatever the clock says."""
    meter = Meter()
    meter.finished(50.0, 0.1, failed=False)
    meter.finished(49.0, 0.1, failed=False)

    assert meter.finished_total == 2


def test_routing_percentiles() -> None:
    """Mean, median and 99th percentile are those of the samples; none are zeros."""
    meter = Meter()

    assert meter.routing() == (0.0, 0.0, 0.0)
    meter.routing_s.extend(float(i) for i in range(101))
    assert meter.routing() == (50.0, 50.0, 99.0)


def test_one_call_in_some_is_measured() -> None:
    """The first call is measured, then one in each group."""
    meter = Meter()

    wanted = [meter.wants_routing() for _ in range(3 * ROUTING_EVERY)]

    assert wanted.count(True) == 3
    assert wanted[0]


@pytest.mark.parametrize(
    ("loads", "index"), [([], 1.0), ([0.0, 0.0], 1.0), ([3.0, 3.0, 3.0], 1.0), ([4, 0, 0, 0], 0.25)]
)
def test_jain(loads: list[float], index: float) -> None:
    """Even loads have 1, one node with everything 1/n; no load is even."""
    assert jain(loads) == index
