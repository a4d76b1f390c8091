"""A whole conversation, cut, changed and fed in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.wire import event as ev
from easyremote.wire import message as ms
from easyremote.wire.connection import Connection
from easyremote.wire.errors import ErrorCode, RemoteProtocolError
from easyremote.wire.greeting import Phase

from .pair import take, written

ARRAY = bytes(range(256)) * 3


def call(segments: list[int] | None = None) -> bytes:
    """The payload of a call."""
    body = None if segments else b"\x80"
    return ms.encode(
        ms.Call(
            b"i" * 16, "render", ["gpu-1"], {"priority": 1}, 2000, 0, 0, b"", body, segments or []
        )
    )


def conversation() -> bytes:
    """Everything that a dialer can say, as the bytes that it sends."""
    a, b = Connection(dialer=True, now=0.0), Connection(dialer=False, now=0.0)
    sent = b""

    def carry() -> None:
        nonlocal sent
        for _ in range(3):
            data = written(a)
            sent += data
            take(b, data, 0.0, answer)
            take(a, written(b), 0.0)

    a.hello("client", {"token": "t" * 8}, {"version": "1"})
    carry()
    first = a.open(ms.Kind.CALL, call(), end=True)
    second = a.open(ms.Kind.CALL, call([len(ARRAY)]), [memoryview(ARRAY)])
    carry()
    a.send(second, ms.Kind.WANT, ms.encode(ms.Want(0, 256)))
    a.cancel(first, 1, 250)
    a.handle_timeout(0.5)
    carry()
    a.send(
        second, ms.Kind.ITEM, ms.encode(ms.Item(1, 0, None, [3])), [memoryview(b"abc")], end=True
    )
    third = a.open(ms.Kind.QUERY, ms.encode(ms.Query("nodes", {})))
    a.reset(third, ErrorCode.CANCELLED, "never mind")
    carry()
    a.drain("leaving")
    a.release(2)
    a.close()
    carry()
    return sent


def answer(connection: Connection, event: ev.Event) -> None:
    """What the acceptor of the conversation does."""
    if isinstance(event, ev.HelloReceived):
        connection.welcome({})
        connection.handle_timeout(0.0)
    elif (
        isinstance(event, ev.StreamOpened) and event.stream_id == 1 and connection.streams_available
    ):
        connection.open(ms.Kind.DISPATCH, b"\x80")


def replay(data: bytes, step: int | None = None) -> tuple[Connection, list[ev.Event]]:
    """Feed `data` to a fresh acceptor."""
    connection = Connection(dialer=False, now=0.0)
    return connection, take(connection, data, 0.0, answer, step)


WHOLE = conversation()
_, EVENTS = replay(WHOLE)


def plain(events: list[ev.Event]) -> list[object]:
    """Events in a form that can be compared: bytes for memory."""
    return [
        (event.stream_id, bytes(event.frame[16:]), event.last, event.end)
        if isinstance(event, ev.DataReceived)
        else event
        for event in events
    ]


def test_the_conversation_is_rich() -> None:
    """It reaches every event that a dialer can cause."""
    assert {type(event) for event in EVENTS} >= {
        ev.HelloReceived,
        ev.StreamOpened,
        ev.DataReceived,
        ev.MessageReceived,
        ev.CancelReceived,
        ev.StreamReset,
        ev.DrainReceived,
        ev.GoawayReceived,
        ev.ConnectionLost,
    }


def test_byte_at_a_time_equals_whole() -> None:
    """How bytes were cut on the way makes no difference."""
    _, events = replay(WHOLE, step=1)

    assert plain(events) == plain(EVENTS)


@given(st.lists(st.integers(1, len(WHOLE)), max_size=20))
def test_any_cuts_equal_whole(cuts: list[int]) -> None:
    """The same for arbitrary cuts."""
    connection, events, begin = Connection(dialer=False, now=0.0), [], 0
    for end in [*sorted(cuts), len(WHOLE)]:
        events += take(connection, WHOLE[begin:end], 0.0, answer)
        begin = end

    assert plain(events) == plain(EVENTS)


def test_every_truncation_is_a_loss_and_never_a_shorter_success() -> None:
    """A cut connection reports a prefix of what would have happened, and then its loss."""
    expected = plain(EVENTS)
    for end in range(len(WHOLE)):
        connection, events = replay(WHOLE[:end])
        got = plain(events)
        assert got == expected[: len(got)]
        assert connection.phase is not Phase.OVER
        connection.receive_eof(0.0)
        assert connection.next_event() == ev.ConnectionLost(None)


@pytest.mark.parametrize("mask", [0x01, 0x02, 0x10, 0x40, 0x80, 0xFF])
def test_every_changed_byte_is_survived(mask: int) -> None:
    """One wrong byte gives events or a typed end, and nothing else."""
    ends = 0
    for index in range(len(WHOLE)):
        data = bytearray(WHOLE)
        data[index] ^= mask
        connection, events = replay(bytes(data))
        for event in events:
            if isinstance(event, ev.ConnectionLost) and event.error is not None:
                assert isinstance(event.error, RemoteProtocolError)
                ends += 1
        assert len(events) <= len(EVENTS) + 2
        connection.receive_eof(0.0)
        while connection.next_event() is not None:
            pass
        assert connection.phase is Phase.OVER
    assert ends > 0


@given(st.binary(max_size=400), st.booleans())
def test_garbage_is_survived(data: bytes, greeted: bool) -> None:
    """Arbitrary bytes never raise; before or after the handshake."""
    connection = Connection(dialer=False, now=0.0)
    if greeted:
        end = WHOLE.index(b"\x10", 100)
        take(connection, WHOLE[:end], 0.0, answer)
    take(connection, data, 0.0, answer)
