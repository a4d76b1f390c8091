"""The fault proxy does what the words of a plan mean, and nothing else."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.faults import Direction, Fault, Step

from .proxy import FaultProxy

HOLD_S = 0.3
LIMIT_S = 20.0
"""No test waits longer."""


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[FaultProxy, trio.SocketStream, trio.SocketStream]]:
    """A proxy, the dialler's end of one connection through it, and the far end."""
    with trio.fail_after(LIMIT_S):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port: int = listener.socket.getsockname()[1]
        proxy = FaultProxy("node-1", port, rng=random.Random(7))
        async with listener, trio.open_nursery() as nursery:
            await nursery.start(proxy.serve)
            near = await trio.open_tcp_stream("127.0.0.1", proxy.port)
            far = await listener.accept()
            async with near, far:
                yield proxy, near, far
            nursery.cancel_scope.cancel()


def step(
    fault: Fault, duration_s: float = 60.0, *, amount: int = 0,
    direction: Direction = Direction.BOTH, at_s: float = 0.0, link: str = "node-1",
) -> Step:  # fmt: skip
    return Step(at_s, link, fault, duration_s, direction, amount)


async def receive(stream: trio.SocketStream, count: int) -> bytes:
    """Receive exactly so many bytes."""
    got = b""
    while len(got) < count:
        more = await stream.receive_some(count - len(got))
        assert more, f"the stream ended after {len(got)} bytes of {count}"
        got += more
    return got


async def test_without_faults_bytes_and_ends_pass_both_ways() -> None:
    """A proxy without a fault is a wire: the same bytes, and an end on one side is one there."""
    data = random.Random(1).randbytes(1_000_000)
    async with linked() as (proxy, near, far), trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, data)
        assert await receive(far, len(data)) == data
        nursery.start_soon(far.send_all, data)
        assert await receive(near, len(data)) == data
        await near.send_eof()
        assert await far.receive_some() == b""
        await far.send_all(b"still")
        assert await receive(near, 5) == b"still"
        assert proxy.applied == {}


async def test_a_cut_is_a_reset_on_both_sides_and_the_link_works_again() -> None:
    """Both ends see a broken connection, not an orderly end; a new one passes."""
    async with linked() as (proxy, near, far):
        await near.send_all(b"x")
        await receive(far, 1)
        proxy.apply(step(Fault.CUT))
        for end in (near, far):
            with pytest.raises(trio.BrokenResourceError):
                await end.receive_some()
        again = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        await again.aclose()
        assert proxy.applied == {Fault.CUT: 1}


async def test_a_close_is_an_orderly_end_on_both_sides() -> None:
    """Both ends read the end of the stream."""
    async with linked() as (proxy, near, far):
        await near.send_all(b"x")
        await receive(far, 1)
        proxy.apply(step(Fault.CLOSE))
        assert await near.receive_some() == b""
        assert await far.receive_some() == b""


async def test_a_limit_cuts_after_so_many_bytes() -> None:
    """Exactly `amount` bytes arrive, then the connection is reset."""
    async with linked() as (proxy, near, far):
        proxy.apply(step(Fault.LIMIT, amount=1000, direction=Direction.UP))
        await near.send_all(bytes(5000))
        assert await receive(far, 1000) == bytes(1000)
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()


async def test_a_stall_holds_bytes_back_and_loses_none() -> None:
    """Nothing passes before the stall is over, everything afterwards."""
    async with linked() as (proxy, near, far):
        proxy.apply(step(Fault.STALL, HOLD_S))
        began = trio.current_time()
        await near.send_all(b"up")
        await far.send_all(b"down")
        assert await receive(far, 2) == b"up"
        assert await receive(near, 4) == b"down"
        assert trio.current_time() - began >= HOLD_S


async def test_a_stalled_direction_leaves_the_other_one_alone() -> None:
    """ONE_WAY holds what goes up while what goes down arrives; healing ends it at once."""
    async with linked() as (proxy, near, far):
        proxy.apply(step(Fault.ONE_WAY, direction=Direction.UP))
        await near.send_all(b"up")
        await far.send_all(b"down")
        assert await receive(near, 4) == b"down"
        with trio.move_on_after(HOLD_S) as waiting:
            await far.receive_some()
        assert waiting.cancelled_caught
        proxy.heal()
        assert await receive(far, 2) == b"up"


async def test_a_black_hole_tells_nobody_until_it_is_over() -> None:
    """Bytes vanish, even an end vanishes; when it is over both ends are reset."""
    async with linked() as (proxy, near, far):
        proxy.apply(step(Fault.BLACK_HOLE, HOLD_S))
        began = trio.current_time()
        await near.send_all(b"lost")
        await near.send_eof()
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()
        assert trio.current_time() - began >= HOLD_S


async def test_one_end_dies_inside_a_black_hole_unnoticed() -> None:
    """A reset of one side does not come out of the hole before it is over."""
    async with linked() as (proxy, near, far):
        proxy.apply(step(Fault.BLACK_HOLE, HOLD_S))
        began = trio.current_time()
        near.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await near.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()
        assert trio.current_time() - began >= HOLD_S


async def test_a_trickle_is_one_byte_at_a_time() -> None:
    """n bytes take n - 1 pauses, and arrive as they were sent."""
    async with linked() as (proxy, near, far):
        proxy.apply(step(Fault.TRICKLE, amount=50, direction=Direction.UP))
        began = trio.current_time()
        await near.send_all(bytes(range(20)))
        assert await receive(far, 20) == bytes(range(20))
        assert trio.current_time() - began >= 19 / 50


async def test_latency_delays_every_byte() -> None:
    """A byte comes `amount` milliseconds after it was sent."""
    async with linked() as (proxy, near, far):
        proxy.apply(step(Fault.LATENCY, amount=200, direction=Direction.DOWN))
        began = trio.current_time()
        await far.send_all(b"late")
        assert await receive(near, 4) == b"late"
        assert trio.current_time() - began >= 0.2


async def test_slices_are_small_and_whole() -> None:
    """No piece is longer than `amount`, and nothing is lost."""
    data = random.Random(2).randbytes(3000)
    async with linked() as (proxy, near, far):
        proxy.apply(step(Fault.SLICE, amount=7))
        await near.send_all(data)
        assert await receive(far, len(data)) == data


async def test_corruption_is_one_bit() -> None:
    """One bit differs, once."""
    data = bytes(1000)
    async with linked() as (proxy, near, far):
        proxy.apply(step(Fault.CORRUPT, direction=Direction.UP))
        await near.send_all(data)
        got = await receive(far, len(data))
        assert sum(byte.bit_count() for byte in got) == 1
        await near.send_all(data)
        assert await receive(far, len(data)) == data


async def test_a_plan_is_played_in_time_and_for_its_own_link() -> None:
    """Steps happen in the order of their times; those of other links do not."""
    async with linked() as (proxy, _near, far):
        plan = [
            step(Fault.CUT, at_s=HOLD_S),
            step(Fault.SLICE, at_s=0.0, amount=1),
            step(Fault.CORRUPT, at_s=0.0, link="client-1"),
        ]
        began = trio.current_time()
        await proxy.play(plan)
        assert trio.current_time() - began >= HOLD_S
        assert proxy.applied == {Fault.SLICE: 1, Fault.CUT: 1}
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()


async def test_a_gateway_that_is_away_is_a_reset() -> None:
    """Whoever dials while nobody listens behind the proxy is told so."""
    with trio.fail_after(LIMIT_S):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port: int = listener.socket.getsockname()[1]
        await listener.aclose()
        proxy = FaultProxy("client-1", port)
        async with trio.open_nursery() as nursery:
            await nursery.start(proxy.serve)
            near = await trio.open_tcp_stream("127.0.0.1", proxy.port)
            async with near:
                with pytest.raises(trio.BrokenResourceError):
                    await near.receive_some()
            nursery.cancel_scope.cancel()
