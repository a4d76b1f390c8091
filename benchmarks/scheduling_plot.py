"""The scheduling simulator's results as a picture. Needs matplotlib (`[bench]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .scheduling import BOUND, OURS, Result

_COLOURS = {OURS: "tab:red", "informed queue": "tab:green", BOUND: "black"}


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw p99 slowdowns: by scenario, and by load where loads were simulated.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    # The same picture for the same results, and no time in it.
    mpl.rcParams["svg.hashsalt"] = "scheduling"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    policies = list(dict.fromkeys(one.policy for one in results))
    scenarios = list(dict.fromkeys(one.scenario for one in results if one.scenario != "loads"))
    loads = [one for one in results if one.scenario == "loads"]
    figure, axes = pyplot.subplots(1, 1 + bool(loads), figsize=(12, 5), squeeze=False)
    width = 0.8 / len(policies)
    for number, policy in enumerate(policies):
        style = {"color": _COLOURS.get(policy, pyplot.cm.tab20c(number)), "label": policy}
        of_it = [one for one in results if one.policy == policy]
        heights = [one.measured.p99_slowdown for one in of_it if one.scenario != "loads"]
        places = [place + number * width for place in range(len(heights))]
        axes[0][0].bar(places, heights, width, **style)
        if loads:
            curve = [one for one in of_it if one.scenario == "loads"]
            p99 = [one.measured.p99_slowdown for one in curve]
            axes[0][1].plot([one.load for one in curve], p99, marker="o", markersize=3, **style)
    axes[0][0].set_xticks([place + 0.35 for place in range(len(scenarios))], scenarios, fontsize=8)
    for one in axes[0]:
        one.set_yscale("log")
        one.set_ylabel("p99 slowdown")
    if loads:
        axes[0][1].set_xlabel("load, in the scenario `bursts`")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=5, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0.0, 0.1, 1.0, 1.0))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
