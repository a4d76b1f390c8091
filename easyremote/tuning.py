"""How Python's memory management behaves in processes that do nothing but relay.

Theory. A relay makes and drops thousands of small objects a second, and almost none of them are
in cycles: reference counting frees them. The default thresholds make the collector walk the calls
in flight after every 700 allocations, which costs a quarter of the process's time and finds
nothing. So what was loaded at the start is taken out of its sight, and it looks less often. Frames
of bulk are the other half: 256 KiB is above the size from which glibc asks the kernel for fresh
pages and gives them back, so that every relayed byte costs a page fault. Told to keep them, it
hands the same warm pages out again: a fifth of the time of bulk.

The price is that a burst leaves its memory behind. So when a process has been calm for a moment and
holds much more than it used to, cycles are collected and free memory goes back to the system.

Rules of this file. 1) Only for processes that are ours alone (the gateway's, the agent's), never
for a process that runs user code. 2) A system without these knobs goes without.

Source. `gc.freeze` and `gc.set_threshold` in Python's documentation, mallopt(3); measured with
`python -m benchmarks pipelined arrays`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path

THRESHOLDS = (50_000, 20, 20)
"""Allocations before a young collection; young ones before a middle one; middle before a full."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
MMAP_FROM_BYTES = 4 * 1024 * 1024
"""Smaller blocks come from the heap; a frame of bulk is one of them."""
KEEP_BYTES = 64 * 1024 * 1024
"""Free memory at the end of the heap that is kept: all windows of a busy link."""


def tune_for_relaying() -> None:
    """Tune this process for relaying. Call it once, when all is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # Not in every C library.
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, MMAP_FROM_BYTES)
            mallopt(_M_TRIM_THRESHOLD, KEEP_BYTES)


CALM_S = 3.0
"""How long a process is calm before its memory is looked at."""
SLACK_BYTES = 16 * 1024 * 1024
"""Growth since the last look that is worth one."""


class Slack:
    """Gives back what a burst has left behind.

    A burst grows the process, and ends; some seconds later what it left is worth collecting. Where
    that does not help, the new size is what the process needs, and nothing is tried until it has
    grown again.
    """

    def __init__(self) -> None:
        self._needed = resident_bytes()
        self._calm_since: float | None = None

    def look(self, now: float, *, calm: bool) -> bool:
        """Look once a second or so; return whether memory was given back.

        Args:
            now: Any clock.
            calm: Nothing of size is under way.
        """
        if not calm:
            self._calm_since = None
            return False
        if self._calm_since is None:
            self._calm_since = now
        grown = resident_bytes() - self._needed
        if now - self._calm_since < CALM_S or grown < SLACK_BYTES:
            return False
        gc.collect()
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
        self._needed = resident_bytes()
        return True


def resident_bytes() -> int:
    """Return how much memory this process has in use; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/statm").read_bytes().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
