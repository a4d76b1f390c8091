"""The whole protocol for one peer: bytes in, events out, and what to send in return.

Theory. A `Connection` is driven by its owner and never acts by itself. The owner asks for memory
(`receive_buffer`), reads into it and says how many bytes came (`received`), then pulls events
(`next_event`) until there are none: one event at a time, so that it can name the destination of
raw segments before their bytes are looked at. What must be sent is pulled in chunks
(`data_to_send`). Time is an argument of every call to which it matters.
What concerns the connection as a whole, its handshake, its clock and its end, is in `life`.

Rules of this file. 1) No I/O, no clock, no randomness. 2) A broken rule of the peer ends the
connection with a GOAWAY that says which; a broken rule of ours raises `LocalProtocolError` and
changes nothing. 3) Nothing is allocated on a peer's word before it is checked against a limit.

Source. wire/README.md is the specification; the shape is that of h11 and quinn-proto.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import bulk, granting, greeting
from . import event as ev
from .credit import Inflow, StreamCredit
from .dispatch import parse
from .errors import CodecError, ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from .frame import END, LAST, MORE, FrameType, pack
from .greeting import Phase
from .life import Life
from .outgoing import Chunk
from .settings import Settings
from .stream import StreamInput, StreamRecord, StreamState

__all__ = ["Connection", "Phase"]


# Enum members that every call meets, looked up once: on Python 3.11 that costs as much as a call.
_OVER, _READY = Phase.OVER, Phase.READY
_CLOSED = StreamState.CLOSED
_SEND, _SEND_END = StreamInput.SEND, StreamInput.SEND_END
_OPEN, _MESSAGE = FrameType.OPEN, FrameType.MESSAGE


class Connection(Life):
    """One peer. See the module for how it is driven.

    Attributes:
        inflow: Credit that we granted over all streams.
        streams_in: Stream credit that we granted to the peer.
        streams_out: Streams that we may open in all, as the peer granted.
        grants: CREDIT frames that came for the connection as a whole.
        grants_of_streams: STREAMS frames that came.
    """

    def __init__(self, *, dialer: bool, now: float, settings: Settings | None = None) -> None:
        super().__init__(dialer=dialer, now=now, settings=settings)
        self.inflow = Inflow(
            self.settings.window_connection_bytes, self.settings.window_connection_bytes_max, now
        )
        self.streams_in = StreamCredit(
            self.settings.streams_credit, self.settings.streams_credit_max
        )
        self.streams_out = 0
        self.opened = 0
        self.grants = 0
        self.grants_of_streams = 0
        self.peer_stream_id = 0
        self.peer_window_stream = 0
        self.given_up: dict[int, None] = {}
        self.over: list[int] = []
        self.next_stream_id = 1 if dialer else 2
        self.bulk: bulk.Incoming | None = None

    # ---- bytes in -----------------------------------------------------------------------

    def receive_buffer(self) -> memoryview:
        """Return the memory, never empty, into which the next bytes must be received."""
        return self.buffer.space()

    def received(self, size_bytes: int, now: float) -> None:
        """Say that `size_bytes` bytes were received into `receive_buffer()`."""
        self.now = self.heard_at = now
        if self.phase is _OVER:
            self.buffer.forget()
        elif self.buffer.fill(size_bytes):
            bulk.complete(self)

    def receive(self, data: bytes | bytearray | memoryview, now: float) -> list[ev.Event]:
        """Take `data` and return the events in it; for tests and small uses.

        Segments whose destination is not named in time come as `DataReceived`.
        """
        events: list[ev.Event] = []
        view = memoryview(data)
        while len(view):
            space = self.receive_buffer()
            size = min(len(space), len(view))
            space[:size] = view[:size]
            view = view[size:]
            self.received(size, now)
            while (event := self.next_event()) is not None:
                events.append(event)
        return events

    def receive_eof(self, now: float) -> None:
        """Say that the peer's bytes are over; the loss comes as the next event."""
        self.now = now
        if self.phase is not _OVER:
            self.end()

    def next_event(self) -> ev.Event | None:
        """Return what happened next, or None until more bytes come."""
        if self.events:
            return self.events.popleft()
        while self.phase is not _OVER:
            try:
                progressed = parse(self)
            except ProtocolError as error:
                self.fail(error)
                progressed = True
            except CodecError as error:
                self.fail(RemoteProtocolError(ErrorCode.DECODE, str(error)))
                progressed = True
            if self.events:
                return self.events.popleft()
            if not progressed:
                return None
        return self.events.popleft() if self.events else None

    # ---- bytes out ----------------------------------------------------------------------

    def data_to_send(self) -> Chunk:
        """Return the buffers to write next, in order; empty if there is nothing to send now.

        A chunk must be written whole before the next one is asked for.
        """
        self.notices.write_cancels(self.out)
        chunk = self.out.next_chunk()
        if self.out.emptied:
            for record in self.out.emptied:
                self.forget_if_over(record)
            self.out.emptied.clear()
        return chunk

    def take_drained(self) -> list[tuple[int, int]]:
        """Return (stream id, bytes) framed since the last call, of watched streams."""
        drained = self.out.drained
        if drained:
            self.out.drained = []
        return drained

    @property
    def wants_write(self) -> bool:
        """Whether `data_to_send` may have something."""
        return bool(self.out.express or self.out.round or self.notices.cancels)

    # ---- streams ------------------------------------------------------------------------

    @property
    def streams_available(self) -> int:
        """How many streams we may open now."""
        return self.streams_out - self.opened if self.phase is _READY else 0

    def open(
        self, kind: int, payload: bytes, buffers: Sequence[memoryview] = (), *,
        more: bool = False, end: bool = False,
    ) -> int:  # fmt: skip
        """Open a stream with a message and return its id.

        Args:
            kind: Message kind, for the frame header.
            payload: The encoded message.
            buffers: Its segments, in order; none may be empty.
            more: Segments follow later by `forward_data` (a relay), and so does END.
            end: We say nothing more after this message and its segments.
        """
        if self.streams_available <= 0:
            raise LocalProtocolError(ErrorCode.FLOW_CONTROL, "no stream credit is left")
        self._check_payload(payload)
        stream_id = self.next_stream_id
        self.next_stream_id += 2
        self.opened += 1
        record = self.streams[stream_id] = StreamRecord(stream_id, self.peer_window_stream)
        self._say(record, _OPEN, kind, payload, buffers, more, end)
        return stream_id

    def send(
        self, stream_id: int, kind: int, payload: bytes, buffers: Sequence[memoryview] = (), *,
        more: bool = False, end: bool = False,
    ) -> None:  # fmt: skip
        """Say a message on an open stream; arguments as for `open`."""
        record = self.streams.get(stream_id)
        if record is None:
            self._not_open(stream_id)
            return
        self._check_payload(payload)
        if end:
            self.notices.forget(stream_id)
        self._say(record, _MESSAGE, kind, payload, buffers, more, end)

    def _say(
        self, record: StreamRecord, type_: int, kind: int, payload: bytes,
        buffers: Sequence[memoryview], more: bool, end: bool,
    ) -> None:  # fmt: skip
        self.step_local(record, _SEND_END if end else _SEND)
        bulky = more or bool(buffers)
        flags = MORE if bulky else END if end else 0
        frame = pack(type_, flags, kind, record.stream_id, payload)
        if type_ == _OPEN:
            self.out.opening(frame)
        else:
            self.out.message(record, frame)
        if buffers:
            self.out.segments(record, buffers, end=end)
        if end:
            self.forget_if_over(record)

    def forward_data(self, stream_id: int, frame: memoryview, *, last: bool, end: bool) -> None:
        """Send a DATA frame that another connection received, in the memory it came in."""
        record = self.streams.get(stream_id)
        if record is None:
            self._not_open(stream_id)
            return
        self.step_local(record, _SEND_END if end else _SEND)
        if end:
            self.notices.forget(stream_id)
        self.out.relay(record, frame, (LAST if last else 0) | (END if end else 0))
        self.forget_if_over(record)

    def fill(self, stream_id: int, buffers: Sequence[memoryview]) -> None:
        """Name the destinations of the segments of the message just received on a stream."""
        record = self.streams.get(stream_id)
        if record is None:
            self._not_open(stream_id)
            return
        self._require(record.more and record.targets is None, "no segments are due")
        record.targets = list(buffers)
        record.target_index = record.target_offset = 0

    def manual_credit(self, stream_id: int) -> None:
        """From now on credit of this stream returns by `consumed` alone (a relay)."""
        record = self.streams.get(stream_id)
        if record is not None:
            record.manual = True

    def consumed(self, stream_id: int, size_bytes: int) -> None:
        """Say that bytes received on a stream have left our memory: the peer gets credit."""
        record = self.streams.get(stream_id)
        if record is not None:
            granting.credit(self, record, size_bytes)
        else:
            granting.credit_connection(self, size_bytes)

    def consumed_on_stream(self, stream_id: int, size_bytes: int) -> None:
        """The same for bytes that `credit_connection` was told of when they came."""
        record = self.streams.get(stream_id)
        if record is not None:
            granting.credit_stream(self, record, size_bytes)

    def credit_connection(self, size_bytes: int) -> None:
        """Give the connection's credit for bytes back, while their stream's stays used."""
        granting.credit_connection(self, size_bytes)

    def watch(self, stream_id: int) -> None:
        """Report this stream's bytes in `take_drained` as they are framed."""
        record = self.streams.get(stream_id)
        if record is not None:
            record.watched = True

    def queued_bytes(self, stream_id: int) -> int:
        """Return how many bytes of a stream wait for credit or their turn."""
        record = self.streams.get(stream_id)
        return 0 if record is None else record.queued_bytes

    def reset(self, stream_id: int, code: ErrorCode, reason: str) -> None:
        """Give a stream up; what it had queued is dropped. Without effect if it is over."""
        record = self.streams.pop(stream_id, None)
        if record is None:
            return
        self.out.drop(record)
        self.notices.forget(stream_id)
        record.step(StreamInput.SEND_RESET)
        self._remember(stream_id)
        self.out.control(greeting.reset_frame(stream_id, code, reason))
        if record.released:
            self._return_stream_credit()

    def _remember(self, stream_id: int) -> None:
        self.given_up[stream_id] = None
        if len(self.given_up) > self.settings.reset_memory:
            del self.given_up[next(iter(self.given_up))]

    def accept(self, stream_id: int) -> None:
        """Tell the opener, soon and in one frame for many, that we are responsible."""
        record = self.streams.get(stream_id)
        if record is not None:
            record.accepted = True
            self.notices.accept(stream_id, self.now)

    def started(self, stream_id: int) -> None:
        """Tell the opener, soon and in one frame for many, that user code has started."""
        record = self.streams.get(stream_id)
        if record is not None:
            record.accepted = True
            self.notices.start(stream_id, self.now)

    def cancel(self, stream_id: int, strength: int = 0, grace_ms: int = 5000) -> None:
        """Ask the peer to stop the work of a stream that we opened; its outcome still comes."""
        if stream_id in self.streams:
            self.notices.cancel(stream_id, strength, grace_ms)

    def release(self, stream_id: int) -> None:
        """The work of a stream that the peer opened is gone: its stream credit returns.

        It does so as soon as the stream is over, too: a peer that neither ends its side nor takes
        our last words must not be given another stream for it.
        """
        record = self.streams.get(stream_id)
        if record is None:
            self._return_stream_credit()
        else:
            record.released = True

    def _return_stream_credit(self) -> None:
        if self.streams_in.release():
            self.out.control(greeting.streams_frame(self.streams_in.granted))

    # ---- shared with dispatch.py ----------------------------------------------------------

    def step(self, record: StreamRecord, what: StreamInput) -> None:
        """Move a stream along its table because of the peer."""
        if not record.step(what):
            raise RemoteProtocolError(
                ErrorCode.STREAM_STATE, f"{what.name} on a stream that is {record.state.name}"
            )

    def step_local(self, record: StreamRecord, what: StreamInput) -> None:
        """Move a stream along its table because of ourselves."""
        if not record.step(what):
            raise LocalProtocolError(
                ErrorCode.STREAM_STATE, f"{what.name} on a stream that is {record.state.name}"
            )

    def forget_if_over(self, record: StreamRecord) -> None:
        """Drop the record of a stream that is closed and has nothing left to send."""
        if record.state is _CLOSED and not record.queue:
            self.streams.pop(record.stream_id, None)
            self.over.append(record.stream_id)
            if record.released:
                self._return_stream_credit()

    def take_over(self) -> list[int]:
        """Return the ids of the streams that ended since the last call."""
        over = self.over
        if over:
            self.over = []
        return over

    def _not_open(self, stream_id: int) -> None:
        """Our own code spoke on a stream that is not there: a bug, unless all of them are gone."""
        if self.phase is not _OVER:
            raise LocalProtocolError(ErrorCode.STREAM_STATE, f"stream {stream_id} is not open")

    def _check_payload(self, payload: bytes) -> None:
        limit = self.settings.frame_control_bytes_max
        if len(payload) > limit:
            raise LocalProtocolError(
                ErrorCode.FRAME_TOO_LARGE, f"a message of {len(payload)} bytes, {limit} at most"
            )
