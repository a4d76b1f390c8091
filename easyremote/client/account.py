"""What a user asks about its own account: what is left of quotas, and what calls have cost.

Rules of this file. 1) Records come in pages; all of them are fetched. 2) A time is said as people
do: how long ago, or when.

Source. api.md, "sessions".
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..facts import QuotaState, Usage

if TYPE_CHECKING:
    from .session import Session

ASK_TIMEOUT_S = 15.0
PAGES_MAX = 10_000
"""More pages than that are a mistake of somebody."""
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_AGO = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")


def quota(session: Session) -> list[QuotaState]:
    """Return what is left of each quota that holds for the user of a session."""
    found = session.ask_blocking("quota", {}, ASK_TIMEOUT_S)
    return [QuotaState.from_plain(one) for one in found]


def usage(session: Session, since: str | None) -> list[Usage]:
    """Return the records of all paid calls, the oldest first.

    Raises:
        ValueError: `since` is no time.
    """
    asked: dict[str, Any] = {"since": 0.0 if since is None else read_since(since, time.time())}
    records: list[Usage] = []
    for _ in range(PAGES_MAX):
        page = session.ask_blocking("usage", asked, ASK_TIMEOUT_S)
        if not page:
            break
        records += [Usage.from_plain(one) for one in page]
        asked["after"] = page[-1]["seq"]
    return records


def read_since(text: str, now: float) -> float:
    """Return the time that a text means, in seconds since the epoch.

    Args:
        text: `24h`, `7d` and so on for how long ago; or a date with or without a time, local
            unless it says otherwise.
        now: Seconds since the epoch.

    Raises:
        TypeError: It is no text.
        ValueError: It means none.
    """
    if not isinstance(text, str):
        raise TypeError(f'a time is a text such as "24h", "7d" or "2026-03-01", not {text!r}')
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return now - float(ago[1]) * UNITS_S[ago[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        raise ValueError(
            f"{text!r} is no time: write 24h or 7d for how long ago, or a date such as 2026-03-01"
        ) from None
