"""Target: a program of operations on two connections that talk to each other, and its model.

Theory. Bytes at random end a connection soon; two honest peers never should, whatever they do and
however their bytes are cut. An input is a program: two bytes per operation, valid or nearly so.
Beside the connections runs a model of a hundred lines that knows only what was said. It checks
after each delivery that no total of credit is exceeded and that nothing comes after an end, and in
the end, when all bytes have been taken, that each side has heard exactly what the other one said.

Rules of this file. 1) What an owner must not do (a message inside segments, a second release) is
not done: everything else may be tried, and must be refused by `LocalProtocolError` alone. 2) Any
loss of the connection is a finding: budgets and leases are without bounds here.
"""

from __future__ import annotations

from typing import Any

from easyremote.wire import event as ev
from easyremote.wire.connection import Connection
from easyremote.wire.credit import cost
from easyremote.wire.errors import ErrorCode, LocalProtocolError
from easyremote.wire.frame import HEADER_SIZE
from easyremote.wire.settings import KIB, Settings

from .target import Feature, Target

SETTINGS = Settings(
    frame_control_bytes_max=256, frame_data_bytes_max=200, slice_bytes_while_busy=64,
    window_connection_bytes=3 * KIB, window_connection_bytes_max=6 * KIB,
    window_stream_bytes=2 * KIB, window_stream_bytes_max=4 * KIB, streams_credit=3,
    streams_credit_max=6, abuse_burst=1e9, lease_s=1e9, reset_memory=2,
)  # fmt: skip
"""So small that a program of some operations uses everything up."""

OPERATIONS_MAX = 64
_POOL = bytes(range(256)) * 8


class Side:
    """One peer, and what the model knows of it.

    Attributes:
        wire: Bytes of it that are on their way.
        said: What it said on each stream: messages and raw bytes, in order.
        heard: What it heard.
        owing: Streams on which it owes segments by `forward_data`.
        due: Where the segments of a message are being received.
        ended: Streams on which it heard the end.
        gone: Streams that it reset, or whose reset it heard.
        work: Streams of the other side that it has not released.
        held: What it took and gave no credit for, by stream.
        frames: Frames that it may forward.
        opened: The last stream that it heard of.
    """

    def __init__(self, *, dialer: bool) -> None:
        self.connection = Connection(dialer=dialer, now=0.0, settings=SETTINGS)
        self.wire = bytearray()
        self.said: dict[int, list[Any]] = {}
        self.heard: dict[int, list[Any]] = {}
        self.owing: set[int] = set()
        self.due: dict[int, list[memoryview]] = {}
        self.ended: set[int] = set()
        self.gone: set[int] = set()
        self.work: list[int] = []
        self.held: dict[int, int] = {}
        self.frames: list[memoryview] = []
        self.opened = 0

    # ---- what it says --------------------------------------------------------------------------

    def say(self, stream_id: int | None, value: int, *, sizes: list[int], more: bool) -> None:
        """Open a stream or send on one: a message, with its segments or a promise of them."""
        if stream_id is not None and stream_id in self.owing:
            return
        flags = 1 if more else 2 if sizes else 0
        payload = bytes([flags, value & 1, len(sizes)])
        payload += b"".join(size.to_bytes(2, "big") for size in sizes)
        payload += _POOL[: value % 300]
        buffers = [memoryview(_POOL)[value : value + size] for size in sizes]
        end = bool(value & 4) and not more
        if stream_id is None:
            stream_id = self.connection.open(1, payload, buffers, more=more, end=end)
            assert stream_id not in self.said, "a stream id was used twice"
        else:
            self.connection.send(stream_id, 2, payload, buffers, more=more, end=end)
        if more:
            self.owing.add(stream_id)
        log = self.said.setdefault(stream_id, [])
        log.append((payload, end and not sizes))
        if sizes:
            log.append(bytearray(b"".join(buffers)))

    def forward(self, stream_id: int, value: int) -> None:
        """Send a frame that it received, or one like it, on a stream that owes segments."""
        if stream_id not in self.owing:
            return
        if self.frames:
            frame = self.frames.pop()
        else:
            size = 1 + value % SETTINGS.frame_data_bytes_max
            frame = memoryview(bytearray([value]) * (HEADER_SIZE + size))
        said = bytes(frame[HEADER_SIZE:])
        last, end = bool(value & 1), value & 3 == 3
        self.connection.forward_data(stream_id, frame, last=last, end=end)
        if last:
            self.owing.discard(stream_id)
        _append(self.said[stream_id], said)

    def reset(self, stream_id: int) -> None:
        """Give a stream up, or try to."""
        if stream_id in self.connection.streams:
            self.gone.add(stream_id)
        self.connection.reset(stream_id, ErrorCode.CANCELLED, "no more")

    def release(self, value: int) -> None:
        """Say that the work of a stream is gone, once."""
        if self.work:
            self.connection.release(self.work.pop(value % len(self.work)))

    def consume(self) -> None:
        """Give credit for all that is held."""
        held, self.held = self.held, {}
        for stream_id, size in held.items():
            self.connection.consumed(stream_id, size)

    # ---- what it hears -------------------------------------------------------------------------

    def take(self, data: bytes, now: float, *, manual: bool) -> None:
        """Receive bytes as a link does: one event after the other."""
        connection, at = self.connection, 0
        while at < len(data):
            space = connection.receive_buffer()
            size = min(len(space), len(data) - at)
            space[:size] = data[at : at + size]
            at += size
            connection.received(size, now)
            while (event := connection.next_event()) is not None:
                self.hear(event, manual=manual)

    def hear(self, event: ev.Event, *, manual: bool) -> None:
        """Check an event against what was heard before."""
        parted = isinstance(event, ev.ConnectionLost | ev.GoawayReceived)
        assert not parted, f"two honest peers parted: {event}"
        if isinstance(event, ev.StreamOpened):
            assert event.stream_id == (self.opened + 2 if self.opened else event.stream_id)
            self.opened = event.stream_id
            self.work.append(event.stream_id)
            if manual:
                self.connection.manual_credit(event.stream_id)
            self._message(event)
        elif isinstance(event, ev.MessageReceived):
            self._message(event)
        elif isinstance(event, ev.DataReceived):
            self._alive(event.stream_id, event.end)
            payload = bytes(event.frame[HEADER_SIZE:])
            _append(self.heard[event.stream_id], payload)
            record = self.connection.streams.get(event.stream_id)
            if record is not None and record.manual:
                self.held[event.stream_id] = self.held.get(event.stream_id, 0) + cost(len(payload))
            self.frames.append(event.frame)
        elif isinstance(event, ev.SegmentsFilled):
            self._alive(event.stream_id, event.end)
            _append(self.heard[event.stream_id], b"".join(self.due.pop(event.stream_id)))
        elif isinstance(event, ev.StreamReset):
            assert event.stream_id not in self.gone, "a second end of a stream"
            self.gone.add(event.stream_id)
        elif isinstance(event, ev.StreamsAccepted | ev.StreamsStarted):
            assert self.gone.isdisjoint(event.stream_ids), "news of a stream that is over"

    def _alive(self, stream_id: int, end: bool) -> None:
        assert stream_id not in self.ended, "an event after the end of a stream"
        assert stream_id not in self.gone, "an event after a reset"
        if end:
            self.ended.add(stream_id)

    def _message(self, event: ev.StreamOpened | ev.MessageReceived) -> None:
        stream_id, payload = event.stream_id, event.payload
        self._alive(stream_id, event.end)
        segments = payload[0] == 2
        # The END of a message with segments is on its last byte, here as in the other one's log.
        self.heard.setdefault(stream_id, []).append((payload, event.end))
        assert event.more == bool(payload[0])
        record = self.connection.streams.get(stream_id)
        counts = isinstance(event, ev.MessageReceived) and not event.end
        if counts and record is not None and record.manual:
            self.held[stream_id] = self.held.get(stream_id, 0) + cost(len(payload))
        if segments and payload[1]:
            sizes = [
                int.from_bytes(payload[3 + 2 * i : 5 + 2 * i], "big") for i in range(payload[2])
            ]
            self.due[stream_id] = [memoryview(bytearray(size)) for size in sizes]
            self.connection.fill(stream_id, self.due[stream_id])


def _append(log: list[Any], data: bytes) -> None:
    """Add raw bytes to a log, in which the cuts between frames do not show."""
    if log and type(log[-1]) is bytearray:
        log[-1] += data
    else:
        log.append(bytearray(data))


class World:
    """Both sides, and the time."""

    def __init__(self) -> None:
        self.sides = (Side(dialer=True), Side(dialer=False))
        self.now = 0.0
        a, b = (side.connection for side in self.sides)
        a.hello("client", {}, {})
        b.receive(b"".join(a.data_to_send()), 0.0)
        b.welcome({})
        a.receive(b"".join(b.data_to_send()), 0.0)

    def do(self, what: int, value: int) -> None:
        """Do one operation."""
        side, other = self.sides if what & 0x80 else self.sides[::-1]
        ids = [*side.connection.streams, *side.said][-6:]
        target = ids[value % len(ids)] if ids else 1
        what &= 15
        if what < 7:
            sizes = [1 + value * 3, 7][: 1 + (value & 1)] if what in (1, 4) else []
            side.say(None if what < 3 else target, value, sizes=sizes, more=what in (2, 6))
        elif what == 7:
            side.forward(target, value)
        elif what == 8:
            side.reset(target)
        elif what == 9:
            side.connection.cancel(target, value % 3)
        elif what == 10 and target in side.work:
            side.connection.accept(target)
            side.connection.started(target)
        elif what == 11:
            side.release(value)
        elif what == 12:
            self.now += value / 50.0
            side.connection.handle_timeout(self.now)
        elif what == 13:
            side.wire += b"".join(side.connection.data_to_send())
            self.deliver(side, other, value, manual=bool(value & 1))
        elif what == 14:
            self.send_all(side)
            self.deliver(side, other, len(side.wire), manual=False)
        elif what == 15:
            side.consume()

    def send_all(self, side: Side) -> int:
        """Put on the wire whatever one side may send."""
        before = len(side.wire)
        while chunk := side.connection.data_to_send():
            side.wire += b"".join(chunk)
        return len(side.wire) - before

    def deliver(self, side: Side, other: Side, size: int, *, manual: bool) -> None:
        """Let some of the bytes arrive."""
        data = bytes(side.wire[:size])
        del side.wire[:size]
        other.take(data, self.now, manual=manual)
        self.check(side.connection, other.connection)

    def check(self, sender: Connection, receiver: Connection) -> None:
        """Compare the totals of both ends of one direction."""
        out, inflow = sender.out.outflow, receiver.inflow
        assert inflow.received <= out.sent <= out.granted <= inflow.granted
        assert inflow.consumed <= inflow.received
        assert sender.opened <= sender.streams_out <= receiver.streams_in.granted
        assert receiver.streams_in.released <= receiver.streams_in.opened <= sender.opened
        assert len(receiver.given_up) <= SETTINGS.reset_memory
        for stream_id, record in sender.streams.items():
            assert record.sent <= record.granted
            assert record.queued_bytes >= 0
            there = receiver.streams.get(stream_id)
            if there is not None and there.inflow is not None:
                assert there.inflow.received <= record.sent
                assert record.granted <= there.inflow.granted

    def finish(self) -> None:
        """Let everything arrive, and compare what was said with what was heard."""
        a, b = self.sides
        for _ in range(10_000):
            moved = 0
            for side, other in ((a, b), (b, a)):
                side.consume()
                moved += self.send_all(side) + len(side.wire)
                self.deliver(side, other, len(side.wire), manual=False)
            if not moved:
                break
        else:
            raise AssertionError("two peers talk without end")
        for side, other in ((a, b), (b, a)):
            for stream_id, said in side.said.items():
                heard = other.heard.get(stream_id, [])
                if stream_id in side.gone | other.gone:
                    continue
                assert heard == said, "one side has not heard what the other one said"
            assert set(other.heard) <= set(side.said) | set(other.said)


def operations(data: bytes) -> Feature:
    """Bytes as a program of operations on two connections that trust each other."""
    world, refused = World(), 0
    for index in range(0, min(len(data), 2 * OPERATIONS_MAX) - 1, 2):
        before = [_state(side.connection) for side in world.sides]
        try:
            world.do(data[index], data[index + 1])
        except LocalProtocolError:
            refused += 1
            after = [_state(side.connection) for side in world.sides]
            assert before == after, "what was refused has changed something"
    world.finish()
    a, b = world.sides
    return (
        min(len(a.said), 5), min(len(b.said), 5), min(len(a.ended), 3), min(len(b.gone), 3),
        min(refused, 2), len(a.held) > 0,
    )  # fmt: skip


def _state(connection: Connection) -> tuple[int, ...]:
    out = connection.out
    return (
        out.outflow.sent, out.pending_bytes, connection.opened, len(connection.streams),
        len(out.round), connection.next_stream_id,
    )  # fmt: skip


def _seeds() -> list[bytes]:
    ping_pong = [(0x80, 9), (14, 0), (0x8E, 0), (14, 0), (3, 5), (14, 0), (11, 0)]
    bulk = [(0x81, 80), (0x81, 50), (0x8E, 0), (15, 0), (14, 0), (0x8E, 0), (4, 60), (14, 0)]
    relayed = [(0x82, 2), (0x87, 90), (0x8D, 200), (0x8D, 255), (6, 0), (7, 1), (14, 0), (0x87, 3)]
    resets = [(0x80, 0), (0x80, 1), (0x8E, 0), (8, 0), (0x88, 1), (10, 2), (14, 0), (0x8B, 0)]
    many = [(0x80, n) for n in range(6)] + [(0x8E, 0)] + [(11, n) for n in range(6)] + [(14, 0)]
    timed = [(0x80, 8), (0x8E, 0), (10, 0), (12, 200), (0x8C, 255), (14, 0), (0x89, 1), (0x8E, 0)]
    programs = [ping_pong, bulk, relayed, resets, many * 2, timed, bulk + relayed + resets]
    return [bytes(byte for pair in program for byte in pair) for program in programs]


def _mutate(rng: Any, data: bytes) -> bytes:
    """Change, add, repeat and leave out operations, so that pairs stay pairs."""
    chance = rng.random
    out = bytearray(data)
    for _ in range(1 + int(chance() * 6)):
        at = 2 * int(chance() * (len(out) // 2 + 1))
        what = chance()
        if what < 0.35:
            out[at:at] = bytes(
                [int(chance() * 16) | (128 if chance() < 0.5 else 0), int(chance() * 256)]
            )
        elif what < 0.6 and at + 1 < len(out):
            out[at + 1] = int(chance() * 256)
        elif what < 0.75 and at < len(out):
            out[at] = int(chance() * 16) | (out[at] & 0x80)
        elif what < 0.87:
            del out[at : at + 2]
        else:
            begin = 2 * int(chance() * (len(out) // 2 + 1))
            out[at:at] = out[begin : begin + 2 * int(chance() * 12)]
    return bytes(out[: 2 * OPERATIONS_MAX])


OPERATIONS = Target(operations, _seeds, _mutate)
