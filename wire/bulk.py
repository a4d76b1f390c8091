"""DATA frames on their way in: raw bytes go straight to where they belong.

Theory. The frames of a message's segments follow the message on the same stream, segment after
segment; a frame never spans two segments, and the last one is flagged. If the owner named
destinations (`Connection.fill`) each frame's payload is received into its part of them and one
event tells when all are full. If it named none, it is a relay: each frame is received into memory
of its own, header space in front, and handed over whole.

Rules of this file. 1) Both credits are checked before a byte is taken. 2) Bytes for a stream that
is gone are received, credited and forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import event as ev
from .buffer import fresh_frame
from .credit import cost
from .errors import ErrorCode, RemoteProtocolError
from .frame import END, FLAGS_ALLOWED, HEADER_SIZE, LAST, FrameType
from .granting import credit, credit_connection, inflow_of
from .misconduct import late
from .stream import TRANSITIONS, StreamInput, StreamRecord

if TYPE_CHECKING:
    from .connection import Connection


class Incoming(NamedTuple):
    """The DATA frame that is being received."""

    record: StreamRecord | None
    """None: the stream is gone, the bytes are forgotten."""
    flags: int
    frame: memoryview | None
    """Memory of its own, where no destination was named."""
    counted: int
    """What the frame counts of the credit."""


def begin(connection: Connection, length: int, flags: int, kind: int, stream_id: int) -> None:
    """Check the DATA frame at the front of the buffer and direct its payload.

    Raises:
        RemoteProtocolError: The frame breaks a rule.
    """
    settings = connection.settings
    if not connection.ready or kind or flags & ~FLAGS_ALLOWED[FrameType.DATA]:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "a DATA frame is not allowed here")
    if length > settings.frame_data_bytes_max:
        raise RemoteProtocolError(ErrorCode.FRAME_TOO_LARGE, f"a DATA frame of {length} bytes")
    if length == 0:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "an empty DATA frame")
    counted = cost(length)
    if not connection.inflow.take(counted):
        raise RemoteProtocolError(ErrorCode.FLOW_CONTROL, "more bytes than were granted")
    record = connection.streams.get(stream_id)
    frame: memoryview | None = None
    if record is None:
        late(connection, stream_id)
        credit_connection(connection, counted)
    else:
        _check(connection, record, counted, flags)
    if record is None or record.targets is None:
        frame = fresh_frame(length)
        destination = frame[HEADER_SIZE:]
    else:
        destination = _target(record, record.targets, length)
    connection.bulk = Incoming(record, flags, frame, counted)
    if connection.buffer.redirect(destination):
        complete(connection)


def _check(connection: Connection, record: StreamRecord, counted: int, flags: int) -> None:
    if not record.more:
        raise RemoteProtocolError(ErrorCode.STREAM_STATE, "a DATA frame without a message")
    if not inflow_of(connection, record).take(counted):
        raise RemoteProtocolError(ErrorCode.FLOW_CONTROL, "more bytes than were granted")
    if flags & END and not flags & LAST:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "END inside segments")
    if (record.state, StreamInput.RECEIVE) not in TRANSITIONS:
        raise RemoteProtocolError(ErrorCode.STREAM_STATE, "a DATA frame after END")


def _target(record: StreamRecord, targets: list[memoryview], length: int) -> memoryview:
    """Return the part of the named destinations that this frame fills."""
    if record.target_index >= len(targets):
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "more segments than were announced")
    target = targets[record.target_index]
    start = record.target_offset
    if length > len(target) - start:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "a segment longer than announced")
    record.target_offset += length
    if record.target_offset == len(target):
        record.target_index += 1
        record.target_offset = 0
    return target[start : start + length]


def complete(connection: Connection) -> None:
    """The DATA frame is whole: report it."""
    assert connection.bulk is not None
    record, flags, frame, counted = connection.bulk
    connection.bulk = None
    if record is None:
        return
    if connection.streams.get(record.stream_id) is not record:  # Given up meanwhile.
        credit_connection(connection, counted)
        return
    last, end = bool(flags & LAST), bool(flags & END)
    if last:
        record.more = False
    if end:
        connection.step(record, StreamInput.RECEIVE_END)
    if frame is not None:
        connection.events.append(ev.DataReceived(record.stream_id, frame, last, end))
        if not record.manual:
            credit(connection, record, counted)
    else:
        credit(connection, record, counted)
        if last:
            _filled(connection, record, end)
    connection.forget_if_over(record)


def _filled(connection: Connection, record: StreamRecord, end: bool) -> None:
    targets, record.targets = record.targets, None
    assert targets is not None
    if record.target_index != len(targets):
        error = RemoteProtocolError(ErrorCode.PROTOCOL, "a segment shorter than announced")
        connection.fail(error)
        return
    connection.events.append(ev.SegmentsFilled(record.stream_id, end))
