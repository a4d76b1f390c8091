"""What is fuzzed: one function of bytes per target.

Rules of this file. 1) A target returns, or raises only for a bug of ours. 2) Every error that the
specification foresees is caught by its exact class. 3) A target keeps no state between inputs.
"""

from __future__ import annotations

from collections.abc import Callable

from easyremote.errors import EasyRemoteError
from easyremote.identity.join import JoinString
from easyremote.identity.token import Token
from easyremote.values import decode, decode_call, decode_exception
from easyremote.wire import cbor, frame
from easyremote.wire import event as ev
from easyremote.wire import message as ms
from easyremote.wire.connection import Connection
from easyremote.wire.errors import CodecError, ErrorCode, LocalProtocolError, RemoteProtocolError

Target = Callable[[bytes], None]


def decoder(data: bytes) -> None:
    """The strict CBOR profile: what it takes it writes back to the same value."""
    try:
        fields = cbor.decode_frame(data)
    except CodecError:
        return
    again = cbor.decode_frame(cbor.encode_frame(fields))
    assert repr(again) == repr(fields), "a decoded frame must survive a round trip"


def messages(data: bytes) -> None:
    """Every message class, from the same payload."""
    for cls in ms.BY_KIND.values():
        try:
            message = ms.decode(cls, data)
        except CodecError:
            continue
        assert ms.decode(cls, ms.encode(message)) is not None


def _ready(*, dialer: bool) -> Connection:
    """A connection whose handshake is done."""
    connection = Connection(dialer=dialer, now=0.0)
    other = Connection(dialer=not dialer, now=0.0)
    dialing, accepting = (connection, other) if dialer else (other, connection)
    dialing.hello("client", {}, {})
    _carry(dialing, accepting)
    accepting.welcome({})
    _carry(accepting, dialing)
    return connection


def _carry(source: Connection, sink: Connection) -> None:
    while chunk := source.data_to_send():
        for part in chunk:
            sink.receive(part, 0.0)


def _check_events(events: list[ev.Event]) -> None:
    for event in events:
        if isinstance(event, ev.ConnectionLost):
            assert event.error is None or isinstance(event.error, RemoteProtocolError)


def conversation(data: bytes) -> None:
    """Bytes as a whole conversation: before the handshake, and after it, on both sides."""
    for connection in (
        Connection(dialer=False, now=0.0),
        _ready(dialer=False),
        _ready(dialer=True),
    ):
        if connection.ready and connection.dialer:
            connection.open(ms.Kind.CALL, b"\x80")
        _check_events(connection.receive(data, 0.0))
        connection.data_to_send()
        connection.handle_timeout(20.0)


def buffer(data: bytes) -> None:
    """The same bytes whole and in pieces give the same events."""
    whole, pieces = _ready(dialer=False), _ready(dialer=False)
    expected = [_plain(event) for event in whole.receive(data, 0.0)]
    got: list[object] = []
    step = data[0] % 17 + 1 if data else 1
    for begin in range(0, len(data), step):
        got += [_plain(event) for event in pieces.receive(data[begin : begin + step], 0.0)]
    assert got == expected, "cuts must not matter"


def _plain(event: ev.Event) -> object:
    return (
        (event.stream_id, bytes(event.frame[16:]), event.last, event.end)
        if isinstance(event, ev.DataReceived)
        else str(event)
    )


def operations(data: bytes) -> None:
    """Bytes as a program of operations on two connections that trust each other."""
    a, b = _ready(dialer=True), _ready(dialer=False)
    now, charged = 0.0, 0
    for index in range(0, len(data) - 1, 2):
        what, value = data[index] % 10, data[index + 1]
        charged += what in (3, 8)  # A reset, a ping: more than the budget ends it.
        ids = list(a.streams)
        target = ids[value % len(ids)] if ids else 1
        try:
            if what == 0:
                a.open(ms.Kind.CALL, bytes(value), end=bool(value & 1))
            elif what == 1:
                a.open(ms.Kind.CALL, b"\x80", [memoryview(bytes(value * 997 + 1))])
            elif what == 2:
                a.send(target, ms.Kind.ITEM, bytes(value), end=bool(value & 2))
            elif what == 3:
                a.reset(target, ErrorCode.CANCELLED, "")
            elif what == 4:
                a.cancel(target, value % 3)
            elif what == 5:
                b.accept(target)
                b.started(target)
            elif what == 6:
                b.send(target, ms.Kind.RESULT, b"\x80", end=bool(value & 1))
            elif what == 7:
                b.release(target)
            elif what == 8:
                now += value / 100.0
                a.handle_timeout(now)
                b.handle_timeout(now)
            else:
                for source, sink in ((a, b), (b, a)):
                    for part in source.data_to_send():
                        for event in sink.receive(part, now):
                            _check_honest(event, charged)
        except LocalProtocolError:
            continue


def _check_honest(event: ev.Event, charged: int) -> None:
    """Two connections that keep the rules part for silence only, or after a hundred resets."""
    if isinstance(event, ev.ConnectionLost) and event.error is not None:
        code = event.error.code
        assert code is ErrorCode.STALLED or (code is ErrorCode.ABUSE and charged > 100), code


def values(data: bytes) -> None:
    """The decoder of user values, with a buffer cut from the input; no pickle is allowed."""
    cut = data[0] if data else 0
    body, rest = data[1 + cut :], bytearray(data[1 : 1 + cut])
    for decoder_ in (decode, decode_call):
        try:
            decoder_(body, [memoryview(rest)] if rest else [], allow_pickle=False)
        except (EasyRemoteError, CodecError):
            continue


def exceptions(data: bytes) -> None:
    """An exception as data, from a hostile node."""
    try:
        fields = cbor.decode_frame(data)
    except CodecError:
        return
    for field in fields if isinstance(fields, list) else [fields]:
        if isinstance(field, dict):
            str(decode_exception(field))


def join_strings(data: bytes) -> None:
    """Join strings and tokens, typed in by people."""
    text = data.decode("utf-8", "replace")
    for parse in (JoinString.parse, Token.parse):
        for candidate in (text, "er1_" + text, "erc_" + text):
            try:
                parse(candidate)
            except (ValueError, EasyRemoteError):
                continue


def _seeds() -> dict[str, list[bytes]]:
    call = ms.encode(ms.Call(b"i" * 16, "f", ["n"], {}, 5, 0, 0, b"", b"\x80", []))
    opened = frame.pack(frame.FrameType.OPEN, 0, ms.Kind.CALL, 1, call)
    bulky = frame.pack(frame.FrameType.OPEN, frame.MORE, ms.Kind.CALL, 1, call)
    data = frame.pack_header(5, frame.LAST, 1) + b"hello"
    reset = frame.pack(frame.FrameType.RESET, 0, 0, 1, cbor.encode_frame([24, "x"]))
    hello = frame.PREAMBLE + frame.pack(
        frame.FrameType.HELLO, 0, 0, 0,
        cbor.encode_frame([1, 1, "client", {}, {}, 1 << 20, 1 << 20, 4]),
    )  # fmt: skip
    frames = [opened, bulky + data, opened + reset, hello, hello + opened]
    lists = [call, cbor.encode_frame([1, "a", {"b": [1.5, None, True]}, b"x"])]
    return {
        "decoder": lists,
        "messages": [call, *lists],
        "conversation": frames,
        "buffer": frames,
        "operations": [bytes(range(60)), bytes([1, 9, 9, 0, 9, 0, 6, 1, 9, 0] * 4)],
        "values": [b"\x00" + call, b"\x08" + bytes(8) + b"\x81\x01"],
        "exceptions": [cbor.encode_frame([{"type": "KeyError", "args": ["x"], "message": "m"}])],
        "join_strings": [b"er1_abc", b"erc_0123456789_abcdef"],
    }


TARGETS: dict[str, Target] = {
    "decoder": decoder,
    "messages": messages,
    "conversation": conversation,
    "buffer": buffer,
    "operations": operations,
    "values": values,
    "exceptions": exceptions,
    "join_strings": join_strings,
}


def seeds(name: str) -> list[bytes]:
    """Return small valid inputs from which a target's inputs are mutated."""
    return _seeds()[name]
