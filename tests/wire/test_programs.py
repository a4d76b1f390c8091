"""Programs of operations on two connections, against a simple model."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from easyremote.wire import cbor
from easyremote.wire import event as ev
from easyremote.wire.connection import Connection
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import Kind
from easyremote.wire.settings import Settings

from .pair import Pair

SMALL = Settings(
    window_connection_bytes=256 * 1024,
    window_connection_bytes_max=512 * 1024,
    window_stream_bytes=128 * 1024,
    window_stream_bytes_max=256 * 1024,
    frame_data_bytes_max=16 * 1024,
    streams_credit=4,
    streams_credit_max=8,
)


class Programs(RuleBasedStateMachine):
    """The model: what was said on each stream is what is heard, in order, up to a reset."""

    @initialize()
    def start(self) -> None:
        self.pair = Pair(SMALL, on_event=self.on_event)
        self.said: dict[int, list[bytes]] = {}
        self.heard: dict[int, list[bytes]] = {}
        self.pending: dict[int, list[memoryview]] = {}
        self.ended: set[int] = set()
        self.reset: set[int] = set()
        self.released: set[int] = set()

    def on_event(self, connection: Connection, event: ev.Event) -> None:
        if connection.dialer:
            return
        if isinstance(event, ev.StreamOpened | ev.MessageReceived):
            self.heard.setdefault(event.stream_id, []).append(event.payload)
            if event.more:
                size = cbor.decode_frame(event.payload)[0]
                self.pending[event.stream_id] = [memoryview(bytearray(size))]
                connection.fill(event.stream_id, self.pending[event.stream_id])
        elif isinstance(event, ev.SegmentsFilled):
            self.heard[event.stream_id].append(bytes(self.pending.pop(event.stream_id)[0]))

    def open_ids(self) -> list[int]:
        return [i for i in self.said if i not in self.ended and i not in self.reset]

    def say(self, stream_id: int | None, size: int, end: bool) -> None:
        data = bytes([size % 251]) * size
        payload = cbor.encode_frame([size, len(self.said)])
        buffers = [memoryview(data)] if size else []
        if stream_id is None:
            stream_id = self.pair.a.open(Kind.CALL, payload, buffers, end=end)
            self.said[stream_id] = []
        else:
            self.pair.a.send(stream_id, Kind.ITEM, payload, buffers, end=end)
        self.said[stream_id] += [payload, data] if size else [payload]
        if end:
            self.ended.add(stream_id)

    @precondition(lambda self: self.pair.a.streams_available > 0)
    @rule(size=st.sampled_from([0, 1, 5000, 70_000, 400_000]), end=st.booleans())
    def open(self, size: int, end: bool) -> None:
        self.say(None, size, end)

    @precondition(lambda self: self.open_ids())
    @rule(data=st.data(), size=st.sampled_from([0, 1, 20_000, 200_000]), end=st.booleans())
    def send(self, data: st.DataObject, size: int, end: bool) -> None:
        self.say(data.draw(st.sampled_from(self.open_ids())), size, end)

    @precondition(lambda self: self.open_ids())
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        stream_id = data.draw(st.sampled_from(self.open_ids()))
        self.pair.a.reset(stream_id, ErrorCode.CANCELLED, "")
        self.reset.add(stream_id)

    @precondition(lambda self: self.ended - self.reset)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        stream_id = data.draw(st.sampled_from(sorted(self.ended - self.reset)))
        self.pair.pump()
        if stream_id in self.pair.b.streams:
            self.pair.b.send(stream_id, Kind.RESULT, cbor.encode_frame([]), end=True)

    @rule()
    def release(self) -> None:
        for stream_id in range(1, self.pair.b.peer_stream_id + 1, 2):
            if stream_id not in self.released:
                self.released.add(stream_id)
                self.pair.b.release(stream_id)
                return

    @rule(rounds=st.integers(1, 3))
    def carry(self, rounds: int) -> None:
        for _ in range(rounds):
            self.pair.pump()

    @rule(seconds=st.sampled_from([0.001, 0.02, 4.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.pair.wait(seconds)

    @invariant()
    def nobody_broke_a_rule(self) -> None:
        pair = getattr(self, "pair", None)
        if pair is not None:
            assert pair.a.ready
            assert pair.b.ready
            assert len(pair.b.streams) <= pair.b.streams_in.window
            for connection in (pair.a, pair.b):
                assert connection.out.outflow.left >= 0
                for record in connection.streams.values():
                    assert record.granted >= record.sent

    def teardown(self) -> None:
        pair = getattr(self, "pair", None)
        if pair is None:
            return
        pair.pump()
        for stream_id, said in self.said.items():
            heard = self.heard.get(stream_id, [])
            if stream_id in self.reset:
                assert heard == said[: len(heard)]
            else:
                assert heard == said
        assert pair.b.inflow.consumed == pair.b.inflow.received


Programs.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPrograms = Programs.TestCase
