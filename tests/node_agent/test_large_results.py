"""Large results whose gateway is lost while they pass: said once more, from the start."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from easyremote.node import agent_orphans
from easyremote.node.agent_calls import CallState
from easyremote.node.agent_orphans import KEEP_LARGE_S, LOOK_S, ORPHAN_TTL_S
from easyremote.stream import Stream
from easyremote.wire.errors import ErrorCode
from easyremote.wire.frame import HEADER_SIZE
from easyremote.wire.message import FLAG_ATTACH, Dispatch, Failure, Result

from .test_agent_calls import CALL_ID, Party, stream_of
from .test_orphans import OrphanRig, orphan_rig

SIZE = 8 * 1024 * 1024
"""Eight times the first window of a stream."""
VALUE = bytes(range(256)) * (SIZE // 256)
RESULT = Result(0, 0.1, None, [SIZE])


class Collector(Party):
    """A gateway that takes a value, or lets it wait after the first window."""

    def __init__(self, *, slow: bool = False) -> None:
        super().__init__()
        self.relay = slow
        self.data = bytearray()
        self.ended = False

    def on_data(self, stream: Stream, frame: memoryview, last: bool, end: bool) -> None:
        self.data += frame[HEADER_SIZE:]
        self.ended = self.ended or end


async def give(rig: OrphanRig, *, slow: bool) -> Collector:
    """The gateway gives a call."""
    caller = Collector(slow=slow)
    message = Dispatch(
        CALL_ID, "f", "ann", ["member"], None, 0, 0, b"grant", 1, {"token": "t1"}, b"\x80", []
    )
    caller.stream = rig.gateway.open(message, handler=caller, end=True)
    await wait_all_tasks_blocked()
    return caller


async def attach(rig: OrphanRig, attempt: int, *, slow: bool = False) -> Collector:
    """The gateway asks for the call."""
    caller = Collector(slow=slow)
    message = Dispatch(CALL_ID, "f", "", [], None, 0, FLAG_ATTACH, b"grant", attempt, {}, None, [])
    caller.stream = rig.gateway.open(message, handler=caller, end=True)
    await wait_all_tasks_blocked()
    return caller


async def lose(rig: OrphanRig) -> None:
    """The link to the gateway is cut, as the agent sees it."""
    await rig.lose_gateway()
    rig.orphans.link_lost()


async def say_result(rig: OrphanRig) -> None:
    """The body returns."""
    stream_of(rig.callees[0]).send(RESULT, [memoryview(VALUE)], end=True)
    await wait_all_tasks_blocked()


async def test_a_result_on_its_way_is_said_from_its_start(autojump_clock: MockClock) -> None:
    """However often the gateway is lost meanwhile; the last one has all of it."""
    async with orphan_rig() as (rig, nursery):
        first = await give(rig, slow=True)
        await say_result(rig)
        assert 0 < len(first.data) < SIZE
        for _ in range(2):
            await lose(rig)
            assert [one["call_id"] for one in rig.listed] == [CALL_ID]
            await rig.restart_gateway(nursery)
            half = await attach(rig, 1, slow=True)
            assert half.told == [RESULT]
            assert 0 < len(half.data) < SIZE
            assert half.data == VALUE[: len(half.data)]
        await lose(rig)
        await rig.restart_gateway(nursery)
        whole = await attach(rig, 1)
        assert whole.told == [RESULT]
        assert whole.data == VALUE
        assert whole.ended
        assert rig.calls[0].state is CallState.SETTLED
        assert rig.worker.calls == {}
        assert rig.agent_up.streams_open == 0
        assert rig.buffers.held_bytes == 0


async def test_a_result_that_just_left_is_said_again(autojump_clock: MockClock) -> None:
    """It was written to a link that died a moment later: it is fetched by its id."""
    async with orphan_rig() as (rig, nursery):
        first = await give(rig, slow=False)
        await say_result(rig)
        assert first.data == VALUE
        await trio.sleep(KEEP_LARGE_S / 2)
        await lose(rig)
        assert [one["call_id"] for one in rig.orphans.to_plain(restarted=False)["kept"]] == [
            CALL_ID
        ]
        await rig.restart_gateway(nursery)
        both = [await attach(rig, 0), await attach(rig, 0)]
        for one in both:
            assert one.told == [RESULT]
            assert one.data == VALUE
            assert one.ended
        await trio.sleep(ORPHAN_TTL_S + 1.0)
        assert rig.orphans.to_plain(restarted=False) == {}
        assert rig.agent_up.streams_open == 0


async def test_a_result_that_left_long_ago_is_let_go(autojump_clock: MockClock) -> None:
    """By itself, also on a node that has nothing else to do."""
    async with orphan_rig() as (rig, _nursery):
        await give(rig, slow=False)
        await say_result(rig)
        assert rig.orphans._written_bytes == SIZE
        await trio.sleep(KEEP_LARGE_S + LOOK_S + 1.0)
        assert rig.orphans._written_bytes == 0
        await lose(rig)
        assert rig.orphans.to_plain(restarted=False) == {}


async def test_what_would_take_too_much_memory_is_not_kept(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the part that was said is lost with the gateway, and so is the call."""
    monkeypatch.setattr(agent_orphans, "KEEP_BYTES_MAX", SIZE - 1)
    async with orphan_rig() as (rig, _nursery):
        await give(rig, slow=True)
        await say_result(rig)
        await lose(rig)
        assert rig.listed == []
        assert rig.spent == CALL_ID


async def test_a_worker_that_dies_inside_its_result(autojump_clock: MockClock) -> None:
    """While no gateway is there: the next one hears of the crash, not of half a result."""
    async with orphan_rig() as (rig, nursery):
        await give(rig, slow=True)
        await say_result(rig)
        await lose(rig)
        rig.calls[0].fail(ErrorCode.WORKER_DIED, "dead", may_have_run=True)
        await rig.restart_gateway(nursery)
        caller = await attach(rig, 1)
        [failure] = caller.told
        assert isinstance(failure, Failure)
        assert failure.code == ErrorCode.WORKER_DIED
        assert caller.data == b""
