"""Choosing the best place: the properties that hold whatever the nodes look like."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler import place as module
from easyremote.scheduler import score
from easyremote.scheduler.filter import Request, rejection
from easyremote.scheduler.fleet import ROWS_FIRST, Fleet
from easyremote.scheduler.host import SHUT_BELOW, Place
from easyremote.scheduler.model import NO_NEEDS, Needs, NodeSnapshot
from easyremote.scheduler.place import LONG, SHORT, Places
from easyremote.scheduler.policy import DEFAULT, STRATEGIES, Policy, ScoreWeights
from easyremote.scheduler.transfer import LARGE_BYTES, Large

from .cluster import GB, clusters, gpu, host, place, pool, sample, wants

SHARP = Policy(epsilon=0.0)
policies = st.sampled_from([DEFAULT, SHARP, *(STRATEGIES[n] for n in ("round_robin", "cost"))])


@pytest.fixture
def always_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG", 0)
    monkeypatch.setattr(module, "SHORT", 0)


def long_pool(places: Sequence[Place], needs: Needs, policy: Policy = DEFAULT) -> Places:
    """The same places, asked through the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONG", 0)
        return pool(*places, needs=needs, policy=policy)


# ---- properties ----------------------------------------------------------------------------------


@given(clusters(), wants)
def test_a_placement_passes_every_filter_and_a_refusal_has_a_reason_everywhere(
    places: list[Place], needs: Needs
) -> None:
    """What is chosen can run the call; if nothing is, every place says why not."""
    asked = pool(*places, needs=needs)
    request = Request(needs, desperate=asked.desperate)
    chosen = asked.choose()
    reasons = [rejection(one, request) for one in places]
    if chosen is None:
        assert None not in reasons
    else:
        assert rejection(chosen, request) is None
        assert not needs or chosen.host.reserve(needs) is not None


@given(clusters(), wants)
def test_a_free_place_takes_what_would_be_given_to_it(places: list[Place], needs: Needs) -> None:
    """What a call is asked when it comes, and a place when it becomes free, agree."""
    asked = pool(*places, needs=needs)
    request = Request(needs, desperate=asked.desperate)
    taking = [one for one in places if asked.takes(one)]

    assert taking == [one for one in places if rejection(one, request) is None]
    assert (asked.choose() is None) == (not taking)
    assert not any(asked.takes(one, exclude={one.host.node_id}) for one in places)


@given(clusters(max_size=5), st.lists(wants, max_size=40))
def test_no_node_is_over_committed(places: list[Place], calls: list[Needs]) -> None:
    """However many calls come, no window, processor, memory or device is promised twice."""
    fleet, uses = Fleet(), count(1)
    pools = {needs: pool(*places, needs=needs, fleet=fleet) for needs in set(calls)}
    for needs in calls:
        chosen = pools[needs].choose()
        if chosen is None:
            continue
        if needs:
            assert chosen.host.reserve(needs) is not None
        chosen.take(next(uses))
    for one in places:
        ledger = one.host.ledger
        total = ledger.total

        assert one.busy <= one.limit
        assert total.cpus is not None and ledger.cpus <= total.cpus
        assert total.memory_bytes is not None and ledger.memory_bytes <= total.memory_bytes
        for index, device in ledger.devices.items():
            assert ledger.used_bytes.get(index, 0) <= device.total_bytes
            assert ledger.shares.get(index, 0.0) <= 1.0 + 1e-6


@given(clusters(), wants, st.integers(1, 4), st.integers(0, 2))
def test_a_free_node_more_never_makes_a_call_unplaceable(
    places: list[Place], needs: Needs, slots: int, gpus: int
) -> None:
    """Whatever could be placed can be placed when a node comes, whether or not that one can."""
    before = pool(*places, needs=needs).choose()
    new = place("new", slots, gpus=[gpu(index) for index in range(gpus)])
    after = pool(*places, new, needs=needs).choose()
    if before is not None or new.host.ledger.ever(needs) is None:
        assert after is not None
    else:
        assert after is None


@given(clusters(), wants, policies, st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(
    places: list[Place], needs: Needs, policy: Policy, rng: random.Random
) -> None:
    """Nodes that are listed otherwise are chosen alike."""
    shuffled = list(places)
    rng.shuffle(shuffled)

    assert pool(*places, needs=needs, policy=policy).choose() is (
        pool(*shuffled, needs=needs, policy=policy).choose()
    )


@given(clusters(min_size=1), wants, st.data())
def test_table_and_loop_agree_while_calls_come_and_go(
    places: list[Place], needs: Needs, data: st.DataObject
) -> None:
    """A long pool chooses as a short one does, whatever happened to its places since."""
    short, long = pool(*places, needs=needs), long_pool(places, needs)
    uses = count(100)
    held = []
    for _ in range(data.draw(st.integers(1, 12))):
        chosen = short.choose()
        assert long.choose() is chosen
        what = data.draw(st.sampled_from(["take", "take", "release", "sample", "tick", "fail"]))
        one = data.draw(st.sampled_from(places))
        if what == "take" and chosen is not None:
            chosen.take(next(uses))
            if needs:
                held.append((chosen, chosen.host.reserve(needs)))
        elif what == "release" and held:
            chosen, reservation = held.pop()
            chosen.release()
            assert reservation is not None
            chosen.host.give_back(reservation)
        elif what == "sample":
            one.host.heard({"cpu_percent": data.draw(st.floats(0, 100))}, 100.0)
        elif what == "tick":
            one.host.tick(104.0)
        elif what == "fail":
            one.host.failed(100.0)


@given(clusters(min_size=1), st.floats(0.0, 1.0))
def test_the_kept_value_is_the_total_of_the_scores(places: list[Place], rtt_s: float) -> None:
    """The number of which a choice is made is what its explanation adds up to."""
    for one in places:
        one.host.saw_rtt(rtt_s)
        if one.value > SHUT_BELOW:
            weights = one.host.policy.weights
            assert math.isclose(one.value, score.total(one.scores(), weights), abs_tol=1e-9)
        scores = one.scores()
        assert all(0.0 <= value <= 1.0 for value in (*scores[:5], scores.doubt))


@given(clusters(max_size=6), wants, policies)
def test_the_quick_way_and_the_long_way_agree(
    places: list[Place], needs: Needs, policy: Policy
) -> None:
    """Kept values choose like filter, score and order; for the hosts' own policy or another's."""
    quick = pool(*places, needs=needs)
    slow = pool(*places, needs=needs, policy=Policy("same", epsilon=DEFAULT.epsilon))
    first, second = quick.choose(), slow.choose()

    assert (first is None) == (second is None)
    if first is not None and second is not None:
        totals = [quick.judged(one).total for one in (first, second)]
        best = max(ranked.total for ranked in quick.rank())
        assert min(totals) >= best - DEFAULT.epsilon - 1e-9
    other = pool(*places, needs=needs, policy=policy).choose()
    assert (other is None) == (first is None)


nonsense: st.SearchStrategy[object] = st.sampled_from(
    [math.nan, math.inf, -math.inf, -1.0, 1e300, "0", None, True, []]
)


@given(st.dictionaries(st.sampled_from(sorted(sample())), nonsense), nonsense, nonsense)
def test_nonsense_in_telemetry_never_wins(
    lies: dict[str, object], cpu: object, free: object
) -> None:
    """A node whose processors or memory cannot be as it says loses against an honest, busy one."""
    liar, honest = place("liar", 4), place("honest", 4, cpu=95.0, free=0.05)
    told = {**sample(), **lies, "cpu_percent": cpu, "memory_available_bytes": free}
    told["memory_percent"] = free
    for now in (1.0, 2.0):
        liar.host.heard(told, now)
        honest.host.heard(sample(cpu=95.0, free=0.05), now)
    asked = pool(liar, honest, policy=SHARP)

    assert liar.scores().resources == 0.0
    assert math.isfinite(liar.value)
    assert asked.choose() is honest


# ---- bursts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [8, 32, 64, 100])
@pytest.mark.parametrize("body_s", [None, 0.001])
def test_a_burst_spreads_over_equal_nodes(slots: int, body_s: float | None) -> None:
    """Of 100 calls over 4 nodes that are nearly equal, none gets more than 30."""
    places = [place(f"n{n}", slots, cpu=2.0 * n, free=0.5 + 0.01 * n) for n in range(4)]
    for one in places:
        for _ in range(8 if body_s is not None else 0):
            one.learn(body_s or 0.0)
    asked, uses = pool(*places), count(1)
    for _ in range(min(100, 4 * places[0].limit)):
        chosen = asked.choose()
        assert chosen is not None
        chosen.take(next(uses))

    assert max(one.busy for one in places) <= 30


@pytest.mark.parametrize("slots", [25, 32, 64])
def test_a_burst_spreads_although_samples_are_five_seconds_old(slots: int) -> None:
    """What the last sample saw of calls that have ended since does not send a burst elsewhere."""
    places = [place(f"n{n}", slots) for n in range(4)]
    uses = count(1)
    for _ in range(8):  # A burst before this one was all on one node when it was last heard.
        places[0].take(next(uses))
    for one in places:
        for now in (1.0, 2.0):
            one.host.heard(sample(cpu=100.0 * one.busy / 8), now)
    for _ in range(8):
        places[0].release()
    for one in places:
        one.host.tick(7.0)
    asked = pool(*places)
    for _ in range(100):
        chosen = asked.choose()
        assert chosen is not None
        chosen.take(next(uses))

    assert max(one.busy for one in places) <= 30


def test_live_load_moves_calls_away() -> None:
    """Two samples after something else burns a node's processors, an idle node is preferred."""
    places = [place(n, 4) for n in "abc"]
    asked = pool(*places)
    for now in (1.0, 2.0):
        places[0].host.heard(sample(cpu=100.0), now)
    uses = count(1)
    got = []
    for _ in range(4):
        chosen = asked.choose()
        assert chosen is not None
        chosen.take(next(uses))
        got.append(chosen.host.node_id)

    assert "a" not in got


def test_equal_nodes_take_turns() -> None:
    """One call at a time goes round, not to the same node each time."""
    places = [place(n, 4, cpu=c) for n, c in (("a", 0.0), ("b", 1.0), ("c", 2.0))]
    asked, uses, got = pool(*places), count(1), []
    for _ in range(6):
        chosen = asked.choose()
        assert chosen is not None
        chosen.take(next(uses))
        chosen.release()
        got.append(chosen.host.node_id)

    assert got[:3] == got[3:] and set(got) == {"a", "b", "c"}


@pytest.mark.parametrize("body_s", [0.5, 60.0])
def test_a_faster_machine_is_preferred_at_any_length_of_bodies(body_s: float) -> None:
    """Of two nodes with free slots the one that is twice as fast gets the call, though busier."""
    fast, slow = place("fast", 4, 2), place("slow", 4)
    for one, factor in ((fast, 1.0), (slow, 2.0)):
        for luck in (0.1, 1.0, 10.0):
            one.learn(body_s * factor * luck)
        assert one.usual_s == pytest.approx(body_s * factor)
        one.resize(4)

    assert pool(fast, slow).choose() is fast


def test_a_free_slot_comes_before_a_queue() -> None:
    """However fast the other one is: waiting there is waiting."""
    fast, slow = place("fast", 1, cpu=0.0), place("slow", 1, cpu=100.0, free=0.0)
    for _ in range(10):
        fast.learn(0.02)
        slow.learn(0.09)
    fast.take(1)

    assert fast.value > SHUT_BELOW
    assert pool(fast, slow).choose() is slow


def test_a_node_that_claims_short_bodies_is_measured() -> None:
    """It gets nothing ahead for its claim, and its breaker opens, also if its calls wait there."""
    honest, liar = place("honest", 2), place("liar", 2)
    for now in range(8):
        honest.answered(float(now), 0.001, 0.002)
        liar.answered(float(now), 0.001, 30.0, behind=2)
    liar.learn(-1.0)

    assert honest.ahead > 0 and not honest.host.shut and honest.usual_s == pytest.approx(0.001)
    assert liar.ahead == 0 and liar.host.shut
    assert liar.usual_s == pytest.approx(15.0)


# ---- strategies ----------------------------------------------------------------------------------


def test_the_named_strategies_prefer_what_their_names_say() -> None:
    """Least loaded by slots, latency by round trip, cost by price, round robin by turns."""

    def two(policy: Policy) -> tuple[Place, Place, Places]:
        near, far = place("near", 4, 1, policy, cpu=90.0), place("far", 2, 0, policy)
        near.host.saw_rtt(0.001)
        far.host.saw_rtt(0.1)
        near.host.declare({"price": 0.001})
        far.host.declare({"price": 0.002})
        return near, far, pool(near, far, policy=policy)

    near, far, asked = two(STRATEGIES["least_loaded"])
    assert asked.choose() is far
    near, far, asked = two(STRATEGIES["latency"])
    assert asked.choose() is near
    near, far, asked = two(STRATEGIES["cost"])
    assert asked.choose() is near
    near, far, asked = two(STRATEGIES["round_robin"])
    near.used, far.used = 1, 2
    assert asked.choose() is near


def test_random_draws_one_of_those_that_can() -> None:
    """Every node with room is drawn, and no other."""
    policy = STRATEGIES["random"]
    places = [place("a", 1, 1, policy), place("b", 1, 0, policy), place("c", 1, 0, policy)]
    asked = pool(*places, policy=policy, lots=random.Random(1))
    drawn = {asked.choose() for _ in range(50)}

    assert drawn == set(places[1:])


def test_a_strategy_of_a_users_own_chooses_among_candidates_alone() -> None:
    """It sees snapshots, best first, and says which or that none; else the scores decide."""
    seen: list[list[str]] = []
    answers: list[str | None] = ["b", None, "full", "nobody"]

    def choose(nodes: Sequence[NodeSnapshot], needs: Needs) -> NodeSnapshot | str | None:
        seen.append([node.node_id for node in nodes])
        assert needs == NO_NEEDS
        return answers.pop(0) if answers else nodes[0]

    a, b, full = place("a"), place("b", cpu=50.0), place("full", 1, 1)
    a.host.saw_rtt(0.01)
    b.learn(0.01)
    c = place("c", cpu=100.0, free=0.0)
    asked = pool(a, b, full, c, policy=Policy("mine", chooser=choose))

    assert asked.choose() is b
    assert [asked.choose() for _ in range(3)] == [None, a, a]
    assert asked.choose() is a
    assert seen[0] == ["a", "b", "c"]


def test_a_strategy_that_waits_where_nothing_runs_does_not_wait_for_ever() -> None:
    """A call waits for the end of another one; where there is none, the scores decide."""
    a, b = place("a"), place("b", cpu=100.0, free=0.0)
    asked = pool(a, b, policy=Policy("never", chooser=lambda *_: None))

    assert asked.choose() is a
    a.take(1)
    assert asked.choose() is None
    a.release()
    assert asked.choose() in (a, b)


def test_a_preferred_capability_counts() -> None:
    """Of equal nodes the one that fits the preference better is chosen, short or long."""
    places = [place("a"), place("b"), place("c")]

    def fits(one: object) -> float:
        return 1.0 if one is places[1].host else 0.0

    for needs in (NO_NEEDS, Needs(cpus=1.0)):
        assert pool(*places, needs=needs, capability=fits).choose() is places[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "LONG", 0)
            asked = pool(*places, needs=needs, capability=fits)
            assert asked.choose() is places[1]
            assert asked.rank()[0].scores.capability == 1.0
            asked.discard(places[1])
            assert asked.choose() is not places[1]


@given(clusters(min_size=1), st.data())
def test_nodes_may_ask_for_different_needs(places: list[Place], data: st.DataObject) -> None:
    """A function that needs more on one node is held to that there, by loop and table alike."""
    own = [data.draw(st.one_of(st.none(), wants)) for _ in places]
    short, long = pool(needs=Needs(cpus=1.0)), long_pool(places, Needs(cpus=1.0))
    for one, needs in zip(places, own, strict=True):
        short.add(one, needs)
        long.add(one, needs)
    chosen = short.choose()
    request = [Request(short.needs_at(one), desperate=short.desperate) for one in places]

    assert long.choose() is chosen
    assert [short.takes(one) for one in places] == [
        rejection(one, asked) is None for one, asked in zip(places, request, strict=True)
    ]
    if chosen is not None:
        needs = short.needs_at(chosen)
        assert chosen in {one.place for one in short.rank()}
        assert not needs or chosen.host.reserve(needs) is not None
    short.add(places[0], Needs(cpus=1.0))
    assert short.needs_at(places[0]) == Needs(cpus=1.0)


# ---- nodes that should not get calls -------------------------------------------------------------


def test_excluded_nodes_get_nothing() -> None:
    """A call that a node gave back goes elsewhere, or waits."""
    a, b = place("a"), place("b")
    asked = pool(a, b)

    assert asked.choose(exclude={"a"}) is b
    assert asked.choose(exclude={"a", "b"}) is None


@pytest.mark.parametrize("longest", [0, LONG])
def test_shut_nodes_get_calls_only_if_all_are_shut(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent node is passed over for waiting, unless there is nobody else at all."""
    monkeypatch.setattr(module, "LONG", longest)
    silent, fresh = place("silent"), place("fresh", 1, 1)
    asked = pool(silent, fresh)
    silent.host.tick(60.0)
    fresh.host.heard(sample(), 60.0)

    assert asked.choose() is None
    fresh.release()
    assert asked.choose() is fresh
    fresh.host.tick(120.0)
    assert asked.choose() in {silent, fresh}
    for one in (silent, fresh):
        one.take(1)
    assert asked.choose() is None


def test_shut_nodes_with_needs_wait_alike() -> None:
    """The same holds for calls that reserve something."""
    needs = Needs(cpus=1.0)
    silent, fresh = place("silent"), place("fresh", 1, 1)
    asked = pool(silent, fresh, needs=needs)
    silent.host.tick(60.0)
    fresh.host.heard(sample(), 60.0)

    assert asked.choose() is None
    fresh.host.tick(120.0)
    assert asked.choose() is silent


# ---- large arguments -----------------------------------------------------------------------------


def test_data_draws_calls_and_a_queue_drives_them_away() -> None:
    """Neither does everything wait for the node with the data, nor is all data moved for a slot."""
    holder, other = place("holder", 1, 1), place("other")
    asked = pool(holder, other)
    holder.learn(0.5)
    big = Large(25 * GB, {"holder"})
    small = Large(2 * LARGE_BYTES, {"holder"})

    assert asked.choose(large=big) is None  # 250 s on the way, 0.5 s in the queue.
    assert asked.choose(large=Large(25 * GB, {"holder"}, waiting=10_000)) is other
    assert asked.choose(large=small) is other
    holder.release()
    assert asked.choose(large=big) is holder
    assert asked.choose(large=Large(LARGE_BYTES - 1, {"holder"})) is other
    other.take(1)
    holder.take(2)
    assert asked.choose(large=big) is None


def test_a_fast_link_is_preferred_for_large_arguments_only() -> None:
    """Bandwidth that was measured counts where it matters."""
    slow, fast = place("slow"), place("fast", cpu=50.0)
    asked = pool(slow, fast)
    for _ in range(20):
        fast.host.saw_transfer(GB, 1.0)
        slow.host.saw_transfer(GB, 100.0)
    slow.host.saw_transfer(10, 100.0)

    assert asked.choose() is slow
    assert asked.choose(large=Large(GB)) is fast


def test_a_full_node_of_unknown_bodies_is_not_waited_for(always_long: None) -> None:
    """Nobody waits for data behind a body that may last for ever; in long pools too."""
    holder, others = place("holder", 1, 1), [place(f"n{n}") for n in range(40)]
    asked = pool(holder, *others)

    assert asked.choose(large=Large(25 * GB, {"holder"})) in others
    holder.release()
    assert asked.choose(large=Large(25 * GB, {"holder"})) is holder
    assert asked.choose(large=Large(25 * GB)) is not None
    assert asked.choose(exclude={one.host.node_id for one in others}) is holder


# ---- the table -----------------------------------------------------------------------------------


def test_a_pool_moves_into_the_table_and_out_again() -> None:
    """Rows are taken when a pool gets long, shared by long pools, and given back."""
    fleet = Fleet()
    places = [place(f"n{n}", 2) for n in range(2 * ROWS_FIRST)]
    first = pool(*places[:LONG], fleet=fleet)
    assert fleet.rows == 0
    for one in places[LONG:]:
        first.add(one)
        first.add(one)
    second = pool(*places[: LONG + 1], fleet=fleet)

    assert fleet.rows == len(places) == len(first)
    chosen = first.choose()
    assert chosen is not None
    for one in places[SHORT - 1 :]:
        first.discard(one)
        first.discard(one)
    assert fleet.rows == LONG + 1
    assert places[-1].fleet is None and places[0].fleet is fleet
    for one in places:
        second.discard(one)
    assert fleet.rows == 0 and list(second) == []
    assert set(first) == set(places[: SHORT - 1]) and places[0] in first
    assert second.choose() is None
    second.add(places[-1])
    assert second.choose() is places[-1]


def test_a_long_pool_of_another_policy_is_asked_too(always_long: None) -> None:
    """A call may want another strategy than the gateway's, in pools of any length."""
    a, b, fleet = place("a", 4, 1), place("b", 4, cpu=100.0), Fleet()
    load = Policy("load", ScoreWeights(0.0, 0.0, 1.0, 0.0))

    assert pool(a, b, fleet=fleet).choose() is a
    assert pool(a, b, fleet=fleet, policy=load).choose() is b


def test_a_node_with_several_groups_is_several_places() -> None:
    """Groups of one node have room of their own and share what the node reserves."""
    one = host("a")
    first, second = Place(one, "first", 1), Place(one, "second", 1)
    first.take(1)
    needs = Needs(cpus=8.0)
    asked = pool(first, second, needs=needs)

    assert asked.choose() is second
    assert one.reserve(needs) is not None
    assert one.reserve(needs) is None
    assert asked.choose() is None
    second.leave()
    assert one.places == [first]
