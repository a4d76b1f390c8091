"""`python -m benchmarks scheduling`: how good placement is, in simulated clusters.

Theory. A policy is judged in worlds that are known to be hard, beside others in the same worlds,
beside the same queue with perfect knowledge of the machines, and beside a bound that nothing can
beat. Each row is the median over seeds.

Source. scheduling_world.py, scheduling_policies.py and scheduling_metrics.py for what is what.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .scheduling_metrics import Measured, clairvoyant, measure
from .scheduling_policies import POLICIES
from .scheduling_simulator import Simulator
from .scheduling_world import Options, make

SCENARIOS = {
    "bursts": Options(),
    "calm": Options(bursts="none"),
    "one floods": Options(bursts="one"),
    "equal bodies": Options(bodies="equal"),
    "liars": Options(liars=0.1),
    "failing": Options(failing=0.2),
}
BOUND = "clairvoyant bound"
LOADS = (0.5, 0.6, 0.7, 0.8, 0.9)
OURS = "easyremote"

SEEDS = 3
CALLS_A_NODE = 20
CALLS_MIN = 40_000
QUICK_CALLS = 3_000


@dataclass(frozen=True)
class Result:
    """One row: a policy in a scenario."""

    scenario: str
    load: float
    policy: str
    measured: Measured


def simulate(scenario: str, options: Options, seeds: Iterable[int]) -> Iterator[Result]:
    """Run every policy in the worlds of some seeds, and yield the medians."""
    found: dict[str, list[Measured]] = {}
    for seed in seeds:
        world = make(replace(options, seed=seed))
        for name, policy in POLICIES.items():
            simulator = Simulator(world, policy())
            simulator.run()
            measured = measure(world, simulator.calls, simulator.lost)
            found.setdefault(name, []).append(measured)
        found.setdefault(BOUND, []).append(clairvoyant(world))
    for name, all_of_it in found.items():
        yield Result(scenario, options.load, name, _median(all_of_it))


def _median(all_of_it: Sequence[Measured]) -> Measured:
    fair = [one.fairness for one in all_of_it if one.fairness is not None]
    return Measured(
        statistics.median(one.mean_slowdown for one in all_of_it),
        statistics.median(one.p99_slowdown for one in all_of_it),
        statistics.median(one.utilisation for one in all_of_it),
        statistics.median(fair) if fair else None,
        round(statistics.median(one.lost for one in all_of_it)),
    )


def table(results: Sequence[Result]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| scenario | policy | mean slowdown | p99 slowdown | utilisation | fairness | lost |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    before = ""
    for one in results:
        what = one.measured
        fair = "" if what.fairness is None else f"{what.fairness:.3f}"
        name = f"**{one.policy}**" if one.policy == OURS else one.policy
        scenario = one.scenario if one.scenario != before else ""
        before = one.scenario
        lines.append(
            f"| {scenario} | {name} | {what.mean_slowdown:.2f} | {what.p99_slowdown:.1f} "
            f"| {what.utilisation:.2f} | {fair} | {what.lost} |"
        )
    return "\n".join(lines)


def ratios(results: Sequence[Result]) -> dict[str, float]:
    """Return, for one scenario and load, our p99 slowdown as a multiple of each other's."""
    p99 = {one.policy: one.measured.p99_slowdown for one in results}
    return {name: p99[OURS] / value for name, value in p99.items() if name != OURS}


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scheduling",
        description="Simulate clusters under placement policies; ours uses the code of scheduler/.",
    )
    parser.add_argument(
        "--scenario", action="append", choices=list(SCENARIOS), help="again for more; all of them"
    )
    parser.add_argument("--nodes", type=int, default=100, help="machines, 10 to 10,000 (100)")
    parser.add_argument("--calls", type=int, help="calls in each run (20 a node, at least 40,000)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"runs in each row ({SEEDS})")
    parser.add_argument(
        "--load", type=float, default=0.8, help="part of what machines can do (0.8)"
    )
    parser.add_argument("--loads", action="store_true", help=f"also loads {LOADS} of `bursts`")
    parser.add_argument("--quick", action="store_true", help="few calls, one seed: to see it work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw p99 slowdowns into FILE")
    given = parser.parse_args(argv)
    if not 1 <= given.nodes <= 10_000:
        parser.error("--nodes is from 1 to 10,000")
    if not 0.0 < given.load < 1.0:
        parser.error("--load is between 0 and 1: at 1 and above the queue never ends")
    return given


def main(argv: Sequence[str]) -> int:
    """Run what was asked for; return the exit code."""
    given = _arguments(argv)
    calls = given.calls or max(CALLS_MIN, CALLS_A_NODE * given.nodes)
    seeds = range(1, given.seeds + 1)
    if given.quick:
        calls, seeds = given.calls or QUICK_CALLS, range(1, 2)
    results: list[Result] = []
    names = given.scenario or list(SCENARIOS)
    for name in names:
        options = replace(SCENARIOS[name], nodes=given.nodes, calls=calls, load=given.load)
        found = list(simulate(name, options, seeds))
        results += found
        print(table(found), flush=True)
        shown = ", ".join(f"{ratio:.2f} x {other}" for other, ratio in ratios(found).items())
        print(f"\np99 slowdown of {OURS}: {shown}\n", flush=True)
    if given.loads:
        for load in LOADS:
            options = replace(SCENARIOS["bursts"], nodes=given.nodes, calls=calls, load=load)
            results += simulate("loads", options, seeds)
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
        print(f"every row: {given.json}")
    if given.plot is not None:
        from .scheduling_plot import plot

        plot(results, given.plot)
        print(f"picture: {given.plot}")
    return 0
