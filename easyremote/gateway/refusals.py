"""What the gateway says about calls that it cannot place: each refusal with its next step.

Rules of this file. 1) Nothing is decided here. 2) A sentence says what is the matter, and what to
do about it.

Source. house.md, "Errors say whose fault and what to do next".
"""

from __future__ import annotations

from ..wire.errors import ErrorCode
from .routing import Refused


def too_many(queued: int) -> Refused:
    """Return the refusal of a call when too many wait, whoever's they are."""
    return Refused(
        ErrorCode.OVERLOADED, f"{queued} calls wait at the gateway; try again later",
        retry_after_s=5.0,
    )  # fmt: skip


def too_many_of_yours(queued: int) -> Refused:
    """Return the refusal of a call of a user who has too many waiting."""
    return Refused(
        ErrorCode.OVERLOADED,
        f"{queued} of your calls wait at the gateway; try again when some are done",
        retry_after_s=1.0,
    )


def too_many_bytes() -> Refused:
    """Return the refusal of a call when there is no memory for it."""
    return Refused(
        ErrorCode.OVERLOADED, "the gateway holds too many bytes of yours or of all",
        retry_after_s=5.0,
    )  # fmt: skip


def another_quota(name: str) -> Refused:
    """Return the refusal of a waiting call for which no quota of the places left was counted."""
    return Refused(
        ErrorCode.OVERLOADED, f"the quota of {name} changed while this call waited: call again",
        retry_after_s=1.0,
    )  # fmt: skip


def reused_id() -> Refused:
    """Return the refusal of a call whose id another running call has."""
    return Refused(
        ErrorCode.BAD_ARGUMENT,
        "another call with this id is running; ids are 128 random bits, made anew for each call",
    )
