"""What a flood costs an honest client and the gateway: `python -m benchmarks floods`.

Theory. An honest client calls a function of an honest node, one call after the other, alone and
while attackers flood the gateway, in turns. What counts is the ratio of the two 99th percentiles:
an attacker shares the gateway with everybody, but must not own it. Beside the ratio stand the
memory and the descriptors of the gateway: before, at their highest, and ten seconds after the last
attacker has gone.

Rules of this file. 1) Attackers are a process of their own with tokens of their own. 2) The peak
is sampled while the flood runs; "after" is measured once, with nobody there.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from easyremote.identity.join import JoinString

from .attacks import EVIL, FLOODS, Attackers, Target, attackers
from .harness import Row, percentile, timed
from .rows import MB, Options
from .system import System, system

BEGIN_S = 0.5
"""Time that a flood has to rise before anything is measured."""
AFTER_S = 10.0


def join_string(*words: str) -> str:
    """Make a token by the command line; return its join string."""
    command = [sys.executable, "-m", "easyremote", "token", "create", *words]
    made = subprocess.run(  # noqa: S603  # Our own interpreter and module.
        command, check=True, capture_output=True, text=True
    )
    return made.stdout.split()[-1]


def _token(*words: str) -> tuple[str, int]:
    """Make a token; return its text, and the port of the gateway."""
    join = JoinString.parse(join_string(*words))
    return join.token.text(), join.port


def target() -> Target:
    """Return what attackers need to get in, as a user of their own."""
    client, port = _token("--role", "guest", "--user", "mallory", "--nodes", EVIL)
    node, _ = _token("--role", "node", "--user", "mallory", "--functions", EVIL)
    return Target(port, client, node)


class Watched:
    """Memory and descriptors of a process, and their highest values while one watches."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.rss_mb = self.descriptors = 0.0
        self.look()

    def look(self) -> None:
        """Take the highest values so far."""
        rss_mb = self._process.memory_info().rss / MB
        self.rss_mb = max(self.rss_mb, rss_mb)
        self.descriptors = max(self.descriptors, float(self._process.num_fds()))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.05):
                self.look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _p99_ms(running: System, calls: int) -> float:
    taken = [timed(lambda: running.noop().result()) * 1000 for _ in range(calls)]
    return percentile(taken, 99)


@contextmanager
def _flooded(attack: Attackers) -> Iterator[None]:
    attack.order("go")
    try:
        time.sleep(BEGIN_S)
        yield
    finally:
        attack.order("stop")


def _one(kind: str, running: System, who: Target, options: Options) -> Row:
    calls = options.calls
    _p99_ms(running, calls)
    before, peak = Watched(running.gateway), Watched(running.gateway)
    with attackers(kind, who) as attack:

        def under_attack() -> float:
            with _flooded(attack), peak.watching():
                return _p99_ms(running, calls)

        contestants = {"ours": under_attack, "floor": lambda: _p99_ms(running, calls)}
        series = options.alternate(contestants)
    options.progress("after")
    time.sleep(AFTER_S)
    after = Watched(running.gateway)
    return Row(
        f"p99 under {kind}",
        "ms",
        lower_is_better=True,
        contestants=series,
        goal="<= 5; memory and descriptors back after 10 s",
        includes="call and result() of an honest client; floor: the same without attackers",
        notes={
            "RSS before MB": before.rss_mb,
            "RSS peak MB": peak.rss_mb,
            "RSS after MB": after.rss_mb,
            "fds before": before.descriptors,
            "fds peak": peak.descriptors,
            "fds after": after.descriptors,
        },
    )


def floods(options: Options) -> Iterator[Row]:
    """An honest client beside attackers of every kind."""
    for kind in FLOODS:
        # A gateway of its own for each: abuse makes the logins of its user wait for a minute.
        with system() as running:
            yield _one(kind, running, target(), options)
