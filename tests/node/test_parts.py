"""Small parts of the node: gates, timers, who may send pickles."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
import trio

from easyremote.node.gate import Gate
from easyremote.node.spec import NodeLimits, NodeSpec, accepts_pickles
from easyremote.node.timers import COMPACT_MIN, Timers

WAIT_S = 10.0


class State:
    """Something that the io thread changes and a body waits for."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.value = 0

    def set(self, value: int) -> None:
        self.value = value
        self.gate.wake()


def test_gate_wakes_threads_and_both_kinds_of_tasks() -> None:
    """A thread, an asyncio task and a trio task that wait on one gate are all woken."""
    state = State()
    done: list[str] = []

    def in_thread() -> None:
        state.gate.wait(lambda: state.value == 1)
        done.append("thread")

    def in_asyncio() -> None:
        asyncio.run(state.gate.wait_async(lambda: state.value == 1))
        done.append("asyncio")

    def in_trio() -> None:
        trio.run(state.gate.wait_async, lambda: state.value == 1)
        done.append("trio")

    threads = [threading.Thread(target=fn) for fn in (in_thread, in_asyncio, in_trio)]
    for thread in threads:
        thread.start()
    while len(state.gate._waiters) < 3:
        assert all(thread.is_alive() for thread in threads)
    state.set(1)
    for thread in threads:
        thread.join(WAIT_S)

    assert sorted(done) == ["asyncio", "thread", "trio"]


def test_gate_ignores_news_that_is_not_enough() -> None:
    """A waiter that is woken for nothing waits again; one that need not wait does not."""
    state = State()
    thread = threading.Thread(target=lambda: state.gate.wait(lambda: state.value == 2))
    thread.start()
    while not state.gate._waiters:
        assert thread.is_alive()
    state.set(1)
    while not state.gate._waiters:
        assert thread.is_alive()
    state.set(2)
    thread.join(WAIT_S)
    state.gate.wait(lambda: True)

    assert not thread.is_alive()


def test_gate_survives_a_loop_that_was_closed() -> None:
    """Waking a waiter whose event loop is gone is no error."""
    state = State()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(state.gate.wait_async(lambda: False), 0.001)

    asyncio.run(give_up())

    async def give_up_in_trio() -> None:
        with trio.move_on_after(0.001):
            await state.gate.wait_async(lambda: False)

    trio.run(give_up_in_trio)
    state.set(1)

    assert state.gate._waiters == []


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_timers_fire_in_order_and_once() -> None:
    """What is due is called in the order of its moments; what was cancelled is not."""
    clock, fired = Clock(), []
    timers = Timers(clock)
    timers.at(103, lambda: fired.append(3))
    timers.at(101, lambda: fired.append(1))
    cancelled = timers.at(102, lambda: fired.append(2))
    timers.cancel(cancelled)
    timers.cancel(cancelled)
    timers.fire()
    assert fired == []
    clock.now = 101.5
    timers.fire()
    assert fired == [1]
    clock.now = 110
    timers.fire()
    timers.fire()

    assert fired == [1, 3]
    assert len(timers) == 0


def test_cancelled_timers_do_not_pile_up() -> None:
    """Calls that end long before their deadline leave no timer behind for long."""
    clock = Clock()
    timers = Timers(clock)
    for _ in range(20 * COMPACT_MIN):
        timers.cancel(timers.at(10_000, lambda: None))

    assert len(timers) <= 2 * COMPACT_MIN


async def test_timer_task_wakes_for_a_sooner_moment(autojump_clock: object) -> None:
    """A timer that is added while the task sleeps for a later one fires at its own moment."""
    fired: list[float] = []
    timers = Timers(trio.current_time)
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        timers.at(begin + 50, lambda: fired.append(trio.current_time() - begin))
        await trio.sleep(1)
        timers.at(begin + 5, lambda: fired.append(trio.current_time() - begin))
        await trio.sleep(60)
        nursery.cancel_scope.cancel()

    assert fired == pytest.approx([5, 50])


@pytest.mark.parametrize("roles", [["guest"], ["viewer"], []])
def test_narrow_token_never_ships(roles: Sequence[str]) -> None:
    """Whatever `accept_code` says, a token that may not ship code brings no pickle."""
    for accept in (True, "members", "owner", ("alice",)):
        assert not accepts_pickles(accept, "alice", roles, is_owner=True)


def test_secrets_of_a_spec_are_not_shown() -> None:
    """The repr of a node description holds neither its token nor its join string."""
    spec = NodeSpec(None, "n", token="secret-token", join="secret-join")

    assert "secret" not in repr(spec)


def test_limits_name_what_is_set() -> None:
    """Only limits that were given are named as not enforced."""
    assert NodeLimits(gpus=(0,), hours="20:00-07:00").named() == ["gpus", "hours"]
    assert NodeLimits().named() == []
