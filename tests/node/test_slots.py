"""Slots, seats and loans, without a link: the executor is a small fake."""

# ruff: noqa: ARG005 - a body takes its call, whether it looks at it or not
from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from easyremote.errors import OverloadedError
from easyremote.node import slots
from easyremote.node.slots import Loan, Seat, SlotGroup

WAIT_S = 10.0


class FakeTask:
    """What a group needs of a call: a body and a few fields."""

    claimed = withdrawn = interrupt_sent = interrupt_due = interrupt_repeated = False
    holds_slot = True
    seat: Seat | None = None
    depth = 0

    def __init__(self, body: Callable[[FakeTask], Any]) -> None:
        self.body = body
        self.started = threading.Event()
        self.thread = 0

    def lend(self) -> Loan:
        return Loan(self)  # type: ignore[arg-type]

    def undisturbed(self, fn: Callable[[], None]) -> None:
        seat = self.seat
        if seat is None or not seat.open or threading.get_ident() != seat.thread_id:
            fn()
        else:
            seat.undisturbed(self, fn)  # type: ignore[arg-type]


class FakeExecutor:
    """Runs bodies and keeps what they returned."""

    def __init__(self) -> None:
        self.outcomes: queue.Queue[Any] = queue.Queue()
        self.started: list[Any] = []

    def execute(self, seat: Seat, task: Any) -> Any:
        task.thread = threading.get_ident()
        task.started.set()
        value, error = seat.attempt(task, task.body, task)
        return error if error is not None else value

    def report(self, task: Any, outcome: Any, follower: Any) -> None:
        self.outcomes.put(outcome)

    def report_started(self, task: Any) -> None:
        self.started.append(task)

    def next(self) -> Any:
        return self.outcomes.get(timeout=WAIT_S)


class Rig:
    def __init__(self, count: int) -> None:
        self.executor = FakeExecutor()
        self.group = SlotGroup("g", count, self.executor)  # type: ignore[arg-type]

    def submit(self, body: Callable[[Any], Any]) -> FakeTask:
        task = FakeTask(body)
        self.group.submit(task)  # type: ignore[arg-type]
        return task


def test_bodies_never_outnumber_slots() -> None:
    """With two slots and many calls, two bodies run at once and never three."""
    rig = Rig(2)
    lock, running, seen = threading.Lock(), [0], []
    go = threading.Event()

    def body(task: FakeTask) -> int:
        with lock:
            running[0] += 1
            seen.append(running[0])
        go.wait(WAIT_S)
        with lock:
            running[0] -= 1
        return 1

    tasks = [rig.submit(body) for _ in range(20)]
    assert tasks[0].started.wait(WAIT_S) and tasks[1].started.wait(WAIT_S)
    assert not tasks[2].started.is_set()
    go.set()

    assert [rig.executor.next() for _ in range(20)] == [1] * 20
    assert max(seen) == 2


def test_main_seat_is_preferred() -> None:
    """All calls of a group with a main seat run on the thread that called `run`."""
    rig = Rig(1)
    seat = rig.group.main_seat()
    main = threading.Thread(target=seat.run, daemon=True)
    main.start()
    threads = []
    for _ in range(5):
        task = rig.submit(lambda task: "done")
        assert rig.executor.next() == "done"
        threads.append(task.thread)
    rig.group.close()
    main.join(WAIT_S)

    assert set(threads) == {main.ident}


def test_withdrawn_call_never_starts() -> None:
    """A queued call that is taken back is skipped; one that was claimed cannot be taken back."""
    rig = Rig(1)
    go = threading.Event()
    first = rig.submit(lambda task: go.wait(WAIT_S))
    assert first.started.wait(WAIT_S)
    second = rig.submit(lambda task: "second")
    third = rig.submit(lambda task: "third")

    assert rig.group.withdraw(second)  # type: ignore[arg-type]
    assert not rig.group.withdraw(first)  # type: ignore[arg-type]
    go.set()
    assert rig.executor.next() is True
    assert rig.executor.next() == "third"
    assert not second.started.is_set()
    assert third.started.is_set()


def test_lent_slot_runs_the_next_call() -> None:
    """A body that waits for another call lets it run although there is one slot only."""
    rig = Rig(1)
    inner_done = threading.Event()

    def inner(task: FakeTask) -> str:
        inner_done.set()
        return "inner"

    def outer(task: FakeTask) -> str:
        rig.submit(inner)
        with task.lend():
            assert inner_done.wait(WAIT_S)
        return "outer"

    rig.submit(outer)

    assert {rig.executor.next(), rig.executor.next()} == {"inner", "outer"}


def test_resumed_body_comes_before_the_queue() -> None:
    """When its answer is there, a body gets the next slot, ahead of everybody who queues."""
    rig = Rig(1)
    order: list[str] = []
    release, resumed = threading.Event(), threading.Event()
    answer = threading.Event()

    def outer(task: FakeTask) -> None:
        with task.lend():
            assert answer.wait(WAIT_S)
            resumed.set()
        order.append("outer")

    def between(task: FakeTask) -> None:
        answer.set()
        assert resumed.wait(WAIT_S)
        # The body that waits for its slot stands in line before this one lets go of it.
        while not rig.group._returning:
            assert not release.wait(0.001)
        order.append("between")

    rig.submit(outer)
    rig.submit(between)
    rig.submit(lambda task: order.append("queued"))
    for _ in range(3):
        rig.executor.next()

    assert order == ["between", "outer", "queued"]


def test_slots_are_conserved_over_many_loans() -> None:
    """After a deep chain of loans exactly the declared slots are free again."""
    rig = Rig(2)

    def chain(depth: int) -> Callable[[FakeTask], int]:
        def body(task: FakeTask) -> int:
            if depth == 0:
                return 0
            done = threading.Event()

            def inner(task: FakeTask) -> int:
                try:
                    return chain(depth - 1)(task)
                finally:
                    done.set()

            child = rig.submit(inner)
            with task.lend():
                assert done.wait(WAIT_S)
            assert child.started.is_set()
            return depth

        return body

    for _ in range(5):
        rig.submit(chain(20))
    for _ in range(5 * 21):
        assert not isinstance(rig.executor.next(), BaseException)
    group = rig.group
    while True:  # The last seat reports before it passes its lock on.
        with group.lock:
            if group._free == 2:
                break

    assert group.lent == 0
    assert not group._returning


def test_two_threads_of_one_body_lend_once() -> None:
    """A body with several waiting threads lends its one slot once and gets one back."""
    rig = Rig(1)
    both = threading.Barrier(2)

    def outer(task: FakeTask) -> int:
        def wait() -> None:
            with task.lend():
                both.wait(WAIT_S)

        helpers = [threading.Thread(target=wait) for _ in range(2)]
        for helper in helpers:
            helper.start()
        for helper in helpers:
            helper.join(WAIT_S)
        return rig.group.lent

    rig.submit(outer)

    assert rig.executor.next() == 0
    assert rig.group.lent == 0


def test_thread_that_outlives_its_call_has_no_slot_to_lend() -> None:
    """A loan after the end of the call changes nothing, one that began before it takes nothing."""
    rig = Rig(1)
    entered, go = threading.Event(), threading.Event()
    left = threading.Event()

    def outer(task: FakeTask) -> str:
        def stray() -> None:
            with task.lend():
                entered.set()
                assert go.wait(WAIT_S)
            left.set()

        threading.Thread(target=stray, daemon=True).start()
        assert entered.wait(WAIT_S)
        return "outer"

    outer_task = rig.submit(outer)
    assert rig.executor.next() == "outer"
    go.set()
    assert left.wait(WAIT_S)
    with outer_task.lend():
        pass
    rig.submit(lambda task: "next")

    assert rig.executor.next() == "next"
    assert (rig.group.lent, rig.group._free) == (0, 1)


def test_too_deep_chain_is_refused() -> None:
    """A chain of calls that wait for one another ends with an error, not with a deadlock."""
    rig = Rig(1)

    def outer(task: FakeTask) -> None:
        task.depth = slots.DEPTH_MAX
        with task.lend():
            pass

    rig.submit(outer)

    assert isinstance(rig.executor.next(), OverloadedError)


def test_too_many_loans_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of waiting bodies is bounded: the one too many is told so."""
    monkeypatch.setattr(slots, "LENT_MAX", 0)
    rig = Rig(1)

    def outer(task: FakeTask) -> None:
        with task.lend():
            pass

    rig.submit(outer)

    assert isinstance(rig.executor.next(), OverloadedError)


def test_interrupt_hits_the_running_body_only() -> None:
    """An endless loop ends by an interrupt, and the next call of the same thread is unharmed."""
    rig = Rig(1)

    def spin(task: FakeTask) -> None:
        while True:
            pass

    task = rig.submit(spin)
    assert task.started.wait(WAIT_S)
    while rig.executor.outcomes.empty():
        rig.group.interrupt(task)  # type: ignore[arg-type]
    assert type(rig.executor.next()).__name__ == "Interrupted"
    rig.group.interrupt(task)  # type: ignore[arg-type]
    after = rig.submit(lambda task: sum(range(10_000)))

    assert rig.executor.next() == sum(range(10_000))
    assert after.thread == task.thread


def test_interrupt_during_our_own_instructions_waits() -> None:
    """While a body is inside code of ours it is not interrupted; afterwards it is, once."""
    rig = Rig(1)
    inside, sent = threading.Event(), threading.Event()
    finished = []

    def ours() -> None:
        inside.set()
        assert sent.wait(WAIT_S)
        finished.append(True)

    def body(task: FakeTask) -> None:
        assert task.seat is not None
        task.seat.undisturbed(task, ours)  # type: ignore[arg-type]
        while True:
            pass

    task = rig.submit(body)
    assert inside.wait(WAIT_S)
    rig.group.interrupt(task)  # type: ignore[arg-type]
    assert not task.interrupt_sent
    sent.set()

    assert type(rig.executor.next()).__name__ == "Interrupted"
    assert finished == [True]
