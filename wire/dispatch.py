"""What each frame does to a connection: one function per type, in one table.

Rules of this file. 1) Every function checks the whole frame before it changes anything. 2) A
broken rule is raised as `RemoteProtocolError`, bad bytes as `CodecError`; the connection turns
both into its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import bulk, greeting
from . import event as ev
from .credit import TOTAL_MAX, cost
from .errors import CodecError, ErrorCode, RemoteProtocolError
from .frame import END, FLAGS_ALLOWED, MORE, PREAMBLE, STREAM_ID_MAX, FrameType, pack
from .granting import credit, credit_connection, inflow_of
from .misconduct import CANCELS_FREE, charge, crumbs, idle, late, late_control
from .notices import STRENGTH_MAX
from .stream import StreamInput, StreamRecord, StreamState

if TYPE_CHECKING:
    from .connection import Connection

_RECEIVE, _RECEIVE_END = StreamInput.RECEIVE, StreamInput.RECEIVE_END
_DATA, _MESSAGE, _OPEN = FrameType.DATA, FrameType.MESSAGE, FrameType.OPEN
# Looked up once: on Python 3.11 reaching a member of an enum costs as much as a call.


def parse(connection: Connection) -> bool:
    """Take one frame off the receive buffer; False if there is no whole one.

    Raises:
        RemoteProtocolError: The frame breaks a rule.
        CodecError: Its payload is not what its type wants.
    """
    buffer = connection.buffer
    if not connection.preamble_seen:
        return _parse_preamble(connection)
    head = buffer.header()
    if head is None:
        return False
    length, type_, flags, kind, stream_id = head
    if type_ == _DATA:
        bulk.begin(connection, length, flags, kind, stream_id)
        return True
    settings = connection.settings
    limit = settings.frame_control_bytes_max if connection.ready else settings.hello_bytes_max
    if length > limit:
        raise RemoteProtocolError(
            ErrorCode.FRAME_TOO_LARGE, f"a frame of {length} bytes, {limit} at most"
        )
    payload = buffer.payload(length)
    if payload is None:
        return False
    on_frame(connection, type_, flags, kind, stream_id, payload)
    return True


def _parse_preamble(connection: Connection) -> bool:
    buffer = connection.buffer
    size = len(PREAMBLE)
    have = bytes(buffer.data[buffer.start : min(buffer.end, buffer.start + size)])
    if not PREAMBLE.startswith(have):
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "the peer does not speak this protocol")
    if len(have) < size:
        return False
    buffer.start += size
    connection.preamble_seen = True
    return True


def on_frame(
    connection: Connection, type_: int, flags: int, kind: int, stream_id: int, payload: bytes
) -> None:
    """Take one whole frame that is not DATA.

    Raises:
        RemoteProtocolError: The frame breaks a rule.
        CodecError: Its payload is not what its type wants.
    """
    if connection.ready:
        if type_ == _MESSAGE:
            _on_message(connection, flags, kind, stream_id, payload)
            return
        if type_ == _OPEN:
            _on_open(connection, flags, kind, stream_id, payload)
            return
    allowed = FLAGS_ALLOWED.get(type_)
    if allowed is None or flags & ~allowed:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, f"type {type_} with flags {flags} is unknown")
    if kind != 0:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "only messages have a kind")
    if (stream_id != 0) != (type_ in (FrameType.RESET, FrameType.CREDIT)) and not (
        type_ == FrameType.CREDIT and stream_id == 0
    ):
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "the frame is on the wrong stream")
    handlers = _READY if connection.ready else _GREETING
    handler = handlers.get(type_)
    if handler is None:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, f"type {type_} is not allowed now")
    handler(connection, stream_id, payload)


def _on_open(connection: Connection, flags: int, kind: int, stream_id: int, payload: bytes) -> None:
    if flags & ~(END | MORE) or flags == END | MORE:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "OPEN with flags that it cannot have")
    expected = (
        connection.peer_stream_id + 2
        if connection.peer_stream_id
        else (1 if not connection.dialer else 2)
    )
    if stream_id != expected:
        code = ErrorCode.STREAM_STATE if stream_id else ErrorCode.PROTOCOL
        raise RemoteProtocolError(code, f"stream {stream_id} was opened, {expected} was due")
    if not connection.streams_in.open():
        raise RemoteProtocolError(ErrorCode.FLOW_CONTROL, "more streams than were granted")
    connection.peer_stream_id = stream_id
    record = StreamRecord(stream_id, connection.peer_window_stream)
    connection.streams[stream_id] = record
    more, end = bool(flags & MORE), bool(flags & END)
    if more:
        record.more = True
    if end:
        connection.step(record, _RECEIVE_END)
    connection.events.append(ev.StreamOpened(stream_id, kind, payload, more, end))


def _on_message(
    connection: Connection, flags: int, kind: int, stream_id: int, payload: bytes
) -> None:
    if flags & ~(END | MORE) or flags == END | MORE:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "MESSAGE with flags that it cannot have")
    counted = cost(len(payload))
    if not connection.inflow.take(counted):
        raise RemoteProtocolError(ErrorCode.FLOW_CONTROL, "more bytes than were granted")
    record = connection.streams.get(stream_id)
    if record is None:
        late(connection, stream_id)
        credit_connection(connection, counted)
        return
    if record.more:
        raise RemoteProtocolError(ErrorCode.STREAM_STATE, "a message before the segments' end")
    more, end = bool(flags & MORE), bool(flags & END)
    if (not end or record.inflow is not None) and not inflow_of(connection, record).take(counted):
        raise RemoteProtocolError(ErrorCode.FLOW_CONTROL, "more bytes than were granted")
    connection.step(record, _RECEIVE_END if end else _RECEIVE)
    if more:
        record.more = True
    if end:
        credit_connection(connection, counted)  # A window holds one message: no need to count it.
    elif not record.manual:
        credit(connection, record, counted)
    connection.events.append(ev.MessageReceived(stream_id, kind, payload, more, end))
    if end:
        connection.forget_if_over(record)


def _on_hello(connection: Connection, stream_id: int, payload: bytes) -> None:
    del stream_id
    if connection.dialer:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "HELLO is said by the dialer")
    version, role, credential, info = greeting.read_hello(connection, payload)
    connection.greeted(version)
    connection.events.append(ev.HelloReceived(version, role, credential, info))


def _on_welcome(connection: Connection, stream_id: int, payload: bytes) -> None:
    del stream_id
    if not connection.dialer:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "WELCOME is said to the dialer")
    version, info = greeting.read_welcome(connection, payload)
    connection.greeted(version)
    connection.events.append(ev.WelcomeReceived(version, info))


def _on_goaway(connection: Connection, stream_id: int, payload: bytes) -> None:
    del stream_id
    code, reason = greeting.checked(payload, int, str)[:2]
    connection.events.append(ev.GoawayReceived(code, reason))
    connection.end()


def _on_drain(connection: Connection, stream_id: int, payload: bytes) -> None:
    del stream_id
    (reason,) = greeting.checked(payload, str)[:1]
    charge(connection, 1.0)
    connection.events.append(ev.DrainReceived(reason))


def _on_ping(connection: Connection, stream_id: int, payload: bytes) -> None:
    del stream_id
    if payload:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "a PING has no payload")
    charge(connection, 1.0)
    connection.out.control(pack(FrameType.PONG, 0, 0, 0, b""))


def _on_pong(connection: Connection, stream_id: int, payload: bytes) -> None:
    del stream_id
    if payload or connection.ping_sent_at is None:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "a PONG that answers no PING")
    rtt_s = connection.now - connection.ping_sent_at
    connection.ping_sent_at = None
    # The shortest one tells the path; a longer one has waited behind our own bulk, and windows that
    # grew with it would only make that queue longer.
    connection.rtt_s = rtt_s if connection.rtt_s is None else min(rtt_s, connection.rtt_s)
    connection.events.append(ev.PongReceived(rtt_s))


def _on_streams(connection: Connection, stream_id: int, payload: bytes) -> None:
    del stream_id
    (total,) = greeting.checked(payload, int)[:1]
    if not connection.streams_out <= total <= STREAM_ID_MAX:
        raise RemoteProtocolError(ErrorCode.FLOW_CONTROL, "stream credit was taken back")
    connection.grants_of_streams += 1
    if connection.grants_of_streams - 1 > connection.opened:
        charge(connection, 1.0)
    connection.streams_out = total
    connection.events.append(ev.CreditReceived(streams=True))


def _on_credit(connection: Connection, stream_id: int, payload: bytes) -> None:
    (total,) = greeting.checked(payload, int)[:1]
    if stream_id == 0:
        outflow = connection.out.outflow
        if not outflow.grant(total):
            raise RemoteProtocolError(ErrorCode.FLOW_CONTROL, "byte credit was taken back")
        connection.grants += 1
        crumbs(connection, connection.grants, outflow.sent)
    else:
        record = connection.streams.get(stream_id)
        if record is None:
            late_control(connection, stream_id, len(payload))
            return
        if not record.granted <= total <= TOTAL_MAX:
            raise RemoteProtocolError(ErrorCode.FLOW_CONTROL, "byte credit was taken back")
        record.grants += 1
        crumbs(connection, record.grants, record.sent)
        record.granted = total
        connection.out.schedule(record)
    connection.events.append(ev.CreditReceived(streams=False))


def _on_reset(connection: Connection, stream_id: int, payload: bytes) -> None:
    code, reason = greeting.checked(payload, int, str)[:2]
    record = connection.streams.get(stream_id)
    if record is None:
        if stream_id in connection.given_up:
            idle(connection, len(payload))
        else:
            late(connection, stream_id)
        return
    if not record.accepted and not _is_ours(connection, stream_id):
        charge(connection, 1.0)
    if record.state is not StreamState.CLOSED:  # Else our END still waits here, unseen.
        connection.step(record, StreamInput.RECEIVE_RESET)
    connection.out.drop(record)
    connection.notices.forget(stream_id)
    connection.forget_if_over(record)
    connection.events.append(ev.StreamReset(stream_id, code, reason))


def _is_ours(connection: Connection, stream_id: int) -> bool:
    """Whether a stream is one of those that we open."""
    return stream_id % 2 == connection.next_stream_id % 2


def _ids(connection: Connection, payload: bytes, news: int) -> list[int]:
    """Return of which streams of ours a notice tells something new."""
    ids = greeting.checked(payload)
    if not ids:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "an empty notice")
    if any(type(stream_id) is not int for stream_id in ids):
        raise CodecError("stream ids are integers")
    streams, parity = connection.streams, connection.next_stream_id % 2
    known = [streams[i] for i in dict.fromkeys(ids) if i % 2 == parity and i in streams]
    fresh = [record for record in known if record.told < news]
    for record in fresh:
        record.told = news
    if not fresh:
        idle(connection, len(payload))
    return [record.stream_id for record in fresh]


def _on_accept(connection: Connection, stream_id: int, payload: bytes) -> None:
    del stream_id
    if ids := _ids(connection, payload, 1):
        connection.events.append(ev.StreamsAccepted(ids))


def _on_started(connection: Connection, stream_id: int, payload: bytes) -> None:
    del stream_id
    if ids := _ids(connection, payload, 2):
        connection.events.append(ev.StreamsStarted(ids))


def _on_cancel(connection: Connection, stream_id: int, payload: bytes) -> None:
    del stream_id
    cancels: dict[int, tuple[int, int, int]] = {}
    entries = greeting.checked(payload)
    if not entries:
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "an empty notice")
    for entry in entries:
        if type(entry) is not list or len(entry) < 3:
            raise CodecError("a cancel is [stream id, strength, grace]")
        target, strength, grace_ms = entry[:3]
        if not type(target) is type(strength) is type(grace_ms) is int:
            raise CodecError("a cancel is three integers")
        if not 0 <= strength <= STRENGTH_MAX or grace_ms < 0:
            raise CodecError("a cancel with a strength or a grace that does not exist")
        if target in connection.streams and not _is_ours(connection, target):
            cancels[target] = max(cancels.get(target, (0, -1, 0)), (target, strength, grace_ms))
    if not cancels:
        idle(connection, len(payload))
        return
    for target in cancels:
        record = connection.streams[target]
        record.cancels += 1
        if record.cancels > CANCELS_FREE:
            charge(connection, 1.0)
    connection.events.append(ev.CancelReceived(list(cancels.values())))


_Handler = Callable[["Connection", int, bytes], None]

_GREETING: dict[int, _Handler] = {
    FrameType.HELLO: _on_hello,
    FrameType.WELCOME: _on_welcome,
    FrameType.GOAWAY: _on_goaway,
}

_READY: dict[int, _Handler] = {
    FrameType.GOAWAY: _on_goaway,
    FrameType.DRAIN: _on_drain,
    FrameType.PING: _on_ping,
    FrameType.PONG: _on_pong,
    FrameType.STREAMS: _on_streams,
    FrameType.ACCEPT: _on_accept,
    FrameType.STARTED: _on_started,
    FrameType.CANCEL: _on_cancel,
    FrameType.CREDIT: _on_credit,
    FrameType.RESET: _on_reset,
}
