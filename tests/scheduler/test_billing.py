"""Prices: what providers may write, that money is exact, and whose clock decides."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.billing import (
    MODES,
    NANO,
    PriceRule,
    agree,
    price_nano,
    read_price,
)

OUTCOMES = ["ok", "error", "cancelled", "deadline", "lost", "never", "unknown"]


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_alone_is_a_rule_without_a_price(mode: str) -> None:
    """The short form counts calls and costs nothing until a price is said."""
    assert read_price(mode) == PriceRule(mode, 0.0, "", bill_errors=True)


def test_the_dict_form_carries_price_and_currency() -> None:
    """What is written is what is kept, and its plain form is read back as it."""
    rule = read_price(
        {"mode": "per_second", "price": 0.25, "currency": "EUR", "bill_errors": False}
    )

    assert rule == PriceRule("per_second", 0.25, "EUR", bill_errors=False)
    assert read_price(rule.to_plain()) == rule


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("per_requst", "did you mean 'per_request'"),
        ("free", "one of per_request"),
        ({"price": 1}, "not None"),
        ({"mode": "per_gb", "prize": 1}, "no 'prize'"),
        ({"mode": "per_gb", "price": -1}, "from 0"),
        ({"mode": "per_gb", "price": math.inf}, "from 0"),
        ({"mode": "per_gb", "price": math.nan}, "from 0"),
        ({"mode": "per_gb", "price": "1"}, "from 0"),
        ({"mode": "per_gb", "price": True}, "from 0"),
        ({"mode": "per_gb", "currency": 3}, "short text"),
        ({"mode": "per_gb", "currency": "x" * 17}, "short text"),
        ({"mode": "per_gb", "bill_errors": "no"}, "True or False"),
    ],
)
def test_what_means_nothing_is_refused_with_a_hint(value: Any, said: str) -> None:
    """A bill that nobody understands is an error where it is written."""
    with pytest.raises(ValueError, match=said):
        read_price(value)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("per_request", 3.0), ("per_second", 6.0), ("per_gpu_second", 12.0), ("per_gb", 1.5)],
)
def test_each_mode_counts_its_own(mode: str, expected: float) -> None:
    """Calls, seconds, seconds on GPUs, and gigabytes of arguments and result."""
    assert price_nano(PriceRule(mode, 3.0), 2.0, 4.0, 500_000_000) == expected * NANO


@given(st.floats(0, 1e5), st.floats(0, 1e3))
def test_a_price_is_exact_to_half_a_billionth(seconds: float, price: float) -> None:
    """Nothing is lost but one rounding of the shortest decimal that means the same number."""
    exact = Fraction(repr(seconds)) * Fraction(repr(price)) * NANO

    assert abs(price_nano(PriceRule("per_second", price), seconds, 0.0, 0) - exact) <= Fraction(
        1, 2
    )


def test_who_is_to_blame_decides_who_pays() -> None:
    """Failures of the system are free, whatever the rule; those of the function as agreed."""
    paid = {one for one in OUTCOMES if PriceRule("per_request").pays_for(one)}
    lenient = {one for one in OUTCOMES if PriceRule("per_request", bill_errors=False).pays_for(one)}

    assert paid == {"ok", "error", "cancelled", "deadline"}
    assert lenient == paid - {"error"}


@pytest.mark.parametrize(
    ("node_s", "billed", "flagged"),
    [
        (1.5, 1.5, False),
        (0.95, 1.0, False),
        (2.1, 2.0, False),
        (1000.0, 2.0, True),
        (0.0, 1.0, True),
        (math.inf, 2.0, True),
        (-math.inf, 1.0, True),
        (math.nan, 1.0, False),
        (None, 1.0, False),
    ],
)
def test_the_gateways_clock_bounds_what_a_node_says(
    node_s: float | None, billed: float, flagged: bool
) -> None:
    """A node that says too much or too little gains nothing, and is flagged beyond a fifth."""
    assert agree(node_s, 1.0, 2.0) == (billed, flagged)
