"""The command line: `python -m benchmarks [NAME ...] [--json FILE] [--plot FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from . import scheduling
from .fairness import fairness
from .floods import floods
from .harness import RUNS, WARM_UPS, Progress, Row, environment
from .peers import installed, running_peers
from .placement import placement
from .rows import MB, ROWS, Options, arrays, only_floors, pipelined, round_trip

_PEER_ROWS = (round_trip, pipelined, arrays)
_NAMES = (*ROWS, "floods", "fairness", "placement", "peers", "floors")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure EasyRemote beside the floor of this machine, in alternation.",
        epilog="Without a name every row of EasyRemote runs. `floods` measures an honest client "
        "beside attackers; `fairness` one user beside the queue of another; `placement` one "
        "choice of a node. `peers` runs the same calls on "
        "Ray and RPyC, where they are installed; `floors` measures the floors alone. "
        "`scheduling` simulates clusters: `python -m benchmarks scheduling --help`.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(_NAMES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios into FILE")
    parser.add_argument("--runs", type=int, default=RUNS, help="values for each contestant")
    parser.add_argument(
        "--sizes", metavar="MB,...", help="sizes of the arrays in megabytes (1,100,256,1000)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one run, small arrays: only to see that it works"
    )
    given = parser.parse_args(argv)
    if unknown := sorted(set(given.names) - set(_NAMES)):
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(_NAMES)}")
    if given.runs < 1:
        parser.error("--runs must be at least 1")
    return given


def _options(given: argparse.Namespace, progress: Progress) -> Options:
    options = Options(progress, runs=given.runs, warm_ups=WARM_UPS)
    if given.quick:
        options = Options(
            progress, runs=1, warm_ups=0, sizes=(1 * MB, 10 * MB), calls=50, outstanding=500
        )
    if given.sizes:
        sizes = tuple(int(text) * MB for text in given.sizes.split(","))
        options = replace(options, sizes=sizes)
    return options


def _wanted(names: list[str]) -> Iterator[tuple[str, Callable[[Options], Iterator[Row]]]]:
    for name in names or list(ROWS):
        if name == "peers":
            for row in _PEER_ROWS:
                yield "peers", row
        elif name == "floods":
            yield name, floods
        elif name == "fairness":
            yield name, fairness
        elif name == "placement":
            yield name, placement
        elif name == "floors":
            yield name, only_floors
        else:
            yield name, ROWS[name]


def _write(given: argparse.Namespace, rows: list[Row]) -> None:
    if given.json is not None:
        data = {"environment": environment(), "rows": [row.as_data() for row in rows]}
        given.json.write_text(json.dumps(data, indent=1) + "\n")
        print(f"every value: {given.json}")
    if given.plot is not None:
        from .plot import plot

        plot(rows, given.plot)
        print(f"picture: {given.plot}")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks that were asked for; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["scheduling"]:
        # Simulated, not measured on this machine: it has options of its own.
        return scheduling.main(words[1:])
    given = _arguments(words)
    progress = Progress()
    options = _options(given, progress)
    rows: list[Row] = []
    with ExitStack() as stack:
        peer_options = options
        if "peers" in given.names:
            names = installed()
            print(f"peers: {', '.join(names) or 'none is installed (pip install .[bench])'}")
            peers = stack.enter_context(running_peers(names))
            peer_options = replace(options, peers=peers)
        try:
            for name, run in _wanted(given.names):
                progress.row = name
                for row in run(peer_options if name == "peers" else options):
                    progress.clear()
                    rows.append(row)
                    print("\n".join(row.lines()), flush=True)
        finally:
            progress.clear()
            # What was measured before something failed is not thrown away.
            _write(given, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
