"""Targets of bytes on a connection: whole conversations, and the buffer below them."""

from __future__ import annotations

import random

from easyremote.wire import cbor, frame, greeting
from easyremote.wire import event as ev
from easyremote.wire import message as ms
from easyremote.wire.connection import Connection
from easyremote.wire.errors import ErrorCode, ProtocolError
from easyremote.wire.frame import END, LAST, MORE, FrameType, pack, pack_header
from easyremote.wire.settings import KIB, Settings

from .codec import CALL
from .mutate import mutate_frames
from .target import NO_DIGITS, Feature, Target

SETTINGS = Settings(
    frame_control_bytes_max=2 * KIB, frame_data_bytes_max=1 * KIB, hello_bytes_max=1 * KIB,
    window_connection_bytes=6 * KIB, window_connection_bytes_max=12 * KIB,
    window_stream_bytes=4 * KIB, window_stream_bytes_max=8 * KIB, streams_credit=4,
    streams_credit_max=8, abuse_burst=10.0, reset_memory=3,
)  # fmt: skip
"""Limits so small that an input of a few KiB reaches each of them."""

_HELLO = frame.PREAMBLE + greeting.hello_frame(SETTINGS, "client", {"token": "t"}, {})
_WELCOME = frame.PREAMBLE + greeting.welcome_frame(SETTINGS, 1, {})


def ready(*, dialer: bool, settings: Settings = SETTINGS) -> Connection:
    """Return a connection whose handshake is done."""
    connection = Connection(dialer=dialer, now=0.0, settings=settings)
    if dialer:
        connection.hello("client", {}, {})
        connection.receive(_WELCOME, 0.0)
    else:
        connection.receive(_HELLO, 0.0)
        connection.welcome({})
    assert connection.ready
    connection.data_to_send()
    return connection


def conversation(data: bytes) -> Feature:
    """Bytes as a whole conversation; the first one says to whom, and before the handshake or not.

    Garbage gives events, or ends the connection with an error that says which rule was broken.
    """
    if not data:
        return None
    who = data[0] % 4
    if who < 2:
        connection = Connection(dialer=who == 1, now=0.0, settings=SETTINGS)
        if who == 1:
            connection.hello("client", {}, {})
    else:
        connection = ready(dialer=who == 3)
        connection.open(ms.Kind.CALL, b"\x80", end=bool(data[0] & 8))
        if data[0] & 4:
            connection.handle_timeout(6.0)  # A PING of ours waits for its answer.
    events = connection.receive(data[1:], 7.0)
    for event in events:
        _react(connection, event, data[0])
    sent = 0
    while chunk := connection.data_to_send():
        sent += sum(map(len, chunk))
    assert sent <= 64 * KIB + 8 * len(data), "a few bytes must not cause many"
    connection.handle_timeout(30.0)
    connection.receive_eof(31.0)
    events += iter(connection.next_event, None)
    return _checked(events, connection)


def _react(connection: Connection, event: ev.Event, how: int) -> None:
    """Do what an owner does about an event."""
    if isinstance(event, ev.HelloReceived) and connection.phase is not greeting.Phase.OVER:
        connection.welcome({})
    elif isinstance(event, ev.StreamOpened) and event.stream_id in connection.streams:
        connection.accept(event.stream_id)
        if how & 16:
            connection.reset(event.stream_id, ErrorCode.CANCELLED, "no")
        connection.release(event.stream_id)


def _checked(events: list[ev.Event], connection: Connection) -> Feature:
    """See that the end is the end, and that what was granted was kept."""
    for index, event in enumerate(events):
        if isinstance(event, ev.ConnectionLost):
            assert index == len(events) - 1, "an event after the end"
            assert event.error is None or isinstance(event.error, ProtocolError)
    assert isinstance(events[-1], ev.ConnectionLost), "an end without an event"
    inflow = connection.inflow
    broken = events[-1].error
    assert inflow.consumed <= inflow.received
    if broken is None or broken.code is not ErrorCode.FLOW_CONTROL:
        assert inflow.received <= inflow.granted
    assert len(connection.given_up) <= SETTINGS.reset_memory
    why = broken.reason.translate(NO_DIGITS)[:32] if broken is not None else None
    return (*{type(event).__name__ for event in events[:6]}, why)


def buffer(data: bytes) -> Feature:
    """The same bytes whole and in pieces give the same events, and the same credit."""
    start = data[0] if data else 0
    whole, pieces = ready(dialer=False), ready(dialer=False)
    expected = [_plain(event) for event in whole.receive(data[1:], 0.0)]
    got: list[object] = []
    begin, turn = 1, start
    while begin < len(data):
        stop = begin + _CUTS[turn % len(_CUTS)]
        got += [_plain(event) for event in pieces.receive(data[begin:stop], 0.0)]
        begin, turn = stop, turn + 1 + start // len(_CUTS)
    assert got == expected, "cuts must not matter"
    if whole.ready:
        assert whole.inflow.granted == pieces.inflow.granted
        assert whole.inflow.received == pieces.inflow.received
    return tuple(type(event).__name__ for event in expected[:4])


_CUTS = (1, 15, 16, 17, 120, 3, 400, 2, 64, 900, 31)
"""Sizes of pieces, taken in turn from a place, and with a step, that the input says."""


def _plain(event: ev.Event) -> object:
    return (
        (event.stream_id, bytes(event.frame[16:]), event.last, event.end)
        if isinstance(event, ev.DataReceived)
        else str(event)
    )


# ---- seeds -----------------------------------------------------------------------------------


def _rows() -> list[bytes]:
    """Conversations with the accepting side, after the handshake."""
    call = ms.encode(CALL)
    opened = pack(FrameType.OPEN, 0, ms.Kind.CALL, 1, call)
    closed = pack(FrameType.OPEN, END, ms.Kind.CALL, 3, call)
    bulky = pack(FrameType.OPEN, MORE, ms.Kind.CALL, 1, call)
    data = pack_header(5, 0, 1) + b"hello"
    last = pack_header(5, LAST | END, 1) + b"world"
    reset = pack(FrameType.RESET, 0, 0, 1, cbor.encode_frame([24, "x"]))
    item = pack(FrameType.MESSAGE, 0, ms.Kind.ITEM, 1, ms.encode(ms.Item(0, 0, b"\x01", [])))
    ended = pack(FrameType.MESSAGE, END, ms.Kind.WANT, 1, ms.encode(ms.Want(0, 4)))
    cancel = pack(FrameType.CANCEL, 0, 0, 0, cbor.encode_frame([[1, 1, 500], [3, 0, 0]]))
    credit = greeting.credit_frame(0, 1 << 20) + greeting.credit_frame(1, 1 << 18)
    small = [pack(type_, 0, 0, 0, b"") for type_ in (FrameType.PING, FrameType.PONG)]
    notices = pack(FrameType.ACCEPT, 0, 0, 0, cbor.encode_frame([2]))
    notices += pack(FrameType.STARTED, 0, 0, 0, cbor.encode_frame([2, 4]))
    ends = greeting.drain_frame("soon") + greeting.goaway_frame(ErrorCode.NO_ERROR, "bye")
    return [
        opened + closed + item + ended, bulky + data + last, opened + cancel + reset + item,
        opened + credit + greeting.streams_frame(300) + notices, b"".join(small) + opened + ends,
        opened + item * 40,
    ]  # fmt: skip


def _answers() -> list[bytes]:
    """Conversations with the dialing side, whose stream 1 is open."""
    result = ms.encode(ms.Result(0, 0.5, b"\x01", []))
    whole = pack(FrameType.MESSAGE, END, ms.Kind.RESULT, 1, result)
    large = pack(FrameType.MESSAGE, MORE, ms.Kind.RESULT, 1, result)
    large += pack_header(8, LAST | END, 1) + bytes(8)
    accepted = pack(FrameType.ACCEPT, 0, 0, 0, cbor.encode_frame([1]))
    reset = pack(FrameType.RESET, 0, 0, 1, cbor.encode_frame([21, "lost"]))
    return [accepted + whole, large, accepted + reset, pack(FrameType.PONG, 0, 0, 0, b"") + whole]


def _conversation_seeds() -> list[bytes]:
    row = _rows()
    return [
        *(b"\x00" + _HELLO + one for one in row[:2]), b"\x01" + _WELCOME, b"\x01" + _WELCOME[8:],
        *(bytes([2 + 4 * (n % 2)]) + one for n, one in enumerate(row)), b"\x12" + row[2],
        *(bytes([3 + 4 * (n % 4)]) + one for n, one in enumerate(_answers())),
    ]  # fmt: skip


def _mutate_talk(rng: random.Random, data: bytes) -> bytes:
    """Change the frames behind the first byte, and the preamble with its frame as one."""
    begin = 9 if data[1:9] == frame.PREAMBLE else 1
    return data[:begin] + mutate_frames(rng, data[begin:])


def _buffer_seeds() -> list[bytes]:
    return [bytes([n]) + one for n, one in enumerate(_rows())]


CONVERSATION = Target(conversation, _conversation_seeds, _mutate_talk)
BUFFER = Target(buffer, _buffer_seeds, _mutate_talk)
