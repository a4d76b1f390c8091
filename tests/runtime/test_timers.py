"""The heap of deadlines, run by its owner or started for its first timer."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from easyremote.timers import COMPACT_MIN, Timers


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

    assert len(timers._heap) <= 2 * COMPACT_MIN
    assert len(timers) == 0


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


def started() -> Timers:
    """Return timers whose task is started when there is one to wait for."""
    return Timers(trio.current_time, start=trio.lowlevel.spawn_system_task)


async def test_a_task_is_started_for_the_first_timer_and_again_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A nearer one that comes later is not slept through, nor one after the task has ended."""
    timers = started()
    fired: list[str] = []
    timers.after(30, lambda: fired.append("late"))
    gone = timers.after(20, lambda: fired.append("never"))
    await trio.sleep(1)
    timers.after(5, lambda: fired.append("early"))
    timers.cancel(gone)
    timers.cancel(gone)
    await trio.sleep(40)
    assert fired == ["early", "late"]
    assert len(timers) == 0
    timers.after(1, lambda: fired.append("again"))
    await trio.sleep(2)

    assert fired == ["early", "late", "again"]


async def test_cancelled_timers_do_not_pile_up_beside_a_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A million calls with a deadline far away cost no million entries."""
    timers = started()
    for _ in range(COMPACT_MIN * 4):
        timers.cancel(timers.after(3600, lambda: None))

    assert len(timers._heap) <= COMPACT_MIN
    assert len(timers) == 0
