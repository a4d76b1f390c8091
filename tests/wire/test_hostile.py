"""Peers of bad will, and honest ones that look like them: what each may cost us."""

from __future__ import annotations

import pytest

from easyremote.wire import cbor
from easyremote.wire import event as ev
from easyremote.wire.connection import Connection
from easyremote.wire.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from easyremote.wire.frame import LAST, MORE, FrameType, pack
from easyremote.wire.greeting import REASON_BYTES_MAX
from easyremote.wire.message import Kind
from easyremote.wire.settings import Settings

from .pair import Pair, take, written

EMPTY = cbor.encode_frame([])
NO_MERCY = Settings(abuse_burst=0.0, abuse_refill_per_s=0.0)
"""The first frame that is not free ends the connection."""
NO_CHARGE = Settings(abuse_burst=0.99, abuse_refill_per_s=0.0)
"""So does the first that is charged, or the 64th that is idle."""


def lost(events: list[ev.Event]) -> ErrorCode | None:
    """The code with which a connection ended, None if it goes on."""
    last = events[-1] if events else None
    if not isinstance(last, ev.ConnectionLost):
        return None
    assert isinstance(last.error, RemoteProtocolError)
    return last.error.code


# ---- honest, though it looks odd -----------------------------------------------------------------


@pytest.mark.parametrize("mib", [0.9, 2, 5])
def test_large_results_never_use_up_the_budget_of_whoever_takes_them(mib: float) -> None:
    """Credit that crosses the end of a stream is as good as free, on both sides of it."""
    size = int(mib * (1 << 20))
    pair = Pair(NO_CHARGE)
    pair.on_event = lambda connection, event: (
        connection.fill(event.stream_id, [memoryview(bytearray(size))])
        if isinstance(event, ev.MessageReceived | ev.StreamOpened) and event.more
        else None
    )
    for _ in range(3):
        stream_id = pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(size))], end=True)
        take(pair.b, written(pair.a), 0.0, pair.on_event)
        pair.b.send(stream_id, Kind.RESULT, EMPTY, [memoryview(bytes(size))], end=True)
        pair.pump()
        assert pair.a.ready
        assert pair.b.ready
    assert pair.a.streams == {}


def test_resets_of_what_was_accepted_and_by_the_callee_are_free() -> None:
    """Stream credit has paid for both; an opener that resets before that pays."""
    pair = Pair(NO_MERCY)
    accepted, started, refused, early = (pair.a.open(Kind.CALL, EMPTY) for _ in range(4))
    pair.pump()
    pair.b.accept(accepted)
    pair.b.started(started)
    pair.a.reset(accepted, ErrorCode.CANCELLED, "")
    pair.a.reset(started, ErrorCode.CANCELLED, "")
    pair.b.reset(refused, ErrorCode.OVERLOADED, "")
    pair.pump()
    assert pair.a.ready
    assert pair.b.ready

    pair.a.reset(early, ErrorCode.CANCELLED, "")
    pair.pump()

    assert lost(pair.events_b) is ErrorCode.ABUSE


def test_a_relay_is_not_charged_for_credit_that_comes_late() -> None:
    """A stream that once was may still get credit; one that never was may not."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY, end=True)
    pair.pump()
    pair.b.send(stream_id, Kind.RESULT, EMPTY, end=True)
    pair.pump()
    late = pack(FrameType.CREDIT, 0, 0, stream_id, cbor.encode_frame([1 << 30]))

    assert take(pair.b, late * 1000) == []
    never = pack(FrameType.CREDIT, 0, 0, stream_id + 2, cbor.encode_frame([1 << 30]))
    assert lost(take(pair.b, never)) is ErrorCode.STREAM_STATE


# ---- frames that are cheap to send --------------------------------------------------------------


def said(type_: FrameType, stream_id: int, fields: list[object]) -> bytes:
    """A control frame."""
    return pack(type_, 0, 0, stream_id, cbor.encode_frame(fields))


def counted(fields: list[object], number: int) -> list[object]:
    """Put a number where three dots are."""
    return [
        counted(one, number) if isinstance(one, list) else number if one is ... else one
        for one in fields
    ]


def busy_pair() -> tuple[Pair, int]:
    """A pair with a stream that `a` opened and that both sides have accepted and started."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY)
    pair.pump()
    pair.b.started(stream_id)
    pair.wait(0.1)
    return pair, stream_id


@pytest.mark.parametrize(
    ("role", "type_", "on_stream", "fields"),
    [
        ("a", FrameType.ACCEPT, False, [1]),
        ("a", FrameType.STARTED, False, [1]),
        ("b", FrameType.STARTED, False, [1]),
        ("b", FrameType.CANCEL, False, [[1, 2, ...]]),
        ("b", FrameType.CANCEL, False, [[2, 2, ...]]),
        ("a", FrameType.CREDIT, False, [...]),
        ("b", FrameType.CREDIT, False, [...]),
        ("b", FrameType.CREDIT, True, [...]),
        ("a", FrameType.STREAMS, False, [...]),
        ("b", FrameType.STREAMS, False, [1 << 40]),
    ],
)
def test_no_control_frame_can_be_sent_without_end(
    role: str, type_: FrameType, on_stream: bool, fields: list[object]
) -> None:
    """Whatever needs no credit draws on the budget when it is repeated, useful or not."""
    pair, stream_id = busy_pair()
    receiver = pair.a if role == "a" else pair.b
    for i in range(10_000):
        frame = said(type_, stream_id if on_stream else 0, counted(fields, (1 << 40) + i))
        if lost(take(receiver, frame, pair.now)) is ErrorCode.ABUSE:
            break
    else:
        raise AssertionError("the flood is borne for ever")


def test_resets_of_a_stream_given_up_cannot_be_sent_without_end() -> None:
    """One may have crossed ours; thousands have not."""
    pair, stream_id = busy_pair()
    pair.b.reset(stream_id, ErrorCode.STALLED, "")

    events = take(pair.b, said(FrameType.RESET, stream_id, [24, ""]) * 10_000, pair.now)

    assert lost(events) is ErrorCode.ABUSE


def test_a_long_idle_frame_costs_more_than_a_short_one() -> None:
    """A frame that has no effect still has to be read."""
    pair = Pair()
    long = said(FrameType.ACCEPT, 0, list(range(20_000)))
    left = pair.b.budget.left

    take(pair.b, long, pair.now)

    assert left - pair.b.budget.left == (1 + (len(long) - 16) // 1024) / 64


def test_credit_for_what_was_sent_is_free_however_long_it_goes_on() -> None:
    """An honest receiver's grants and stream credit never draw on the budget of their receiver."""
    pair = Pair(
        Settings(
            abuse_burst=0.99, abuse_refill_per_s=0.0, streams_credit=1, streams_credit_max=1,
            window_connection_bytes=128 * 1024, window_connection_bytes_max=128 * 1024,
            window_stream_bytes=128 * 1024, window_stream_bytes_max=128 * 1024,
        )
    )  # fmt: skip
    pair.on_event = lambda connection, event: (
        connection.release(event.stream_id) if isinstance(event, ev.StreamOpened) else None
    )
    for _ in range(200):
        stream_id = pair.a.open(Kind.CALL, EMPTY)
        for _ in range(4):
            pair.a.send(stream_id, Kind.ITEM, bytes(60_000))
            pair.pump()
        pair.a.send(stream_id, Kind.ITEM, EMPTY, end=True)
        pair.pump()
        pair.b.send(stream_id, Kind.RESULT, EMPTY, end=True)
        pair.pump()
    assert pair.a.budget.left > 0.9
    assert pair.b.budget.left == 0.99


@pytest.mark.parametrize("size", [0, 1, 511, 512])
def test_even_an_empty_frame_uses_up_credit(size: int) -> None:
    """A window of frames holds no more of them than a window of half KiB each."""
    small = Settings(window_stream_bytes=128 * 1024, window_stream_bytes_max=128 * 1024)
    pair = Pair(small)
    take(pair.b, pack(FrameType.OPEN, 0, Kind.CALL, 1, EMPTY))
    pair.b.manual_credit(1)
    one = pack(FrameType.MESSAGE, 0, Kind.ITEM, 1, bytes(size))

    events = take(pair.b, one * 256)
    assert len(events) == 256
    assert lost(take(pair.b, one)) is ErrorCode.FLOW_CONTROL


def test_a_sender_that_is_granted_crumbs_waits_for_a_bite() -> None:
    """Credit below what a frame counts makes nobody cut bulk into bytes."""
    pair = Pair(settings_b=Settings(window_stream_bytes=128 * 1024))
    stream_id = pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(300_000))])
    written(pair.a)
    record = pair.a.streams[stream_id]
    assert record.granted - record.sent == 0
    for extra in range(1, 512, 50):
        take(pair.a, said(FrameType.CREDIT, stream_id, [record.sent + extra]))
        assert written(pair.a) == b""
    take(pair.a, said(FrameType.CREDIT, stream_id, [record.sent + 512]))
    assert len(written(pair.a)) == 16 + 512


# ---- memory --------------------------------------------------------------------------------------


def test_a_peer_that_never_ends_its_side_gets_no_more_streams_for_it() -> None:
    """Stream credit returns when the stream is over, so that open ones are bounded by it."""
    pair = Pair(Settings(streams_credit=2, streams_credit_max=2))
    ids = [pair.a.open(Kind.CALL, EMPTY) for _ in range(2)]
    pair.pump()
    for stream_id in ids:
        pair.b.send(stream_id, Kind.RESULT, EMPTY, end=True)
        pair.b.release(stream_id)
    pair.pump()
    assert len(pair.b.streams) == 2
    assert pair.a.streams_available == 0

    pair.a.send(ids[0], 0, EMPTY, end=True)
    pair.a.reset(ids[1], ErrorCode.CANCELLED, "")
    pair.pump()

    assert pair.b.streams == {}
    assert pair.a.streams_available == 2


def test_a_peer_that_takes_no_outcome_gets_no_more_streams_for_it() -> None:
    """A last word that waits for credit keeps the stream's credit; giving it up frees it."""
    pair = Pair(Settings(streams_credit=1, streams_credit_max=1))
    stream_id = pair.a.open(Kind.CALL, EMPTY, end=True)
    pair.pump()
    pair.b.send(stream_id, Kind.RESULT, EMPTY, [memoryview(bytes(8 << 20))], end=True)
    pair.b.release(stream_id)
    take(pair.a, written(pair.b))
    assert pair.a.streams_available == 0

    pair.b.reset(stream_id, ErrorCode.STALLED, "you take nothing")
    pair.pump()

    assert pair.a.streams_available == 1


def test_what_a_peer_causes_and_does_not_read_is_counted_apart() -> None:
    """Our own calls are our own wish; answers that nobody reads are the peer's doing."""
    pair = Pair()
    pair.a.open(Kind.CALL, bytes(60_000))
    assert pair.a.out.caused_bytes == 0
    take(pair.a, pack(FrameType.PING, 0, 0, 0, b"") * 10)
    assert pair.a.out.caused_bytes == 160

    pair.pump()

    assert pair.a.out.caused_bytes == 0


# ---- cancels and notices -------------------------------------------------------------------------


def test_many_cancels_fit_their_frames_whatever_their_grace() -> None:
    """A caller that asks for absurd grace cannot make a relay break a rule."""
    credit = Settings(streams_credit=5000, streams_credit_max=5000)
    pair = Pair(credit)
    pair.a.next_stream_id = pair.b.next_stream_id - 1 + (1 << 61)
    pair.b.peer_stream_id = pair.a.next_stream_id - 2
    ids = [pair.a.open(Kind.CALL, EMPTY, end=True) for _ in range(5000)]
    pair.pump()
    for stream_id in ids:
        pair.a.cancel(stream_id, 2, (1 << 64) - 1)
    pair.pump()

    told = [c for e in pair.events_b if isinstance(e, ev.CancelReceived) for c in e.cancels]
    assert told == [(stream_id, 2, (1 << 64) - 1) for stream_id in ids]


def test_of_several_cancels_the_strongest_is_told() -> None:
    """Asking twice costs one entry."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY, end=True)
    pair.pump()
    for strength, grace_ms in ((0, 10), (2, 20), (1, 30), (2, 40)):
        pair.a.cancel(stream_id, strength, grace_ms)
    pair.pump()

    assert pair.events_b[-1] == ev.CancelReceived([(stream_id, 2, 40)])


def test_a_flood_of_cancels_in_one_frame_is_one_cancel() -> None:
    """What a relay passes on does not grow with what a caller repeats; entries may be longer."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY, end=True)
    pair.pump()
    flood = [[stream_id, 0, 9]] * 1000 + [[stream_id, 1, 5, "of a later version"]]

    events = take(pair.b, pack(FrameType.CANCEL, 0, 0, 0, cbor.encode_frame(flood)))

    assert events == [ev.CancelReceived([(stream_id, 1, 5)])]


@pytest.mark.parametrize("entry", [[1, 3, 0], [1, -1, 0], [1, 0, -1], [1, 0], [1, 0, None]])
def test_cancels_out_of_range_are_refused(entry: list[object]) -> None:
    """Strength is 0, 1 or 2; grace is not negative."""
    pair = Pair()
    pair.a.open(Kind.CALL, EMPTY)
    pair.pump()

    data = pack(FrameType.CANCEL, 0, 0, 0, cbor.encode_frame([entry]))
    assert lost(take(pair.b, data)) is ErrorCode.DECODE


def test_only_the_opener_cancels_and_only_the_callee_accepts() -> None:
    """Entries of the wrong side are skipped, and repeated ones count once."""
    pair = Pair()
    mine = pair.a.open(Kind.CALL, EMPTY)
    theirs = pair.b.open(Kind.CALL, EMPTY)
    pair.pump()

    def said(type_: FrameType, entries: list[object]) -> bytes:
        return pack(type_, 0, 0, 0, cbor.encode_frame(entries))

    assert take(pair.a, said(FrameType.CANCEL, [[mine, 0, 0]])) == []
    assert take(pair.b, said(FrameType.ACCEPT, [mine])) == []
    assert take(pair.b, said(FrameType.STARTED, [mine])) == []
    assert take(pair.b, said(FrameType.ACCEPT, [mine, theirs, theirs])) == [
        ev.StreamsAccepted([theirs])
    ]


# ---- reasons and the end -------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["\N{SNOWMAN}" * 5000, "bad name \udcff", "x" * 10_000])
def test_any_reason_can_be_said(reason: str) -> None:
    """A reason is cut to what a frame before WELCOME may hold, and never refused."""
    pair = Pair(greet=False)
    pair.a.hello("client", {}, {})
    pair.pump()
    pair.b.close(ErrorCode.FORBIDDEN, reason)
    pair.pump()

    (goodbye, end) = pair.events_a
    assert isinstance(goodbye, ev.GoawayReceived)
    assert len(goodbye.reason.encode()) <= REASON_BYTES_MAX
    assert goodbye.reason.rstrip("?") in reason
    assert end == ev.ConnectionLost(None)


def test_nothing_is_said_after_the_end() -> None:
    """Whatever our own code still does with a connection that is over goes nowhere."""
    pair = Pair()
    stream_id = pair.a.open(Kind.CALL, EMPTY, more=True)
    queued = pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(9))])
    pair.pump()
    record = pair.a.streams[stream_id]
    pair.a.close(ErrorCode.INTERNAL, "bye")
    goodbye = pack(FrameType.GOAWAY, 0, 0, 0, cbor.encode_frame([30, "bye"]))

    pair.a.send(stream_id, Kind.ITEM, EMPTY)
    pair.a.send(stream_id, Kind.ITEM, EMPTY, [memoryview(b"x")], end=True)
    pair.a.forward_data(stream_id, memoryview(bytearray(17)), last=True, end=True)
    pair.a.fill(stream_id, [memoryview(bytearray(1))])
    pair.a.reset(queued, ErrorCode.CANCELLED, "")
    pair.a.cancel(stream_id)
    pair.a.accept(stream_id)
    pair.a.started(stream_id)
    pair.a.consumed(stream_id, 1 << 30)
    pair.a.release(stream_id)
    pair.a.out.opening(b"OPEN")
    pair.a.out.message(record, b"MESSAGE")
    pair.a.out.segments(record, [memoryview(b"x")], end=True)
    pair.a.out.relay(record, memoryview(bytearray(17)), LAST)
    with pytest.raises(LocalProtocolError):
        pair.a.open(Kind.CALL, EMPTY)

    assert written(pair.a) == goodbye
    assert not pair.a.wants_write
    assert pair.a.streams == {}
    assert pair.a.take_drained() == []


def test_a_connection_that_is_over_holds_no_buffer() -> None:
    """Peers that come and go leave next to nothing behind, and their last bytes are ignored."""
    pair = Pair()
    assert len(pair.b.buffer.data) >= 256 * 1024
    pair.b.close()

    assert len(pair.b.buffer.data) <= 4096
    assert take(pair.b, bytes(100_000)) == [ev.ConnectionLost(None)]


def test_data_with_a_kind_is_refused() -> None:
    """Only messages have a kind."""
    pair = Pair()
    take(pair.b, pack(FrameType.OPEN, MORE, Kind.CALL, 1, EMPTY))

    assert lost(take(pair.b, pack(FrameType.DATA, LAST, 7, 1, b"x"))) is ErrorCode.PROTOCOL


def test_the_end_inside_a_frame_of_data_is_borne() -> None:
    """A connection that ends while bulk is on its way forgets the rest."""
    pair = Pair()
    data = pack(FrameType.OPEN, MORE, Kind.CALL, 1, EMPTY) + pack(
        FrameType.DATA, LAST, 0, 1, bytes(1000)
    )
    take(pair.b, data[:500])
    pair.b.close()

    assert take(pair.b, data[500:]) == [ev.ConnectionLost(None)]
    connection = Connection(dialer=False, now=0.0)
    connection.receive_eof(0.0)
    assert connection.next_event() == ev.ConnectionLost(None)


def test_a_stuck_stream_of_a_relay_keeps_nobody_elses_credit() -> None:
    """A relay gives the connection's credit at once and the stream's later, each exactly once."""
    small = Settings(
        window_connection_bytes=256 * 1024, window_connection_bytes_max=256 * 1024,
        window_stream_bytes=128 * 1024, window_stream_bytes_max=128 * 1024,
    )  # fmt: skip
    pair = Pair(small)
    held: dict[int, int] = {}

    def on_event(connection: Connection, event: ev.Event) -> None:
        if isinstance(event, ev.StreamOpened):
            connection.manual_credit(event.stream_id)
        elif isinstance(event, ev.DataReceived):
            size = len(event.frame) - 16
            held[event.stream_id] = held.get(event.stream_id, 0) + size
            connection.credit_connection(size)

    pair.on_event = on_event
    stuck = [pair.a.open(Kind.CALL, EMPTY, [memoryview(bytes(1 << 20))]) for _ in range(8)]
    pair.pump()
    assert [held[stream_id] for stream_id in stuck] == [128 * 1024] * 8
    assert pair.b.inflow.consumed == pair.b.inflow.received

    pair.b.consumed_on_stream(stuck[0], held[stuck[0]])
    pair.b.consumed_on_stream(999, 1)
    pair.pump()

    assert held[stuck[0]] == 256 * 1024
    assert held[stuck[1]] == 128 * 1024
    assert pair.b.inflow.consumed == pair.b.inflow.received
