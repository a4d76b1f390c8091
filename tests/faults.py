"""What can go wrong between two peers: one language for the simulator and for the fault proxy.

A plan is a list of steps. The simulator plays it on memory streams under a virtual clock, the
proxy on real sockets; so what one finds can be tried on the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """A fault of a link. Those with a duration heal by themselves when it is over."""

    CUT = "cut"
    """Both ends see a reset; bytes on the way are lost."""
    CLOSE = "close"
    """Both ends see an orderly end of the byte stream, wherever it stands."""
    LIMIT = "limit"
    """The link is cut after `amount` more bytes."""
    STALL = "stall"
    """Bytes are held back, both ways, and delivered when it is over."""
    ONE_WAY = "one_way"
    """Like STALL, in one direction only."""
    BLACK_HOLE = "black_hole"
    """Bytes vanish and nobody is told; when it is over the link is cut (half-open until then)."""
    TRICKLE = "trickle"
    """Bytes come one at a time, `amount` a second."""
    LATENCY = "latency"
    """Every byte comes `amount` milliseconds later."""
    SLICE = "slice"
    """Bytes come in pieces of 1 to `amount`."""
    CORRUPT = "corrupt"
    """One bit of a byte is flipped."""


class Direction(StrEnum):
    """Which way a fault works; `UP` is from the side that dialled."""

    UP = "up"
    DOWN = "down"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Step:
    """One fault, at one time, on one link."""

    at_s: float
    """Seconds since the plan began."""
    link: str
    """Name of the dialling side: `client-1`, `node-2`."""
    fault: Fault
    duration_s: float = 0.0
    direction: Direction = Direction.BOTH
    amount: int = 0
