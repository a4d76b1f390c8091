"""The terms of a function: what its node's owner allows each user, and asks for it.

Rules of this file. 1) Terms that cannot be read refuse the registration: a limit that nobody
understands must not become no limit. 2) Only a time zone that this machine does not know is
replaced, by UTC, and said in the log.

Source. features.md R7 and R10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..log import Log
from ..scheduler.billing import PriceRule, read_price
from ..scheduler.quota import Mode, Quota, read_quota

_log = Log("gateway")


class Terms(NamedTuple):
    """Quota and price of one function on one node; at least one of them."""

    quota: Quota | None
    price: PriceRule | None

    def to_plain(self) -> dict[str, Any]:
        """Return them as they are shown and written into the audit."""
        return {
            "quota": None if self.quota is None else self.quota.to_plain(),
            "billing": None if self.price is None else self.price.to_plain(),
        }


PoolTerms = Mapping[tuple[str, Terms], int]
"""Owner and terms of the places of a pool, and how many places have them."""


def read_terms(entry: Mapping[str, Any]) -> Terms | None:
    """Return the terms in the description of a function, None if it has none.

    Raises:
        ValueError: They cannot be understood.
    """
    quota, billing = entry.get("quota"), entry.get("billing")
    if quota is None and billing is None:
        return None
    price = None
    if billing is not None:
        price = read_price(_text_or_map(billing, "billing"))
    if quota is None:
        return Terms(None, price)
    mode: Mode = "soft"
    if isinstance(metadata := entry.get("metadata"), dict) and metadata.get("quota_mode") == "hard":
        mode = "hard"
    return Terms(_read_quota(_text_or_map(quota, "quota"), mode), price)


def _text_or_map(value: Any, what: str) -> str | dict[str, Any]:
    if type(value) is str or (type(value) is dict and all(type(key) is str for key in value)):
        return value
    raise ValueError(f"{what} is text or a map")


def _read_quota(value: str | dict[str, Any], mode: Mode) -> Quota:
    try:
        return read_quota(value, mode=mode)
    except ValueError:
        if isinstance(value, str) or type(value.get("tz")) is not str:
            raise
        quota = read_quota({**value, "tz": "UTC"}, mode=mode)
        _log.warning("a quota goes by UTC: its time zone is not known here", zone=value["tz"])
        return quota
