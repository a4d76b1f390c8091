"""Calls that functions make while they run, on their way from a worker to the gateway.

Theory. A function that runs here calls another one through the link of its node: the agent lets
the call out under the ticket of the running one. When the gateway is lost meanwhile, a call that
was said whole waits for the next gateway and is submitted again under its own id, like any
client's; the function that waits for it notices nothing.

Rules of this file. 1) A call has one outcome: the gateway's, or ours in `refuse`. 2) The stream of
a call is released once.

Source. decisions.md 7 to 9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from ..errors import EasyRemoteError, detail_of
from ..flow import Buffers
from ..relay import Relay
from ..wire.errors import ErrorCode
from ..wire.message import FLAG_STREAM, Call, Failure, Kind, decode, encode
from .agent_orphans import ORPHAN_TTL_S

if TYPE_CHECKING:
    from ..link import Link
    from ..stream import Stream
    from ..timers import Timer, Timers

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
        go_again: Takes it when its gateway was lost, to give it to the next one.
    """

    go_again: Callable[[NestedCall], None] | None = None
    _timer: Timer | None = None
    _released = False
    _since = 0

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

    @property
    def waiting(self) -> bool:
        """Whether it waits for room at the gateway."""
        return self._opening is not None and not self._released

    def hold(self) -> None:
        """Wait for room at the gateway, but not for ever."""
        self._timer = self._timers.at(trio.current_time() + NESTED_WAIT_S, self._waited_too_long)

    def _hold_for_gateway(self) -> None:
        """Wait for the gateway to come back: it knows the call, or can say that it does not."""
        self.detach_down()
        payload = encode(self.message._replace(since=self._since))
        self._opening = payload, *self._opened
        when = trio.current_time() + ORPHAN_TTL_S
        self._timer = self._timers.at(when, self._gateway_stayed_away)

    def _gateway_stayed_away(self) -> None:
        if self.waiting:
            self.refuse(
                ErrorCode.GATEWAY_LOST, "the gateway did not come back in time", may_have_run=True
            )

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
        self._since = self._since or incarnation
        (payload, more, end), self._opening = self._opening, None
        if self._timer is not None:
            self._timers.cancel(self._timer)
        self.attach_down(link.open_encoded(Kind.CALL, payload, handler=self, more=more, end=end))

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


def _known(code: int) -> ErrorCode:
    try:
        return ErrorCode(code)
    except ValueError:
        return ErrorCode.INTERNAL
