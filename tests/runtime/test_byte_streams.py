"""The kit: what every kind of byte stream guarantees, run over all of them."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from easyremote.identity.certificate import ServerIdentity
from easyremote.transport import ByteStream, StreamBroken

from .streams import (
    KINDS,
    LIMIT_S,
    fill,
    receive_exactly,
    receive_rest,
    receive_some,
    send_all,
    send_for_ever,
    stream_pair,
)

pytestmark = [pytest.mark.trio, pytest.mark.parametrize("kind", KINDS)]


async def test_bulk_both_ways_at_once_arrives_unchanged(
    kind: str, identity: ServerIdentity
) -> None:
    """100 MB in each direction at the same time arrive byte for byte."""
    block = random.Random(1).randbytes(1_000_003)
    payload = block * 100
    received: dict[str, bytearray] = {}

    async def receive(name: str, stream: ByteStream) -> None:
        received[name] = await receive_exactly(stream, len(payload))

    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far), trio.open_nursery() as nursery:
            nursery.start_soon(receive, "near", near)
            nursery.start_soon(receive, "far", far)
            nursery.start_soon(send_all, near, payload)
            nursery.start_soon(send_all, far, payload)

    assert received["near"] == payload
    assert received["far"] == payload


async def test_small_writes_arrive_in_order(kind: str, identity: ServerIdentity) -> None:
    """Thousands of writes of a few bytes each arrive in order, none lost, none twice."""
    rng = random.Random(2)
    pieces = [rng.randbytes(rng.randrange(1, 64)) for _ in range(5000)]
    whole = b"".join(pieces)

    async def send(stream: ByteStream) -> None:
        for piece in pieces:
            await send_all(stream, piece)
        await stream.aclose()

    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far), trio.open_nursery() as nursery:
            nursery.start_soon(send, near)
            got = await receive_rest(far)

    assert whole == got


async def test_ping_pong_alternates(kind: str, identity: ServerIdentity) -> None:
    """A lone message is seen by the other side each time, however often they take turns."""
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far), trio.open_nursery() as nursery:

            async def answer() -> None:
                for _ in range(500):
                    await send_all(far, await receive_exactly(far, 24))

            nursery.start_soon(answer)
            for number in range(500):
                message = number.to_bytes(24, "big")
                await send_all(near, message)

                assert message == await receive_exactly(near, 24)


async def test_an_empty_stream_would_block(kind: str, identity: ServerIdentity) -> None:
    """Nothing to receive is None, not an end, and waiting ends when something comes."""
    view = memoryview(bytearray(10))
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far), trio.open_nursery() as nursery:
            assert far.try_receive_into(view) is None
            woken = trio.Event()

            async def wait() -> None:
                await far.wait_receivable()
                woken.set()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not woken.is_set()
            await send_all(near, b"x")
            await woken.wait()

            assert await receive_some(far, view) == 1
            assert far.try_receive_into(view) is None
            assert far.try_receive_into(view) is None


async def test_a_full_stream_would_block_and_takes_the_same_bytes_later(
    kind: str, identity: ServerIdentity
) -> None:
    """No room is None; once the other side has read, the same bytes are taken, once."""
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far), trio.open_nursery() as nursery:
            taken, again = fill(near)
            woken = trio.Event()

            async def wait() -> None:
                await near.wait_sendable()
                woken.set()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not woken.is_set()

            async def send_rest() -> None:
                await woken.wait()
                await send_all(near, again)
                await near.aclose()

            nursery.start_soon(send_rest)
            got = await receive_rest(far)

    assert taken + again == got


async def test_receiving_less_than_there_is_leaves_the_rest(
    kind: str, identity: ServerIdentity
) -> None:
    """Bytes that a small buffer had no room for come with the next tries, without any wait."""
    data = random.Random(3).randbytes(1000)
    got = bytearray()
    one = memoryview(bytearray(1))
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far):
            await send_all(near, data)
            await far.wait_receivable()
            while far.try_receive_into(one) == 1:
                got += one

    assert data == got


async def test_only_the_view_is_written(kind: str, identity: ServerIdentity) -> None:
    """Receiving into a slice of a buffer leaves what is around it alone."""
    buffer = bytearray(b"." * 30)
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far):
            await send_all(near, b"x" * 30)
            size = await receive_some(far, memoryview(buffer)[10:20])

    assert size == 10
    assert buffer == b"." * 10 + b"x" * 10 + b"." * 10


async def test_close_delivers_what_was_sent_and_then_the_end(
    kind: str, identity: ServerIdentity
) -> None:
    """Everything sent before `aclose` arrives; then comes the end, as often as one asks."""
    view = memoryview(bytearray(10))
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far), trio.open_nursery() as nursery:
            await send_all(near, b"last words")
            nursery.start_soon(near.aclose)
            got = await receive_rest(far)

            assert got == b"last words"
            assert far.try_receive_into(view) == 0
            assert far.try_receive_into(view) == 0


async def test_close_with_unread_bytes_still_delivers(kind: str, identity: ServerIdentity) -> None:
    """A side that closes while the other is sending does not destroy what it sent last."""
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far), trio.open_nursery() as nursery:
            await send_all(far, b"not read by anybody" * 100)
            await send_all(near, b"goodbye")
            nursery.start_soon(near.aclose)
            await trio.testing.wait_all_tasks_blocked()
            got = await receive_rest(far)
            far.close_now()

    assert got == b"goodbye"


async def test_close_wakes_who_waits(kind: str, identity: ServerIdentity) -> None:
    """A task that waits on a stream learns that it was closed on this side."""
    broken: list[str] = []

    async def wait(stream: ByteStream) -> None:
        with pytest.raises(StreamBroken) as caught:
            await stream.wait_receivable()
        broken.append(str(caught.value))

    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, _), trio.open_nursery() as nursery:
            nursery.start_soon(wait, near)
            await trio.testing.wait_all_tasks_blocked()
            near.close_now()

    assert len(broken) == 1
    assert "closed" in broken[0]


async def test_a_closed_stream_refuses_everything(kind: str, identity: ServerIdentity) -> None:
    """After closing, every operation is `StreamBroken`, and closing again does no harm."""
    view = memoryview(bytearray(10))
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, _):
            near.close_now()
            with pytest.raises(StreamBroken):
                near.try_receive_into(view)
            with pytest.raises(StreamBroken):
                near.try_send(view)
            with pytest.raises(StreamBroken):
                await near.wait_receivable()
            with pytest.raises(StreamBroken):
                await near.wait_sendable()
            near.close_now()
            await near.aclose()


async def test_sending_to_nobody_breaks(kind: str, identity: ServerIdentity) -> None:
    """Who goes on sending to a side that has closed gets `StreamBroken`, nothing else."""
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far):
            far.close_now()
            with pytest.raises(StreamBroken):
                await send_for_ever(near)


async def test_a_cancelled_close_has_closed(kind: str, identity: ServerIdentity) -> None:
    """`aclose` closes even where its caller is cancelled already."""
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, _):
            with trio.CancelScope() as scope:
                scope.cancel()
                await near.aclose()

            assert scope.cancelled_caught
            with pytest.raises(StreamBroken):
                near.try_send(memoryview(b"x"))


async def test_waits_are_checkpoints(kind: str, identity: ServerIdentity) -> None:
    """A wait that is cancelled ends at once and leaves the stream usable."""
    with trio.fail_after(LIMIT_S):
        async with stream_pair(kind, identity) as (near, far):
            with trio.CancelScope() as scope:
                scope.cancel()
                await far.wait_receivable()
            assert scope.cancelled_caught
            await send_all(near, b"x")

            assert await receive_exactly(far, 1) == b"x"
