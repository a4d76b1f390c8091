"""Frames on their way out: small ones first, bulk in slices, streams in turn.

Theory. There are two lanes. Control frames and messages whose stream has credit and nothing
queued go to the *express* lane, a plain list that is joined into one write. Everything else waits
in its stream's queue: segments, and what came after them on the same stream, for order within a
stream is kept. Streams with a queue take turns, one slice each, and the express lane is looked at
before every slice: a small call never waits for more than one slice of somebody's bulk.

Rules of this file. 1) Order within a stream is never changed. 2) A slice is framed only when it
is asked for: what waits can still be dropped. 3) Credit is charged when a frame is made.

Source. performance.md, "Bulk"; RFC 9218 for the idea that small urgent messages go first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .credit import FRAME_COST_MIN, Outflow, cost
from .frame import END, HEADER, HEADER_SIZE, LAST, FrameType, pack_header
from .settings import Settings
from .stream import StreamRecord, StreamState

JOIN_MAX = 128 * 1024
"""Most bytes of small frames that are joined into one write."""

EXPRESS_MAX = 4 * 1024 * 1024
"""Bytes in the express lane above which messages wait in their streams' queues, where a relay
sees them: a peer that grants much and reads nothing fills no more than this."""

CALM_SLICES = 8
"""Slices after the last small frame at which a connection counts as carrying bulk alone."""

Chunk = list[bytes | memoryview]

_CLOSED = StreamState.CLOSED


class Segment:
    """Raw bytes of one segment that wait to be framed in slices."""

    __slots__ = ("flags", "offset", "view")

    def __init__(self, view: memoryview, flags: int) -> None:
        self.view = view
        self.offset = 0
        self.flags = flags


class RelayFrame:
    """A whole DATA frame taken from another connection, header space in front."""

    __slots__ = ("begin", "flags", "frame", "owed")

    def __init__(self, frame: memoryview, flags: int) -> None:
        self.frame = frame
        self.begin = HEADER_SIZE  # Of what has not been sent.
        self.flags = flags
        self.owed = cost(len(frame) - HEADER_SIZE)  # What it counted where it came in.


class Outgoing:
    """Everything that one connection has to send.

    Attributes:
        outflow: Credit of the whole connection.
        pending_bytes: Bytes in the express lane.
        opening_bytes: At least those of them that open streams: our own wish, not the peer's.
        drained: (stream id, credit used) of watched streams, as they were framed; of a frame
            from another connection what it counted there, however it was divided.
        calm: Slices sent since the last small frame; while it is low, slices are short.
        emptied: Streams that were closed and have now sent all that they had queued.
    """

    __slots__ = (
        "calm",
        "drained",
        "emptied",
        "express",
        "opening_bytes",
        "outflow",
        "pending_bytes",
        "round",
        "settings",
    )

    def __init__(self, settings: Settings, outflow: Outflow) -> None:
        self.settings = settings
        self.outflow = outflow
        self.express: list[bytes] = []
        self.pending_bytes = 0
        self.opening_bytes = 0
        self.round: deque[StreamRecord] = deque()
        self.drained: list[tuple[int, int]] = []
        self.emptied: list[StreamRecord] = []
        self.calm = CALM_SLICES

    def control(self, frame: bytes) -> None:
        """Send a frame that needs no credit."""
        self.express.append(frame)
        self.pending_bytes += len(frame)

    def opening(self, frame: bytes) -> None:
        """Open a stream: stream credit was paid for it."""
        self.express.append(frame)
        size = len(frame)
        self.pending_bytes += size
        self.opening_bytes += size

    @property
    def caused_bytes(self) -> int:
        """Framed bytes that are not ours but the peer's doing: answers that it does not read."""
        return self.pending_bytes - self.opening_bytes

    def message(self, record: StreamRecord, frame: bytes) -> None:
        """Send a message, at once if its stream has credit and nothing queued."""
        size = len(frame) - HEADER_SIZE
        counted = max(size, FRAME_COST_MIN)
        sent = record.sent + counted
        outflow = self.outflow
        if (
            not record.queue
            and sent <= record.granted
            and outflow.sent + counted <= outflow.granted
            and self.pending_bytes < EXPRESS_MAX
        ):
            record.sent = sent
            outflow.sent += counted
            self.express.append(frame)
            self.pending_bytes += len(frame)
            if record.watched:
                self.drained.append((record.stream_id, counted))
            return
        self._queue(record, frame, size)

    def segments(self, record: StreamRecord, buffers: Sequence[memoryview], *, end: bool) -> None:
        """Queue the segments of the message just sent."""
        final = LAST | END if end else LAST
        for index, view in enumerate(buffers):
            flags = final if index == len(buffers) - 1 else 0
            self._queue(record, Segment(view, flags), len(view))

    def relay(self, record: StreamRecord, frame: memoryview, flags: int) -> None:
        """Queue a DATA frame that came from another connection; its memory is sent as it is."""
        self._queue(record, RelayFrame(frame, flags), len(frame) - HEADER_SIZE)

    def _queue(
        self, record: StreamRecord, entry: bytes | Segment | RelayFrame, size_bytes: int
    ) -> None:
        if record.queue is None:
            record.queue = deque()
        record.queue.append(entry)
        record.queued_bytes += size_bytes
        self.schedule(record)

    def schedule(self, record: StreamRecord) -> None:
        """Let a stream with a queue take part in the round (again)."""
        if record.queue and not record.scheduled:
            record.scheduled = True
            self.round.append(record)

    def drop(self, record: StreamRecord) -> None:
        """Forget what a stream had queued."""
        record.queue = None
        record.queued_bytes = 0

    def next_chunk(self) -> Chunk:
        """Return the buffers to write next, in order; an empty list if nothing may be sent."""
        if self.express:
            self.calm = 0
            return [self._join()]
        turns = len(self.round)
        while turns and self.outflow.left > 0:
            turns -= 1
            record = self.round.popleft()
            record.scheduled = False
            if not record.queue:
                continue
            chunk = self._slice(record)
            if chunk:
                self.schedule(record)
                return chunk
            if record.granted > record.sent:  # Only the connection's credit was too small.
                self.schedule(record)
        return []

    def _join(self) -> bytes:
        express = self.express
        if self.pending_bytes <= JOIN_MAX or len(express) == 1:
            self.express = []
            self.pending_bytes = self.opening_bytes = 0
            return b"".join(express)
        size, count = len(express[0]), 1
        while size + len(express[count]) <= JOIN_MAX:  # Ends: all together are larger.
            size += len(express[count])
            count += 1
        self.express = express[count:]
        self.pending_bytes -= size
        return b"".join(express[:count])

    def _slice(self, record: StreamRecord) -> Chunk:
        queue = record.queue
        assert queue
        entry = queue[0]
        left = min(record.granted - record.sent, self.outflow.left)
        if left < FRAME_COST_MIN:
            return []
        if type(entry) is bytes:
            size = len(entry) - HEADER_SIZE
            if size > left:
                return []
            queue.popleft()
            self._charge(record, size, cost(size))
            return [entry]
        if type(entry) is RelayFrame:
            return self._relay_slice(record, entry, left)
        assert type(entry) is Segment
        total = len(entry.view)
        settings = self.settings
        busy = self.calm < CALM_SLICES
        self.calm += 1
        size = min(total - entry.offset, settings.frame_data_bytes_max, left)
        if busy:
            size = min(size, settings.slice_bytes_while_busy)
        begin = entry.offset
        entry.offset += size
        flags = 0
        if entry.offset == total:
            queue.popleft()
            flags = entry.flags
        self._charge(record, size, cost(size))
        return [pack_header(size, flags, record.stream_id), entry.view[begin : begin + size]]

    def _relay_slice(self, record: StreamRecord, entry: RelayFrame, left: int) -> Chunk:
        """Send a frame in its own memory, or as much of it as there is credit for.

        What it carries is never written over: somebody may keep it to send it once more.
        """
        assert record.queue
        frame, begin = entry.frame, entry.begin
        size, flags, left_us = len(frame) - begin, entry.flags, entry.owed
        if size > left:
            size = left_us = left
            flags = 0
            entry.begin += size
            entry.owed -= left
        else:
            record.queue.popleft()
        self._charge(record, size, left_us)
        if begin > HEADER_SIZE:
            return [pack_header(size, flags, record.stream_id), frame[begin : begin + size]]
        HEADER.pack_into(frame, 0, size, FrameType.DATA, flags, 0, record.stream_id)
        return [frame[: begin + size]]

    def _charge(self, record: StreamRecord, size_bytes: int, left_us: int) -> None:
        counted = cost(size_bytes)
        record.sent += counted
        self.outflow.sent += counted
        record.queued_bytes -= size_bytes
        if not record.queue and record.state is _CLOSED:
            self.emptied.append(record)
        if record.watched:
            self.drained.append((record.stream_id, left_us))


class Silent(Outgoing):
    """What a connection that is over has to send: what it had framed, and nothing more."""

    __slots__ = ()

    def __init__(self, last: Outgoing) -> None:
        super().__init__(last.settings, last.outflow)
        self.express = last.express
        self.pending_bytes = last.pending_bytes
        self.drained = last.drained

    def control(self, frame: bytes) -> None:
        """Nobody listens."""

    def opening(self, frame: bytes) -> None:
        """Nobody listens."""

    def message(self, record: StreamRecord, frame: bytes) -> None:
        """Nobody listens."""

    def segments(self, record: StreamRecord, buffers: Sequence[memoryview], *, end: bool) -> None:
        """Nobody listens."""

    def relay(self, record: StreamRecord, frame: memoryview, flags: int) -> None:
        """Nobody listens."""
