"""When the peer gets more credit: bytes that left our memory, turned into CREDIT frames.

Theory. The credit of the connection and that of a stream may return apart: a relay that holds the
bytes of a stuck stream gives the connection's credit back at once, within a bound of its own, so
that the other streams of the link go on.

Rules of this file. 1) Every byte that was taken is credited exactly once on its stream (while
there is one) and exactly once on the connection. 2) A stream on which the peer has ended gets
no more grants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import greeting
from .credit import Inflow
from .stream import StreamRecord, StreamState

if TYPE_CHECKING:
    from .connection import Connection


def inflow_of(connection: Connection, record: StreamRecord) -> Inflow:
    """Return what we granted on a stream, counted from now if it was not yet."""
    inflow = record.inflow
    if inflow is None:
        settings = connection.settings
        inflow = record.inflow = Inflow(
            settings.window_stream_bytes, settings.window_stream_bytes_max, connection.now
        )
    return inflow


def credit(connection: Connection, record: StreamRecord, size_bytes: int) -> None:
    """Count bytes of a stream as consumed, on it and on the connection."""
    credit_stream(connection, record, size_bytes)
    credit_connection(connection, size_bytes)


def credit_stream(connection: Connection, record: StreamRecord, size_bytes: int) -> None:
    """Count bytes of a stream as consumed, and grant more when that is worth a frame."""
    inflow = inflow_of(connection, record)
    due = inflow.consume(size_bytes, connection.now, connection.rtt_s or 0.0)
    if due and record.state in (StreamState.OPEN, StreamState.ENDED_HERE):
        connection.out.control(greeting.credit_frame(record.stream_id, inflow.granted))


def credit_connection(connection: Connection, size_bytes: int) -> None:
    """Count bytes as consumed on the connection alone."""
    inflow = connection.inflow
    if inflow.consume(size_bytes, connection.now, connection.rtt_s or 0.0):
        connection.out.control(greeting.credit_frame(0, inflow.granted))
