"""What streams in memory add to the kit: capacity, cuts, and the virtual clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from easyremote.transport import StreamBroken, memory_stream_pair

from .streams import receive_exactly, receive_rest, send_all

pytestmark = pytest.mark.trio


async def test_a_full_buffer_refuses() -> None:
    """No more than the capacity is ever held, and room comes back as bytes are read."""
    near, far = memory_stream_pair(4)
    assert near.try_send(memoryview(b"abcdef")) == 4
    assert near.try_send(memoryview(b"ef")) is None
    assert far.try_receive_into(memoryview(bytearray(1))) == 1
    assert near.try_send(memoryview(b"ef")) == 1
    assert await receive_exactly(far, 4) == b"bcde"


async def test_a_cut_destroys_what_was_on_its_way() -> None:
    """After a cut both ends are broken, and nothing that was under way is delivered."""
    near, far = memory_stream_pair()
    await send_all(near, b"lost")
    near.cut("the cable was pulled")
    for end in (near, far):
        with pytest.raises(StreamBroken, match="cable"):
            end.try_receive_into(memoryview(bytearray(9)))
        with pytest.raises(StreamBroken, match="cable"):
            end.try_send(memoryview(b"x"))
        await end.wait_receivable()
        await end.wait_sendable()


async def test_a_cut_wakes_who_waits() -> None:
    """A task that waits for bytes learns of a cut."""
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.wait_receivable)
        await trio.testing.wait_all_tasks_blocked()
        far.cut()
    with pytest.raises(StreamBroken):
        near.try_receive_into(memoryview(bytearray(9)))


async def test_an_hour_passes_at_once_on_the_virtual_clock(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing in memory streams waits for real time."""
    near, far = memory_stream_pair(1)

    async def send_slowly() -> None:
        for _ in range(60):
            await trio.sleep(60)
            await send_all(near, b"tick")
        await near.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_slowly)
        got = await receive_rest(far)

    assert got == b"tick" * 60
    assert autojump_clock.current_time() >= 3600
