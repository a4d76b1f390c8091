"""The fair queue: order, fairness, patience, positions, and when a call may expect to start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.pending import (
    LIST_AGE_S,
    NEAR,
    PATIENCE_S,
    Level,
    PendingQueue,
    eta_s,
    first,
)
from easyremote.scheduler.shares import Share, Shares


@dataclass(eq=False)
class Waiter:
    """A call, as far as the queue goes."""

    sequence: int
    share: Share
    priority: int = 0
    level: Level[Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.share.user}{self.sequence}"


class World:
    """A queue with a clock and users."""

    def __init__(self, *, limit: int = 100_000, half_life_s: float = 600.0) -> None:
        self.shares = Shares(half_life_s)
        self.queue = PendingQueue[Waiter](self.shares, limit)
        self.now = 0.0
        self.sequence = 0

    def add(self, user: str, priority: int = 0) -> Waiter:
        self.sequence += 1
        call = Waiter(self.sequence, self.shares.of(user, self.now), priority)
        self.queue.add(call, self.now)
        return call

    def take(self, cost_s: float = 1.0) -> Waiter:
        call = self.queue.head(self.now)
        assert call is not None
        self.queue.leave(call)
        self.queue.served(call.share, cost_s, self.now)
        return call

    def order(self) -> list[str]:
        return [call.name for call in self.queue.calls(self.now)]


def test_one_user_is_served_by_priority_and_then_in_order_of_arrival() -> None:
    """Within one's own share priority orders, then arrival."""
    world = World()
    for priority in (0, 5, 0, -1, 5):
        world.add("a", priority)

    assert [world.take().sequence for _ in range(5)] == [2, 5, 1, 3, 4]
    assert world.queue.head(world.now) is None


def test_priority_moves_nobody_past_another_user() -> None:
    """A priority orders calls of one user only."""
    world = World()
    world.add("a")
    world.add("b", 1000)
    world.add("a")
    world.add("b", 1000)

    assert [world.take().share.user for _ in range(4)] == ["a", "b", "a", "b"]


def test_a_flood_does_not_delay_another_user() -> None:
    """Behind 10,000 calls of Alice, Bob's only call is next."""
    world = World()
    for _ in range(10_000):
        world.add("alice")
    for _ in range(50):
        world.take()
    bob = world.add("bob")

    assert world.queue.position(bob, world.now) == 0
    assert world.take() is bob


def test_a_call_that_is_put_back_keeps_its_place() -> None:
    """Calls that nodes gave back go before those that arrived later, in their old order."""
    world = World()
    calls = [world.add("a") for _ in range(6)]
    taken = [world.take() for _ in range(4)]
    for call in (taken[2], taken[0], taken[3]):
        world.queue.add(call, world.now)
    world.queue.leave(taken[3])
    world.queue.add(taken[3], world.now)

    assert world.order() == ["a1", "a3", "a4", "a5", "a6"]
    assert [world.take() for _ in range(5)] == [calls[0], *calls[2:]]


def test_a_later_call_may_go_before_one_that_was_put_back_still_later() -> None:
    """The earliest is next, whether it was put back or not."""
    world = World()
    calls = [world.add("a") for _ in range(3)]
    world.queue.leave(calls[1])
    world.queue.add(calls[1], world.now)

    assert [world.take().sequence for _ in range(3)] == [1, 2, 3]


def test_a_call_may_leave_from_anywhere() -> None:
    """A call that is cancelled while it waits is gone, and its level and lane with it."""
    world = World()
    calls = [world.add("a", priority) for priority in (0, 0, 1)]
    other = world.add("b")
    world.queue.leave(calls[2])
    assert world.order() == ["a1", "b4", "a2"]
    world.queue.leave(other)
    assert (world.queue.users, other.level) == (1, None)
    world.queue.leave(calls[0])
    world.queue.leave(calls[1])

    assert (world.queue.waiting, world.queue.users, world.order()) == (0, 0, [])


def test_the_last_lane_is_used_again_and_makes_way() -> None:
    """A queue that runs empty serves the same user, and another, as a fresh one would."""
    world = World()
    world.add("a", 3)
    world.take()
    world.add("a", 1)
    world.take()
    world.add("b")
    world.add("a")
    world.add("b")

    assert world.order() == ["b3", "b5", "a4"]  # Alice had two calls before.
    assert [world.take().name for _ in range(3)] == ["b3", "b5", "a4"]


def test_the_bound_is_visible() -> None:
    """Whoever adds can see that the queue is full, and how many calls are whose."""
    world = World(limit=2)
    call = world.add("a")
    assert not world.queue.is_full
    world.add("a")

    assert world.queue.is_full
    assert world.queue.waiting_of(call.share) == 2
    assert world.queue.waiting_of(world.shares.of("b", 0.0)) == 0


def test_service_follows_weights_and_costs() -> None:
    """With calls of 3 s against calls of 1 s, and weight 2 against 1, seconds are 2 to 1."""
    world = World(half_life_s=1e9)
    world.shares.weigh(world.shares.of("a", 0.0), 2.0)
    for _ in range(2000):
        world.add("a")
        world.add("b")
    used = {"a": 0.0, "b": 0.0}
    for _ in range(600):
        head = world.queue.head(world.now)
        assert head is not None
        cost_s = {"a": 3.0, "b": 1.0}[head.share.user]
        used[world.take(cost_s).share.user] += cost_s

    assert used["a"] == pytest.approx(2.0 * used["b"], abs=4.0)


@given(
    st.lists(st.floats(0.01, 5.0), min_size=2, max_size=120),
    st.lists(st.floats(0.0, 2.0), min_size=1, max_size=10),
)
def test_equal_users_get_equal_service_within_one_call(
    costs: list[float], early: list[float]
) -> None:
    """Over any interval in which both wait, two equal users' services differ by one call's."""
    world = World(half_life_s=1e12)
    for _ in range(len(costs) + len(early)):
        world.add("a")
        world.add("b")
    difference, differences = 0.0, []
    for cost_s in (*early, *costs):
        difference += cost_s if world.take(cost_s).share.user == "a" else -cost_s
        differences.append(difference)
    # Of any interval: the difference at its end less that at its begin.
    largest = max((*early, *costs))

    assert max(differences) - min((0.0, *differences)) <= 2 * largest + 1e-6
    assert max(abs(one) for one in differences) <= largest + 1e-6


@given(st.lists(st.tuples(st.integers(0, 6), st.floats(0.0, 30.0)), min_size=1, max_size=150))
def test_nobody_starves(history: list[tuple[int, float]]) -> None:
    """A user who used very much is served within his patience although newcomers never end."""
    world = World()
    glutton = world.shares.of("glutton", 0.0)
    world.shares.charge(glutton, 1e7, 0.0)
    call = world.add("glutton")
    waited_from = world.now
    world.add("newcomer")
    for number, (burst, later_s) in enumerate(history):
        for one in range(burst):
            world.add(f"newcomer {number} {one}")
        patience_s = world.queue.patience_s()
        took = world.take()

        if took is call:
            break
        assert world.queue.users == 1 or world.now - waited_from < patience_s
        world.now += later_s
        if world.queue.waiting == 1:
            world.add("newcomer")


def test_patience_gives_one_call_and_then_waits_again() -> None:
    """A user out of patience gets a single call before the others go on."""
    world = World()
    world.shares.charge(world.shares.of("a", 0.0), 1e7, 0.0)
    for _ in range(3):
        world.add("a")
    for _ in range(6):
        world.add("b")
    order = [world.take().share.user]
    world.now = PATIENCE_S
    world.queue.served(world.shares.of("b", world.now), 1.0, world.now)

    assert world.queue.rank(world.now)[0] == float("-inf")
    assert world.order() == ["a1", "b5", "b6", "b7", "b8", "b9", "a2", "a3"]
    order += [world.take().share.user for _ in range(3)]
    assert order == ["b", "a", "b", "b"]


def test_an_estimate_that_was_too_high_is_given_back_to_the_order() -> None:
    """When a call turns out cheap, its user's waiting calls move forward."""
    world = World()
    for _ in range(3):
        world.add("a")
    world.take(100.0)
    for _ in range(3):
        world.add("b")
    world.take(10.0)
    assert world.order()[0] == "b5"
    world.shares.settle(world.shares.of("a", 0.0), 100.0, 0.0, 1.0, 0.0)
    assert world.order()[0] == "a2"

    assert world.take().name == "a2"


def test_usage_elsewhere_counts() -> None:
    """What a user used of other functions moves him back here."""
    world = World()
    world.add("a")
    world.add("b")
    elsewhere = PendingQueue[Waiter](world.shares, 10)
    elsewhere.served(world.shares.of("a", 0.0), 5.0, 0.0)

    assert world.order() == ["b2", "a1"]
    assert world.take().name == "b2"


def test_of_several_queues_the_fairest_goes_first() -> None:
    """Users compare by usage; one user's queues by priority, then by arrival."""
    world = World()
    other = PendingQueue[Waiter](world.shares, 10)
    alice, bob = world.shares.of("a", 0.0), world.shares.of("b", 0.0)
    world.add("a")
    other.add(Waiter(2, alice), 0.0)
    assert first([other, world.queue], 0.0) is world.queue
    other.add(Waiter(3, alice, priority=1), 0.0)
    assert first([world.queue, other], 0.0) is other
    world.queue.served(alice, 1.0, 0.0)
    other.add(Waiter(4, bob), 0.0)

    assert first([world.queue, other], 0.0) is other
    assert other.head(0.0) is not None
    assert other.rank(0.0) == (0.0, 0.0, 4)


def test_entries_of_a_long_history_are_cleared() -> None:
    """Keys that shrink again and again leave no trace behind."""
    world = World()
    for user in "abc":
        world.add(user)
        world.add(user)
    for _ in range(1000):
        for user in "abc":
            share = world.shares.of(user, world.now)
            world.shares.charge(share, 2.0, world.now)
            world.shares.settle(share, 2.0, world.now, 1.0, world.now)

    assert len(world.queue._heap) < 100
    assert sorted(world.take().share.user for _ in range(3)) == ["a", "b", "c"]


steps = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abcd"), st.integers(-1, 2)),
    st.tuples(st.just("take"), st.floats(0.0, 5.0), st.booleans()),
    st.tuples(st.just("back"), st.integers(0, 100), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 100), st.just(0)),
    st.tuples(st.just("wait"), st.floats(0.0, 100.0), st.just(0)),
    st.tuples(st.just("settle"), st.integers(0, 100), st.floats(0.0, 5.0)),
)


@given(st.lists(steps, max_size=80))
def test_positions_agree_with_the_order_of_taking(history: list[tuple[str, Any, Any]]) -> None:
    """After any history the calls are taken in the order that was shown, and none is lost."""
    world = World(half_life_s=50.0)
    queue, waiting, taken = world.queue, dict[int, Waiter](), list[tuple[Waiter, float, float]]()
    for what, one, two in history:
        if what == "add":
            call = world.add(one, two)
            waiting[call.sequence] = call
        elif what == "take" and waiting:
            call = world.take(one)
            del waiting[call.sequence]
            taken.append((call, one, world.now))
        elif what == "back" and taken:
            call, cost_s, since = taken.pop(one % len(taken))
            world.shares.settle(call.share, cost_s, since, 0.0, world.now)
            queue.add(call, world.now)
            waiting[call.sequence] = call
        elif what == "leave" and waiting:
            call = waiting.pop(sorted(waiting)[one % len(waiting)])
            queue.leave(call)
        elif what == "wait":
            world.now += one
        elif what == "settle" and taken:
            call, cost_s, since = taken.pop(one % len(taken))
            world.shares.settle(call.share, cost_s, since, two, world.now)
        assert queue.waiting == len(waiting)
    shown = list(queue.calls(world.now))
    positions = [queue.position(call, world.now) for call in shown]
    mean = 0.1 if queue.cost_s is None else queue.cost_s
    really = [world.take(mean) for _ in shown]

    assert positions == list(range(len(shown)))
    assert really == shown
    assert sorted(call.sequence for call in shown) == sorted(waiting)


def test_far_positions_come_from_a_list_of_some_age() -> None:
    """Far positions follow the calls that were taken; near ones are always exact."""
    world = World()
    calls = [world.add("a") for _ in range(NEAR * 3)]
    assert [world.queue.position(calls[at], 0.0) for at in (0, NEAR, NEAR * 2)] == [
        0, NEAR, NEAR * 2,
    ]  # fmt: skip
    for _ in range(10):
        world.take()
    late = world.add("b")

    assert world.queue.position(calls[NEAR * 2], 0.0) == NEAR * 2 - 10
    assert world.queue.position(calls[20], 0.0) == 11  # Bob is first.
    assert world.queue.position(late, 0.0) == 0
    last = world.add("a")
    assert world.queue.position(last, 0.0) == world.queue.waiting - 1
    world.now = LIST_AGE_S
    assert world.queue.position(calls[NEAR * 2], world.now) == NEAR * 2 - 9


@pytest.mark.parametrize(
    ("ahead", "slots", "running_s", "expected_s"),
    [
        (0, 1, [], 0.0),
        (0, 1, [4.0], 6.0),
        (1, 1, [4.0], 16.0),
        (0, 2, [4.0], 0.0),
        (1, 2, [4.0], 6.0),
        (5, 2, [4.0, 9.0], 26.0),
        (0, 1, [25.0], 5.0),
        (0, 1, [1.0, 9.0], 1.0),
    ],
)
def test_a_start_is_foreseen_from_what_runs(
    ahead: int, slots: int, running_s: list[float], expected_s: float
) -> None:
    """Bodies of 10 s: what is left of those that run, then rounds of all slots."""
    assert eta_s(ahead, slots, 10.0, running_s) == expected_s


@given(st.integers(0, 40), st.integers(1, 6), st.lists(st.floats(0.0, 9.99), max_size=6), st.data())
def test_the_foreseen_start_is_that_of_a_simulation(
    ahead: int, slots: int, running_s: list[float], data: st.DataObject
) -> None:
    """With bodies of equal length, it is exactly when the call would start."""
    running_s = running_s[:slots]
    free = sorted([0.0] * (slots - len(running_s)) + [10.0 - ran for ran in running_s])
    for _ in range(ahead):
        free[0] += 10.0
        free.sort()

    assert eta_s(ahead, slots, 10.0, running_s) == pytest.approx(free[0])


def test_a_queue_that_is_given_up_leaves_nothing_at_its_users() -> None:
    """The last lane stays in a queue for its user's next call, and goes with the queue."""
    world = World()
    for user in ("alice", "bob"):
        world.add(user)
    while world.queue.waiting:
        world.take()
    world.add("carol")
    world.take()
    shares = [world.shares.of(user, 0.0) for user in ("alice", "bob", "carol")]
    assert sum(len(share.lanes) for share in shares) == 1

    world.queue.close()

    assert [share.lanes for share in shares] == [[], [], []]
    world.add("dave")
    assert world.take().name == "dave4"
