"""The connection: handshake, streams, segments, credit, time and broken rules."""

from __future__ import annotations

import pytest

from easyremote.wire import cbor
from easyremote.wire import event as ev
from easyremote.wire import frame as fr
from easyremote.wire.connection import Connection
from easyremote.wire.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from easyremote.wire.frame import END, LAST, MORE, FrameType, pack
from easyremote.wire.greeting import Phase
from easyremote.wire.message import Kind
from easyremote.wire.outgoing import EXPRESS_MAX
from easyremote.wire.settings import Settings

from .pair import Pair, take, written

EMPTY = cbor.encode_frame([])


def frame(
    type_: int, flags: int = 0, kind: int = 0, stream_id: int = 0, body: object = ()
) -> bytes:
    """A frame as a peer of bad will might write it."""
    payload = body if isinstance(body, bytes) else cbor.encode_frame(body)
    return pack(type_, flags, kind, stream_id, payload)


def broken(pair: Pair, data: bytes, side: str = "b") -> ErrorCode:
    """Give `data` to one side and return the code with which it ended the connection."""
    connection = getattr(pair, side)
    events = take(connection, data, pair.now)
    lost = events[-1]
    assert isinstance(lost, ev.ConnectionLost)
    assert isinstance(lost.error, RemoteProtocolError)
    goodbye = written(connection)
    pong = frame(FrameType.PONG, body=b"")
    goodbye = goodbye.replace(pong, b"")
    assert take(pair.a if side == "b" else pair.b, goodbye, pair.now) == [
        ev.GoawayReceived(lost.error.code, lost.error.reason),
        ev.ConnectionLost(None),
    ]
    assert connection.phase is Phase.OVER
    return lost.error.code


# ---- handshake -----------------------------------------------------------------------------


def test_handshake_carries_credential_and_info() -> None:
    """HELLO and WELCOME reach the other side as they were said."""
    pair = Pair(greet=False)
    pair.a.hello("node", {"token": "t"}, {"host": "h"})
    pair.pump()
    assert pair.events_b == [ev.HelloReceived(1, "node", {"token": "t"}, {"host": "h"})]
    assert not pair.a.ready

    pair.b.welcome({"lease_s": 15})
    pair.pump()

    assert pair.events_a == [ev.WelcomeReceived(1, {"lease_s": 15})]
    assert pair.a.ready
    assert pair.b.ready


def test_refusal_reaches_the_dialer() -> None:
    """An acceptor may answer HELLO with GOAWAY, and nothing else happens."""
    pair = Pair(greet=False)
    pair.a.hello("client", {}, {})
    pair.pump()
    pair.b.close(ErrorCode.AUTH_INVALID, "no")
    pair.pump()

    assert pair.events_a == [
        ev.GoawayReceived(ErrorCode.AUTH_INVALID, "no"),
        ev.ConnectionLost(None),
    ]


@pytest.mark.parametrize(
    ("oldest", "newest", "code"),
    [(2, 9, ErrorCode.VERSION), (3, 2, ErrorCode.VERSION), (0, 0, ErrorCode.VERSION)],
)
def test_versions_without_overlap_are_refused(oldest: int, newest: int, code: ErrorCode) -> None:
    """Peers that share no version part with a sentence."""
    pair = Pair(greet=False)
    hello = frame(FrameType.HELLO, body=[oldest, newest, "client", {}, {}, 1 << 20, 1 << 20, 1])

    assert broken(pair, fr.PREAMBLE + hello) is code


def test_newer_peer_is_met_at_our_version_and_its_extra_fields_are_ignored() -> None:
    """Version 1 can be extended: longer lists and later versions are fine."""
    pair = Pair(greet=False)
    fields = [1, 7, "client", {}, {}, 1 << 20, 1 << 20, 1, "new", {"more": 1}]

    events = take(pair.b, fr.PREAMBLE + frame(FrameType.HELLO, body=fields))

    assert events == [ev.HelloReceived(1, "client", {}, {})]


@pytest.mark.parametrize(
    "fields",
    [
        [1, 1, "king", {}, {}, 1 << 20, 1 << 20, 1],
        [1, 1, "client", {}, {}, 10, 1 << 20, 1],
        [1, 1, "client", {}, {}, 1 << 20, 10, 1],
        [1, 1, "client", {}, {}, 1 << 20, 1 << 20, 1 << 63],
        [1, 1, "client", {}, {}, 1 << 62, 1 << 20, 1],
        [1, 1, "client", {}],
        [1, 1, "client", [], {}, 1 << 20, 1 << 20, 1],
    ],
)
def test_hello_out_of_range_is_refused(fields: list[object]) -> None:
    """Every field of HELLO is checked."""
    pair = Pair(greet=False)

    assert broken(pair, fr.PREAMBLE + frame(FrameType.HELLO, body=fields)) in {
        ErrorCode.PROTOCOL,
        ErrorCode.FLOW_CONTROL,
        ErrorCode.DECODE,
    }


def test_welcome_with_a_version_that_nobody_offered_is_refused() -> None:
    """The dialer checks what it is offered, too."""
    pair = Pair(greet=False)
    pair.a.hello("client", {}, {})
    welcome = frame(FrameType.WELCOME, body=[9, {}, 1 << 20, 1 << 20, 1])

    events = take(pair.a, fr.PREAMBLE + welcome)

    lost = events[-1]
    assert isinstance(lost, ev.ConnectionLost)
    assert lost.error is not None
    assert lost.error.code is ErrorCode.VERSION


def test_http_is_not_our_protocol() -> None:
    """The first wrong byte ends it."""
    pair = Pair(greet=False)

    assert broken(pair, b"G") is ErrorCode.PROTOCOL


def test_handshake_has_a_time_limit() -> None:
    """A peer that says nothing does not hold a place."""
    pair = Pair(greet=False)
    assert pair.b.next_timeout() == pair.b.settings.handshake_timeout_s
    pair.b.handle_timeout(1.0)
    assert pair.b.next_event() is None

    pair.b.handle_timeout(pair.b.settings.handshake_timeout_s)

    lost = pair.b.next_event()
    assert isinstance(lost, ev.ConnectionLost)
    assert lost.error is not None
    assert lost.error.code is ErrorCode.HANDSHAKE_TIMEOUT


def test_only_the_dialer_says_hello_and_only_the_acceptor_welcome() -> None:
    """Misuse by our own code raises and changes nothing."""
    pair = Pair(greet=False)
    with pytest.raises(LocalProtocolError):
        pair.b.hello("client", {}, {})
    with pytest.raises(LocalProtocolError):
        pair.b.welcome({})
    with pytest.raises(LocalProtocolError):
        pair.a.drain("early")
    with pytest.raises(LocalProtocolError):
        pair.a.open(Kind.CALL, EMPTY)

    pair.a.hello("client", {}, {})

    with pytest.raises(LocalProtocolError):
        pair.a.hello("client", {}, {})


def test_hello_and_welcome_at_the_wrong_time_are_refused() -> None:
    """Neither is said twice, nor by the wrong side."""
    hello = frame(FrameType.HELLO, body=[1, 1, "client", {}, {}, 1 << 20, 1 << 20, 1])
    welcome = frame(FrameType.WELCOME, body=[1, {}, 1 << 20, 1 << 20, 1])

    assert broken(Pair(), hello) is ErrorCode.PROTOCOL
    assert broken(Pair(greet=False), fr.PREAMBLE + hello + hello) is ErrorCode.PROTOCOL
    assert broken(Pair(greet=False), fr.PREAMBLE + welcome) is ErrorCode.PROTOCOL
    pair = Pair(greet=False)
    pair.a.hello("client", {}, {})
    written(pair.a)
    events = take(pair.a, fr.PREAMBLE + hello)
    assert isinstance(events[-1], ev.ConnectionLost)


# ---- streams ---------------------------------------------------------------------------------


def test_call_and_answer() -> None:
    """A stream is gone on both sides when both have ended it."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, b"\x80", end=True)
    pair.pump()
    assert pair.events_b == [ev.StreamOpened(1, Kind.CALL, b"\x80", more=False, end=True)]

    pair.b.send(stream_id, Kind.RESULT, b"\x81\x01", end=True)
    pair.pump()

    assert pair.events_a == [ev.MessageReceived(1, Kind.RESULT, b"\x81\x01", more=False, end=True)]
    assert not pair.a.streams
    assert not pair.b.streams
    assert pair.a.take_over() == [1]
    assert pair.a.take_over() == []


def test_both_sides_open_streams_of_their_own_parity() -> None:
    """Odd ids belong to the dialer, even ones to the acceptor."""
    pair = Pair()

    assert [pair.a.open(Kind.CALL, EMPTY) for _ in range(3)] == [1, 3, 5]
    assert [pair.b.open(Kind.CALL, EMPTY) for _ in range(3)] == [2, 4, 6]
    pair.pump()
    assert [e.stream_id for e in pair.events_a if isinstance(e, ev.StreamOpened)] == [2, 4, 6]


@pytest.mark.parametrize("more", [False, True])
def test_nothing_is_said_after_end(more: bool) -> None:
    """Our own code cannot speak on a side that it ended, nor on a stream that is not there."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY, end=True)

    with pytest.raises(LocalProtocolError):
        pair.a.send(stream_id, Kind.WANT, EMPTY, more=more)
    with pytest.raises(LocalProtocolError):
        pair.a.send(99, Kind.WANT, EMPTY)
    with pytest.raises(LocalProtocolError):
        pair.a.forward_data(99, memoryview(bytearray(20)), last=True, end=False)
    with pytest.raises(LocalProtocolError):
        pair.a.send(stream_id, Kind.WANT, b"x" * (64 * 1024 + 1))
    with pytest.raises(LocalProtocolError):
        pair.a.fill(stream_id, [])


def test_reset_drops_the_stream_on_both_sides() -> None:
    """What was queued is dropped, and late frames of the peer are free."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY)
    pair.pump()
    pair.b.send(stream_id, Kind.ITEM, EMPTY)
    late = written(pair.b)

    pair.a.reset(stream_id, ErrorCode.CANCELLED, "enough")
    pair.a.reset(stream_id, ErrorCode.CANCELLED, "no effect")
    pair.pump()

    assert pair.events_b[-1] == ev.StreamReset(1, ErrorCode.CANCELLED, "enough")
    assert not pair.b.streams
    before = pair.a.budget.left
    assert take(pair.a, late) == []
    assert pair.a.budget.left == before
    assert pair.a.inflow.consumed == pair.a.inflow.received


def test_peer_that_grants_all_and_reads_nothing_fills_no_more_than_the_express_lane() -> None:
    """Beyond `EXPRESS_MAX` messages wait in their streams, whatever credit there is."""
    pair = Pair(Settings(window_connection_bytes=1 << 40, window_stream_bytes=1 << 40))
    stream_id = pair.a.open(Kind.CALL, EMPTY)
    pair.pump()
    payload = bytes(60_000)
    for _ in range(200):
        pair.b.send(stream_id, Kind.ITEM, payload)

    assert pair.b.out.pending_bytes < EXPRESS_MAX + 2 * len(payload)
    assert pair.b.queued_bytes(stream_id) >= 200 * len(payload) - EXPRESS_MAX - 2 * len(payload)

    pair.pump()
    items = [e for e in pair.events_a if isinstance(e, ev.MessageReceived)]

    assert len(items) == 200


def test_reset_meets_an_end_that_still_waits() -> None:
    """A peer may give up a stream whose END of ours has not left us yet: nobody broke a rule."""
    pair = Pair(Settings(window_stream_bytes=128 * 1024, window_stream_bytes_max=128 * 1024))
    stream_id = pair.a.open(Kind.CALL, EMPTY, end=True)
    pair.pump()
    pair.a.manual_credit(stream_id)
    pair.b.send(stream_id, Kind.RESULT, EMPTY, [memoryview(bytes(1_000_000))], end=True)
    pair.pump()
    assert pair.b.queued_bytes(stream_id) > 0

    pair.a.reset(stream_id, ErrorCode.CANCELLED, "nobody wants it")
    pair.pump()

    assert pair.events_b[-1] == ev.StreamReset(stream_id, ErrorCode.CANCELLED, "nobody wants it")
    assert not pair.a.streams
    assert not pair.b.streams
    assert pair.a.ready
    assert pair.b.ready


def test_resets_that_we_remember_are_bounded() -> None:
    """Memory of given-up streams does not grow without end."""
    pair = Pair(Settings(reset_memory=2))
    ids = [pair.a.open(Kind.CALL, EMPTY) for _ in range(4)]
    for stream_id in ids:
        pair.a.reset(stream_id, ErrorCode.CANCELLED, "")

    assert list(pair.a.given_up) == ids[-2:]


def test_stream_credit_bounds_streams_and_returns_with_release() -> None:
    """No stream without credit; credit comes back when work is gone, not when it is reset."""
    pair = Pair(Settings(streams_credit=2, streams_credit_max=2))
    for _ in range(2):
        pair.a.open(Kind.CALL, EMPTY)
    assert pair.a.streams_available == 0
    with pytest.raises(LocalProtocolError):
        pair.a.open(Kind.CALL, EMPTY)
    pair.a.reset(1, ErrorCode.CANCELLED, "")
    pair.pump()
    assert pair.a.streams_available == 0

    pair.b.release(1)
    pair.pump()

    assert pair.events_a == [ev.CreditReceived(streams=True)]
    assert pair.a.streams_available == 1


def test_notices_are_told_together_and_never_after_the_outcome() -> None:
    """ACCEPT and STARTED wait a little; a faster outcome makes them needless."""
    pair = Pair()
    slow, fast = (pair.a.open(Kind.CALL, EMPTY, end=True) for _ in range(2))
    pair.pump()
    for stream_id in (slow, fast):
        pair.b.accept(stream_id)
        pair.b.started(stream_id)
    pair.b.accept(99)
    pair.b.started(99)
    pair.b.send(fast, Kind.RESULT, EMPTY, end=True)

    pair.wait(0.02)

    told = [e for e in pair.events_a if isinstance(e, ev.StreamsAccepted | ev.StreamsStarted)]
    assert told == [ev.StreamsAccepted([slow]), ev.StreamsStarted([slow])]


def test_a_start_alone_is_told_too() -> None:
    """STARTED does not depend on ACCEPT."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY, end=True)
    pair.pump()
    pair.b.started(stream_id)

    pair.wait(0.02)

    assert ev.StreamsStarted([stream_id]) in pair.events_a


def test_cancels_are_batched_and_skip_what_is_over() -> None:
    """One frame carries many cancels; a stream that ended meanwhile is none of them."""
    pair = Pair()
    first, second = (pair.a.open(Kind.CALL, EMPTY, end=True) for _ in range(2))
    pair.pump()
    pair.b.send(first, Kind.RESULT, EMPTY, end=True)
    done = written(pair.b)
    pair.a.cancel(first, 0, 100)
    pair.a.cancel(second, 2, 100)
    pair.a.cancel(99)

    assert take(pair.b, written(pair.a)) == [ev.CancelReceived([(second, 2, 100)])]
    take(pair.a, done)


def test_a_cancel_that_meets_nobody_is_no_event() -> None:
    """A cancel that crossed the outcome changes nothing."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY, end=True)
    pair.pump()
    pair.b.send(stream_id, Kind.RESULT, EMPTY, end=True)
    written(pair.b)
    pair.a.cancel(stream_id)

    assert take(pair.b, written(pair.a)) == []


# ---- segments ----------------------------------------------------------------------------------


def test_segments_land_in_the_named_memory() -> None:
    """Raw bytes arrive in the destinations, in order, and one event says so."""
    first, second = bytes(range(256)) * 4000, b"z" * 10
    there = [memoryview(bytearray(len(first))), memoryview(bytearray(len(second)))]

    def on_event(connection: Connection, event: ev.Event) -> None:
        if isinstance(event, ev.StreamOpened):
            assert event.more
            connection.fill(event.stream_id, there)

    pair = Pair(on_event=on_event)
    pair.a.open(Kind.CALL, EMPTY, [memoryview(first), memoryview(second)], end=True)
    pair.pump()

    assert [bytes(view) for view in there] == [first, second]
    assert pair.events_b[-1] == ev.SegmentsFilled(1, end=True)
    assert pair.b.streams[1].state.name == "ENDED_THERE"


def test_an_array_far_larger_than_the_window_passes() -> None:
    """Credit comes back as bytes arrive, and the window grows."""
    data = memoryview(bytearray(40 * 1024 * 1024))
    there = memoryview(bytearray(len(data)))

    def on_event(connection: Connection, event: ev.Event) -> None:
        if isinstance(event, ev.StreamOpened):
            connection.fill(event.stream_id, [there])

    pair = Pair(on_event=on_event)
    pair.a.open(Kind.CALL, EMPTY, [data], end=True)
    pair.pump()

    assert pair.events_b[-1] == ev.SegmentsFilled(1, end=True)
    record = pair.b.streams[1]
    assert record.inflow is not None
    assert record.inflow.window == pair.b.settings.window_stream_bytes_max


def test_a_relay_passes_frames_on_in_the_memory_they_came_in() -> None:
    """Without a destination, each frame comes with header space and can be sent as it is."""
    data = bytes(range(256)) * 3000
    here, there = Pair(), Pair()
    out = there.a.open(Kind.CALL, EMPTY, more=True)

    def on_event(connection: Connection, event: ev.Event) -> None:
        if isinstance(event, ev.StreamOpened):
            connection.manual_credit(event.stream_id)
        elif isinstance(event, ev.DataReceived):
            there.a.forward_data(out, event.frame, last=event.last, end=event.end)

    here.on_event = on_event
    there.a.watch(out)
    destination = memoryview(bytearray(len(data)))
    there.on_event = lambda connection, event: (
        connection.fill(event.stream_id, [destination])
        if isinstance(event, ev.StreamOpened)
        else None
    )
    here.a.open(Kind.CALL, EMPTY, [memoryview(data)], end=True)
    here.pump()
    there.pump()

    assert there.events_b[-1] == ev.SegmentsFilled(1, end=True)
    assert bytes(destination) == data
    framed = there.a.take_drained()
    assert sum(size for _, size in framed) == len(data)
    assert there.a.take_drained() == []


def test_a_relay_splits_a_frame_for_which_there_is_not_enough_credit() -> None:
    """A small window downstream does not stop a large frame from upstream, nor changes its bytes:
    whoever keeps it can send it once more."""
    settings = Settings(window_stream_bytes=131_072, window_stream_bytes_max=131_072)
    data = bytes(range(251)) * 1000
    destination = memoryview(bytearray(len(data)))
    pair = Pair(settings)
    pair.on_event = lambda connection, event: (
        connection.fill(event.stream_id, [destination])
        if isinstance(event, ev.StreamOpened)
        else None
    )
    stream_id = pair.a.open(Kind.CALL, EMPTY, more=True)
    frame = memoryview(bytearray(16) + data)
    pair.a.forward_data(stream_id, frame, last=True, end=True)
    pair.pump()

    assert pair.events_b[-1] == ev.SegmentsFilled(stream_id, end=True)
    assert bytes(destination) == data
    assert bytes(frame[16:]) == data


def test_a_relay_that_does_not_consume_holds_no_more_than_a_window() -> None:
    """Credit that is not given back stops the sender."""
    settings = Settings(window_stream_bytes=128 * 1024, window_stream_bytes_max=128 * 1024)
    pair = Pair(settings)
    pair.on_event = lambda connection, event: (
        connection.manual_credit(event.stream_id) if isinstance(event, ev.StreamOpened) else None
    )
    pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(1 << 20))], end=True)
    pair.pump()

    held = sum(len(e.frame) - 16 for e in pair.events_b if isinstance(e, ev.DataReceived))
    assert held == 128 * 1024
    assert pair.a.queued_bytes(1) == (1 << 20) - held
    assert pair.a.queued_bytes(99) == 0

    pair.b.consumed(1, held)
    pair.pump()

    assert pair.a.queued_bytes(1) < (1 << 20) - held


def test_small_messages_pass_bulk() -> None:
    """A small call waits for one slice of somebody's bulk at most."""
    pair = Pair()
    pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(8 << 20))])
    pair.a.data_to_send()
    assert len(pair.a.data_to_send()) == 2

    small = pair.a.open(Kind.CALL, b"\x81\x07", end=True)

    assert written_ids(pair.a.data_to_send()) == [small]


def written_ids(chunk: list[bytes | memoryview]) -> list[int]:
    """Stream ids of the frames in a chunk of small frames."""
    data, ids = b"".join(bytes(part) for part in chunk), []
    while data:
        length, _, _, _, stream_id = fr.HEADER.unpack_from(data)
        ids.append(stream_id)
        data = data[16 + length :]
    return ids


def test_slices_are_short_while_small_messages_come() -> None:
    """A small frame that comes next waits for a short slice; bulk alone goes in long ones."""
    pair = Pair()
    pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(8 << 20))])
    pair.a.data_to_send()

    sizes = [len(pair.a.data_to_send()[1]) for _ in range(10)]

    assert sizes == [64 * 1024] * 8 + [256 * 1024] * 2


def test_credit_of_the_connection_alone_can_hold_bulk_back() -> None:
    """A stream with credit of its own waits for the connection's, and goes on when it comes."""
    tight = Settings(window_connection_bytes=131_072, window_connection_bytes_max=131_072)
    pair = Pair(tight)
    pair.on_event = lambda connection, event: (
        connection.manual_credit(event.stream_id) if isinstance(event, ev.StreamOpened) else None
    )
    ids = [pair.a.open(Kind.CALL, EMPTY, more=index == 2) for index in range(3)]
    pair.a.send(ids[0], Kind.ITEM, b"\x80" + bytes(60_000))
    pair.a.send(ids[1], Kind.ITEM, b"\x80" + bytes(60_000))
    pair.a.send(ids[0], Kind.ITEM, b"\x80" + bytes(60_000), end=True)
    pair.a.forward_data(ids[2], memoryview(bytearray(20_016)), last=True, end=False)
    pair.pump()
    assert pair.a.queued_bytes(ids[0]) == 60_001

    for stream_id, size in ((ids[0], 60_001), (ids[1], 60_001)):
        pair.b.consumed(stream_id, size)
    pair.pump()

    assert pair.a.queued_bytes(ids[0]) == 0
    assert pair.a.queued_bytes(ids[2]) == 0


def test_bulk_streams_take_turns() -> None:
    """No stream's bulk waits for the whole of another's."""
    pair = Pair()
    for _ in range(3):
        pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(1 << 20))])
    pair.a.data_to_send()

    ids = [fr.HEADER.unpack(pair.a.data_to_send()[0])[4] for _ in range(6)]

    assert ids == [1, 3, 5, 1, 3, 5]


def test_a_message_behind_segments_keeps_its_place() -> None:
    """Order within a stream is never changed, even if the message is small."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY, [memoryview(b"x" * 700_000)])
    pair.a.send(stream_id, Kind.ITEM, b"\x81\x01")
    pair.a.send(stream_id, Kind.ITEM, EMPTY, [memoryview(b"yy")], end=True)
    pair.pump()

    seen = [type(e).__name__ for e in pair.events_b]
    assert seen[0] == "StreamOpened"
    assert seen.index("MessageReceived") > 2
    last = pair.events_b[-1]
    assert isinstance(last, ev.DataReceived)
    assert last.end
    assert bytes(last.frame[16:]) == b"yy"


def test_express_frames_are_joined_up_to_a_bound() -> None:
    """Many small frames leave in few writes, none of them huge."""
    pair = Pair()
    for _ in range(20):
        pair.a.open(Kind.CALL, b"\x00" * 40_000)

    sizes = []
    while chunk := pair.a.data_to_send():
        sizes.append(sum(len(part) for part in chunk))

    assert sum(sizes) == 20 * 40_016
    assert max(sizes) <= 128 * 1024


@pytest.mark.parametrize("sizes", [[5], [20], [10, 1], []])
def test_segments_of_another_size_than_announced_end_the_connection(sizes: list[int]) -> None:
    """Too short, too long, too many: each is noticed before bytes go astray."""
    pair = Pair()
    take(pair.b, frame(FrameType.OPEN, MORE, Kind.CALL, 1), 0.0)
    pair.b.fill(1, [memoryview(bytearray(size)) for size in sizes])

    assert broken(pair, frame(FrameType.DATA, LAST, 0, 1, b"x" * 10)) is ErrorCode.PROTOCOL


def test_data_for_a_stream_given_up_is_forgotten() -> None:
    """Bytes on their way when we reset cost nothing but their credit."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(600_000))])
    written_all = written(pair.a)
    take(pair.b, written_all[:200_000])
    pair.b.reset(stream_id, ErrorCode.CANCELLED, "")

    assert take(pair.b, written_all[200_000:]) == []
    assert pair.b.inflow.consumed == pair.b.inflow.received


# ---- broken rules --------------------------------------------------------------------------------


def test_end_and_loss_are_told_once() -> None:
    """After the end, bytes are ignored and nothing more is sent."""
    pair = Pair()
    pair.a.close()
    pair.a.close()
    pair.a.fail(RemoteProtocolError(ErrorCode.PROTOCOL, "late"))
    assert pair.a.next_event() == ev.ConnectionLost(None)
    assert pair.a.next_event() is None
    assert pair.a.next_timeout() is None
    pair.a.handle_timeout(99.0)
    pair.a.receive_eof(99.0)
    assert pair.a.next_event() is None
    assert pair.a.streams_available == 0

    pair.pump()

    assert pair.events_b == [
        ev.GoawayReceived(ErrorCode.NO_ERROR, ""),
        ev.ConnectionLost(None),
    ]
    assert pair.b.receive(frame(FrameType.PING, body=b""), 0.0) == []


def test_close_before_hello_says_nothing() -> None:
    """A dialer that never spoke has nothing to say goodbye to."""
    connection = Connection(dialer=True, now=0.0)
    connection.close()

    assert written(connection) == b""


def test_nothing_follows_goaway() -> None:
    """Bulk that still waited is dropped: the peer looks at nothing after GOAWAY."""
    pair = Pair()
    pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(1000))])
    pair.a.close()

    assert written(pair.a).endswith(cbor.encode_frame([0, ""]))


def test_an_empty_queue_gives_its_turn_away() -> None:
    """A stream that was given up while it waited takes no turn."""
    pair = Pair()
    first, second = (pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(9))]) for _ in range(2))
    pair.a.reset(first, ErrorCode.CANCELLED, "")
    pair.pump()

    data = [e for e in pair.events_b if isinstance(e, ev.DataReceived)]
    assert [e.stream_id for e in data] == [second]


def test_the_receive_buffer_is_moved_together_when_it_runs_full() -> None:
    """However frames straddle the buffer's end, they arrive."""
    pair = Pair()
    pair.a.open(Kind.CALL, EMPTY)
    for _ in range(9):
        pair.a.send(1, Kind.ITEM, b"\x80" + bytes(60_000))
    data = written(pair.a)

    events = take(pair.b, data, 0.0, None, 50_000)

    assert sum(isinstance(e, ev.MessageReceived) for e in events) == 9


def test_the_link_is_told_what_left() -> None:
    """A watched stream reports what each frame counts, once, whichever lane it took."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY)
    pair.a.watch(stream_id)
    pair.a.send(stream_id, Kind.ITEM, EMPTY, [memoryview(bytes(100_000))])
    pair.a.send(stream_id, Kind.ITEM, EMPTY)
    assert pair.a.wants_write
    pair.pump()

    assert not pair.a.wants_write
    assert sum(size for _, size in pair.a.take_drained()) == 100_000 + 2 * 512


def test_an_answer_may_overtake_the_rest_of_the_question() -> None:
    """A stream that both sides ended lives on until its last queued byte has left."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(3 << 20))], end=True)
    take(pair.b, b"".join(bytes(part) for part in pair.a.data_to_send()))
    pair.b.send(stream_id, Kind.FAILURE, EMPTY, end=True)
    take(pair.a, written(pair.b))
    assert stream_id in pair.a.streams
    assert pair.a.take_over() == []

    pair.pump()

    assert pair.a.streams == {}
    assert pair.a.take_over() == [stream_id]


def test_a_stranger_gets_little_memory() -> None:
    """Before the handshake a connection holds room for one HELLO, afterwards for a batch."""
    pair = Pair(greet=False)
    assert len(pair.b.buffer.data) <= 40 * 1024
    pair.a.hello("client", {"token": "x" * 12_000}, {})
    pair.pump()
    pair.b.welcome({})
    pair.pump()

    assert len(pair.b.buffer.data) == 256 * 1024


def test_requests_for_streams_that_are_over_do_nothing() -> None:
    """An owner that is late with credit or marks does no harm."""
    pair = Pair()
    pair.a.consumed(7, 0)
    pair.a.watch(7)
    pair.a.manual_credit(7)
    pair.b.receive_eof(0.0)
    pair.b.release(1)

    assert pair.b.next_event() == ev.ConnectionLost(None)
    assert pair.a.streams == {}


def test_data_after_end_is_refused() -> None:
    """END closes the way for raw bytes, too."""
    pair = Pair()
    take(pair.b, frame(FrameType.OPEN, MORE, Kind.CALL, 1))
    take(pair.b, frame(FrameType.DATA, LAST | END, 0, 1, b"x"))
    pair.b.streams[1].more = True  # As if a message could still have come.

    assert broken(pair, frame(FrameType.DATA, LAST, 0, 1, b"x")) is ErrorCode.STREAM_STATE


def test_eof_is_a_loss() -> None:
    """The end of bytes without GOAWAY is reported as such."""
    pair = Pair()
    pair.b.receive_eof(1.0)

    assert pair.b.next_event() == ev.ConnectionLost(None)


BROKEN: list[tuple[str, bytes, ErrorCode]] = [
    ("unknown type", frame(99), ErrorCode.PROTOCOL),
    ("flags on PING", frame(FrameType.PING, END, body=b""), ErrorCode.PROTOCOL),
    ("kind on PING", frame(FrameType.PING, 0, 1, body=b""), ErrorCode.PROTOCOL),
    ("PING on a stream", frame(FrameType.PING, 0, 0, 1, b""), ErrorCode.PROTOCOL),
    ("RESET on 0", frame(FrameType.RESET, body=[1, ""]), ErrorCode.PROTOCOL),
    ("PING with a payload", frame(FrameType.PING), ErrorCode.PROTOCOL),
    ("PONG unasked", frame(FrameType.PONG, body=b""), ErrorCode.PROTOCOL),
    ("sealed body", frame(FrameType.OPEN, fr.SEALED, 1, 1), ErrorCode.PROTOCOL),
    ("descriptors", frame(FrameType.MESSAGE, fr.DESCRIPTORS, 1, 1), ErrorCode.PROTOCOL),
    ("END and MORE on OPEN", frame(FrameType.OPEN, END | MORE, 1, 1), ErrorCode.PROTOCOL),
    ("END and MORE", frame(FrameType.MESSAGE, END | MORE, 1, 1), ErrorCode.PROTOCOL),
    ("gap in ids", frame(FrameType.OPEN, 0, 1, 3), ErrorCode.STREAM_STATE),
    ("our parity", frame(FrameType.OPEN, 0, 1, 2), ErrorCode.STREAM_STATE),
    ("stream 0", frame(FrameType.OPEN, 0, 1, 0), ErrorCode.PROTOCOL),
    ("message on a stream that never was", frame(17, 0, 1, 1), ErrorCode.STREAM_STATE),
    ("data on a stream that never was", frame(18, LAST, 0, 2, b"x"), ErrorCode.STREAM_STATE),
    ("reset on a stream that never was", frame(19, 0, 0, 1, [1, ""]), ErrorCode.STREAM_STATE),
    ("credit for a stream that never was", frame(20, 0, 0, 1, [1]), ErrorCode.STREAM_STATE),
    ("empty data", frame(18, LAST, 0, 1, b""), ErrorCode.PROTOCOL),
    ("data with MORE", frame(18, MORE, 0, 1, b"x"), ErrorCode.PROTOCOL),
    ("credit taken back", frame(20, body=[1]), ErrorCode.FLOW_CONTROL),
    ("streams taken back", frame(7, body=[1]), ErrorCode.FLOW_CONTROL),
    ("streams absurd", frame(7, body=[1 << 63]), ErrorCode.FLOW_CONTROL),
    ("empty ACCEPT", frame(8), ErrorCode.PROTOCOL),
    ("ACCEPT of text", frame(8, body=["x"]), ErrorCode.DECODE),
    ("empty CANCEL", frame(10), ErrorCode.PROTOCOL),
    ("CANCEL of numbers", frame(10, body=[1]), ErrorCode.DECODE),
    ("CANCEL of text", frame(10, body=[["1", 0, 0]]), ErrorCode.DECODE),
    ("CANCEL with negative grace", frame(10, body=[[1, 0, -1]]), ErrorCode.DECODE),
    ("GOAWAY of nothing", frame(5), ErrorCode.DECODE),
    ("DRAIN of a number", frame(6, body=[1]), ErrorCode.DECODE),
    ("no CBOR", frame(6, body=b"\xff"), ErrorCode.DECODE),
    ("frame too large", frame(17, 0, 1, 1, b"x" * 65_537), ErrorCode.FRAME_TOO_LARGE),
    ("data too large", frame(18, 0, 0, 1, b"x" * 262_145), ErrorCode.FRAME_TOO_LARGE),
]


@pytest.mark.parametrize(("data", "code"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_rule_ends_the_connection_with_its_code(data: bytes, code: ErrorCode) -> None:
    """Each rule of the specification is enforced, and the peer is told which one it broke."""
    assert broken(Pair(), data) is code


OPENED: list[tuple[str, bytes, ErrorCode]] = [
    ("data without a message", frame(18, LAST, 0, 1, b"x"), ErrorCode.STREAM_STATE),
    (
        "message inside segments",
        frame(17, MORE, 3, 1) + frame(17, 0, 3, 1),
        ErrorCode.STREAM_STATE,
    ),
    (
        "END inside segments",
        frame(17, MORE, 3, 1) + frame(18, END, 0, 1, b"x"),
        ErrorCode.PROTOCOL,
    ),
    ("after END", frame(17, END, 3, 1) + frame(17, 0, 3, 1), ErrorCode.STREAM_STATE),
    ("stream credit back", frame(20, 0, 0, 1, [1]), ErrorCode.FLOW_CONTROL),
]


@pytest.mark.parametrize(("data", "code"), [b[1:] for b in OPENED], ids=[b[0] for b in OPENED])
def test_a_broken_rule_on_an_open_stream(data: bytes, code: ErrorCode) -> None:
    """The same for rules that need an open stream."""
    pair = Pair()
    pair.a.open(Kind.CALL, EMPTY)
    pair.pump()

    assert broken(pair, data) is code


def test_bytes_beyond_the_credit_end_the_connection() -> None:
    """Both credits are enforced, for messages and for data."""
    tight = Settings(
        window_connection_bytes=1 << 20, window_connection_bytes_max=1 << 20,
        window_stream_bytes=131_072, window_stream_bytes_max=131_072,
    )  # fmt: skip
    for payload in (frame(17, 0, 3, 1, b"x" * 40_000), frame(18, 0, 0, 1, b"x" * 40_000)):
        pair = Pair(tight)
        pair.on_event = None
        take(pair.b, frame(16, MORE if payload[4] == 18 else 0, 1, 1))
        pair.b.manual_credit(1)
        assert broken(pair, payload * 4) is ErrorCode.FLOW_CONTROL


def test_connection_credit_is_enforced_over_all_streams() -> None:
    """Many streams together cannot exceed the connection's window."""
    tight = Settings(
        window_connection_bytes=150_000, window_connection_bytes_max=150_000,
        window_stream_bytes=150_000,
    )  # fmt: skip
    for type_, flags in ((17, 0), (18, 0)):
        pair = Pair(tight)
        opens = b"".join(
            frame(16, MORE if type_ == 18 else 0, 1, stream_id) for stream_id in (1, 3)
        )
        take(pair.b, opens)
        for stream_id in (1, 3):
            pair.b.manual_credit(stream_id)
        flood = b"".join(frame(type_, flags, 0, i, b"x" * 60_000) for i in (1, 3, 1))

        assert broken(pair, flood) is ErrorCode.FLOW_CONTROL


def test_more_streams_than_granted_end_the_connection() -> None:
    """Stream credit is enforced against a peer of bad will."""
    pair = Pair(Settings(streams_credit=2, streams_credit_max=2))
    flood = b"".join(frame(16, 0, 1, stream_id) for stream_id in (1, 3, 5))

    assert broken(pair, flood) is ErrorCode.FLOW_CONTROL


@pytest.mark.parametrize(
    "data",
    [frame(3, body=b""), frame(19, 0, 0, 1, [1, ""]), frame(17, 0, 3, 1), frame(6, body=["x"])],
    ids=["ping", "reset", "message", "drain"],
)
def test_mischief_is_bounded(data: bytes) -> None:
    """Pings and stray frames are borne for a while, then the peer is shut out."""
    pair = Pair(Settings(abuse_burst=5.0, abuse_refill_per_s=0.0))
    pair.a.open(Kind.CALL, EMPTY, end=True)
    pair.pump()
    pair.b.send(1, Kind.RESULT, EMPTY, end=True)
    pair.pump()

    assert broken(pair, data * 20) is ErrorCode.ABUSE


def test_drain_is_told() -> None:
    """DRAIN reaches the other side, and streams go on."""
    pair = Pair()
    pair.a.open(Kind.CALL, EMPTY)
    pair.b.drain("restart")
    pair.pump()

    assert ev.DrainReceived("restart") in pair.events_a
    assert pair.a.streams


# ---- time ----------------------------------------------------------------------------------------


def test_pings_measure_the_round_trip_and_keep_the_link_alive() -> None:
    """An idle connection lives as long as both sides do."""
    pair = Pair()
    pair.wait(60.0)

    assert pair.a.ready
    assert pair.b.ready
    assert pair.a.rtt_s == 0.0
    assert any(isinstance(e, ev.PongReceived) for e in pair.events_a)


def test_pings_wait_for_their_answers() -> None:
    """A path slower than the ping interval breaks no rule: one ping is on its way at a time."""
    pair = Pair()
    pair.a.handle_timeout(0.0)
    pair.a.handle_timeout(5.0)
    pair.a.receive(frame(FrameType.DRAIN, body=["alive"]), 6.0)
    pair.a.handle_timeout(10.0)
    pings = written(pair.a)
    assert pings == frame(FrameType.PING, body=b"")

    take(pair.b, pings, 10.0)
    take(pair.a, written(pair.b), 10.5)

    assert pair.a.rtt_s == 10.5
    pair.a.handle_timeout(15.0)
    assert written(pair.a) == pings


def test_the_shortest_round_trip_tells_the_path() -> None:
    """A ping that waited behind bulk does not make windows grow."""
    pair = Pair()
    for sent, answered in ((5.0, 5.1), (10.0, 12.0)):
        pair.a.handle_timeout(sent)
        take(pair.b, written(pair.a), answered)
        take(pair.a, written(pair.b), answered)

    assert pair.a.rtt_s is not None
    assert pair.a.rtt_s < 0.2


def test_a_silent_peer_is_declared_dead_after_the_lease() -> None:
    """Silence ends the connection on our own clock."""
    pair = Pair()
    pair.a.handle_timeout(14.0)
    assert pair.a.next_event() is None
    written(pair.a)

    pair.a.handle_timeout(15.0)

    lost = pair.a.next_event()
    assert isinstance(lost, ev.ConnectionLost)
    assert lost.error is not None
    assert lost.error.code is ErrorCode.STALLED
