"""Two streams joined into one: what comes on one side goes out on the other, verbatim.

Theory. A call that passes through a process is a pair of streams: one to the side that it came
from (`up`, the caller) and one to the side that answers (`down`, the callee). The kind of a
message stands in the frame header, so that nothing has to be decoded, and raw segments are sent
on in the very memory that they came in. Back-pressure is passed on, not absorbed: the sender of
bytes gets credit for them when the receiving link has framed them. So the relay never holds more
of a pair than the window of the stream, however slow the other side is.

    caller --- bytes --->  up | hold or forward | down  --- bytes ---> callee
           <-- credit ---     | as `down` frames them

One side may be missing for a while: a call that waits for a node has no `down` yet, and a call
whose caller lost its link has no `up`. What comes for the missing side is held, uncredited, until
`attach_down` or `attach_up`.

Rules of this file. 1) Messages and data keep their order, each way. 2) Every byte that came is
credited exactly once: when it was framed, or when it was dropped. 3) Nothing is sent on a side
that has ended. 4) The callee's one outcome carries its END and ends the pair: the relay ends its
own direction to the callee then, and drops what the caller still says. Whoever opened a stream
must end its own direction, too, at the latest when the outcome came (`END_ONLY_KIND`).

Source. runtime.md, "One call"; decisions.md 12.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import EasyRemoteError
from .handlers import StreamHandler
from .wire.errors import ErrorCode
from .wire.frame import HEADER_SIZE
from .wire.message import TERMINAL

if TYPE_CHECKING:
    from .stream import Stream

END_ONLY_KIND = 0
"""Kind of a message that says nothing but END."""
END_ONLY = b"\x80"
"""Its payload: an empty list."""

Held = tuple[int, bytes, bool, bool] | tuple[memoryview, bool, bool]
"""A message (kind, payload, more, end) or a DATA frame (frame, last, end) that waits."""


class Relay(StreamHandler):
    """The handler of both streams of a pair. Subclass it to decide what happens at its ends.

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
    outcome_seen = False
    muted = False
    deaf = False
    caller_spoke = False
    up_mid = False
    down_mid = False
    _up_owed = 0  # Bytes that came on `up` and were not credited yet.
    _down_owed = 0
    _up_watched = False
    _down_watched = False
    _for_down: list[Held] | None = None
    _for_up: list[Held] | None = None

    def __init__(self, up: Stream | None, *, more: bool = False, end: bool = False) -> None:
        """Begin with the stream that was opened, and what its opening message said of the rest."""
        self.up = up
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
        held, self._for_down = self._for_down, None
        if held:
            self._watch_down()
            _replay(held, down)

    def detach_down(self) -> None:
        """Forget the callee; another one may be attached. What it was sent is gone."""
        self._return_down()
        self._return_up()
        self._end_down()
        self.down = None
        self.down_ended = self.down_mid = self._down_watched = self.outcome_seen = False

    def attach_up(self, up: Stream) -> None:
        """The caller is back on another stream: send it what was held."""
        assert self.up is None
        self.up = up
        self.deaf = True
        held, self._for_up = self._for_up, None
        if held:
            self._watch_up()
            _replay(held, up)

    def detach_up(self) -> None:
        """The caller is gone for now: hold what comes for it."""
        self._return_down()
        self._return_up()
        self.up = None
        self._up_watched = False
        self.up_ended = True

    def drop(self) -> None:
        """Forget both sides and what was held; every byte is credited."""
        self._for_down = self._for_up = None
        self._return_up()
        self._return_down()

    def mute(self) -> None:
        """Drop what the callee still says, and what was held for it and for the caller."""
        self.muted = True
        self.drop()

    def _return_up(self) -> None:
        if self._up_owed and self.up is not None and self.up.link.ready:
            self.up.consumed(self._up_owed)
        self._up_owed = 0

    def _return_down(self) -> None:
        if self._down_owed and self.down is not None and self.down.link.ready:
            self.down.consumed(self._down_owed)
        self._down_owed = 0

    @property
    def holds_bytes(self) -> int:
        """Bytes of this pair in our memory."""
        return self._up_owed + self._down_owed

    @property
    def holds_for_caller(self) -> bool:
        """Whether something waits for the caller to come back."""
        return self._for_up is not None

    def say_up(self, kind: int, payload: bytes) -> None:
        """Say the last word to the caller ourselves, now or when it is back."""
        if self.up is None:
            self._hold_for_up((kind, payload, False, True))
        else:
            self.up.forward(kind, payload, False, True)

    def _watch_down(self) -> None:
        if not self._down_watched and self.down is not None:
            self._down_watched = True
            self.down.watch_drained()

    def _watch_up(self) -> None:
        if not self._up_watched and self.up is not None:
            self._up_watched = True
            self.up.watch_drained()

    # ---- what comes --------------------------------------------------------------------------

    def on_message(
        self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> None:
        """Pass a message on."""
        if stream is self.down:
            self._from_callee(stream, kind, payload, more, end)
        elif stream is self.up:
            self._from_caller(stream, kind, payload, more, end)
        else:
            stream.consumed(len(payload))

    def _from_callee(
        self, down: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> None:
        size = len(payload)
        terminal = kind in TERMINAL
        if self.outcome_seen or (end is not terminal and not more):
            down.consumed(size)
            self._callee_broke(down)
            return
        self.down_mid = more
        if self.muted:
            self.outcome_seen = terminal
            down.consumed(size)
        elif terminal and self.on_outcome(kind, payload, more):
            down.consumed(size)
        elif (up := self.up) is None:
            self.outcome_seen = terminal
            self._down_owed += size
            self._hold_for_up((kind, payload, more, end))
        else:
            self.outcome_seen = terminal
            up.forward(kind, payload, more, end)
            if self._up_watched or up.pending_bytes:
                self._down_owed += size
                self._watch_up()
            else:
                down.consumed(size)
        if end and down is self.down:
            self._callee_ended()

    def _callee_broke(self, down: Stream) -> None:
        """The callee ended without an outcome, or went on after one."""
        down.reset(ErrorCode.STREAM_STATE, "a call ends with its one outcome")
        self._gone(down, ErrorCode.STREAM_STATE, "the node broke the order of messages", None)

    def _from_caller(self, up: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        size = len(payload)
        if self.muted or self.down_ended or self.deaf:
            up.consumed(size)
            return
        self.caller_spoke = True
        self.up_mid = more
        if end:
            self.up_ended = True
        if (down := self.down) is None:
            self._up_owed += size
            self._hold_for_down((kind, payload, more, end))
        else:
            down.forward(kind, payload, more, end)
            if self._down_watched or down.pending_bytes:
                self._up_owed += size
                self._watch_down()
            else:
                up.consumed(size)

    def on_data(self, stream: Stream, frame: memoryview, last: bool, end: bool) -> None:
        """Pass a piece of a segment on, in the memory that it came in."""
        if stream is self.down:
            self._data_from_callee(stream, frame, last, end)
        elif stream is self.up:
            self._data_from_caller(stream, frame, last, end)
        else:
            stream.consumed(len(frame) - HEADER_SIZE)

    def _data_from_callee(self, down: Stream, frame: memoryview, last: bool, end: bool) -> None:
        size = len(frame) - HEADER_SIZE
        if last:
            if end is not self.outcome_seen:
                down.consumed(size)
                self._callee_broke(down)
                return
            self.down_mid = False
        if self.muted:
            down.consumed(size)
        else:
            self._down_owed += size
            if self.up is None:
                self._hold_for_up((frame, last, end))
            else:
                self._watch_up()
                self.up.forward_data(frame, last, end)
        if end:
            self._callee_ended()

    def _data_from_caller(self, up: Stream, frame: memoryview, last: bool, end: bool) -> None:
        size = len(frame) - HEADER_SIZE
        if self.muted or self.down_ended or self.deaf:
            up.consumed(size)
            return
        if last:
            self.up_mid = False
        if end:
            self.up_ended = True
        self._up_owed += size
        if self.down is None:
            self._hold_for_down((frame, last, end))
        else:
            self._watch_down()
            self.down.forward_data(frame, last, end)

    def _hold_for_up(self, held: Held) -> None:
        if self._for_up is None:
            self._for_up = []
        self._for_up.append(held)

    def _hold_for_down(self, held: Held) -> None:
        if self._for_down is None:
            self._for_down = []
        self._for_down.append(held)

    def on_drained(self, stream: Stream, size_bytes: int) -> None:
        """Bytes left us on one side: the other side gets credit for them."""
        if stream is self.up:
            size_bytes = min(size_bytes, self._down_owed)
            if size_bytes and self.down is not None:
                self._down_owed -= size_bytes
                self.down.consumed(size_bytes)
        elif stream is self.down:
            size_bytes = min(size_bytes, self._up_owed)
            if size_bytes and self.up is not None:
                self._up_owed -= size_bytes
                self.up.consumed(size_bytes)

    def _callee_ended(self) -> None:
        """The last word of the callee: nothing more goes down."""
        if self.down_ended:
            return
        self.down_ended = True
        self._end_down()
        self.on_callee_done()

    def _end_down(self) -> None:
        """End our direction to the callee, unless the caller has done so already."""
        if not self.up_ended and self.down is not None and self.down.is_open:
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

    def _gone(
        self, stream: Stream, code: int, reason: str, error: EasyRemoteError | None
    ) -> None:
        self._return_up()
        self._return_down()
        if stream is self.up:
            self.on_caller_gone(code, reason, error)
        elif stream is self.down and not self.down_ended:
            self.down_ended = True
            self.on_callee_gone(code, reason, error)


def _replay(held: list[Held], stream: Stream) -> None:
    for entry in held:
        if len(entry) == 4:
            stream.forward(*entry)
        else:
            stream.forward_data(*entry)
