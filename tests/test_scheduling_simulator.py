"""The scheduling simulator: its worlds and measures are right, and placement is as good as said."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.scheduling import BOUND, OURS, SCENARIOS, Result, ratios, simulate
from benchmarks.scheduling_metrics import clairvoyant, jain, max_min
from benchmarks.scheduling_policies import POLICIES
from benchmarks.scheduling_simulator import Simulator
from benchmarks.scheduling_world import Arrival, Machine, Options, World, make

SMALL = Options(nodes=30, calls=3000, seed=1)


@cache
def results(scenario: str) -> tuple[Result, ...]:
    options = replace(SCENARIOS[scenario], nodes=30, calls=8000)
    return tuple(simulate(scenario, options, (1,)))


@pytest.mark.parametrize("scenario", ["calm", "bursts"])
def test_placement_beats_balancers_and_is_near_perfect_knowledge(scenario: str) -> None:
    """At 80 % load, with samples of 5 s and mixed speeds: what the scheduler's README says."""
    others = ratios(results(scenario))

    assert others["two choices, reported"] < 0.5
    assert others["two choices, counted"] < 0.5
    assert others["least loaded, reported"] < 0.5
    assert others["least loaded, counted"] < 1.0
    assert others["informed queue"] <= 1.5


def test_nobody_beats_the_bound() -> None:
    """The bound knows everything: no policy has a smaller mean slowdown."""
    mean = {one.policy: one.measured.mean_slowdown for one in results("bursts")}

    assert min(mean, key=lambda name: mean[name]) == BOUND
    assert mean[BOUND] >= 1.0


def test_a_queue_that_is_fair_is_measured_as_such() -> None:
    """When one user floods, the fair queue divides more evenly than a balancer does."""
    fair = {one.policy: one.measured.fairness for one in results("one floods")}
    ours, theirs = fair[OURS], fair["least loaded, counted"]

    assert ours is not None
    assert theirs is not None
    assert theirs < ours <= 1.0


def test_one_seed_gives_one_result() -> None:
    """Everything is drawn from the seed: twice the same, and another seed something else."""
    once, again = (list(simulate("x", SMALL, (7,))) for _ in range(2))
    other = list(simulate("x", SMALL, (8,)))

    assert once == again
    assert once != other


@pytest.mark.parametrize("name", POLICIES)
def test_every_call_comes_back_once_whatever_fails(name: str) -> None:
    """Machines go, stand still, crash and lie; every call has one end, after its begin."""
    world = make(replace(SMALL, failing=0.3, liars=0.1))
    simulator = Simulator(world, POLICIES[name]())
    simulator.run()

    assert len(simulator.calls) == len(world.arrivals)
    assert all(
        call.arrival.at < call.started_at < call.ended_at and call.at is None
        for call in simulator.calls
    )
    assert not any(site.calls for site in simulator.sites)
    assert simulator.lost > 0 or name == "informed queue"


@pytest.mark.parametrize("name", POLICIES)
def test_no_slot_runs_two_calls(name: str) -> None:
    """At no machine do more calls run at once than it has slots."""
    world = make(replace(SMALL, calls=1000))
    simulator = Simulator(world, POLICIES[name]())
    simulator.run()

    for machine in world.machines:
        events = []
        for call in simulator.calls:
            if call.machine is machine:
                events.append((call.started_at, 1))
                events.append((call.ended_at - machine.rtt_s / 2.0 - 1e-9, -1))
        running = np.cumsum([step for _, step in sorted(events)])
        assert running.max(initial=0) <= machine.slots


def test_the_load_is_what_was_asked_for() -> None:
    """Although bodies are heavy-tailed, the work that comes is the asked part of the capacity."""
    for load in (0.5, 0.9):
        world = make(replace(SMALL, load=load))
        work = sum(arrival.work for arrival in world.arrivals)

        assert work == pytest.approx(load * world.capacity * world.duration_s)


@pytest.mark.parametrize("bodies", ["pareto", "lognormal", "equal"])
def test_bodies_have_the_mean_that_was_asked_for(bodies: str) -> None:
    """Each distribution is scaled to the mean; only how far bodies differ is another."""
    world = make(replace(SMALL, bodies=bodies, calls=40_000, mean_s=0.5))
    work = np.array([arrival.work for arrival in world.arrivals])

    assert work.mean() == pytest.approx(0.5, rel=0.15)
    assert (work.std() > 0.0) == (bodies != "equal")


def test_the_bound_on_paper() -> None:
    """Two slots of speeds 2 and 1: the shortest rest runs on the fast one, at every moment."""
    machines = [Machine(0, 2.0, 1, 0.0, liar=False), Machine(1, 1.0, 1, 0.0, liar=False)]
    # The long call begins on the fast slot, makes way for the short one, and comes back.
    arrivals = [Arrival(0.0, 10.0, 0), Arrival(1.0, 2.0, 0)]
    world = World(SMALL, machines, arrivals, 1.0, 3.0)
    took = clairvoyant(world)

    # The short one takes 1 s; of the long one 2 + 1 are done by then, and 7 take 3.5 s: 5.5 s.
    assert took.mean_slowdown == pytest.approx((5.5 / 5.0 + 1.0 / 1.0) / 2.0)


def test_what_is_fair_on_paper() -> None:
    """Max-min fair numbers and Jain's index, as in the books."""
    assert max_min(np.array([1.0, 10.0, 10.0]), 9.0).tolist() == [1.0, 4.0, 4.0]
    assert max_min(np.array([2.0, 3.0]), 5.0).tolist() == [2.0, 3.0]
    assert jain(np.array([2.0, 2.0, 2.0])) == pytest.approx(1.0)
    assert jain(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)


def test_the_command_prints_a_table_and_writes_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m benchmarks scheduling` runs a small cluster to its end."""
    path = tmp_path / "rows.json"
    words = ["--nodes", "10", "--calls", "500", "--quick", "--scenario", "failing", "--loads"]
    assert main(["scheduling", *words, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(path.read_text())

    assert all(name in printed for name in (*POLICIES, BOUND))
    assert {row["scenario"] for row in rows} == {"failing", "loads"}
    assert len(rows) == (1 + 5) * (len(POLICIES) + 1)


@pytest.mark.parametrize("words", [["--nodes", "0"], ["--load", "1.5"], ["--scenario", "none"]])
def test_what_cannot_be_simulated_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake on the command line ends with a sentence."""
    with pytest.raises(SystemExit):
        main(["scheduling", *words])

    assert "error:" in capsys.readouterr().err
