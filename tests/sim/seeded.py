"""One seed decides everything: clock, randomness, the order of tasks, and the shape of timers.

Theory. A program is deterministic when whatever it asks the world is answered from the seed. The
product asks through a few names of the standard library; they are answered here for the time of
one run, so that code which is added to the product later is covered without knowing of it. Sets
of the product's objects would iterate in the order of memory addresses; for the time of a run
these objects hash to the order in which they were first put into a set.

Rules of this file. 1) Everything that is replaced is put back. 2) A run begins with the same state
of the process: nothing drawn ahead, no cyclic garbage, no collection in between.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from trio._core import _run as trio_run
from trio.testing import MockClock

from easyremote.client import ids
from easyremote.client.call import OutgoingCall
from easyremote.client.offload import offload, perform
from easyremote.client.query import OutgoingQuery
from easyremote.gateway.session import Session as GatewaySession
from easyremote.gateway.state import GatewayState
from easyremote.node.task import Task

WALL_EPOCH_S = 1_800_000_000.0
"""What the wall clocks show when a run begins."""

Replacement = tuple[Any, str, Any]


def child(seed: object, name: str) -> random.Random:
    """Return a source of randomness of its own, so that one part draws no other's numbers."""
    return random.Random(f"{seed}:{name}")


def _virtual() -> float:
    return trio.current_time()


def _virtual_clock(_: int) -> float:
    return trio.current_time()


def _wall() -> float:
    return WALL_EPOCH_S + trio.current_time()


def _inline(job: Callable[[], object]) -> None:
    trio.lowlevel.current_trio_token().run_sync_soon(perform, job)


def _no_profile(_: GatewayState) -> None:
    """Nobody looks for a profile here."""


def _replacements(rng: random.Random) -> list[Replacement]:
    original, serial = random.Random, itertools.count()

    class Seeded(original):  # type: ignore[misc,valid-type]
        """A `random.Random` that asks the seed where the real one asks the system."""

        def __init__(self, x: Any = None) -> None:
            super().__init__(rng.getrandbits(64) if x is None else x)

    def in_order(self: Any) -> int:
        number: int = self.__dict__.setdefault("_in_order", -1)
        if number < 0:
            number = self._in_order = next(serial)
        return number

    def virtual_ns() -> int:
        return int(trio.current_time() * 1e9)

    return [
        (time, "monotonic", _virtual),
        (time, "perf_counter", _virtual),
        (time, "clock_gettime", _virtual_clock),
        (time, "time", _wall),
        (time, "monotonic_ns", virtual_ns),
        (time, "perf_counter_ns", virtual_ns),
        (os, "urandom", rng.randbytes),
        (random, "_urandom", rng.randbytes),
        (random, "Random", Seeded),
        (offload, "run", _inline),
        (GatewayState, "_write_owner_profile", _no_profile),
        *((kind, "__hash__", in_order) for kind in (OutgoingCall, OutgoingQuery)),
        *((kind, "__hash__", in_order) for kind in (GatewaySession, Task)),
    ]


@contextmanager
def replaced(replacements: list[Replacement]) -> Iterator[None]:
    """Set attributes for a while."""
    missing = object()
    before = [(owner, name, vars(owner).get(name, missing)) for owner, name, _ in replacements]
    try:
        for owner, name, value in replacements:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            if value is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def run(seed: int, main: Callable[[], Any], more: list[Replacement]) -> None:
    """Run an async function in a world of its own that follows from `seed` alone.

    Args:
        seed: The number.
        main: What to run.
        more: Further attributes to set for the time of the run.
    """
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(f"{seed}:schedule")
    random.seed(f"{seed}:module")
    ids._drawn.clear()
    clock = MockClock(autojump_threshold=0)
    gc.collect()
    gc.disable()
    try:
        with replaced([*_replacements(child(seed, "system")), *more]):
            trio.run(main, clock=clock)
    finally:
        gc.enable()
        ids._drawn.clear()
