"""Calls that functions make while they run, on their way from a worker to the gateway.

Theory. A function that runs here calls another one through the link of its node: the agent lets
the call out under the ticket of the running one. When the gateway is lost meanwhile, a call that
was said whole waits for the next gateway and is submitted again under its own id, like any
client's; the function that waits for it notices nothing. A new call waits, too, until the gateway
has taken the node: before that, it knows no running call under which another could be made.

    WAITING --give--> SENT --outcome--> over
       |  ^             |
       |  +--link lost--+   under the same id
       +--cancelled, nobody came, no room--> over; if it was sent before, it is stopped later

Rules of this file. 1) A call has one outcome: the gateway's, or ours in `refuse`. 2) The stream of
a call is released once. 3) Only a call that never left us has certainly not run.

Source. decisions.md 7 to 9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from .. import alive
from ..errors import EasyRemoteError, detail_of
from ..flow import Buffers
from ..handlers import StreamHandler
from ..relay import Relay
from ..wire.errors import ErrorCode
from ..wire.message import (
    CODEC_PLAIN,
    FLAG_ATTACH,
    FLAG_STREAM,
    Call,
    Failure,
    Kind,
    decode,
    encode,
)
from .agent_orphans import ORPHAN_TTL_S

if TYPE_CHECKING:
    from ..link import Link
    from ..stream import Stream
    from ..timers import Timer, Timers
    from .agent_session import GatewaySession

INTERRUPT = 1
GRACE_MS = 5000
"""Grace of a call whose caller is gone."""
NESTED_WAIT_S = 5.0
"""How long a nested call waits for room at the gateway. Calls that wait for one another on a full
link would wait for ever; after this time they are told so."""


class NestedCall(Relay):
    """A call made by a running function, on its way to the gateway.

    Attributes:
        message: The call.
        go_again: Takes it when its gateway was lost, to give it to the next one; or the order to
            stop it there.
    """

    go_again: Callable[[NestedCall | StopOrder], None] | None = None
    _timer: Timer | None = None
    _released = False
    _sent = False
    _wait_s = 0.0
    _since = 0
    _opened_at = 0.0
    _lost_at: float | None = None

    def __init__(
        self, timers: Timers, buffers: Buffers, up: Stream, payload: bytes, more: bool, end: bool
    ) -> None:
        """Take a call that a worker has opened a stream for.

        Raises:
            CodecError: It is no call.
        """
        Relay.__init__(self, up, buffers, more=more, end=end)
        self.message = decode(Call, payload)
        self._opened_on = up
        self._opened = more, end
        self._opening: tuple[bytes, bool, bool] | None = (payload, more, end)
        self._timers = timers
        self._deadline: float | None = None
        if self.message.deadline_ms is not None:
            self._deadline = trio.current_time() + self.message.deadline_ms / 1000

    @property
    def waiting(self) -> bool:
        """Whether it waits for the gateway, or for room there."""
        return self._opening is not None and not self._released

    def hold(self, session: GatewaySession | None = None) -> None:
        """Wait for room at the gateway, or for the gateway itself, but not for ever."""
        if session is None or session.registered:
            self._wait(NESTED_WAIT_S, self._waited_too_long)
        else:
            self._wait(ORPHAN_TTL_S, self._gateway_stayed_away)

    def look_again(self, session: GatewaySession) -> None:
        """The gateway came or went: wait for what is missing now."""
        patient = self._sent or self._for_room is session.registered
        if not patient:
            self.hold(session)

    @property
    def _for_room(self) -> bool:
        return self._wait_s == NESTED_WAIT_S

    def _wait(self, wait_s: float, too_long: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timers.cancel(self._timer)
        self._wait_s = wait_s
        self._timer = self._timers.at(trio.current_time() + wait_s, too_long)

    def _hold_for_gateway(self) -> None:
        """Wait for the gateway to come back: it knows the call, or can say that it does not."""
        assert self.down is not None
        self._lost_at = self._lost_at or max(self._opened_at, self.down.link.alive.at)
        self.detach_down()
        self._opening = b"", *self._opened
        self._wait(ORPHAN_TTL_S, self._gateway_stayed_away)

    def _gateway_stayed_away(self) -> None:
        if self.waiting:
            self.refuse(
                ErrorCode.GATEWAY_LOST, "the gateway did not come back in time",
                may_have_run=self._sent,
            )  # fmt: skip

    @property
    def _can_wait(self) -> bool:
        """Whether it may be given to the next gateway: nothing of it was lost halfway."""
        more, end = self._opened
        whole = end and not more and not self.caller_spoke and self.up is not None
        spoken = self.down_mid or self.outcome_seen or self.message.flags & FLAG_STREAM
        return whole and not spoken and not self._released

    def give(self, link: Link, incarnation: int) -> None:
        """Write it to the link of a gateway whose starts were `incarnation` in number."""
        assert self._opening is not None
        if self._lost_at is not None and alive.clock() - self._lost_at > ORPHAN_TTL_S:
            self._gateway_stayed_away()  # We slept: nobody may know the call any more.
            return
        (payload, more, end), self._opening = self._opening, None
        if self._timer is not None:
            self._timers.cancel(self._timer)
            payload = encode(self._as_it_is_now())
        self._since = self._since or incarnation
        self._sent, self._opened_at = True, alive.clock()
        self.attach_down(link.open_encoded(Kind.CALL, payload, handler=self, more=more, end=end))

    def _as_it_is_now(self) -> Call:
        """Return the call after it has waited: with the time that is left."""
        left_ms = self.message.deadline_ms
        if self._deadline is not None:
            left_ms = max(0, int((self._deadline - trio.current_time()) * 1000))
        return self.message._replace(deadline_ms=left_ms, since=self._since)

    def _waited_too_long(self) -> None:
        if self.waiting:
            self.refuse(
                ErrorCode.OVERLOADED,
                f"the gateway gave this node no room for a nested call within {NESTED_WAIT_S:g} s: "
                "too many of its calls wait for other calls; call fewer functions at once",
            )

    def on_accepted(self, stream: Stream) -> None:
        """The gateway is responsible for the call: tell the worker."""
        if stream is self.down and self.up is not None and not self.muted:
            self.up.accept()

    def on_started(self, stream: Stream) -> None:
        """The body runs: the gateway has the call."""
        if stream is self.down:
            self._lost_at = None
        Relay.on_started(self, stream)

    def on_cancel(self, stream: Stream, strength: int, grace_ms: int) -> None:
        """The function wants it stopped; while there is no gateway, it does not wait for that."""
        if stream is not self.up or not self.waiting:
            Relay.on_cancel(self, stream, strength, grace_ms)
            return
        self._stop_later(strength, grace_ms)
        self.refuse(ErrorCode.CANCELLED, "cancelled while it waited", may_have_run=self._sent)

    def _stop_later(self, strength: int, grace_ms: int) -> None:
        """Have it stopped by the next gateway, if it ever reached one."""
        if self._sent and self.go_again is not None:
            self.go_again(StopOrder(self.message, strength, grace_ms))

    def on_callee_done(self) -> None:
        """The gateway has said the outcome."""
        self._release()

    def on_callee_gone(self, code: int, reason: str, error: EasyRemoteError | None) -> None:
        """The gateway gave the call up, or is gone."""
        if error is not None and self.go_again is not None and self._can_wait:
            self._hold_for_gateway()
            self.go_again(self)
            return
        said = ErrorCode.GATEWAY_LOST if error is not None else _known(code)
        detail = {} if error is None else detail_of(error)
        self.refuse(said, reason, may_have_run=True, detail=detail)

    def on_caller_gone(self, code: int, reason: str, error: EasyRemoteError | None) -> None:
        """The worker gave the call up, or is gone: nobody wants the outcome."""
        down, incomplete = self.down, self.up_mid
        if self.waiting:
            self._stop_later(INTERRUPT, GRACE_MS)
        self.up = None
        self.mute()
        self._opening = None
        self._release()
        if down is not None and not self.down_ended:
            if incomplete:
                down.reset(ErrorCode.CANCELLED, "the calling function is gone")
                self.down_ended = True
            else:
                down.cancel(INTERRUPT, GRACE_MS)

    def refuse(
        self, code: ErrorCode, reason: str, *, may_have_run: bool = False,
        detail: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Give the call its outcome here, unless it has one."""
        if self._released:
            return
        self._opening = None
        up, mid, seen = self.up, self.down_mid, self.outcome_seen
        self.mute()
        if up is not None and up.is_open:
            if mid:
                up.reset(code, reason)
            elif not seen:
                up.send(Failure(int(code), reason, may_have_run, None, detail or {}), end=True)
        self._release()

    def _release(self) -> None:
        if not self._released:
            self._released = True
            if self._timer is not None:
                self._timers.cancel(self._timer)
            self._opened_on.release()


class StopOrder:
    """A call that was given up while its gateway was away: the next one shall stop it."""

    def __init__(self, message: Call, strength: int, grace_ms: int) -> None:
        self._message = message._replace(
            function="", node_ids=None, options={}, deadline_ms=None, codec=CODEC_PLAIN,
            flags=FLAG_ATTACH, body=b"", segments=[],
        )  # fmt: skip
        self._how = strength, grace_ms
        self._until = trio.current_time() + ORPHAN_TTL_S

    @property
    def waiting(self) -> bool:
        """Whether a gateway may still have the call."""
        return trio.current_time() < self._until

    def give(self, link: Link, incarnation: int) -> None:
        """Have it stopped."""
        del incarnation
        link.open(self._message, handler=StreamHandler(), end=True).cancel(*self._how)

    def look_again(self, session: GatewaySession) -> None:
        """It waits as long as it waits."""


class NestedCalls:
    """What waits for the gateway, or for room there; who waited longest goes first."""

    def __init__(self) -> None:
        self._waiting: list[NestedCall | StopOrder] = []

    def __len__(self) -> int:
        return sum(one.waiting for one in self._waiting)

    def take(self, call: NestedCall, session: GatewaySession | None) -> None:
        """Let a new call out, as soon as that can be."""
        call.go_again = self._waiting.append
        if session is None:
            call.refuse(ErrorCode.GATEWAY_LOST, "this node has no link to its gateway yet")
            return
        link = session.link
        if session.registered and link is not None and link.streams_available > 0:
            call.give(link, session.incarnation)
        else:
            call.hold(session)
            self._waiting.append(call)

    def look_again(self, session: GatewaySession) -> None:
        """The gateway came, went, or has more room."""
        waiting = [one for one in self._waiting if one.waiting]
        link = session.link
        if session.registered and link is not None:
            while waiting and link.streams_available > 0:
                waiting.pop(0).give(link, session.incarnation)
        self._waiting[:] = waiting
        for one in waiting:
            one.look_again(session)


def _known(code: int) -> ErrorCode:
    try:
        return ErrorCode(code)
    except ValueError:
        return ErrorCode.INTERNAL
