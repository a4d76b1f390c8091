"""Calls inside the agent: one outcome each, whatever happens to either side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from easyremote.errors import EasyRemoteError
from easyremote.flow import Buffers
from easyremote.handlers import LinkHandler, StreamHandler
from easyremote.link import Link
from easyremote.node.agent_calls import CallState, DispatchedCall
from easyremote.node.agent_nested import NESTED_WAIT_S, NestedCall
from easyremote.node.pools import MainPool, ReplicaPool
from easyremote.node.process import ExitStatus
from easyremote.node.workers import WorkerState
from easyremote.outbox import Outbox
from easyremote.stream import Stream
from easyremote.timers import Timers
from easyremote.transport import memory_stream_pair
from easyremote.wire.errors import ErrorCode
from easyremote.wire.event import HelloReceived
from easyremote.wire.message import (
    BY_KIND,
    Call,
    Dispatch,
    Failure,
    Kind,
    Result,
    decode,
    encode,
)

CALL_ID = bytes(range(16))


class End(LinkHandler):
    """One end of a link; streams that the peer opens go to `opened`."""

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.opened: Any = None
        self.lost = trio.Event()

    def on_hello(self, link: Link, event: HelloReceived) -> None:
        link.welcome({})
        self.ready.set()

    def on_welcome(self, link: Link, info: dict[str, Any]) -> None:
        self.ready.set()

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        handler: StreamHandler = self.opened(stream, kind, payload, more, end)
        return handler

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        self.lost.set()


class Party(StreamHandler):
    """A caller or a callee that is driven by a test: what it was told, in order."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.opening: Any = None
        self.told: list[Any] = []

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        if kind in BY_KIND:
            self.told.append(decode(BY_KIND[kind], payload))

    def on_data(self, stream: Stream, frame: memoryview, last: bool, end: bool) -> None:
        self.told.append("data")

    def on_started(self, stream: Stream) -> None:
        self.told.append("started")

    def on_cancel(self, stream: Stream, strength: int, grace_ms: int) -> None:
        self.told.append(("cancel", strength, grace_ms))

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        self.told.append(("reset", code))

    def on_lost(self, stream: Stream, error: EasyRemoteError) -> None:
        self.told.append("lost")


class FakeWorker:
    """A worker as pools and calls see it."""

    group = None
    ready = True
    state = WorkerState.READY

    def __init__(self, link: Link) -> None:
        self.link = link
        self.calls: dict[bytes, DispatchedCall] = {}
        self.orphans: list[DispatchedCall] = []
        self.killed: list[str] = []

    def kill(self, reason: str) -> None:
        self.killed.append(reason)


class Rig:
    """Gateway, agent and worker in one task: real links on streams in memory."""

    def __init__(self, *, isolated: bool) -> None:
        self.outbox = Outbox()
        self.timers = Timers(trio.current_time)
        self.buffers = Buffers(1 << 20)
        self.gone: list[DispatchedCall] = []
        self.calls: list[DispatchedCall] = []
        self.callees: list[Party] = []
        self.pool: Any
        if isolated:
            self.pool = ReplicaPool(
                "f", "fn:f", 1, self.gone.append, lambda _pool, _devices: None, lambda _worker: None
            )
        else:
            self.pool = MainPool(self.gone.append)

    async def link(self, nursery: trio.Nursery) -> tuple[Link, End, Link, End]:
        """Connect two ends; the first one dials."""
        one, other = memory_stream_pair()
        ends = End(), End()
        dialer = Link(one, ends[0], dialer=True, outbox=self.outbox)
        accepting = Link(other, ends[1], dialer=False, outbox=self.outbox)
        nursery.start_soon(dialer.run)
        nursery.start_soon(accepting.run)
        dialer.hello("worker", {}, {})
        for end in ends:
            await end.ready.wait()
        return dialer, ends[0], accepting, ends[1]

    async def start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.timers.run)
        self.agent_up, agent_end, self.gateway, gateway_end = await self.link(nursery)
        self.worker_link, worker_end, agent_down, down_end = await self.link(nursery)
        agent_end.opened = self._dispatched
        worker_end.opened = self._opened_at_worker
        down_end.opened = self._nested
        gateway_end.opened = self._opened_at_gateway
        self.worker = FakeWorker(agent_down)

    def _dispatched(
        self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        message = decode(Dispatch, payload)
        call = DispatchedCall(
            self.pool, self.timers, self.buffers, message, payload, stream, more, end
        )
        self.calls.append(call)
        self.pool.submit(call)
        return call

    def _opened_at_worker(
        self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        party = Party()
        party.stream, party.opening = stream, decode(Dispatch, payload)
        self.callees.append(party)
        return party

    def _nested(
        self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        self.nested = NestedCall(self.timers, self.buffers, stream, payload, more, end)
        return self.nested

    def _opened_at_gateway(
        self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        party = Party()
        party.stream, party.opening = stream, decode(Call, payload)
        self.callees.append(party)
        return party

    def take_calls(self) -> None:
        """The worker is there."""
        if isinstance(self.pool, ReplicaPool):
            self.pool.workers.append(self.worker)  # type: ignore[arg-type]
            self.pool.worker_ready(self.worker)  # type: ignore[arg-type]
        else:
            self.pool.worker = self.worker
            self.pool.pump()

    async def dispatch(
        self, *, deadline_ms: int | None = None, end: bool = True, size: int = 0
    ) -> Party:
        """The gateway gives a call; with `size`, its argument is a segment that is not sent."""
        caller = Party()
        message = Dispatch(
            CALL_ID, "f", "ann", ["member"], deadline_ms, 0, 0, b"", 0, {}, b"\x80",
            [size] if size else [],
        )  # fmt: skip
        if size:
            caller.stream = self.gateway.open_encoded(
                Kind.DISPATCH, encode(message), handler=caller, more=True
            )
        else:
            caller.stream = self.gateway.open(message, handler=caller, end=end)
        await wait_all_tasks_blocked()
        return caller

    async def nest(self) -> Party:
        """A function at the worker makes a call."""
        caller = Party()
        call = Call(CALL_ID, "g", None, {}, None, 0, 0, CALL_ID, b"\x80", [])
        caller.stream = self.worker_link.open(call, handler=caller, end=True)
        await wait_all_tasks_blocked()
        return caller


@asynccontextmanager
async def rig_of(*, isolated: bool = False, take: bool = True) -> AsyncIterator[Rig]:
    rig = Rig(isolated=isolated)
    async with trio.open_nursery() as nursery:
        await rig.start(nursery)
        if take:
            rig.take_calls()
        yield rig
        nursery.cancel_scope.cancel()


def stream_of(party: Party) -> Stream:
    assert party.stream is not None
    return party.stream


# ---- ordinary calls ------------------------------------------------------------------------------


async def test_result_passes_and_everything_is_given_back(autojump_clock: trio.abc.Clock) -> None:
    """A call goes to the worker, its result to the gateway; nobody keeps anything of it."""
    async with rig_of() as rig:
        caller = await rig.dispatch()
        (callee,) = rig.callees
        stream_of(callee).started()
        await trio.sleep(1)
        stream_of(callee).send(Result(0, 0.5, b"\x01", []), end=True)
        stream_of(callee).release()
        await wait_all_tasks_blocked()

        assert caller.told == ["started", Result(0, 0.5, b"\x01", [])]
        assert rig.gone == rig.calls
        assert rig.calls[0].state is CallState.SETTLED
        assert not rig.worker.calls
        assert rig.agent_up.streams_open == rig.worker.link.streams_open == 0


async def test_held_call_gets_the_time_that_is_left(autojump_clock: trio.abc.Clock) -> None:
    """A call that waited in the agent reaches its worker with the rest of its deadline."""
    async with rig_of(take=False) as rig:
        await rig.dispatch(deadline_ms=10_000)
        await trio.sleep(4)
        rig.take_calls()
        await wait_all_tasks_blocked()

        assert 5900 <= rig.callees[0].opening.deadline_ms <= 6000


async def test_held_call_ends_at_its_deadline_and_did_not_run(
    autojump_clock: trio.abc.Clock,
) -> None:
    """A call that no worker took before its deadline has provably not run."""
    async with rig_of(take=False) as rig:
        caller = await rig.dispatch(deadline_ms=3000)
        await trio.sleep(4)
        (failure,) = caller.told

        assert (failure.code, failure.maybe_executed) == (ErrorCode.DEADLINE, False)
        assert rig.pool.held == 0
        assert rig.gone == rig.calls


async def test_held_call_is_cancelled_at_once(autojump_clock: trio.abc.Clock) -> None:
    """A cancel of a call that no worker has needs no grace."""
    async with rig_of(take=False) as rig:
        caller = await rig.dispatch()
        stream_of(caller).cancel(0, 5000)
        await wait_all_tasks_blocked()
        (failure,) = caller.told

        assert (failure.code, failure.maybe_executed) == (ErrorCode.CANCELLED, False)
        assert rig.pool.held == 0


async def test_held_calls_fail_when_no_worker_will_come(autojump_clock: trio.abc.Clock) -> None:
    """What waits for a worker that is given up has provably not run."""
    async with rig_of(take=False) as rig:
        caller = await rig.dispatch()
        rig.pool.fail_held(ErrorCode.WORKER_DIED, "given up")
        await wait_all_tasks_blocked()
        (failure,) = caller.told

        assert (failure.code, failure.maybe_executed) == (ErrorCode.WORKER_DIED, False)
        assert rig.gone == rig.calls


@pytest.mark.parametrize("isolated", [True, False])
async def test_failure_inside_an_argument_breaks_no_link(
    autojump_clock: trio.abc.Clock, isolated: bool
) -> None:
    """A worker may refuse a call before its argument is there; both links go on."""
    async with rig_of(isolated=isolated) as rig:
        caller = await rig.dispatch(size=100_000)
        failure = Failure(ErrorCode.TOO_LARGE, "no", False, None, {})
        stream_of(rig.callees[0]).send(failure, end=True)
        stream_of(rig.callees[0]).release()
        await wait_all_tasks_blocked()

        assert caller.told == [failure]
        assert rig.callees[0].told == [("reset", ErrorCode.NO_ERROR)]
        assert rig.gone == rig.calls
        await rig.dispatch()
        assert len(rig.callees) == 2


# ---- workers that die ----------------------------------------------------------------------------


async def test_outcome_of_a_dead_worker_waits_for_its_exit_status(
    autojump_clock: trio.abc.Clock,
) -> None:
    """When the link is lost the call is silent until it is known how the process ended."""
    async with rig_of() as rig:
        caller = await rig.dispatch()
        rig.worker_link.stream.close_now()
        await trio.sleep(1)
        assert caller.told == []
        (orphan,) = rig.worker.orphans
        orphan.crashed(ExitStatus(None, 9))
        orphan.crashed(ExitStatus(1, None))
        await wait_all_tasks_blocked()
        (failure,) = caller.told

        assert (failure.code, failure.maybe_executed) == (ErrorCode.WORKER_DIED, True)
        assert failure.detail == {"exit_code": None, "signal": 9}
        assert "SIGKILL" in failure.reason
        assert rig.gone[0] is orphan


async def test_death_inside_an_answer_is_no_short_answer(autojump_clock: trio.abc.Clock) -> None:
    """A worker that dies between the pieces of its result leaves an error, not half a value."""
    async with rig_of() as rig:
        caller = await rig.dispatch()
        callee = rig.callees[0]
        stream_of(callee).forward(Kind.RESULT, encode(Result(0, 0.1, None, [100_000])), more=True)
        await wait_all_tasks_blocked()
        rig.worker_link.stream.close_now()
        await trio.sleep(1)
        rig.worker.orphans[0].crashed(ExitStatus(3, None))
        await wait_all_tasks_blocked()

        assert caller.told[1:] == [("reset", ErrorCode.WORKER_DIED)]


async def test_outcome_that_came_before_the_death_counts(autojump_clock: trio.abc.Clock) -> None:
    """A result that was complete stays the outcome, whatever happens to the worker then."""
    async with rig_of() as rig:
        caller = await rig.dispatch()
        stream_of(rig.callees[0]).send(Result(0, 0.5, b"\x01", []), end=True)
        await wait_all_tasks_blocked()
        rig.worker_link.stream.close_now()
        await trio.sleep(1)

        assert caller.told == [Result(0, 0.5, b"\x01", [])]
        assert not rig.worker.orphans


async def test_worker_that_gives_a_call_up(autojump_clock: trio.abc.Clock) -> None:
    """A worker that resets a stream may have run the call; its caller is told."""
    async with rig_of() as rig:
        caller = await rig.dispatch()
        stream_of(rig.callees[0]).reset(ErrorCode.PROTOCOL, "no")
        await wait_all_tasks_blocked()
        (failure,) = caller.told

        assert (failure.code, failure.maybe_executed) == (ErrorCode.INTERNAL, True)
        assert rig.gone == rig.calls


# ---- callers that go -----------------------------------------------------------------------------


async def test_lost_gateway_stops_the_work_and_drops_its_result(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Without a gateway a running call is cancelled; what it says then goes nowhere."""
    async with rig_of() as rig:
        await rig.dispatch()
        callee = rig.callees[0]
        rig.gateway.stream.close_now()
        await trio.sleep(1)
        assert callee.told[0][0] == "cancel"
        stream_of(callee).send(Result(0, 0.5, b"\x01", []), end=True)
        await wait_all_tasks_blocked()

        assert rig.gone == rig.calls
        assert not rig.worker.calls


async def test_caller_that_resets_inside_an_argument(autojump_clock: trio.abc.Clock) -> None:
    """A call whose argument stays incomplete is given up at the worker; a replica is ended."""
    async with rig_of(isolated=True) as rig:
        caller = await rig.dispatch(size=100_000)
        stream_of(caller).reset(ErrorCode.CANCELLED, "gone")
        await wait_all_tasks_blocked()

        assert rig.callees[0].told == [("reset", ErrorCode.CANCELLED)]
        assert len(rig.worker.killed) == 1
        assert rig.gone == rig.calls


async def test_held_call_whose_caller_resets(autojump_clock: trio.abc.Clock) -> None:
    """A call that nobody wants any more leaves the queue."""
    async with rig_of(take=False) as rig:
        caller = await rig.dispatch()
        stream_of(caller).reset(ErrorCode.CANCELLED, "gone")
        await wait_all_tasks_blocked()

        assert rig.pool.held == 0
        assert rig.gone == rig.calls


# ---- isolated calls ------------------------------------------------------------------------------


async def test_isolated_call_is_killed_after_the_grace(autojump_clock: trio.abc.Clock) -> None:
    """A body that ignores a cancel loses its process after the grace, and not before."""
    async with rig_of(isolated=True) as rig:
        caller = await rig.dispatch()
        stream_of(caller).cancel(0, 2000)
        await trio.sleep(2.2)
        assert rig.worker.killed == []
        await trio.sleep(0.5)
        assert len(rig.worker.killed) == 1
        rig.worker_link.stream.close_now()
        await trio.sleep(0.1)
        rig.worker.orphans[0].crashed(ExitStatus(None, 9))
        await wait_all_tasks_blocked()
        (failure,) = caller.told

        assert (failure.code, failure.maybe_executed) == (ErrorCode.CANCELLED, True)


async def test_isolated_call_that_stops_in_time_keeps_its_process(
    autojump_clock: trio.abc.Clock,
) -> None:
    """A body that stops within the grace is not killed, and its process takes the next call."""
    async with rig_of(isolated=True) as rig:
        caller = await rig.dispatch()
        stream_of(caller).cancel(0, 2000)
        await trio.sleep(1)
        failure = Failure(ErrorCode.CANCELLED, "stopped", True, None, {})
        stream_of(rig.callees[0]).send(failure, end=True)
        await trio.sleep(10)

        assert caller.told == [failure]
        assert rig.worker.killed == []
        await rig.dispatch()
        assert len(rig.callees) == 2


async def test_isolated_body_that_was_abandoned_is_not_trusted(
    autojump_clock: trio.abc.Clock,
) -> None:
    """A worker that says "cancelled" only after the grace may still run the body: it is ended."""
    async with rig_of(isolated=True) as rig:
        caller = await rig.dispatch()
        stream_of(caller).cancel(0, 2000)
        await trio.sleep(2.1)
        failure = Failure(ErrorCode.CANCELLED, "abandoned", True, None, {})
        stream_of(rig.callees[0]).send(failure, end=True)
        await wait_all_tasks_blocked()

        assert caller.told == [failure]
        assert len(rig.worker.killed) == 1


@pytest.mark.parametrize("isolated", [True, False])
async def test_kill_order_reaches_isolated_processes_only(
    autojump_clock: trio.abc.Clock, isolated: bool
) -> None:
    """The strongest cancel ends a replica at once, and never the worker that serves everything."""
    async with rig_of(isolated=isolated) as rig:
        caller = await rig.dispatch()
        stream_of(caller).cancel(2, 0)
        await trio.sleep(10)

        assert bool(rig.worker.killed) is isolated
        assert rig.callees[0].told == [("cancel", 2, 0)]


async def test_isolated_deadline_is_enforced_by_the_agent(autojump_clock: trio.abc.Clock) -> None:
    """A body that does not end soon after its deadline loses its process."""
    async with rig_of(isolated=True) as rig:
        await rig.dispatch(deadline_ms=1000)
        await trio.sleep(1.4)
        assert rig.worker.killed == []
        await trio.sleep(1)

        assert len(rig.worker.killed) == 1


async def test_one_isolated_call_at_a_time(autojump_clock: trio.abc.Clock) -> None:
    """A replica gets the next call when the one before is gone."""
    async with rig_of(isolated=True) as rig:
        await rig.dispatch()
        await rig.dispatch()
        assert len(rig.callees) == 1
        stream_of(rig.callees[0]).send(Result(0, 0.5, b"\x01", []), end=True)
        await wait_all_tasks_blocked()

        assert len(rig.callees) == 2


# ---- nested calls --------------------------------------------------------------------------------


async def test_nested_call_and_its_result_pass(autojump_clock: trio.abc.Clock) -> None:
    """A nested call reaches the gateway as it was said, and its result comes back."""
    async with rig_of() as rig:
        caller = await rig.nest()
        rig.nested.give(rig.agent_up, 1)
        await wait_all_tasks_blocked()
        (callee,) = rig.callees
        stream_of(callee).send(Result(0, 0.5, b"\x01", []), end=True)
        await wait_all_tasks_blocked()

        assert callee.opening.ticket == CALL_ID
        assert caller.told == [Result(0, 0.5, b"\x01", [])]
        assert not rig.nested.waiting


async def test_nested_call_without_room_is_refused_in_time(
    autojump_clock: trio.abc.Clock,
) -> None:
    """A nested call that finds no room at the gateway fails instead of waiting for ever."""
    async with rig_of() as rig:
        caller = await rig.nest()
        rig.nested.hold()
        await trio.sleep(NESTED_WAIT_S - 0.5)
        assert caller.told == []
        await trio.sleep(1)
        (failure,) = caller.told

        assert (failure.code, failure.maybe_executed) == (ErrorCode.OVERLOADED, False)
        assert not rig.nested.waiting


async def test_nested_call_of_a_lost_gateway(autojump_clock: trio.abc.Clock) -> None:
    """A nested call whose gateway vanished may have run, and says so."""
    async with rig_of() as rig:
        caller = await rig.nest()
        rig.nested.give(rig.agent_up, 1)
        await wait_all_tasks_blocked()
        rig.gateway.stream.close_now()
        await trio.sleep(1)
        (failure,) = caller.told

        assert (failure.code, failure.maybe_executed) == (ErrorCode.GATEWAY_LOST, True)


async def test_nested_call_of_a_dead_worker_is_cancelled(autojump_clock: trio.abc.Clock) -> None:
    """When the worker that made a nested call dies, the gateway is asked to stop it."""
    async with rig_of() as rig:
        await rig.nest()
        rig.nested.give(rig.agent_up, 1)
        await wait_all_tasks_blocked()
        (callee,) = rig.callees
        rig.worker_link.stream.close_now()
        await trio.sleep(1)

        assert callee.told == [("cancel", 1, 5000)]
        stream_of(callee).send(Failure(ErrorCode.CANCELLED, "", True, None, {}), end=True)
        await wait_all_tasks_blocked()
        assert rig.agent_up.streams_open == 0


async def test_nested_call_that_is_given_up_while_it_waits(
    autojump_clock: trio.abc.Clock,
) -> None:
    """A nested call that its worker resets before it got out goes nowhere."""
    async with rig_of() as rig:
        caller = await rig.nest()
        rig.nested.hold()
        stream_of(caller).reset(ErrorCode.CANCELLED, "gone")
        await wait_all_tasks_blocked()

        assert not rig.nested.waiting
        assert rig.callees == []
