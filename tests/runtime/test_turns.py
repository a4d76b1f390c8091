"""Turns: what a link may do before others go on, and in what order they have further turns."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from easyremote.link import Link, LinkHandler, Outbox, Stream, StreamHandler
from easyremote.transport import MemoryStream, memory_stream_pair
from easyremote.turns import CROWDED_TURN_EVENTS, LINE_OF_FEW, TURN_EVENTS, Turns
from easyremote.wire import event as ev
from easyremote.wire import message as ms
from easyremote.wire.connection import Connection
from easyremote.wire.errors import ErrorCode
from easyremote.wire.settings import Settings
from easyremote.writer import CHUNK_COST_BYTES, WRITE_BUDGET_BYTES

CALL = ms.encode(ms.Call(b"i" * 16, "f", None, {}, None, 0, 0, b"", b"\x80", []))
SETTINGS = Settings(streams_credit=5000, streams_credit_max=5000)


class Passes:
    """Counts how often the event loop has come round.

    Tasks of one pass run in any order: what is counted under one number may be of two passes.
    """

    def __init__(self) -> None:
        self.number = 0

    async def count(self) -> None:
        """Count until cancelled."""
        while True:
            await trio.lowlevel.checkpoint()
            self.number += 1


class Counting(LinkHandler):
    """Takes calls and writes down in which pass each of them came."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.came: list[int] = []
        self.lost = False

    def on_hello(self, link: Link, event: ev.HelloReceived) -> None:
        link.welcome({})

    def on_open(self, *_: Any) -> StreamHandler:
        self.came.append(self.passes.number)
        return StreamHandler()

    def on_lost(self, link: Link, error: Exception | None) -> None:
        self.lost = True

    @property
    def most_in_a_pass(self) -> int:
        """The most calls that came in one pass."""
        return max(self.came.count(number) for number in set(self.came))


class Peer:
    """A link, and raw bytes at the other end of it."""

    def __init__(self, outbox: Outbox, passes: Passes) -> None:
        ours, self.stream = memory_stream_pair(1 << 20)
        self.handler = Counting(passes)
        self.link = Link(ours, self.handler, dialer=False, outbox=outbox, settings=SETTINGS)
        self.wire = Connection(dialer=True, now=trio.current_time(), settings=SETTINGS)

    async def enter(self, nursery: trio.Nursery) -> None:
        """Run the link, and get in."""
        nursery.start_soon(self.link.run)
        self.wire.hello("client", {}, {})
        self.send()
        while not self.wire.ready:
            await trio.lowlevel.checkpoint()
            self.receive()

    def receive(self) -> None:
        """Take what has come."""
        space = bytearray(65_536)
        while size := self.stream.try_receive_into(memoryview(space)):
            self.wire.receive(space[:size], trio.current_time())

    def send(self) -> None:
        """Send all that there is to send."""
        while chunk := self.wire.data_to_send():
            for buffer in chunk:
                assert self.stream.try_send(memoryview(buffer)) == len(buffer)

    def calls(self, number: int) -> None:
        """Make so many calls at once."""
        for _ in range(number):
            self.wire.open(ms.Kind.CALL, CALL)
        self.send()


async def until(peer: Peer, calls: int) -> None:
    """Wait until so many calls have come."""
    while len(peer.handler.came) < calls:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("greedy", [1, 2, 4, 12])
async def test_a_crowd_of_greedy_peers_has_one_further_turn_in_a_pass(
    autojump_clock: MockClock, greedy: int
) -> None:
    """How much is done in a pass of the loop does not grow with the number of those who flood."""
    passes, outbox = Passes(), Outbox()
    crowd = [Peer(outbox, passes) for _ in range(greedy)]
    async with trio.open_nursery() as nursery:
        for peer in crowd:
            await peer.enter(nursery)
        nursery.start_soon(passes.count)
        for peer in crowd:
            peer.calls(4800 // greedy)
        with trio.fail_after(60):
            for peer in crowd:
                await until(peer, 4800 // greedy)
        nursery.cancel_scope.cancel()

    done = [number for peer in crowd for number in peer.handler.came]
    begin = min(done) + 3  # Their first turns are over, and all of them stand in the line.
    most = max(done.count(number) for number in range(begin, begin + 12))
    assert most <= 2 * (TURN_EVENTS if greedy <= 2 else CROWDED_TURN_EVENTS)


async def test_a_peer_with_one_call_does_not_stand_in_the_line(autojump_clock: MockClock) -> None:
    """Beside a crowd that floods, a single call is taken within a few passes of the loop."""
    passes, outbox = Passes(), Outbox()
    crowd = [Peer(outbox, passes) for _ in range(12)]
    honest = Peer(outbox, passes)
    async with trio.open_nursery() as nursery:
        for peer in [*crowd, honest]:
            await peer.enter(nursery)
        nursery.start_soon(passes.count)
        for peer in crowd:
            peer.calls(600)
        for _ in range(6):
            await trio.lowlevel.checkpoint()
        begin = passes.number
        honest.calls(1)
        with trio.fail_after(60):
            await until(honest, 1)
        taken = honest.handler.came[0] - begin
        left = sum(600 - len(peer.handler.came) for peer in crowd)
        nursery.cancel_scope.cancel()

    assert taken <= 4
    assert left > 6000, "the crowd had to be still at it"


async def test_links_of_one_lane_have_one_place_in_the_line() -> None:
    """Who connects four times gets no more turns than who connects once."""
    turns, lane = Turns(), trio.Lock()
    had: list[str] = []

    async def worker(name: str, lane: trio.Lock | None) -> None:
        def turn() -> bool:
            had.append(name)
            return True

        for _ in range(8):
            await turns.further(lane, turn)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(worker, "many", lane)
        nursery.start_soon(worker, "one", None)

    assert had[: had.index("one") + 14].count("one") >= 7
    assert len(had) == 40
    assert turns.bounds(first=False)[1] == TURN_EVENTS, "nobody stands in the line any more"


async def test_a_cancelled_turn_leaves_the_line() -> None:
    """Who ends while it waits stands in nobody's way."""
    turns, lane = Turns(), trio.Lock()
    async with trio.open_nursery() as nursery:
        await lane.acquire()
        for _ in range(LINE_OF_FEW + 1):
            nursery.start_soon(turns.further, lane, lambda: True)
        await trio.testing.wait_all_tasks_blocked()
        assert turns.bounds(first=True)[1] == CROWDED_TURN_EVENTS
        nursery.cancel_scope.cancel()
    lane.release()
    assert turns.bounds(first=True)[1] == TURN_EVENTS
    assert await turns.further(lane, lambda: True)


async def test_a_timer_does_not_lengthen_a_turn(autojump_clock: MockClock) -> None:
    """What a reader has left for its next turn waits for it, though a timeout comes between."""
    passes = Passes()
    peer = Peer(Outbox(), passes)
    async with trio.open_nursery() as nursery:
        await peer.enter(nursery)
        nursery.start_soon(passes.count)
        peer.calls(900)
        while len(peer.handler.came) < 900:
            peer.link.connection.ping_at = trio.current_time()
            peer.link.wake_timer()
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()

    assert peer.handler.most_in_a_pass <= 2 * TURN_EVENTS


async def test_a_send_that_fails_does_not_lengthen_a_turn(autojump_clock: MockClock) -> None:
    """All that a peer said before it went is heard, in turns like everything else."""
    passes = Passes()
    peer = Peer(Outbox(), passes)
    async with trio.open_nursery() as nursery:
        await peer.enter(nursery)
        nursery.start_soon(passes.count)
        peer.calls(900)
        peer.stream.close_now()
        peer.link.drain("so that something is sent")
        with trio.fail_after(60):
            while not peer.handler.lost:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()

    assert len(peer.handler.came) == 900
    assert peer.handler.most_in_a_pass <= 2 * TURN_EVENTS + 1


class CountedSends(MemoryStream):
    """Counts how often it was asked to send."""

    sends = 0

    def try_send(self, view: memoryview) -> int | None:
        self.sends += 1
        return super().try_send(view)


async def test_crumbs_do_not_lengthen_a_flush(autojump_clock: MockClock) -> None:
    """A flush ends after so many sends, too: each costs something however little it carries."""
    peer = Peer(Outbox(), Passes())
    async with trio.open_nursery() as nursery:
        await peer.enter(nursery)
        peer.link.stream.__class__ = CountedSends
        stream = peer.link.stream
        assert isinstance(stream, CountedSends)
        peer.calls(1)
        await trio.testing.wait_all_tasks_blocked()
        connection = peer.link.connection
        connection.send(1, ms.Kind.RESULT, b"\x80", more=True)
        for _ in range(1500):
            frame = memoryview(bytearray(17))
            connection.forward_data(1, frame, last=False, end=False)
        peer.link.flush()
        sends = stream.sends
        assert sends <= WRITE_BUDGET_BYTES // CHUNK_COST_BYTES + 1
        await trio.testing.wait_all_tasks_blocked()
        assert stream.sends > 1500
        nursery.cancel_scope.cancel()


async def test_a_stream_that_is_over_holds_no_handler(autojump_clock: MockClock) -> None:
    """Handlers hold their streams: were it so the other way, too, only the collector frees them."""
    passes = Passes()
    peer = Peer(Outbox(), passes)
    handlers: list[weakref.ref[StreamHandler]] = []
    streams: list[Stream] = []

    class Holding(StreamHandler):
        def __init__(self, stream: Stream) -> None:
            self.stream = stream

    def on_open(link: Link, stream: Stream, *_: Any) -> StreamHandler:
        handler = Holding(stream)
        handlers.append(weakref.ref(handler))
        streams.append(stream)
        return handler

    peer.handler.on_open = on_open  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        await peer.enter(nursery)
        gc.collect()
        gc.disable()
        try:
            ids = [peer.wire.open(ms.Kind.CALL, CALL, end=index == 0) for index in range(4)]
            peer.send()
            await trio.testing.wait_all_tasks_blocked()
            assert all(handler() is not None for handler in handlers)
            streams[0].send(ms.Result(0, 0.0, b"\x01", []), end=True)
            peer.link.connection.streams[ids[1]].accepted = True
            peer.wire.reset(ids[1], ErrorCode.CANCELLED, "")
            peer.send()
            await trio.testing.wait_all_tasks_blocked()
            streams[2].reset(ErrorCode.CANCELLED, "")
            assert [handler() is None for handler in handlers] == [True, True, True, False]
            peer.link.close()
            assert handlers[3]() is None
        finally:
            gc.enable()
        nursery.cancel_scope.cancel()
