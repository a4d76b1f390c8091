"""What a client is told about its calls while they are under way: frozen records of plain data.

What lasts, and what the gateway makes, too, stands in `easyremote/facts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..facts import Placement


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the gateway says that a call is.

    Attributes:
        state: submitted, queued, running or done.
        queue_position: Its place in the queue, from 1; None if it does not wait.
        eta_s: Estimated seconds until it begins.
        placement: The node that has it, or had it.
    """

    state: str
    queue_position: int | None = None
    eta_s: float | None = None
    placement: Placement | None = None

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Whereabouts:
        """Read the gateway's answer to a `call` query, which counts the calls before this one."""
        before = data.get("queue_position")
        return cls(
            str(data.get("state")), None if before is None else before + 1, data.get("eta_s"),
            _placement(data),
        )  # fmt: skip


def _placement(data: Mapping[str, Any]) -> Placement | None:
    attempt, found = int(data.get("attempt") or 1), data.get("placement")
    if isinstance(found, Mapping) and found.get("node_id"):
        return Placement.from_plain(found, attempt)
    node_id = data.get("node_id")
    return Placement(str(node_id), attempt) if node_id else None
