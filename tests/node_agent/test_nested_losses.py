"""Nested calls whose gateway is away: what waits, what goes again, what is stopped later."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from easyremote import alive
from easyremote.handlers import StreamHandler
from easyremote.link import Link
from easyremote.node.agent_nested import NESTED_WAIT_S, NestedCall, NestedCalls
from easyremote.node.agent_orphans import ORPHAN_TTL_S
from easyremote.node.agent_session import GatewaySession
from easyremote.stream import Stream
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import FLAG_ATTACH, Call, Result

from .test_agent_calls import CALL_ID, Party, Rig, stream_of

RESULT = Result(0, 0.1, b"\x80", [])


class Session:
    """The agent's session, as nested calls see it."""

    def __init__(self, link: Link) -> None:
        self.link: Link | None = link
        self.registered = True
        self.incarnation = 7


class NestRig(Rig):
    """An agent that lets nested calls out, and gateways that come and go."""

    def __init__(self) -> None:
        super().__init__(isolated=False)
        self.waiting = NestedCalls()

    async def start(self, nursery: trio.Nursery) -> None:
        """The gateway is there and has taken the node."""
        await super().start(nursery)
        self.session = Session(self.agent_up)

    def _nested(
        self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        call = NestedCall(self.timers, self.buffers, stream, payload, more, end)
        self.waiting.take(call, cast(GatewaySession, self.session))
        return call

    async def make(self, deadline_ms: int | None = None) -> Party:
        """A function at the worker makes a call."""
        caller = Party()
        call = Call(CALL_ID, "g", None, {}, deadline_ms, 0, 0, b"ticket", b"\x80", [])
        caller.stream = self.worker_link.open(call, handler=caller, end=True)
        await wait_all_tasks_blocked()
        return caller

    def look(self) -> None:
        """Something has changed at the gateway."""
        self.waiting.look_again(cast(GatewaySession, self.session))

    async def lose(self) -> None:
        """The link to the gateway is cut."""
        self.agent_up.stream.cut()  # type: ignore[attr-defined]
        await wait_all_tasks_blocked()
        self.session.link, self.session.registered = None, False
        self.look()

    async def come_back(self, nursery: trio.Nursery) -> None:
        """A gateway lets the node in; it has not taken it yet."""
        self.agent_up, _, self.gateway, gateway_end = await self.link(nursery)
        gateway_end.opened = self._opened_at_gateway
        self.session.link = self.agent_up
        self.session.incarnation = 8

    async def take_node(self) -> None:
        """The gateway takes the node."""
        self.session.registered = True
        self.look()
        await wait_all_tasks_blocked()


@asynccontextmanager
async def nest_rig() -> AsyncIterator[tuple[NestRig, trio.Nursery]]:
    rig = NestRig()
    async with trio.open_nursery() as nursery:
        await rig.start(nursery)
        yield rig, nursery
        nursery.cancel_scope.cancel()


def failure_of(caller: Party) -> tuple[Any, bool]:
    """Return code of the only word that a caller has heard, and whether the call may have run."""
    [failure] = caller.told
    return failure.code, failure.maybe_executed


async def test_a_new_call_waits_until_the_node_is_taken(autojump_clock: MockClock) -> None:
    """Before that, the gateway knows no call that could make another one, and would refuse it."""
    async with nest_rig() as (rig, nursery):
        await rig.lose()
        during = await rig.make()
        await rig.come_back(nursery)
        between = await rig.make()
        rig.look()
        await trio.sleep(NESTED_WAIT_S * 2)
        assert rig.callees == []
        assert (during.told, between.told) == ([], [])
        await rig.take_node()
        assert [one.opening.function for one in rig.callees] == ["g", "g"]
        assert [one.opening.since for one in rig.callees] == [0, 0]
        assert len(rig.waiting) == 0


async def test_a_new_call_does_not_wait_for_ever(autojump_clock: MockClock) -> None:
    """It has certainly not run when no gateway came for it."""
    async with nest_rig() as (rig, _nursery):
        await rig.lose()
        caller = await rig.make()
        await trio.sleep(ORPHAN_TTL_S + 1.0)
        assert failure_of(caller) == (ErrorCode.GATEWAY_LOST, False)


async def test_a_call_that_was_sent_goes_again_with_the_time_that_is_left(
    autojump_clock: MockClock,
) -> None:
    """Under its own id, with the start of the gateway to which it was first sent."""
    async with nest_rig() as (rig, nursery):
        caller = await rig.make(deadline_ms=60_000)
        await trio.sleep(10.0)
        await rig.lose()
        await trio.sleep(10.0)
        await rig.come_back(nursery)
        await rig.take_node()
        first, again = rig.callees
        assert (first.opening.deadline_ms, again.opening.deadline_ms) == (60_000, 40_000)
        assert again.opening == first.opening._replace(deadline_ms=40_000, since=7)
        stream_of(again).send(RESULT, end=True)
        await wait_all_tasks_blocked()
        assert caller.told == [RESULT]


async def test_a_cancel_while_the_gateway_is_away(autojump_clock: MockClock) -> None:
    """The function hears at once, honestly, and the next gateway stops the call."""
    async with nest_rig() as (rig, nursery):
        caller = await rig.make()
        await rig.lose()
        stream_of(caller).cancel(1, 700)
        await wait_all_tasks_blocked()
        assert failure_of(caller) == (ErrorCode.CANCELLED, True)
        await rig.come_back(nursery)
        await rig.take_node()
        stop = rig.callees[1]
        assert stop.opening == Call(
            CALL_ID, "", None, {}, None, 0, FLAG_ATTACH, b"ticket", b"", []
        )  # fmt: skip
        assert stop.told == [("cancel", 1, 700)]
        assert len(rig.waiting) == 0


async def test_a_worker_that_dies_while_the_gateway_is_away(autojump_clock: MockClock) -> None:
    """What it had asked for is stopped, too."""
    async with nest_rig() as (rig, nursery):
        await rig.make()
        await rig.lose()
        rig.worker_link.stream.close_now()
        await wait_all_tasks_blocked()
        await rig.come_back(nursery)
        await rig.take_node()
        assert rig.callees[1].told == [("cancel", 1, 5000)]


async def test_a_cancel_of_a_call_that_never_left(autojump_clock: MockClock) -> None:
    """It has not run, and there is nothing to stop."""
    async with nest_rig() as (rig, nursery):
        await rig.lose()
        caller = await rig.make()
        stream_of(caller).cancel(1, 700)
        await wait_all_tasks_blocked()
        assert failure_of(caller) == (ErrorCode.CANCELLED, False)
        await rig.come_back(nursery)
        await rig.take_node()
        assert rig.callees == []


async def test_an_order_to_stop_is_not_kept_for_ever(autojump_clock: MockClock) -> None:
    """By then the gateway has given the call up by itself."""
    async with nest_rig() as (rig, nursery):
        caller = await rig.make()
        await rig.lose()
        stream_of(caller).cancel(1, 700)
        await wait_all_tasks_blocked()
        assert len(rig.waiting) == 1
        await trio.sleep(ORPHAN_TTL_S + 1.0)
        assert len(rig.waiting) == 0
        await rig.come_back(nursery)
        await rig.take_node()
        assert len(rig.callees) == 1


async def test_a_node_that_slept_submits_nothing_that_may_be_forgotten(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sleep counts, although timers do not see it."""
    async with nest_rig() as (rig, nursery):
        caller = await rig.make()
        awake = alive.clock
        monkeypatch.setattr(alive, "clock", lambda: awake() + ORPHAN_TTL_S + 1.0)
        await rig.lose()
        await rig.come_back(nursery)
        await rig.take_node()
        assert failure_of(caller) == (ErrorCode.GATEWAY_LOST, True)
        assert len(rig.callees) == 1
