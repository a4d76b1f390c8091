"""How often the garbage collector looks, in processes that do nothing but relay.

Theory. A relay makes and drops thousands of small objects a second, and almost none of them are
in cycles: reference counting frees them. The default thresholds make the collector walk the calls
in flight after every 700 allocations, which costs a quarter of the process's time and finds
nothing. So what was loaded at the start is taken out of its sight, and it looks less often.

Rules of this file. 1) Only for processes that are ours alone (the gateway's, the agent's), never
for a process that runs user code.

Source. `gc.freeze` and `gc.set_threshold` in Python's documentation; measured with
`python -m benchmarks pipelined`.
"""

from __future__ import annotations

import gc

THRESHOLDS = (50_000, 20, 20)
"""Allocations before a young collection; young ones before a middle one; middle before a full."""


def collect_less_often() -> None:
    """Tune the collector of this process for relaying. Call it once, when all is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
