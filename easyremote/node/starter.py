"""Starting the user's script as a child of the agent.

Rules of this file. 1) On the main thread, as `process` demands. 2) The child inherits one
descriptor beside stdout and stderr: its end of the socket to the agent.
"""

from __future__ import annotations

import os
import socket

from .. import rerun
from .process import Child, start_child
from .rerun_plan import ADOPT_VARIABLE, Marker, RerunPlan


def start_script(
    plan: RerunPlan, *, node_id: str | None = None, serve: int = 1, group: str | None = None,
    first_run: bool = False,
) -> tuple[Child, socket.socket]:  # fmt: skip
    """Run the script.

    Args:
        plan: How.
        node_id: The node whose `serve()` becomes the worker; None for the first that is reached.
        serve: Which `serve()` of that node.
        group: The slot group of a replica, None for the worker that serves everything.
        first_run: It is an ordinary first run, which uses the agent that started it.

    Returns:
        The process, and our end of the socket to it.

    Raises:
        OSError: It cannot be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    marker = Marker(theirs.fileno(), os.getpid(), node_id, serve, group)
    variable = ADOPT_VARIABLE if first_run else rerun.WORKER_VARIABLE
    env = {**plan.env, variable: marker.encode()}
    try:
        child = start_child(plan.argv, env=env, cwd=plan.cwd, pass_fds=(theirs.fileno(),))
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return child, ours
