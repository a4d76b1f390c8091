"""What a flood of one user costs another: `python -m benchmarks fairness`.

Theory. Bob makes a call once in a while; his 99th percentile is measured alone, and while Alice has
ten thousand calls under way, in turns. Both share one node. What counts is the ratio of the two: a
fair queue lets Bob wait for the call that runs and what was sent ahead, never for Alice's queue.

Rules of this file. 1) Alice is a process of her own with a token of her own, as Alice would be: her
work must not slow Bob's program down, only the gateway and the node. 2) Her queue is full before
anything is measured.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from easyremote import Client
from easyremote.identity.join import JoinString

from .floods import join_string
from .harness import Row, percentile, timed
from .rows import Options
from .system import NODE_ID, system

OUTSTANDING = 10_000
RISE_S = 1.0
"""Time that the flood has to fill the queue before anything is measured."""

_ALICE = """\
import sys
from collections import deque
from easyremote import Client

port, join, count = sys.argv[1:]
with Client(f"127.0.0.1:{port}", join=join) as client:
    under_way = deque(client.submit("NODE.noop") for _ in range(int(count)))
    print("flooding", flush=True)
    while True:
        under_way.popleft().result()
        under_way.append(client.submit("NODE.noop"))
""".replace("NODE", NODE_ID)


@contextmanager
def _flooding(port: int, join: str, count: int) -> Iterator[None]:
    """Keep so many calls of Alice under way."""
    command = [sys.executable, "-c", _ALICE, str(port), join, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as alice:  # noqa: S603  # Our own.
        try:
            assert alice.stdout is not None
            if not alice.stdout.readline():
                raise RuntimeError("Alice could not begin")
            time.sleep(RISE_S)
            yield
        finally:
            alice.kill()


def fairness(options: Options) -> Iterator[Row]:
    """One user's calls, one a second, beside ten thousand of another one."""
    calls, pause_s, count = (5, 0.1, 1000) if options.calls < 100 else (20, 1.0, OUTSTANDING)
    with system():
        join, own = (join_string("--role", "member", "--user", name) for name in ("alice", "bob"))
        port = JoinString.parse(own).port
        with Client(f"127.0.0.1:{port}", join=own) as bob:

            def p99_ms() -> float:
                taken = []
                for _ in range(calls):
                    time.sleep(pause_s)
                    taken.append(1000 * timed(lambda: bob.execute(f"{NODE_ID}.noop")))
                return percentile(taken, 99)

            def beside_alice() -> float:
                with _flooding(port, join, count):
                    return p99_ms()

            series = options.alternate({"ours": beside_alice, "floor": p99_ms})
    yield Row(
        f"p99 beside {count} calls of another user",
        "ms",
        lower_is_better=True,
        contestants=series,
        goal="<= 5",
        includes=f"a call every {pause_s:g} s and its result; floor: the same alone",
    )
