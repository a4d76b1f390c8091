"""Two streams joined into one: what comes on one side goes out on the other, verbatim.

Theory. A call that passes through a process is a pair of streams: one to the side that it came
from (`up`, the caller) and one to the side that answers (`down`, the callee). The kind of a
message stands in the frame header, so that nothing has to be decoded, and raw segments are sent
on in the very memory that they came in. Back-pressure is passed on, not absorbed: the sender of
bytes gets the credit of its stream when the receiving link has framed them. So the relay never
holds more of a pair than the window of a stream, however slow the other side is.

    caller --- bytes --->  up | hold or forward | down  --- bytes ---> callee
           <-- credit ---     | as `down` frames them

The credit of the *link* is another matter: if a stuck stream kept it, a few of them would block
everybody else on that link. It returns when the bytes come, as long as the bytes that all relays
hold together stay below a budget (`Buffers`).

One side may be missing for a while: a call that waits for a node has no `down` yet, and a call
whose caller lost its link has no `up`. What comes for the missing side is held, uncredited, until
`attach_down` or `attach_up`.

Rules of this file. 1) Messages and data keep their order, each way. 2) Every byte that came is
credited exactly once: when it was framed, or when it was dropped; a message that carries END needs
none. 3) Nothing is sent on a side that has ended. 4) The callee's one outcome carries its END and
ends the pair: the relay ends its own direction to the callee then, and drops what the caller still
says. Whoever opened a stream must end its own direction, too, at the latest when the outcome came
(`END_ONLY_KIND`).

Source. runtime.md, "One call"; decisions.md 12.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import EasyRemoteError
from .flow import Buffers, Flow
from .handlers import StreamHandler
from .wire.errors import ErrorCode
from .wire.frame import HEADER_SIZE
from .wire.message import TERMINAL

if TYPE_CHECKING:
    from .stream import Stream

BROKEN_ORDER_COST = 10.0
"""Of the abuse budget, for an answer that is none: ten of them, and the link ends."""

END_ONLY_KIND = 0
"""Kind of a message that says nothing but END."""
END_ONLY = b"\x80"
"""Its payload: an empty list."""


class Relay(StreamHandler):
    """The handler of both streams of a pair. Subclass it to decide what happens at its ends.

    Make it around the stream that was opened, return it from `on_open`, open the other stream
    with it as the handler, and call `attach_down`.

    Attributes:
        up: The stream to the caller, None while there is none.
        down: The stream to the callee, None while there is none.
        up_ended: The caller has said END; nothing more comes from it.
        down_ended: The callee has said its last word, or was given up.
        up_mid: The caller has begun a message whose segments are not complete.
        down_mid: The callee has begun a message whose segments are not complete.
        outcome_seen: RESULT or FAILURE has come from the callee.
        muted: What the callee still says is dropped: the outcome was settled without it.
        deaf: What the caller says is dropped: it has said all of it before, on another stream.
        caller_spoke: The caller has said more than the opening message.
    """

    relay = True

    down: Stream | None = None
    down_ended = False
    up_mid = False
    down_mid = False
    outcome_seen = False
    muted = False
    deaf = False
    caller_spoke = False
    _from_up: Flow | None = None
    _from_down: Flow | None = None

    def __init__(
        self, up: Stream | None, buffers: Buffers, *, more: bool = False, end: bool = False
    ) -> None:
        """Begin with the stream that was opened, and what its opening message said of the rest."""
        self.up = up
        self.buffers = buffers
        self.up_ended = end
        if more:
            self.up_mid = True

    # ---- what a subclass decides -------------------------------------------------------------

    def on_outcome(self, kind: int, payload: bytes, more: bool) -> bool:
        """The callee says RESULT or FAILURE. Return True to keep it from the caller."""
        return False

    def on_callee_done(self) -> None:
        """The callee has said its last word: its work is gone. Called also when muted."""

    def on_callee_gone(self, code: int, reason: str, error: EasyRemoteError | None) -> None:
        """The callee gave the stream up (`error` is None), or its link was lost.

        Comes instead of `on_callee_done`.
        """

    def on_caller_gone(self, code: int, reason: str, error: EasyRemoteError | None) -> None:
        """The caller gave the stream up (`error` is None), or its link was lost."""

    # ---- joining and parting -----------------------------------------------------------------

    def attach_down(self, down: Stream) -> None:
        """The callee is known: send it what was held."""
        assert self.down is None
        self.down = down
        if self._from_up is not None:
            self._send_held(self._from_up, down)

    def detach_down(self) -> None:
        """Forget the callee; another one may be attached. What it was sent is gone."""
        if self._from_down is not None:
            self._from_down.drop()
        if self._from_up is not None:
            self._from_up.drop()
        self._end_down()
        self.down = self._from_down = self._from_up = None
        self.down_ended = self.down_mid = self.outcome_seen = False

    def attach_up(self, up: Stream) -> None:
        """The caller is back on another stream: send it what was held."""
        assert self.up is None
        self.up = up
        self.deaf = True
        if self._from_down is not None:
            self._send_held(self._from_down, up)

    def detach_up(self) -> None:
        """The caller is gone for now: hold what comes for it, and what it said for a callee."""
        for flow in (self._from_down, self._from_up):
            if flow is not None and (flow is self._from_down or not flow.held):
                flow.drop()
                flow.watched = False
        self.up = None
        self.up_ended = True

    def hear_no_more(self) -> None:
        """The callee has all that the caller says, from an earlier stream: drop it."""
        if self._from_up is not None:
            self._from_up.drop()
        self.deaf = self.up_ended = True
        self.up_mid = False

    def mute(self) -> None:
        """Drop what the callee still says, and all that is held."""
        self.muted = True
        for flow in (self._from_down, self._from_up):
            if flow is not None:
                flow.drop()

    def _send_held(self, flow: Flow, sink: Stream) -> None:
        held, flow.held = flow.held, None
        if held:
            flow.watched = True
            sink.watch_drained()
            for entry in held:
                if len(entry) == 4:
                    sink.forward(*entry)
                else:
                    sink.forward_data(*entry)

    @property
    def holds_bytes(self) -> int:
        """Bytes of this pair in our memory."""
        return sum(flow.owed_bytes for flow in (self._from_up, self._from_down) if flow is not None)

    @property
    def stuck_bytes(self) -> tuple[int, int]:
        """Bytes that wait for the caller to take them, and how many it has taken so far."""
        flow = self._from_down
        return (0, 0) if flow is None else (flow.owed_bytes, flow.moved_bytes)

    @property
    def holds_for_caller(self) -> bool:
        """Whether something waits for the caller to come back."""
        return self._from_down is not None and self._from_down.held is not None

    @property
    def kept_bytes(self) -> int:
        """Bytes that wait for the caller to come back, END messages included."""
        flow = self._from_down
        if flow is None or flow.held is None:
            return 0
        return sum(len(entry[1] if len(entry) == 4 else entry[0]) for entry in flow.held)

    def say_up(self, kind: int, payload: bytes) -> None:
        """Say the last word to the caller ourselves, now or when it is back."""
        if self.up is None:
            self._flow_down().hold((kind, payload, False, True))
        else:
            self.up.forward(kind, payload, False, True)

    def half_said(self, now: float, stall_s: float) -> Stream | None:
        """Return the side that has begun a message and says nothing more of it, if one has.

        Asked again and again; `now` is compared with when something was new last.
        """
        if self.up_mid and self._flow_up().is_silent(now, stall_s):
            return self.up
        if self.down_mid and self._flow_down().is_silent(now, stall_s):
            return self.down
        return None

    def give_callee_up(self, code: ErrorCode, reason: str) -> None:
        """Have nothing more to do with the callee."""
        down = self.down
        assert down is not None
        down.reset(code, reason)
        self._gone(down, code, reason, None)

    def _flow_up(self) -> Flow:
        if self._from_up is None:
            self._from_up = Flow(self.up, self.buffers)
        return self._from_up

    def _flow_down(self) -> Flow:
        if self._from_down is None:
            self._from_down = Flow(self.down, self.buffers)
        return self._from_down

    # ---- what comes --------------------------------------------------------------------------

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        """Pass a message on."""
        if stream is self.down:
            if self.up is not None:
                self.up.hear_loss()
            self._from_callee(stream, kind, payload, more, end)
        elif stream is self.up:
            self._from_caller(stream, kind, payload, more, end)
        elif not end:
            stream.consumed(len(payload))

    def _from_callee(self, down: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        terminal = kind in TERMINAL
        if self.outcome_seen or (end is not terminal and not more):
            self._callee_broke(down)
            return
        self.down_mid = more
        if not self.muted and terminal and self.on_outcome(kind, payload, more):
            return
        self.outcome_seen = terminal
        if self.muted:
            if not end:
                down.consumed(len(payload))
        elif (up := self.up) is None:
            flow = self._flow_down()
            if not end:
                flow.came(len(payload))
            flow.hold((kind, payload, more, end))
        else:
            up.forward(kind, payload, more, end)
            if not end:
                self._passed(self._from_down, down, up, len(payload))
        if end:
            self._callee_ended()

    def _passed(self, flow: Flow | None, source: Stream, sink: Stream, size_bytes: int) -> None:
        """Credit a message that went out at once; else wait until its sink has framed it."""
        if (flow is not None and flow.watched) or sink.pending_bytes:
            flow = self._flow_down() if source is self.down else self._flow_up()
            flow.came(size_bytes)
            if not flow.watched:
                flow.watched = True
                sink.watch_drained()
        else:
            source.consumed(size_bytes)

    def _callee_broke(self, down: Stream) -> None:
        """The callee ended without an outcome, or went on after one."""
        down.reset(ErrorCode.STREAM_STATE, "a call ends with its one outcome")
        down.link.charge(BROKEN_ORDER_COST)
        self._gone(down, ErrorCode.STREAM_STATE, "it broke the order of messages", None)

    def _from_caller(self, up: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        if self.muted or self.down_ended or self.deaf:
            if not end:
                up.consumed(len(payload))
            return
        self.caller_spoke = True
        self.up_mid = more
        if end:
            self.up_ended = True
        if (down := self.down) is None:
            flow = self._flow_up()
            if not end:
                flow.came(len(payload))
            flow.hold((kind, payload, more, end))
        else:
            down.forward(kind, payload, more, end)
            if not end:
                self._passed(self._from_up, up, down, len(payload))

    def on_data(self, stream: Stream, frame: memoryview, last: bool, end: bool) -> None:
        """Pass a piece of a segment on, in the memory that it came in."""
        if stream is self.down:
            if self.up is not None:
                self.up.hear_loss()
            self._data_from_callee(stream, frame, last, end)
        elif stream is self.up:
            self._data_from_caller(stream, frame, last, end)
        else:
            stream.consumed(len(frame) - HEADER_SIZE)

    def _data_from_callee(self, down: Stream, frame: memoryview, last: bool, end: bool) -> None:
        if last:
            if end is not self.outcome_seen:
                down.consumed(len(frame) - HEADER_SIZE)
                self._callee_broke(down)
                return
            self.down_mid = False
        if self.muted:
            down.consumed(len(frame) - HEADER_SIZE)
        else:
            self._data_passed(self._flow_down(), self.up, frame, last, end)
        if end:
            self._callee_ended()

    def _data_from_caller(self, up: Stream, frame: memoryview, last: bool, end: bool) -> None:
        if self.muted or self.down_ended or self.deaf:
            up.consumed(len(frame) - HEADER_SIZE)
            return
        if last:
            self.up_mid = False
        if end:
            self.up_ended = True
        self._data_passed(self._flow_up(), self.down, frame, last, end)

    def _data_passed(
        self, flow: Flow, sink: Stream | None, frame: memoryview, last: bool, end: bool
    ) -> None:
        flow.came(len(frame) - HEADER_SIZE)
        if sink is None:
            flow.hold((frame, last, end))
            return
        if not flow.watched:
            flow.watched = True
            sink.watch_drained()
        sink.forward_data(frame, last, end)

    def on_drained(self, stream: Stream, size_bytes: int) -> None:
        """Bytes left us on one side: the other side gets credit for them."""
        flow = self._from_down if stream is self.up else self._from_up
        if flow is not None and (stream is self.up or stream is self.down):
            flow.left(size_bytes)

    def _callee_ended(self) -> None:
        """The last word of the callee: nothing more goes down."""
        if not self.down_ended:
            self.down_ended = True
            self._end_down()
            self.on_callee_done()

    def _end_down(self) -> None:
        """End our direction to the callee, unless the caller has done so already."""
        if self.up_ended or self.down is None or not self.down.is_open:
            return
        if self.up_mid:
            # Inside the segments of a message only their rest could be said, and nobody wants it.
            self.down.reset(ErrorCode.NO_ERROR, "the outcome is there")
            if self._from_up is not None:
                self._from_up.drop()  # What waited for the callee was dropped with its stream.
        else:
            self.down.forward(END_ONLY_KIND, END_ONLY, False, True)

    # ---- notices and losses ------------------------------------------------------------------

    def on_started(self, stream: Stream) -> None:
        """User code runs: tell the caller."""
        if stream is self.down and self.up is not None and not self.muted:
            self.up.started()

    def on_cancel(self, stream: Stream, strength: int, grace_ms: int) -> None:
        """The caller wants the work stopped: tell the callee."""
        if stream is self.up and self.down is not None and not self.down_ended:
            self.down.cancel(strength, grace_ms)

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        """One side gave its stream up."""
        self._gone(stream, code, reason, None)

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        """The link of one side is gone."""
        self._gone(stream, int(error.code), str(error), error)

    def _gone(self, stream: Stream, code: int, reason: str, error: EasyRemoteError | None) -> None:
        if stream is self.up:
            self.on_caller_gone(code, reason, error)
        elif stream is self.down and not self.down_ended:
            self.down_ended = True
            self.on_callee_gone(code, reason, error)
        elif stream is self.down and self._from_up is not None:
            self._from_up.drop()  # It had ended before it took all that we had for it.
