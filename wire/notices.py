"""Small news about streams, told in one frame for many.

Theory. That a call was accepted or has started matters only if its outcome takes a while: an
outcome says both. So these notices wait a few milliseconds; those whose stream ended meanwhile are
dropped, and the rest goes out in one frame each. Cancels go out at once, but also together.

Rules of this file. 1) A notice is never told after the end of its stream. 2) ACCEPT is told
before STARTED.
"""

from __future__ import annotations

from . import cbor
from .frame import FrameType, pack
from .outgoing import Outgoing

DELAY_S = 0.005
"""How long a notice waits for company or for the outcome that makes it needless."""

BATCH_MAX = 2048
"""Most entries of one frame; 2,048 cancels have 20 bytes at most and fit its 64 KiB."""

STRENGTH_MAX = 2
"""0 asks, 1 interrupts, 2 kills."""


class Notices:
    """What is to be told soon."""

    __slots__ = ("accepts", "cancels", "due_at", "starts")

    def __init__(self) -> None:
        self.accepts: dict[int, None] = {}
        self.starts: dict[int, None] = {}
        self.cancels: dict[int, tuple[int, int]] = {}
        self.due_at: float | None = None

    def accept(self, stream_id: int, now: float) -> None:
        """The peer's stream is in good hands."""
        self.accepts[stream_id] = None
        if self.due_at is None:
            self.due_at = now + DELAY_S

    def start(self, stream_id: int, now: float) -> None:
        """User code runs for the peer's stream."""
        self.starts[stream_id] = None
        if self.due_at is None:
            self.due_at = now + DELAY_S

    def cancel(self, stream_id: int, strength: int, grace_ms: int) -> None:
        """The work of a stream of ours shall stop; of several wishes the strongest is told."""
        before = self.cancels.get(stream_id)
        if before is None or before[0] <= strength:
            self.cancels[stream_id] = (strength, grace_ms)

    def forget(self, stream_id: int) -> None:
        """The outcome is on its way: it says all."""
        self.accepts.pop(stream_id, None)
        self.starts.pop(stream_id, None)

    def write_due(self, out: Outgoing, now: float) -> None:
        """Send the notices whose time has come."""
        if self.due_at is None or now < self.due_at:
            return
        self.due_at = None
        for type_, ids in ((FrameType.ACCEPT, self.accepts), (FrameType.STARTED, self.starts)):
            todo = list(ids)
            ids.clear()
            for begin in range(0, len(todo), BATCH_MAX):
                payload = cbor.encode_frame(todo[begin : begin + BATCH_MAX])
                out.control(pack(type_, 0, 0, 0, payload))

    def write_cancels(self, out: Outgoing) -> None:
        """Send the cancels that have come together."""
        if not self.cancels:
            return
        todo = [(stream_id, *how) for stream_id, how in self.cancels.items()]
        self.cancels.clear()
        for begin in range(0, len(todo), BATCH_MAX):
            payload = cbor.encode_frame(todo[begin : begin + BATCH_MAX])
            out.control(pack(FrameType.CANCEL, 0, 0, 0, payload))
