"""The life of a connection: handshake, time, and end. What streams do is in `connection`.

Theory. A connection goes one way through four phases:

        HELLO sent / received            WELCOME sent / received          GOAWAY, error, end
    NEW ----------------------> GREETING ----------------------> READY ----------------------> OVER

It is READY for as long as the peer gives a sign of life within each lease.

Rules of this file. 1) Time is an argument; nothing here acts by itself. 2) After OVER nothing is
sent but what was framed before, and nothing is looked at: whatever our own code still says, it
says to nobody. 3) `ConnectionLost` is the last event, once.

Source. wire/README.md, sections 4 and 7.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from . import event as ev
from . import frame as fr
from . import greeting
from .buffer import ReceiveBuffer
from .credit import Budget, Outflow
from .errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from .frame import FrameType, pack
from .greeting import Phase
from .notices import Notices
from .outgoing import Outgoing, Silent
from .settings import Settings
from .stream import StreamRecord


class Life:
    """What a connection is without its streams.

    Attributes:
        phase: How far the connection has come.
        ready: Whether streams may be opened: `phase` is READY.
        version: The version that both sides speak, 0 before the handshake.
        rtt_s: Shortest round trip of a ping so far, None before the first.
        streams: Streams that are not over, by id.
    """

    def __init__(self, *, dialer: bool, now: float, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.dialer = dialer
        self.phase = Phase.NEW
        self.ready = False
        self.version = 0
        self.rtt_s: float | None = None
        self.streams: dict[int, StreamRecord] = {}
        self.budget = Budget(self.settings.abuse_burst, self.settings.abuse_refill_per_s, now)
        self.out = Outgoing(self.settings, Outflow(0))
        self.notices = Notices()
        self.events: deque[ev.Event] = deque()
        self.buffer = ReceiveBuffer()
        self.preamble_seen = False
        self.now = now
        self.started_at = now
        self.heard_at = now
        self.ping_at = now
        self.ping_sent_at: float | None = None

    # ---- time ---------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """Return when `handle_timeout` must be called next, on the owner's clock."""
        if self.phase is Phase.OVER:
            return None
        if self.phase is not Phase.READY:
            return self.started_at + self.settings.handshake_timeout_s
        when = min(self.ping_at, self.heard_at + self.settings.lease_s)
        return when if self.notices.due_at is None else min(when, self.notices.due_at)

    def handle_timeout(self, now: float) -> None:
        """Do what is due: notices, a ping, the end of a silent peer (as the next event)."""
        self.now = now
        if self.phase is Phase.OVER:
            return
        if self.phase is not Phase.READY:
            if now >= self.started_at + self.settings.handshake_timeout_s:
                self.fail(ProtocolError(ErrorCode.HANDSHAKE_TIMEOUT, "the handshake took too long"))
            return
        self.notices.write_due(self.out, now)
        if now >= self.heard_at + self.settings.lease_s:
            self.fail(ProtocolError(ErrorCode.STALLED, "has been silent for too long"))
        elif now >= self.ping_at:
            self.ping_at = now + self.settings.ping_every_s
            if self.ping_sent_at is None:  # One at a time: a slow path may not be flooded.
                self.ping_sent_at = now
                self.out.control(pack(FrameType.PING, 0, 0, 0, b""))

    # ---- the handshake ------------------------------------------------------------------

    def hello(self, role: str, credential: dict[str, Any], info: dict[str, Any]) -> None:
        """Introduce ourselves (dialer only); the peer answers with WELCOME or GOAWAY."""
        self._require(self.dialer and self.phase is Phase.NEW, "HELLO is said once, by the dialer")
        self.phase = Phase.GREETING
        frame = greeting.hello_frame(self.settings, role, credential, info)
        self.out.control(fr.PREAMBLE + frame)

    def welcome(self, info: dict[str, Any]) -> None:
        """Take the peer in, after its HELLO; streams may be opened."""
        self._require(
            not self.dialer and self.phase is Phase.GREETING, "WELCOME answers a HELLO, once"
        )
        frame = greeting.welcome_frame(self.settings, self.version, info)
        self.out.control(fr.PREAMBLE + frame)
        self._become_ready()

    def greeted(self, version: int) -> None:
        """Take the peer's HELLO or WELCOME (called for its frame)."""
        if self.phase is not (Phase.GREETING if self.dialer else Phase.NEW):
            raise RemoteProtocolError(ErrorCode.PROTOCOL, "HELLO and WELCOME are said once")
        self.version = version
        self.phase = Phase.GREETING
        if self.dialer:
            self._become_ready()

    def _become_ready(self) -> None:
        self.phase = Phase.READY
        self.ready = True
        self.buffer.grow()
        self.ping_at = self.now

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, reason: str = "") -> None:
        """Say goodbye and why; nothing that comes afterwards is looked at."""
        if self.phase is Phase.OVER:
            return
        lead = b"" if self.dialer or self.phase is Phase.READY else fr.PREAMBLE
        if self.phase is not Phase.NEW or not self.dialer:
            self.out.control(lead + greeting.goaway_frame(code, reason))
        self.end()

    def fail(self, error: ProtocolError) -> None:
        """End the connection because of `error`, and tell the peer."""
        if self.phase is Phase.OVER:
            return
        self.close(error.code, error.reason)
        self.events[-1] = ev.ConnectionLost(error)

    def end(self, error: ProtocolError | None = None) -> None:
        """Nothing more is sent or looked at; the loss is the last event."""
        self.phase = Phase.OVER
        self.ready = False
        self.buffer.forget()
        self.out = Silent(self.out)
        self.streams.clear()
        self.events.append(ev.ConnectionLost(error))

    def drain(self, reason: str) -> None:
        """Say that we take no new streams; running ones go on."""
        self._require(self.ready, "the connection is not ready")
        self.out.control(greeting.drain_frame(reason))

    def _require(self, condition: bool, sentence: str) -> None:
        if not condition:
            raise LocalProtocolError(ErrorCode.STREAM_STATE, sentence)
