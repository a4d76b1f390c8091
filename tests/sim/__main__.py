"""`python -m tests.sim --seed N` replays one run; `--seeds A:B` is a campaign."""

from __future__ import annotations

import argparse
import sys

from .run import Bench, Report


def main(argv: list[str] | None = None) -> int:
    """Run seeds; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run one seed and print all that happens")
    parser.add_argument(
        "--seeds", default="0:20", metavar="A:B", help="run the seeds from A to B-1"
    )
    args = parser.parse_args(argv)
    bad = 0
    with Bench() as bench:
        if args.seed is not None:
            report = bench.run_seed(args.seed, echo=True)
            show(report)
            return int(bool(report.violations))
        first, last = map(int, args.seeds.split(":"))
        for seed in range(first, last):
            report = bench.run_seed(seed)
            show(report)
            bad += bool(report.violations)
    return int(bool(bad))


def show(report: Report) -> None:
    """Print a run in a line, and what was wrong with it."""
    sys.stdout.write(
        f"seed {report.seed}: {report.virtual_s:.0f} s virtual, {report.real_s:.2f} s real, "
        f"{report.calls} calls, {report.starts} starts, {report.digest[:12]}\n"
    )
    for promise, sentence in report.violations:
        sys.stdout.write(f"  {promise}: {sentence}\n")


if __name__ == "__main__":
    sys.exit(main())
