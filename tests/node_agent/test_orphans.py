"""Calls that outlive their gateway, as the agent keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from easyremote.handlers import StreamHandler
from easyremote.node import agent_orphans
from easyremote.node.agent_calls import CallState, DispatchedCall
from easyremote.node.agent_orphans import (
    KEEP_BYTES_MAX,
    KEEP_S,
    ORPHAN_TTL_S,
    RESULT_TTL_S,
    SPENT_S,
    Orphanage,
)
from easyremote.stream import Stream
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import (
    FLAG_ATTACH,
    FLAG_DETACHED,
    FLAG_STREAM,
    Dispatch,
    Failure,
    Result,
    decode,
)

from .test_agent_calls import CALL_ID, Party, Rig, stream_of

RESULT = Result(0, 0.1, b"\x80", [])


class OrphanRig(Rig):
    """A gateway that can be lost and come back, an agent that keeps its calls, and a worker."""

    def __init__(self) -> None:
        super().__init__(isolated=False)
        self.silent_since: float | None = None
        self.orphans = Orphanage(self.timers, heard_at=self._heard_at)

    def _heard_at(self) -> float:
        return trio.current_time() if self.silent_since is None else self.silent_since

    def _dispatched(
        self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        message = decode(Dispatch, payload)
        if message.flags & FLAG_ATTACH:
            return self.orphans.attach(stream, message)
        self.orphans.was_given(message)
        made = DispatchedCall(
            self.pool, self.timers, self.buffers, message, payload, stream, more, end
        )
        made.orphans = self.orphans
        self.calls.append(made)
        self.pool.submit(made)
        return made

    async def give(self, flags: int = 0, deadline_ms: int | None = None) -> Party:
        """The gateway gives a call."""
        caller = Party()
        message = Dispatch(
            CALL_ID, "f", "ann", ["member"], deadline_ms, 0, flags, b"grant", 1,
            {"token": "t1", "depth": 2}, b"\x80", [],
        )  # fmt: skip
        caller.stream = self.gateway.open(message, handler=caller, end=True)
        await wait_all_tasks_blocked()
        return caller

    async def lose_gateway(self) -> None:
        """The link to the gateway is cut."""
        self.agent_up.stream.cut()  # type: ignore[attr-defined]
        await wait_all_tasks_blocked()

    async def restart_gateway(self, nursery: trio.Nursery) -> None:
        """Another gateway is there."""
        self.agent_up, agent_end, self.gateway, _ = await self.link(nursery)
        agent_end.opened = self._dispatched

    async def attach(self, attempt: int = 1) -> Party:
        """The gateway asks for the call."""
        caller = Party()
        message = Dispatch(
            CALL_ID, "f", "", [], None, 0, FLAG_ATTACH, b"grant", attempt, {}, None, []
        )
        caller.stream = self.gateway.open(message, handler=caller, end=True)
        await wait_all_tasks_blocked()
        return caller

    @property
    def listed(self) -> list[dict[str, Any]]:
        """What is told to a new gateway."""
        held: list[dict[str, Any]] = self.orphans.to_plain(restarted=True).get("held", [])
        return held

    @property
    def spent(self) -> bytes:
        """Ids of calls that were given and are not here any more."""
        spent: bytes = self.orphans.to_plain(restarted=True)["spent"]
        return spent


@asynccontextmanager
async def orphan_rig() -> AsyncIterator[tuple[OrphanRig, trio.Nursery]]:
    rig = OrphanRig()
    async with trio.open_nursery() as nursery:
        await rig.start(nursery)
        rig.take_calls()
        yield rig, nursery
        nursery.cancel_scope.cancel()


async def test_a_running_call_is_kept_and_attached(autojump_clock: MockClock) -> None:
    """It goes on without a gateway, is listed with its grant, and its result arrives."""
    async with orphan_rig() as (rig, nursery):
        await rig.give(deadline_ms=60_000)
        callee = rig.callees[0]
        stream_of(callee).started()
        await trio.sleep(1.0)
        await rig.lose_gateway()
        assert callee.told == [], "nobody tells it to stop"
        [listed] = rig.listed
        assert listed == {
            "call_id": CALL_ID, "attempt": 1, "grant": b"grant", "token": "t1", "depth": 2,
            "function": "f", "flags": 0, "deadline_ms": 59_000,
        }  # fmt: skip
        assert rig.spent == b""

        await rig.restart_gateway(nursery)
        caller = await rig.attach()
        await trio.sleep(1.0)
        assert caller.told == ["started"]
        assert rig.listed == []
        stream_of(callee).send(RESULT, end=True)
        await wait_all_tasks_blocked()
        assert caller.told == ["started", RESULT]
        assert rig.calls[0].state is CallState.SETTLED
        assert rig.agent_up.streams_open == 0


async def test_a_result_waits_for_the_gateway(autojump_clock: MockClock) -> None:
    """The worker is free at once; what it said is kept."""
    async with orphan_rig() as (rig, nursery):
        await rig.give()
        await rig.lose_gateway()
        stream_of(rig.callees[0]).send(RESULT, end=True)
        await wait_all_tasks_blocked()
        assert rig.worker.calls == {}
        assert len(rig.listed) == 1

        await rig.restart_gateway(nursery)
        caller = await rig.attach()
        assert caller.told == [RESULT]
        assert rig.agent_up.streams_open == 0


async def test_a_crash_is_told_to_the_next_gateway(autojump_clock: MockClock) -> None:
    """An outcome that the agent gives itself waits like any other."""
    async with orphan_rig() as (rig, nursery):
        await rig.give()
        await rig.lose_gateway()
        rig.calls[0].fail(ErrorCode.WORKER_DIED, "dead", may_have_run=True)
        await rig.restart_gateway(nursery)
        [failure] = (await rig.attach()).told

        assert isinstance(failure, Failure)
        assert failure.code == ErrorCode.WORKER_DIED
        assert failure.maybe_executed is True


async def test_nobody_comes(autojump_clock: MockClock) -> None:
    """After `ORPHAN_TTL` a call is stopped, and its id is still known."""
    async with orphan_rig() as (rig, _nursery):
        await rig.give()
        await rig.lose_gateway()
        await trio.sleep(ORPHAN_TTL_S + 1.0)

        assert rig.callees[0].told == [("cancel", 1, 5000)]
        assert rig.listed == []
        assert rig.spent == CALL_ID


async def test_a_detached_call_is_not_given_up(autojump_clock: MockClock) -> None:
    """It runs to its end, and its result waits longer; not for ever."""
    async with orphan_rig() as (rig, _nursery):
        await rig.give(FLAG_DETACHED)
        await rig.lose_gateway()
        await trio.sleep(ORPHAN_TTL_S * 2)
        assert rig.callees[0].told == []
        assert len(rig.listed) == 1
        stream_of(rig.callees[0]).send(RESULT, end=True)
        await trio.sleep(RESULT_TTL_S - 1.0)
        assert len(rig.listed) == 1
        await trio.sleep(RESULT_TTL_S * 2)
        assert rig.listed == []


async def test_the_same_gateway_hears_what_is_here(autojump_clock: MockClock) -> None:
    """It remembers what it gave: what is over need not be told, and nothing at all is the rule."""
    async with orphan_rig() as (rig, _nursery):
        await rig.give()
        assert rig.orphans.to_plain(restarted=False) == {}
        await rig.lose_gateway()
        told = rig.orphans.to_plain(restarted=False)

        assert [one["call_id"] for one in told["held"]] == [CALL_ID]
        assert "spent" not in told


async def test_what_was_lost_halfway_is_not_kept(autojump_clock: MockClock) -> None:
    """A stream of items that lost some, or a result of which a part is gone, is no call to keep."""
    async with orphan_rig() as (rig, _nursery):
        await rig.give(FLAG_STREAM)
        await rig.lose_gateway()

        assert rig.listed == []
        assert rig.callees[0].told == [("cancel", 1, 5000)]


async def test_another_attempt_is_not_here(autojump_clock: MockClock) -> None:
    """An attach names the dispatch that it means; any other is an honest loss."""
    async with orphan_rig() as (rig, nursery):
        await rig.give()
        await rig.lose_gateway()
        await rig.restart_gateway(nursery)
        [failure] = (await rig.attach(attempt=2)).told

        assert failure.code == ErrorCode.GATEWAY_LOST
        assert failure.maybe_executed is True
        assert len(rig.listed) == 1


async def test_two_losses_in_a_row(autojump_clock: MockClock) -> None:
    """What was attached is kept again."""
    async with orphan_rig() as (rig, nursery):
        await rig.give()
        await rig.lose_gateway()
        await rig.restart_gateway(nursery)
        await rig.attach()
        await rig.lose_gateway()
        await rig.restart_gateway(nursery)
        caller = await rig.attach()
        stream_of(rig.callees[0]).send(RESULT, end=True)
        await wait_all_tasks_blocked()

        assert caller.told == [RESULT]


async def test_ids_are_told_from_the_end_of_their_calls(autojump_clock: MockClock) -> None:
    """A call that ran for hours is remembered as long as one that ran for a moment."""
    async with orphan_rig() as (rig, _nursery):
        await rig.give()
        await trio.sleep(SPENT_S * 10)
        rig.orphans.over(rig.calls[0])
        await trio.sleep(SPENT_S - 1.0)
        assert rig.spent == CALL_ID
        await trio.sleep(2.0)
        assert rig.spent == b""
        message = Dispatch(CALL_ID, "f", "", [], None, 0, 0, b"", 1, {}, None, [])
        assert rig.orphans.was_given(message), "and is never begun a second time"


async def test_an_outcome_on_a_dying_link_is_said_again(autojump_clock: MockClock) -> None:
    """It was written and may have reached nobody: it is kept, told, and fetched by its id."""
    async with orphan_rig() as (rig, nursery):
        await rig.give()
        stream_of(rig.callees[0]).send(RESULT, end=True)
        await wait_all_tasks_blocked()
        await trio.sleep(KEEP_S / 2)
        await rig.lose_gateway()
        rig.orphans.link_lost()
        [kept] = rig.orphans.to_plain(restarted=False)["kept"]
        assert kept == {
            "call_id": CALL_ID, "attempt": 1, "grant": b"grant", "token": "t1", "depth": 2,
            "function": "f", "flags": 0, "deadline_ms": None,
        }  # fmt: skip

        await rig.restart_gateway(nursery)
        caller = await rig.attach(attempt=0)
        assert caller.told == [RESULT]
        await trio.sleep(ORPHAN_TTL_S + 1.0)
        assert rig.orphans.to_plain(restarted=False) == {}
        assert rig.agent_up.streams_open == 0


async def test_an_outcome_that_a_stopped_gateway_never_read_is_said_again(
    autojump_clock: MockClock,
) -> None:
    """It is kept as long as the gateway is not known to have been alive after it."""
    async with orphan_rig() as (rig, _nursery):
        await rig.give()
        rig.silent_since = trio.current_time()
        stream_of(rig.callees[0]).send(RESULT, end=True)
        await trio.sleep(10 * KEEP_S)
        await rig.lose_gateway()
        rig.orphans.link_lost()
        [kept] = rig.orphans.to_plain(restarted=False)["kept"]
        assert kept["call_id"] == CALL_ID


async def test_the_outcome_of_a_stream_is_not_said_again(autojump_clock: MockClock) -> None:
    """Without its items it would look like a short success."""
    async with orphan_rig() as (rig, _nursery):
        await rig.give(FLAG_STREAM)
        stream_of(rig.callees[0]).send(RESULT, end=True)
        await wait_all_tasks_blocked()
        await rig.lose_gateway()
        rig.orphans.link_lost()

        assert rig.orphans.to_plain(restarted=True) == {"spent": CALL_ID}


async def test_an_outcome_of_long_ago_has_arrived(autojump_clock: MockClock) -> None:
    """Nothing is kept of what was written well before the loss; and nothing for ever."""
    async with orphan_rig() as (rig, _nursery):
        await rig.give()
        stream_of(rig.callees[0]).send(RESULT, end=True)
        await trio.sleep(KEEP_S + 1.0)
        rig.orphans.link_lost()
        assert rig.orphans.to_plain(restarted=False) == {}
        rig.orphans.written(rig.calls[0], 7, b"x")
        rig.orphans.link_lost()
        assert "kept" in rig.orphans.to_plain(restarted=False)
        await trio.sleep(ORPHAN_TTL_S + 1.0)
        assert rig.orphans.to_plain(restarted=False) == {}


async def test_kept_outcomes_are_bounded(autojump_clock: MockClock) -> None:
    """In bytes, over all of them: the oldest go first."""
    async with orphan_rig() as (rig, _nursery):
        await rig.give()
        call, size = rig.calls[0], KEEP_BYTES_MAX // 4
        for number in range(8):
            call.call_id = number.to_bytes(16, "big")
            rig.orphans.written(call, 7, bytes(size))
        rig.orphans.link_lost()
        kept = rig.orphans.to_plain(restarted=False)["kept"]

        assert [int.from_bytes(one["call_id"], "big") for one in kept] == [4, 5, 6, 7]


async def test_a_short_memory_is_confessed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids that were dropped although somebody may ask for them; for as long as anybody may."""
    monkeypatch.setattr(agent_orphans, "GIVEN_MAX", 2)
    async with orphan_rig() as (rig, _nursery):
        for number in range(3):
            message = Dispatch(
                number.to_bytes(16, "big"), "f", "", [], None, 0, 0, b"", 1, {}, None, []
            )
            assert "forgot" not in rig.orphans.to_plain(restarted=True)
            rig.orphans.was_given(message)
        assert rig.orphans.to_plain(restarted=True)["forgot"] is True
        await trio.sleep(SPENT_S + 1.0)
        assert "forgot" not in rig.orphans.to_plain(restarted=True)


async def test_each_loss_has_its_own_time(autojump_clock: MockClock) -> None:
    """A call that was attached meanwhile is not given up when the time of an older loss is over."""
    async with orphan_rig() as (rig, nursery):
        await rig.give()
        await rig.lose_gateway()
        await trio.sleep(1.0)
        await rig.restart_gateway(nursery)
        await rig.attach()
        await trio.sleep(ORPHAN_TTL_S - 2.0)
        await rig.lose_gateway()
        await trio.sleep(5.0)
        assert rig.callees[0].told == []
        assert len(rig.listed) == 1


async def test_the_outcome_of_an_attached_call_is_kept_longer(autojump_clock: MockClock) -> None:
    """Its caller may not be back yet when the gateway is lost once more."""
    async with orphan_rig() as (rig, nursery):
        await rig.give()
        await rig.lose_gateway()
        await rig.restart_gateway(nursery)
        await rig.attach()
        stream_of(rig.callees[0]).send(RESULT, end=True)
        await trio.sleep(KEEP_S * 10)
        await rig.lose_gateway()
        rig.orphans.link_lost()
        assert "kept" in rig.orphans.to_plain(restarted=False)
        await rig.restart_gateway(nursery)
        assert (await rig.attach(attempt=0)).told == [RESULT]
        assert (await rig.attach(attempt=0)).told == [RESULT], "as often as a gateway is lost"
        await trio.sleep(ORPHAN_TTL_S + 1.0)
        assert rig.orphans.to_plain(restarted=False) == {}


async def test_a_call_is_known_by_its_id_alone(autojump_clock: MockClock) -> None:
    """A gateway that was started anew counts attempts from one again: nothing runs twice."""
    async with orphan_rig() as (rig, _nursery):
        message = Dispatch(CALL_ID, "f", "", [], None, 0, 0, b"", 3, {}, None, [])
        assert not rig.orphans.was_given(message)
        assert rig.orphans.was_given(message._replace(attempt=1))
        assert rig.orphans.was_given(message._replace(attempt=4))
        assert rig.spent == CALL_ID, "and it is told once"


async def test_a_call_that_was_given_back_may_come_again(autojump_clock: MockClock) -> None:
    """Its worker refused it before it began: that is no run, and no outcome to keep."""
    async with orphan_rig() as (rig, _nursery):
        caller = await rig.give()
        refusal = Failure(int(ErrorCode.OVERLOADED), "full", False, None, {})
        stream_of(rig.callees[0]).send(refusal, end=True)
        await wait_all_tasks_blocked()
        rig.orphans.over(rig.calls[0])
        assert caller.told == [refusal]
        await rig.lose_gateway()
        rig.orphans.link_lost()
        assert rig.orphans.to_plain(restarted=True) == {"spent": b""}
        message = Dispatch(CALL_ID, "f", "", [], None, 0, 0, b"", 1, {}, None, [])
        assert not rig.orphans.was_given(message)


@pytest.mark.parametrize("ended_by", ["worker", "agent"])
async def test_an_outcome_that_waited_is_kept_when_it_is_said(
    autojump_clock: MockClock, ended_by: str
) -> None:
    """The link on which it is said at last may be lost in the same moment."""
    async with orphan_rig() as (rig, nursery):
        await rig.give()
        await rig.lose_gateway()
        if ended_by == "worker":
            stream_of(rig.callees[0]).send(RESULT, end=True)
            await wait_all_tasks_blocked()
        else:
            rig.calls[0].fail(ErrorCode.WORKER_DIED, "dead", may_have_run=True)
        for _ in range(2):
            await rig.restart_gateway(nursery)
            [said] = (await rig.attach()).told
            assert said == RESULT if ended_by == "worker" else said.code == ErrorCode.WORKER_DIED
            await rig.lose_gateway()
            rig.orphans.link_lost()
            kept = rig.orphans.to_plain(restarted=False)["kept"]
            assert [one["call_id"] for one in kept] == [CALL_ID]
