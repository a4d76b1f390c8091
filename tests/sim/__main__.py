"""The simulator on the command line.

    python -m tests.sim --seed 7                  replay one run and print all that happens
    python -m tests.sim --seeds 0:200             run the seeds from 0 to 199
    python -m tests.sim --seeds 0: --minutes 60 --jobs 2     a campaign of an hour
    python -m tests.sim --seeds 0:20 --twice      compare the event logs of two processes

The exit code is 1 if a promise was broken, if two runs of a seed differ, or, with --coverage, if
something that must happen now and then never did.
"""

from __future__ import annotations

import argparse
import sys
import time

from .campaign import Campaign, run_campaign, show
from .coverage import missing
from .run import Bench


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    args = _parser().parse_args(argv)
    if args.seed is not None:
        with Bench() as bench:
            report = bench.run_seed(args.seed, echo=True)
        show(report)
        return int(bool(report.violations))
    begin, _, end = args.seeds.partition(":")
    until = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    last = int(end) if end else None
    if last is None and until is None:
        sys.stderr.write("seeds without an end need --minutes\n")
        return 2
    campaign = Campaign()
    run_campaign(
        campaign, int(begin or 0), last, jobs=args.jobs, until=until, twice=args.twice,
        progress=not args.quiet,
    )  # fmt: skip
    sys.stdout.write(campaign.summary())
    unreached = missing(campaign.faults, campaign.reached, campaign.seeds)
    if unreached:
        sys.stdout.write(f"never reached: {', '.join(unreached)}\n")
    return int(campaign.failed or (args.coverage and bool(unreached)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="replay one run, with its events")
    parser.add_argument("--seeds", default="0:20", metavar="A:B", help="run seeds A to B-1")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so many minutes")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes (default 1)")
    parser.add_argument("--twice", action="store_true", help="run each seed twice and compare")
    parser.add_argument("--coverage", action="store_true", help="fail if something is unreached")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
