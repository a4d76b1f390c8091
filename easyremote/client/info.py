"""What a client is told about its calls: frozen records of plain data.

What it is told about nodes and functions stands in `easyremote/facts.py`, which the gateway
shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a call was put.

    Attributes:
        node_id: The node that has it.
        attempt: How often it was given to a node.
    """

    node_id: str
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call has cost, as far as is known here.

    Attributes:
        seconds: Time of the body on the worker.
        bytes_sent: Size of the encoded arguments.
        bytes_received: Size of the encoded result.
    """

    seconds: float
    bytes_sent: int
    bytes_received: int


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the gateway says that a call is.

    Attributes:
        state: submitted, queued, running or done.
        queue_position: Calls before it, None if it does not wait.
        eta_s: Estimated seconds until it begins.
        placement: The node that has it.
    """

    state: str
    queue_position: int | None = None
    eta_s: float | None = None
    placement: Placement | None = None

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Whereabouts:
        """Read the gateway's answer to a `call` query."""
        node_id = data.get("node_id")
        placed = Placement(node_id, int(data.get("attempt") or 1)) if node_id else None
        return cls(str(data.get("state")), data.get("queue_position"), data.get("eta_s"), placed)
