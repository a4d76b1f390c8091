"""Starting the user's script as a child of the agent.

Rules of this file. 1) On the main thread, as `process` demands. 2) The child inherits two
descriptors beside stdout and stderr: its ends of the link's socket and of the signal line.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import NamedTuple

from .. import rerun
from .leash import LABEL_VARIABLE
from .process import Child, start_child
from .rerun_plan import ADOPT_VARIABLE, Marker, RerunPlan


class StartedScript(NamedTuple):
    """A script that was started."""

    process: Child
    socket: socket.socket
    """Our end of the link's socket."""
    signal_line: socket.socket
    """Our end of the signal line."""


def start_script(
    plan: RerunPlan, *, node_id: str | None = None, serve: int = 1, group: str | None = None,
    first_run: bool = False, label: str = "", more_env: Mapping[str, str] | None = None,
) -> StartedScript:  # fmt: skip
    """Run the script.

    Args:
        plan: How.
        node_id: The node whose `serve()` becomes the worker; None for the first that is reached.
        serve: Which `serve()` of that node.
        group: The slot group of a replica, None for the worker that serves everything.
        first_run: It is an ordinary first run, which uses the agent that started it.
        label: What everything that it starts is known by.
        more_env: What its environment has beside that of the first run.

    Raises:
        OSError: It cannot be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    line, their_line = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    fds = (theirs.fileno(), their_line.fileno())
    marker = Marker(*fds, os.getpid(), node_id, serve, group)
    variable = ADOPT_VARIABLE if first_run else rerun.WORKER_VARIABLE
    env = {**plan.env, **(more_env or {}), variable: marker.encode()}
    if label:
        env[LABEL_VARIABLE] = label
    try:
        child = start_child(plan.argv, env=env, cwd=plan.cwd, pass_fds=fds)
    except OSError:
        ours.close()
        line.close()
        raise
    finally:
        theirs.close()
        their_line.close()
    return StartedScript(child, ours, line)
