"""Prices: what a call costs by the rule of its provider, and which calls are paid for.

Theory. A bill is a sum that people check, so money is whole numbers: a price is computed once for
each call, in billionths of the currency, and rounded once. Sums of such numbers are exact in any
order, so the sum of the records is the total, to the last digit.

Time that is billed is the gateway's: it knows when it gave a call to the node, when the node said
that the body began, and when the outcome came. What the node measured is believed between these
bounds, and where it is far outside somebody should look (`agree`).

Rules of this file. 1) Pure. 2) Who is to blame for an outcome decides whether it is paid: the
system's failures are not. 3) What a provider wrote and means nothing is a `ValueError`.

Source. Fowler, Patterns of Enterprise Application Architecture (2002), "Money", for integers.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

MODES = ("per_request", "per_second", "per_gpu_second", "per_gb")
NANO = 1_000_000_000
"""Parts of one unit of a currency."""
GB_BYTES = 1_000_000_000
PRICE_MAX = 1e6
CURRENCY_CHARS_MAX = 16

OK, ERROR, CANCELLED, DEADLINE = "ok", "error", "cancelled", "deadline"
LOST, NEVER, UNKNOWN = "lost", "never", "unknown"
PAID = frozenset({OK, ERROR, CANCELLED, DEADLINE})
"""Outcomes of calls that used the node, and ended for reasons of their caller or their code. `lost`
is a failure of the system, `never` did not run, `unknown` was open when the gateway died."""

DIFFERENCE_MAX = 0.2
SLACK_S = 0.05
"""Differences below this are the network's."""


@dataclass(frozen=True, slots=True)
class PriceRule:
    """What a provider asks for a call.

    Attributes:
        mode: One of `MODES`: what is counted.
        price: For one of it.
        currency: For people; empty where none was said.
        bill_errors: Whether a call whose function raised is paid for.
    """

    mode: str
    price: float = 0.0
    currency: str = ""
    bill_errors: bool = True

    def to_plain(self) -> dict[str, Any]:
        """Return the dict form, which `read_price` reads."""
        return {
            "mode": self.mode, "price": self.price, "currency": self.currency,
            "bill_errors": self.bill_errors,
        }  # fmt: skip

    def pays_for(self, outcome: str) -> bool:
        """Return whether a call of this outcome is paid for."""
        return outcome in PAID and (self.bill_errors or outcome != ERROR)


def read_price(value: str | Mapping[str, Any]) -> PriceRule:
    """Return the price rule that a provider wrote: a mode, or a dict with the price.

    Raises:
        ValueError: It means nothing; the message says how to write it.
    """
    given: dict[str, Any] = {"mode": value} if isinstance(value, str) else dict(value)
    unknown = [key for key in given if key not in ("mode", "price", "currency", "bill_errors")]
    if unknown:
        raise ValueError(
            f"billing has no {unknown[0]!r}; it has mode, price, currency and bill_errors"
        )
    mode = given.get("mode")
    if mode not in MODES:
        close = difflib.get_close_matches(str(mode), MODES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"billing is one of {', '.join(MODES)}, not {mode!r}{hint}")
    price, currency = given.get("price", 0.0), given.get("currency", "")
    number = isinstance(price, int | float) and not isinstance(price, bool)
    if not (number and 0 <= price <= PRICE_MAX):
        raise ValueError(f"the price is a number from 0 to {PRICE_MAX:g}, not {price!r}")
    if not isinstance(currency, str) or len(currency) > CURRENCY_CHARS_MAX:
        raise ValueError(f"the currency is a short text such as EUR, not {currency!r}")
    bill_errors = given.get("bill_errors", True)
    if bill_errors not in (True, False):
        raise ValueError(f"bill_errors is True or False, not {bill_errors!r}")
    return PriceRule(mode, float(price), currency, bool(bill_errors))


def price_nano(rule: PriceRule, seconds: float, gpu_seconds: float, size_bytes: int) -> int:
    """Return what a call costs, in billionths of the currency.

    Args:
        rule: The provider's.
        seconds: Time of the body.
        gpu_seconds: The same, once for each GPU.
        size_bytes: Of arguments and result.
    """
    counted: dict[str, Decimal] = {
        "per_request": Decimal(1),
        "per_second": Decimal(repr(seconds)),
        "per_gpu_second": Decimal(repr(gpu_seconds)),
        "per_gb": Decimal(size_bytes) / GB_BYTES,
    }
    exact = counted[rule.mode] * Decimal(repr(rule.price)) * NANO
    return int(exact.to_integral_value(ROUND_HALF_EVEN))


def agree(node_s: float | None, least_s: float, most_s: float) -> tuple[float, bool]:
    """Return how long a call ran, and whether its node says something quite different.

    Args:
        node_s: What the node measured, None if it did not say.
        least_s: By our clock, from when the node said that the body began.
        most_s: By our clock, from when the node was given the call.
    """
    if node_s is None or math.isnan(node_s):
        return least_s, False
    low = least_s * (1.0 - DIFFERENCE_MAX) - SLACK_S
    high = most_s * (1.0 + DIFFERENCE_MAX) + SLACK_S
    return min(max(node_s, least_s), most_s), not low <= node_s <= high
