"""Is this process a second run of the user's script?

Theory. A script that calls `serve()` may be run again on purpose: an agent starts replicas of it
as workers, and `multiprocessing` re-imports it in spawned children. In such a process the calls
that would make a second gateway, a second node or a new default client must do nothing, because
the script was written for the first process. The agent tells its workers by one environment
variable, which leaves the environment as soon as it is read: a program that the user's function
starts is not a worker.

Rules of this file. 1) The variable is read once, when this module is imported. 2) No I/O.
"""

from __future__ import annotations

import os
import sys
from types import FrameType

WORKER_VARIABLE = "EASYREMOTE_WORKER"
"""Set by an agent for the runs of a script that it starts; the value is the agent's own."""

_marker: str | None = os.environ.pop(WORKER_VARIABLE, None)


def worker_marker() -> str | None:
    """Return what the agent that started this process says to it, None if no agent did."""
    return _marker


def is_rerun() -> bool:
    """Return whether an agent started this process as a worker."""
    return _marker is not None


def is_spawn_child() -> bool:
    """Return whether `multiprocessing` is importing the user's script in a child right now.

    While a spawn or forkserver child prepares itself, the script is imported as `__mp_main__`
    and the current process says that it inherits. Later, in the child's own work, a deliberate
    call is the user's business and this returns False.
    """
    process = sys.modules.get("multiprocessing.process")  # Not imported: no such child.
    if process is None:
        return False
    if getattr(process.current_process(), "_inheriting", False):
        return True
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # `inspect` is slow to import.
    while frame is not None:
        if frame.f_globals.get("__name__") == "__mp_main__" and frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False


def inert() -> bool:
    """Return whether calls that start a gateway or a node must do nothing in this process."""
    return is_rerun() or is_spawn_child()
