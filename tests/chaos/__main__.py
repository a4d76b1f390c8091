"""`python -m tests.chaos --minutes N`: a long campaign of kills, by hand.

The exit code is 1 if a promise was broken; then the folder with all logs is kept, and the command
that draws the same shots again is printed. What the operating system makes of them is its own.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .campaign import Campaign, Settings, run_campaign
from .report import report_of
from .world import Role

PROGRESS_EVERY_S = 10.0
TARGETS = {role.value: (role,) for role in Role} | {"all": tuple(Role)}
TARGETS["worker"] = (Role.WORKER, Role.REPLICA)


def say(text: str) -> None:
    """Write a line at once, wherever it goes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Progress:
    """One line now and then."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()
        self._violations = 0

    def __call__(self, campaign: Campaign) -> None:
        now = time.monotonic()
        for violation in campaign.violations[self._violations :]:
            say(f"{now - self._began:6.0f} s  {violation}")
        self._violations = len(campaign.violations)
        if now - self._said < PROGRESS_EVERY_S:
            return
        self._said = now
        outcomes = sum(
            path.read_bytes().count(b'"outcome"')
            for path in campaign.world.folder.glob("client-*.jsonl")
        )
        say(
            f"{now - self._began:6.0f} s  kills {campaign.kills}  shots {len(campaign.fired)}  "
            f"outcomes {outcomes}  violations {len(campaign.violations)}",
        )


def main(words: Sequence[str]) -> int:
    """Run a campaign and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="at most so long")
    parser.add_argument("--kills", type=int, default=10**9, help="end after so many kill -9")
    parser.add_argument("--target", choices=sorted(TARGETS), default="all")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rate", type=float, default=6.0, help="calls a second of each client")
    parser.add_argument("--gap", type=float, default=2.0, help="longest pause between shots, s")
    parser.add_argument("--lease", type=float, default=3.0, help="lease of every link, s")
    parser.add_argument("--no-faults", action="store_true", help="leave the links alone")
    parser.add_argument("--kills-only", action="store_true", help="no stops and no SIGTERM")
    parser.add_argument("--whole", action="store_true", help="shoot when every node is back")
    parser.add_argument("--keep", action="store_true", help="keep the logs, whatever comes of it")
    given = parser.parse_args(words)
    seed = random.randrange(10**6) if given.seed is None else given.seed
    settings = Settings(
        seed=seed, kills=given.kills, limit_s=given.minutes * 60, targets=TARGETS[given.target],
        nodes=given.nodes, clients=given.clients, rate=given.rate, faults=not given.no_faults,
        lease_s=given.lease, kills_only=given.kills_only, whole=given.whole,
        gap_s=(0.1 * given.gap, given.gap),
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    began = time.monotonic()
    report = report_of(run_campaign(folder, settings, Progress()))
    say(f"\nseed {seed}, {time.monotonic() - began:.0f} s")
    say("\n".join(report.lines()))
    if not report.violations:
        if given.keep:
            say(f"logs: {folder}")
        else:
            shutil.rmtree(folder)
        return 0
    say("\n".join(["", *report.violations[:50]]))
    again = " ".join([*words, *([] if given.seed is not None else ["--seed", str(seed)])])
    say(f"\nlogs: {folder}\nagain: python -m tests.chaos {again}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
