"""Every frame in every state, for both roles: what happens is what wire/README.md says.

Nothing is expected here by itself: the cells come from the tables of the specification, and each
table must name every frame type and every state, so that the page and the code cannot drift.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from easyremote.wire import cbor
from easyremote.wire import event as ev
from easyremote.wire.connection import Connection, Phase
from easyremote.wire.errors import ErrorCode
from easyremote.wire.frame import END, LAST, MORE, PREAMBLE, FrameType, pack
from easyremote.wire.message import Kind
from easyremote.wire.settings import KIB, Settings
from easyremote.wire.stream import TRANSITIONS, StreamInput, StreamState

from .pair import Pair, take, written

TEXT = (Path(__file__).parents[2] / "wire" / "README.md").read_text()
EMPTY = cbor.encode_frame([])
ROLES = ("dialer", "acceptor")
STREAM_0 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20)
ON_STREAMS = (16, 17, 18, 19, 20)
IDLE = 1 / 64
BODIES: dict[int, bytes] = {
    FrameType.HELLO: cbor.encode_frame([1, 1, "client", {}, {}, 1 << 20, 1 << 20, 9]),
    FrameType.WELCOME: cbor.encode_frame([1, {}, 1 << 20, 1 << 20, 9]),
    FrameType.PING: b"",
    FrameType.PONG: b"",
    FrameType.GOAWAY: cbor.encode_frame([0, "bye"]),
    FrameType.DRAIN: cbor.encode_frame(["soon"]),
    FrameType.STREAMS: cbor.encode_frame([1 << 40]),
    FrameType.OPEN: EMPTY,
    FrameType.MESSAGE: EMPTY,
    FrameType.DATA: b"x",
    FrameType.RESET: cbor.encode_frame([24, ""]),
    FrameType.CREDIT: cbor.encode_frame([1 << 40]),
}
"""Payloads that are right; notices, which name a stream, are made by `body`."""


def table(heading: str) -> list[list[str]]:
    """The cells of the table of the specification whose first row begins with `heading`."""
    rows: list[list[str]] = []
    for line in TEXT.splitlines():
        if rows or line.startswith(f"| {heading} |"):
            if not line.startswith("|"):
                break
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert len(rows) > 2, f"no table begins with {heading}"
    return [rows[0], *rows[2:]]


def body(type_: int, stream_id: int) -> bytes:
    """A right payload for a frame of this type, about this stream where it names one."""
    if type_ in (FrameType.ACCEPT, FrameType.STARTED):
        return cbor.encode_frame([stream_id])
    if type_ == FrameType.CANCEL:
        return cbor.encode_frame([[stream_id, 0, 0]])
    return BODIES.get(type_, EMPTY)


def frame(type_: int, stream_id: int, flags: int = 0, kind: int = 0) -> bytes:
    """A right frame of this type."""
    header_id = stream_id if type_ in ON_STREAMS else 0
    return pack(type_, flags, kind, header_id, body(type_, stream_id))


def outcome(connection: Connection, data: bytes) -> str:
    """Give a frame to a connection and say what it did, in the words of the specification."""
    over, left = connection.phase is Phase.OVER, connection.budget.left
    written(connection)
    events = take(connection, data)
    said = written(connection)
    if over:
        assert not said
        return "ignored" if not events else "event"
    if events and isinstance(events[-1], ev.ConnectionLost) and events[-1].error is not None:
        error = events[-1].error
        assert len(events) == 1
        goodbye = pack(5, 0, 0, 0, cbor.encode_frame([int(error.code), error.reason]))
        spoke = connection.dialer is False or said != b""
        assert said.removeprefix(PREAMBLE) == (goodbye if spoke else b"")
        return error.code.name
    cost = left - connection.budget.left
    assert cost in (0.0, IDLE, 1.0)
    charged = cost == 1.0
    if cost == IDLE:
        assert not events
        assert not said
        return "idle"
    if said == pack(FrameType.PONG, 0, 0, 0, b""):
        words = ["answered"]
    else:
        words = ["event"] if events or connection.phase is Phase.OVER else []
    return ", ".join([*words, *(["charged"] if charged else [])]) or "free"


# ---- connection states -----------------------------------------------------------------------


def in_phase(role: str, phase: str) -> Connection:
    """A connection of this role in this phase; its peer's preamble has come."""
    pair = Pair(greet=False)
    receiver, peer = (pair.a, pair.b) if role == "dialer" else (pair.b, pair.a)
    if phase != "NEW":
        pair.a.hello("client", {}, {})
        pair.pump()
        if phase != "GREETING":
            pair.b.welcome({})
            pair.pump()
    if not receiver.preamble_seen:
        take(receiver, PREAMBLE)
    if phase == "OVER":
        receiver.close()
        take(peer, written(receiver))
        assert receiver.next_event() == ev.ConnectionLost(None)
    assert receiver.phase.name == phase
    return receiver


def allowed(role: str, may_receive: str) -> set[int] | None:
    """The frame types that a cell of the table of states allows; None if bytes are ignored."""
    if may_receive.startswith("nothing"):
        return None
    if may_receive.startswith("all but "):
        names = may_receive.removeprefix("all but ").split(", ")
        return {int(type_) for type_ in FrameType} - {int(FrameType[name]) for name in names}
    by_role = dict(part.split(": ") for part in may_receive.split("; "))
    return {int(FrameType[name]) for name in by_role[role].split(", ")}


def test_the_table_of_connection_states_is_whole() -> None:
    """Every phase has its row."""
    assert [row[0] for row in table("state | dialer may send")[1:]] == [p.name for p in Phase]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("row", table("state | dialer may send")[1:], ids=lambda row: row[0])
def test_every_type_in_every_connection_state(role: str, row: list[str]) -> None:
    """Of the 256 types, those that the table names are taken, and every other is PROTOCOL."""
    phase, may_receive = row[0], row[3]
    types = allowed(role, may_receive)
    for type_ in range(256):
        connection = in_phase(role, phase)
        opener = 1 if role == "acceptor" else 2  # The first id of the peer.
        got = outcome(connection, frame(type_, opener))
        if types is None:
            assert got == "ignored", type_
        elif type_ not in types:
            assert got == "PROTOCOL", type_
        elif phase != "READY":
            assert got == "event", type_


# ---- stream 0 in READY -----------------------------------------------------------------------


def stream_0_cells() -> list[tuple[int, bool, str]]:
    """(type, a PING is out, outcome) of each frame on stream 0."""
    cells: list[tuple[int, bool, str]] = []
    for names, expected in table("frame on stream 0, in READY")[1:]:
        pinged = names == "PONG, asked for"
        listed = ["PONG"] if names.startswith("PONG") else names.split(", ")
        cells += [(int(FrameType[name]), pinged, expected) for name in listed]
    return cells


def test_the_table_of_stream_0_is_whole() -> None:
    """It names every type of stream 0 but the notices, which stand in the table of streams."""
    named = {type_ for type_, _, _ in stream_0_cells()}
    assert named == set(STREAM_0) - {FrameType.ACCEPT, FrameType.STARTED, FrameType.CANCEL}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("type_", "pinged", "expected"), stream_0_cells())
def test_frames_on_stream_0(role: str, type_: int, pinged: bool, expected: str) -> None:
    """Each does what its cell says."""
    connection = in_phase(role, "READY")
    if pinged:
        connection.handle_timeout(0.0)
    assert connection.next_event() is None

    assert outcome(connection, frame(type_, 0)) == expected


# ---- streams in READY ------------------------------------------------------------------------


class Cell(NamedTuple):
    """One cell of the table of streams."""

    type_: int
    opener: str
    state: str
    expected: str


def stream_cells() -> list[Cell]:
    """Every cell, with 'either' and lists of names spelled out."""
    head, *rows = table("frame | stream of")
    cells: list[Cell] = []
    for names, whose, *outcomes in rows:
        for name in names.split(", "):
            for opener in ("sender", "receiver") if whose == "either" else (whose,):
                cells += [
                    Cell(int(FrameType[name]), opener, state, expected)
                    for state, expected in zip(head[2:], outcomes, strict=True)
                ]
    return cells


def in_state(role: str, opener: str, state: str) -> tuple[Connection, int]:
    """A receiver of this role, and a stream in this state as it sees it."""
    pair = Pair()
    receiver, sender = (pair.a, pair.b) if role == "dialer" else (pair.b, pair.a)
    first, second = (sender, receiver) if opener == "sender" else (receiver, sender)
    stream_id = first.next_stream_id
    if state == "never was":
        return receiver, stream_id
    in_segments = state == "in segments"
    first.open(Kind.CALL, EMPTY, more=in_segments and opener == "sender")
    pair.pump()
    if in_segments and opener == "receiver":
        second.send(stream_id, Kind.ITEM, EMPTY, more=True)
    if state in ("ENDED_HERE", "CLOSED"):
        receiver.send(stream_id, Kind.ITEM, EMPTY, end=True)
    if state in ("ENDED_THERE", "CLOSED"):
        sender.send(stream_id, Kind.ITEM, EMPTY, end=True)
    if state == "given up":
        receiver.reset(stream_id, ErrorCode.CANCELLED, "")
    pair.pump()
    record = receiver.streams.get(stream_id)
    if state in ("CLOSED", "given up"):
        assert record is None
        assert (stream_id in receiver.given_up) is (state == "given up")
    else:
        assert record is not None
        assert record.more is in_segments
        assert record.state.name == ("OPEN" if in_segments else state)
    return receiver, stream_id


def test_the_table_of_streams_is_whole() -> None:
    """Every type that names a stream has a cell for each opener and state, and only one."""
    cells = [(cell.type_, cell.opener, cell.state) for cell in stream_cells()]
    types = (*ON_STREAMS, FrameType.ACCEPT, FrameType.STARTED, FrameType.CANCEL)
    states = {"never was", "in segments", "given up", *(state.name for state in StreamState)}
    assert len(cells) == len(set(cells))
    assert set(cells) == {
        (int(type_), opener, state)
        for type_ in types
        for opener in ("sender", "receiver")
        for state in states
    }


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "cell", stream_cells(), ids=lambda c: f"{FrameType(c.type_).name}-{c.opener}-{c.state}"
)
def test_frames_on_streams(role: str, cell: Cell) -> None:
    """Each does what its cell says, with every flag that it may carry."""
    for flags in legal_flags(cell.type_):
        receiver, stream_id = in_state(role, cell.opener, cell.state)
        data = frame(cell.type_, stream_id, flags)

        got = outcome(receiver, data)

        assert got == cell.expected, flags
        if got in ("free", "idle", "charged"):
            assert receiver.inflow.consumed == receiver.inflow.received
            assert receiver.ready


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("state", ["OPEN", "in segments", "ENDED_HERE", "ENDED_THERE"])
def test_a_reset_of_what_was_accepted_is_free(role: str, state: str) -> None:
    """The sentence below the table: who has said ACCEPT or STARTED bears a RESET."""
    for tell in (Connection.accept, Connection.started):
        receiver, stream_id = in_state(role, "sender", state)
        tell(receiver, stream_id)

        assert outcome(receiver, frame(FrameType.RESET, stream_id)) == "event"


def test_given_up_streams_are_remembered_in_that_number() -> None:
    """The oldest of more than 4,096 is charged, as any stream that once was."""
    (number,) = re.findall(r"of which the last ([\d,]+) are remembered", TEXT)
    count = int(number.replace(",", "")) + 1
    pair = Pair(Settings(streams_credit=count, streams_credit_max=count))
    for _ in range(count):
        pair.a.reset(pair.a.open(Kind.CALL, EMPTY), ErrorCode.CANCELLED, "")
    written(pair.a)

    assert outcome(pair.a, frame(FrameType.MESSAGE, 1)) == "charged"
    assert outcome(pair.a, frame(FrameType.MESSAGE, 3)) == "free"


# ---- headers ---------------------------------------------------------------------------------


def legal_flags(type_: int) -> list[int]:
    """Combinations of flags that the table of frames gives a type; none is always one."""
    (row,) = [row for row in table("type | name")[1:] if row[0] == str(type_)]
    bits = {"END": END, "MORE": MORE, "LAST": LAST}
    ways = [] if row[3] == "-" else re.split(", | or ", row[3])
    return [0, *(sum(bits[name] for name in way.split("+")) for way in ways)]


def test_flags_and_their_bits_are_those_of_the_specification() -> None:
    """The table of flags says the numbers that the code uses."""
    bits = {row[0]: int(row[1], 16) for row in table("flag | bit")[1:]}
    assert bits == {"END": 1, "MORE": 2, "LAST": 4, "SEALED": 16, "DESCRIPTORS": 32}
    assert (END, MORE, LAST) == (1, 2, 4)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("type_", list(FrameType), ids=lambda type_: type_.name)
def test_wrong_flags_kinds_and_streams(role: str, type_: FrameType) -> None:
    """Where a frame would be right, each flag, kind or stream that its row lacks is PROTOCOL."""
    state = {FrameType.DATA: "in segments", FrameType.OPEN: "never was"}.get(type_, "OPEN")
    (row,) = [row for row in table("type | name")[1:] if row[0] == str(int(type_))]
    assert row[1] == type_.name
    legal = legal_flags(type_)
    for flags in set(range(256)) - set(legal):
        receiver, stream_id = in_state(role, "sender", state)
        assert outcome(receiver, frame(type_, stream_id, flags)) == "PROTOCOL", flags
    receiver, stream_id = in_state(role, "sender", state)
    with_kind = outcome(receiver, frame(type_, stream_id, 0, 7))
    assert with_kind == ("event" if row[4] == "a message" else "PROTOCOL")
    receiver, stream_id = in_state(role, "sender", state)
    payload = body(type_, stream_id)
    for wrong in {"0": (stream_id,), "n": (0,), "0 or n": ()}[row[2]]:
        assert outcome(receiver, pack(type_, 0, 0, wrong, payload)) == "PROTOCOL"


@pytest.mark.parametrize("role", ROLES)
def test_ids_out_of_order_and_out_of_range(role: str) -> None:
    """Only the next id of the sender opens a stream; ids above 2^62 - 1 never were."""
    for skip in (2, 4, 1 << 40):
        receiver, stream_id = in_state(role, "sender", "never was")
        assert outcome(receiver, frame(FrameType.OPEN, stream_id + skip)) == "STREAM_STATE"
    for type_ in (FrameType.MESSAGE, FrameType.DATA, FrameType.RESET, FrameType.CREDIT):
        for stream_id in (1 << 62, (1 << 62) + 1, (1 << 64) - 1):
            receiver, _ = in_state(role, "sender", "OPEN")
            assert outcome(receiver, frame(type_, stream_id)) == "STREAM_STATE"


@pytest.mark.parametrize("row", table("limit | value")[1:4], ids=lambda row: row[0])
def test_limits_of_payloads(row: list[str]) -> None:
    """One byte more than the limit is FRAME_TOO_LARGE; the limit itself is not."""
    size = int(row[1].removesuffix(" KiB")) * KIB
    up_to_welcome, data = "WELCOME" in row[0], row[0].endswith("of DATA")
    for extra, expected in ((0, None), (1, row[2])):
        payload = b"\x00" * (size + extra)
        if up_to_welcome:
            connection, stream_id = in_phase("acceptor", "NEW"), 0
            got = outcome(connection, pack(FrameType.HELLO, 0, 0, 0, payload))
        else:
            connection, stream_id = in_state(
                "acceptor", "sender", "in segments" if data else "OPEN"
            )
            type_ = FrameType.DATA if data else FrameType.MESSAGE
            got = outcome(connection, pack(type_, 0, 0, stream_id, payload))
        assert got == (expected or ("DECODE" if up_to_welcome else "event"))


# ---- the life of a stream, and settings ------------------------------------------------------


def test_the_table_of_streams_lives_is_the_one_that_runs() -> None:
    """Every (state, input) of the specification is in the code, and nothing else."""
    head, *rows = table("state \\ input")
    inputs = [StreamInput[name.upper().replace(" ", "_")] for name in head[1:]]
    written_down = {
        (StreamState[state], what): cell
        for state, *cells in rows
        for what, cell in zip(inputs, cells, strict=True)
    }
    assert set(written_down) == {(state, what) for state in StreamState for what in StreamInput}
    moves = {pair: cell for pair, cell in written_down.items() if cell in StreamState.__members__}
    assert {pair: state.name for pair, state in TRANSITIONS.items()} == moves
    assert set(written_down.values()) - set(StreamState.__members__) == {"error", "late", "-"}


def test_the_settings_are_those_of_the_specification() -> None:
    """Each limit is named, with its default."""
    named = {row[0]: float(row[1].replace(",", "")) for row in table("setting | default")[1:]}
    assert named == {field.name: field.default for field in dataclasses.fields(Settings)}
