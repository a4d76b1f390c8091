"""Links on memory streams and a virtual clock: dispatch, loss, goodbye, back-pressure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from easyremote import errors
from easyremote.link import Link, LinkHandler, Outbox, Stream, StreamHandler
from easyremote.transport import MemoryStream, memory_stream_pair
from easyremote.wire import cbor, frame
from easyremote.wire import event as ev
from easyremote.wire import message as ms
from easyremote.wire.connection import Connection
from easyremote.wire.errors import ErrorCode
from easyremote.wire.settings import Settings


def call(segments: list[int] | None = None) -> ms.Call:
    """Some call."""
    return ms.Call(b"i" * 16, "f", None, {}, None, 0, 0, b"", b"\x80", segments or [])


RESULT = ms.Result(0, 0.0, b"\x01", [])


class Recorder(StreamHandler):
    """A handler that writes down what happened on its stream."""

    def __init__(self) -> None:
        self.happened: list[tuple[Any, ...]] = []
        self.buffers: list[memoryview] = []

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        self.happened.append(("message", kind, end))
        if more:
            sizes = ms.decode(ms.Result, payload).segments
            self.buffers = [memoryview(bytearray(size)) for size in sizes]
            stream.fill(self.buffers)

    def on_filled(self, stream: Stream, end: bool) -> None:
        self.happened.append(("filled", end))

    def on_accepted(self, stream: Stream) -> None:
        self.happened.append(("accepted",))

    def on_started(self, stream: Stream) -> None:
        self.happened.append(("started",))

    def on_cancel(self, stream: Stream, strength: int, grace_ms: int) -> None:
        self.happened.append(("cancel", strength, grace_ms))
        stream.send(ms.Failure(24, "cancelled", True, None, {}), end=True)

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        self.happened.append(("reset", code, reason))

    def on_lost(self, stream: Stream, error: errors.EasyRemoteError) -> None:
        self.happened.append(("lost", type(error)))


class Side(LinkHandler):
    """One end: welcomes, opens a recorder per stream, keeps what happened on the link."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.handlers: list[Recorder] = []
        self.welcomed = trio.Event()
        self.lost: list[errors.EasyRemoteError | None] = []
        self.drained: list[str] = []
        self.answer = True
        self.refuse = False

    def on_hello(self, link: Link, event: ev.HelloReceived) -> None:
        if self.refuse:
            link.close(ErrorCode.AUTH_INVALID, "this token is not known")
        else:
            link.welcome({})

    def on_welcome(self, link: Link, info: dict[str, Any]) -> None:
        self.welcomed.set()

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        handler = Recorder()
        self.streams.append(stream)
        self.handlers.append(handler)
        if more:
            handler.buffers = [
                memoryview(bytearray(size)) for size in ms.decode(ms.Call, payload).segments
            ]
            stream.fill(handler.buffers)
        elif self.answer:
            stream.send(RESULT, end=True)
            stream.release()
        return handler

    def on_drain(self, link: Link, reason: str) -> None:
        self.drained.append(reason)

    def on_lost(self, link: Link, error: errors.EasyRemoteError | None) -> None:
        self.lost.append(error)


class World:
    """Two linked sides in one nursery."""

    def __init__(self, capacity_bytes: int = 65_536, settings: Settings | None = None) -> None:
        self.ends = memory_stream_pair(capacity_bytes)
        self.sides = Side(), Side()
        outbox = Outbox()
        self.links = tuple(
            Link(end, side, dialer=index == 0, outbox=outbox, settings=settings)
            for index, (end, side) in enumerate(zip(self.ends, self.sides, strict=True))
        )

    async def start(self, nursery: trio.Nursery) -> None:
        for link in self.links:
            nursery.start_soon(link.run)
        self.links[0].hello("client", {}, {})
        await self.sides[0].welcomed.wait()


async def settled(recorder: Recorder, what: str) -> None:
    """Wait until something of this kind has happened."""
    with trio.fail_after(60):
        while not any(entry[0] == what for entry in recorder.happened):
            await trio.sleep(0.001)


@pytest.mark.parametrize("capacity_bytes", [1, 64, 65_536])
async def test_calls_are_answered_over_any_stream(
    autojump_clock: MockClock, capacity_bytes: int
) -> None:
    """Many calls at once, whatever the stream takes in one go; nothing is left behind."""
    world = World(capacity_bytes)
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        recorders = [Recorder() for _ in range(50)]
        for recorder in recorders:
            world.links[0].open(call(), handler=recorder, end=True)
        for recorder in recorders:
            await settled(recorder, "message")
        assert all(r.happened == [("message", ms.Kind.RESULT, True)] for r in recorders)
        assert [link.streams_open for link in world.links] == [0, 0]
        world.links[0].close()


async def test_segments_arrive_in_the_named_memory_both_ways(autojump_clock: MockClock) -> None:
    """Arrays of several windows go there and back."""
    world = World()
    data = memoryview(np.random.default_rng(0).bytes(5_000_000))
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        recorder = Recorder()
        world.links[0].open(call([data.nbytes]), [data], handler=recorder, end=True)
        await trio.sleep(1)
        there = world.sides[1].handlers[0]
        assert there.happened == [("filled", True)]
        assert bytes(there.buffers[0]) == data.tobytes()

        result = ms.Result(0, 0.0, None, [data.nbytes])
        world.sides[1].streams[0].send(result, there.buffers, end=True)
        await settled(recorder, "filled")
        assert bytes(recorder.buffers[0]) == data.tobytes()
        world.links[1].close()


async def test_notices_cancel_and_reset_reach_their_streams(autojump_clock: MockClock) -> None:
    """Each stream hears its own news, once."""
    world = World()
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.sides[1].answer = False
        first, second = Recorder(), Recorder()
        one = world.links[0].open(call(), handler=first, end=True)
        world.links[0].open(call(), handler=second)
        await trio.sleep(1)
        for stream in world.sides[1].streams:
            stream.accept()
            stream.started()
        await trio.sleep(1)
        one.cancel(1, 250)
        world.sides[1].streams[1].reset(ErrorCode.OVERLOADED, "full")
        await trio.sleep(1)

        assert first.happened == [("accepted",), ("started",), ("message", ms.Kind.FAILURE, True)]
        assert second.happened == [("accepted",), ("started",), ("reset", 19, "full")]
        assert world.sides[1].handlers[0].happened == [("cancel", 1, 250)]
        assert not one.is_open
        world.links[0].close()


async def test_goodbye_ends_streams_and_is_no_error(autojump_clock: MockClock) -> None:
    """After a goodbye every stream and then the link is told, exactly once."""
    world = World()
    world.sides[1].answer = False
    recorder = Recorder()
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.links[0].open(call(), handler=recorder)
        await trio.sleep(1)
        world.links[0].close()
        world.links[0].close()

    assert [side.lost for side in world.sides] == [[None], [None]]
    assert recorder.happened == [("lost", errors.LinkLostError)]
    assert world.sides[1].handlers[0].happened == [("lost", errors.LinkLostError)]


async def test_a_refusal_is_a_typed_error_at_the_dialer(autojump_clock: MockClock) -> None:
    """GOAWAY with a code becomes the class that callers catch."""
    world = World()
    world.sides[1].refuse = True
    async with trio.open_nursery() as nursery:
        for link in world.links:
            nursery.start_soon(link.run)
        world.links[0].hello("client", {}, {})

    (error,) = world.sides[0].lost
    assert isinstance(error, errors.AuthenticationError)
    assert "not known" in str(error)


@pytest.mark.parametrize("how", ["cut", "close"])
async def test_a_lost_connection_is_told_once_on_both_sides(
    autojump_clock: MockClock, how: str
) -> None:
    """A connection that ends without a goodbye is an error, and nobody waits for the lease."""
    world = World()
    recorder = Recorder()
    world.sides[1].answer = False
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.links[0].open(call(), handler=recorder)
        await trio.sleep(1)
        end: MemoryStream = world.ends[1]
        end.cut() if how == "cut" else end.close_now()

    assert recorder.happened == [("lost", errors.LinkLostError)]
    for side in world.sides:
        (error,) = side.lost
        assert isinstance(error, errors.LinkLostError)


async def test_a_silent_peer_is_lost_after_the_lease(autojump_clock: MockClock) -> None:
    """A peer that neither speaks nor closes is declared dead on our clock."""
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.links[0].run)
        world.links[0].hello("client", {}, {})
        await welcome_by_hand(world.ends[1])
        await world.sides[0].welcomed.wait()
        began = trio.current_time()
        while not world.sides[0].lost:
            await trio.sleep(0.5)

    (error,) = world.sides[0].lost
    assert isinstance(error, errors.LinkLostError)
    assert "silent" in str(error)
    assert 15 <= trio.current_time() - began <= 20


async def welcome_by_hand(end: MemoryStream) -> None:
    """Do the acceptor's half of the handshake, and nothing afterwards."""
    peer = Connection(dialer=False, now=0.0)
    while not peer.ready:
        await end.wait_receivable()
        size = end.try_receive_into(peer.receive_buffer())
        assert size
        peer.received(size, 0.0)
        if isinstance(peer.next_event(), ev.HelloReceived):
            peer.welcome({})
    for part in peer.data_to_send():
        end.try_send(memoryview(part))


async def test_an_idle_link_lives(autojump_clock: MockClock) -> None:
    """Pings keep a link that has nothing to say."""
    world = World()
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await trio.sleep(3600)
        assert all(link.ready for link in world.links)
        assert world.links[0].rtt_s is not None
        world.links[0].close()


async def test_garbage_from_a_peer_ends_only_that_link(autojump_clock: MockClock) -> None:
    """Bytes that are not the protocol end the link with a typed error."""
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.links[1].run)
        world.ends[0].try_send(memoryview(b"GET / HTTP/1.1\r\n\r\n"))
        with trio.fail_after(60):
            while not world.sides[1].lost:
                await trio.sleep(0.01)

    (error,) = world.sides[1].lost
    assert isinstance(error, errors.ProtocolViolationError)


async def test_a_handler_that_meets_bad_data_ends_the_link(autojump_clock: MockClock) -> None:
    """A payload that no message has is the peer's fault, and told so."""
    world = World()
    world.sides[1].answer = False
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.links[0].open_encoded(ms.Kind.CALL, b"\x80", handler=Recorder(), more=True)
        with trio.fail_after(60):
            while not world.sides[0].lost:
                await trio.sleep(0.01)

    for side in world.sides:
        (error,) = side.lost
        assert isinstance(error, errors.ProtocolViolationError)


async def test_open_without_stream_credit_is_overload(autojump_clock: MockClock) -> None:
    """The peer's limit is a typed error, and its release makes room."""
    world = World(settings=Settings(streams_credit=1, streams_credit_max=1))
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.sides[1].answer = False
        world.links[0].open(call(), handler=Recorder(), end=True)
        with pytest.raises(errors.OverloadedError):
            world.links[0].open(call(), handler=Recorder(), end=True)
        await trio.sleep(1)
        world.sides[1].streams[0].send(RESULT, end=True)
        world.sides[1].streams[0].release()
        await trio.sleep(1)
        assert world.links[0].streams_available == 1
        world.links[0].close()


async def test_drain_is_told_and_cancelled_links_say_goodbye(autojump_clock: MockClock) -> None:
    """A link whose task is cancelled still tells the other side that it left on purpose."""
    world = World()
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.links[1].drain("restart")
        await trio.sleep(1)
        assert world.sides[0].drained == ["restart"]
        nursery.cancel_scope.cancel()

    assert world.sides[0].lost == [None]
    assert world.sides[1].lost == [None]


# ---- peers that do not take their bytes ----------------------------------------------------------


async def blocked(nursery: trio.Nursery, settings: Settings | None = None) -> World:
    """A link whose peer has said hello and now reads nothing, with more to send than fits."""
    world = World(1000, settings)
    nursery.start_soon(world.links[0].run)
    world.links[0].hello("client", {}, {})
    await welcome_by_hand(world.ends[1])
    await world.sides[0].welcomed.wait()
    return world


def sign_of_life(world: World) -> None:
    """Give a sign of life as the peer."""
    sign = frame.pack(frame.FrameType.DRAIN, 0, 0, 0, cbor.encode_frame([""]))
    world.ends[1].try_send(memoryview(sign))


def drink(world: World, size_bytes: int) -> int:
    """Read as the peer."""
    return world.ends[1].try_receive_into(memoryview(bytearray(size_bytes))) or 0


async def test_a_peer_that_takes_no_byte_is_lost(autojump_clock: MockClock) -> None:
    """Data that waits for longer than the write deadline ends the link, signs of life or not."""
    async with trio.open_nursery() as nursery:
        world = await blocked(nursery)
        world.links[0].open_encoded(ms.Kind.CALL, bytes(5000), handler=Recorder())
        began = trio.current_time()
        while not world.sides[0].lost and trio.current_time() < began + 60:
            sign_of_life(world)
            await trio.sleep(0.5)

    (error,) = world.sides[0].lost
    assert isinstance(error, errors.LinkLostError)
    assert "took no byte for 10 s" in str(error)
    assert 10 <= trio.current_time() - began <= 12


async def test_a_slow_peer_is_not_lost(autojump_clock: MockClock) -> None:
    """Whoever takes a little now and then keeps the link, and gets all of it."""
    async with trio.open_nursery() as nursery:
        world = await blocked(nursery)
        world.links[0].open_encoded(ms.Kind.CALL, bytes(5000), handler=Recorder())
        taken = 0
        await trio.sleep(1)
        while size := drink(world, 700):
            taken += size
            sign_of_life(world)
            await trio.sleep(7)
        assert taken > 5000
        assert world.links[0].ready
        world.links[0].close()


async def test_a_peer_that_causes_answers_and_reads_none_is_lost(
    autojump_clock: MockClock,
) -> None:
    """Answers to a peer that takes nothing are bounded in bytes, long before the deadline."""
    async with trio.open_nursery() as nursery:
        world = await blocked(nursery, Settings(out_pending_bytes_max=10_000))
        world.sides[0].answer = False
        opened, began = 0, trio.current_time()
        while not world.sides[0].lost and opened < 100:
            opened += 1
            call_frame = frame.pack(frame.FrameType.OPEN, 0, ms.Kind.CALL, 2 * opened, b"\x80")
            world.ends[1].try_send(memoryview(call_frame))
            await trio.sleep(0.001)
            for stream in world.sides[0].streams[opened - 1 :]:
                stream.reset(ErrorCode.OVERLOADED, "x" * 1000)
        assert trio.current_time() - began < 5

    (error,) = world.sides[0].lost
    assert isinstance(error, errors.LinkLostError)
    assert "asks for more than it takes" in str(error)
    assert opened < 20


async def test_our_own_calls_do_not_count_as_what_the_peer_causes(
    autojump_clock: MockClock,
) -> None:
    """A burst of calls may wait for a slow peer, whatever its size."""
    async with trio.open_nursery() as nursery:
        world = await blocked(nursery, Settings(out_pending_bytes_max=10_000))
        for _ in range(10):
            world.links[0].open_encoded(ms.Kind.CALL, bytes(5000), handler=Recorder())
            await trio.sleep(0.1)
        assert world.links[0].ready
        world.links[0].close()


async def test_whoever_slept_blames_nobody_for_it(autojump_clock: MockClock) -> None:
    """After a pause of our own process, what the peer did meanwhile is looked at first."""
    async with trio.open_nursery() as nursery:
        world = await blocked(nursery)
        world.links[0].open_encoded(ms.Kind.CALL, bytes(5000), handler=Recorder())
        await trio.sleep(1)
        drink(world, 1000)
        sign_of_life(world)
        autojump_clock.jump(100)
        await trio.sleep(1)
        assert world.links[0].ready
        world.links[0].close()


async def test_the_reason_of_a_refusal_survives_a_send_that_fails(
    autojump_clock: MockClock,
) -> None:
    """A peer that says why and hangs up is heard, even if we notice by a failed send."""
    async with trio.open_nursery() as nursery:
        world = await blocked(nursery)
        recorder = Recorder()
        world.links[0].open(call(), handler=recorder)
        refusal = frame.pack(
            frame.FrameType.GOAWAY, 0, 0, 0, cbor.encode_frame([12, "your token was revoked"])
        )
        world.ends[1].try_send(memoryview(refusal))
        world.ends[1].close_now()
        world.links[0].flush()
        await trio.testing.wait_all_tasks_blocked()
        assert world.sides[0].lost

    (error,) = world.sides[0].lost
    assert isinstance(error, errors.AuthenticationError)
    assert "revoked" in str(error)
    assert [entry[0] for entry in recorder.happened] == ["lost"]


@pytest.mark.parametrize("how", ["cut", "close"])
async def test_a_send_that_fails_is_a_loss(autojump_clock: MockClock, how: str) -> None:
    """Without a word of the peer, the loss is reported as what it is, once."""
    async with trio.open_nursery() as nursery:
        world = await blocked(nursery)
        world.links[0].open(call(), handler=Recorder())
        world.ends[1].cut() if how == "cut" else world.ends[1].close_now()
        world.links[0].flush()
        world.links[0].flush()

    (error,) = world.sides[0].lost
    assert isinstance(error, errors.LinkLostError)
    assert "broke" in str(error)


async def test_a_lost_stream_is_not_open_and_takes_what_is_said_in_silence(
    autojump_clock: MockClock,
) -> None:
    """Code that is late with an answer meets no error, and nothing piles up."""
    world = World()
    world.sides[1].answer = False
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        world.links[0].open(call(), handler=Recorder())
        await trio.sleep(1)
        (stream,) = world.sides[1].streams
        world.links[1].close()
        assert not stream.is_open
        stream.send(RESULT, end=True)
        stream.cancel()
        stream.reset(ErrorCode.CANCELLED, "")
        stream.release()
        assert stream.pending_bytes == 0
