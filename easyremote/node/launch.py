"""How `serve()` becomes a worker with an agent beside it, whoever started whom.

Theory. Three kinds of process reach `serve()`:

    python script.py             first run: the script starts the agent, and is the first worker
    easyremote node script.py    first run under an agent that is there: the script uses it
    (started by the agent)       a second run, to replace a dead worker or as a replica

and two more must not serve at all: a second run that passes the `serve()` of another node, and a
child in which `multiprocessing` imports the script. The agent is a process of its own, so that no
code of the user can hold up a heartbeat, and has a process group of its own, so that Ctrl-C
reaches the script alone, which then asks the agent to drain.

Rules of this file. 1) The configuration goes to the agent through a pipe: a command line can be
read by everybody. 2) The agent runs the very package that the script imported. 3) Nothing here is
asynchronous: this is the user's thread.

Source. decisions.md, "Processes of a node", 1 to 4.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from .. import rerun
from ..config import join_withheld
from ..errors import EasyRemoteError
from ..log import Log
from . import leash
from .agent_config import AgentConfig, Announcement
from .process import close_in_forked_children
from .rerun_plan import Marker, RerunPlan, adopting_marker, plan_rerun, worker_marker
from .signal_line import SAY_DRAIN, SAY_END, SignalLine
from .spec import NodeSpec

_log = Log("node")

SCRIPT_OVER_S = 3.0
"""How long the end of a script waits for the end of its agent."""
AGENT_PROGRAM = Path(__file__).with_name("agent_main.py")

SERVICE_MANAGER_VARIABLE = "INVOCATION_ID"
"""Set by systemd for every service (systemd.exec(5)): it restarts what dies by its own rules."""

_served: Counter[str] = Counter()
"""How often `serve()` was reached for each node id. A matter of this process as a whole."""
_adopted: list[Marker] = []
"""The agent that started this run, once a `serve()` uses it."""


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """What a worker needs.

    Attributes:
        socket: Connected to the agent; the worker is the dialling side of the link on it.
        agent: The agent process.
        rerun: This is a second run of the script, started by the agent.
        group: The slot group that this process serves as a replica; None serves everything.
    """

    socket: socket.socket
    agent: AgentHandle
    rerun: bool
    group: str | None


class AgentHandle:
    """The agent process, seen from the worker. Any thread may use it."""

    def __init__(
        self, pid: int, line: SignalLine, popen: subprocess.Popen[bytes] | None = None, *,
        dedicated: bool = True, leash: str = "",
    ) -> None:  # fmt: skip
        """Know an agent.

        Args:
            pid: Its process.
            line: The signal line to it.
            popen: The same process, if this one started it.
            dedicated: This process does nothing else than serving while it serves.
            leash: What the labels of this node begin with, if this process puts its own on.
        """
        self.pid = pid
        self._dedicated = dedicated
        self._leash = leash
        self._line = line
        self._popen = popen
        self._told = False

    def stop(self) -> None:
        """Ask the agent to drain the node and end; a second time: to end at once."""
        self._line.say(SAY_END if self._told else SAY_DRAIN)
        self._told = True

    def signals(self) -> AbstractContextManager[None]:
        """Let SIGINT and SIGTERM reach the agent at once while a `with` block runs.

        On the main thread, and for signals that have a Python handler; it has no effect elsewhere.
        """
        return self._line.tied()

    @contextlib.contextmanager
    def household(self) -> Iterator[None]:
        """Let what this process starts while the block runs belong to the node, if it serves only.

        It ends with the node, and it does not inherit the node's secret.
        """
        if not self._dedicated:
            yield
            return
        label = leash.label(self._leash, 0) if self._leash else ""
        with join_withheld(), leash.worn(label):
            yield

    def end_family(self) -> None:
        """The agent is gone and can end nobody: end what the workers of this node left."""
        leash.sweep(self._leash)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the agent; False if the time was too short.

        An agent that started this process outlives it, and there is nothing to wait for.
        """
        if self._popen is None:
            return True
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end_with_script(self) -> None:
        """The script is over: an agent that it started and that still runs ends with it."""
        if self._popen is not None and self._popen.poll() is None:
            self._line.say(SAY_END)
            self.wait(SCRIPT_OVER_S)


def enter(spec: NodeSpec, blocking: bool) -> WorkerEntry | None:
    """Make this process a worker of `spec`.

    Args:
        spec: The node whose `serve()` was called.
        blocking: Whether that `serve()` blocks.

    Returns:
        The worker's end, or None if this `serve()` must do nothing.

    Raises:
        EasyRemoteError: The agent cannot be started.
    """
    if rerun.is_spawn_child():
        return None
    _served[spec.node_id] += 1
    serve = _served[spec.node_id]
    if rerun.is_rerun():
        return _enter_again(spec, serve)
    marker = adopting_marker()
    if marker is not None and not _adopted:
        _adopted.append(marker)
        planned = plan_rerun(blocking=blocking)
        obstacle = planned if isinstance(planned, str) else ""
        return _join(marker, Announcement(spec, serve, obstacle), again=False)
    return _start_agent(spec, blocking, serve)


# ---- started by an agent -------------------------------------------------------------------------


def _enter_again(spec: NodeSpec, serve: int) -> WorkerEntry | None:
    """Become the worker for which the agent ran the script again, if this is its `serve()`."""
    marker = worker_marker()
    if marker is None or marker.node_id not in (None, spec.node_id) or marker.serve != serve:
        return None
    return _join(marker, Announcement(spec, serve), again=True)


def _join(marker: Marker, announcement: Announcement, *, again: bool) -> WorkerEntry:
    try:
        sock = socket.socket(fileno=marker.fd)
        close_in_forked_children(sock)
        sock.setblocking(True)
        announcement.send(sock)
    except OSError as error:
        raise EasyRemoteError(
            f"the agent that started this process is gone ({error}); start the script by itself"
        ) from error
    sock.setblocking(False)
    line = SignalLine(socket.socket(fileno=marker.signal_fd))
    return WorkerEntry(sock, AgentHandle(marker.agent, line), again, marker.group)


# ---- starting an agent ---------------------------------------------------------------------------


def _start_agent(spec: NodeSpec, blocking: bool, serve: int) -> WorkerEntry:
    if sys.platform == "win32":
        raise EasyRemoteError(
            "a node needs Linux or macOS; on Windows, run it inside WSL. Clients work everywhere."
        )
    planned = plan_rerun(blocking=blocking)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    close_in_forked_children(ours)
    close_in_forked_children(theirs)
    our_line, their_line = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    line = SignalLine(our_line)
    config = AgentConfig(
        spec=spec,
        fd=theirs.fileno(),
        signal_fd=their_line.fileno(),
        script_pid=os.getpid(),
        serve=serve,
        rerun=planned if isinstance(planned, RerunPlan) else None,
        rerun_obstacle=planned if isinstance(planned, str) else "",
        restarts=isinstance(planned, RerunPlan) and _may_restart(),
        # A process that does other things, too, may start others that are none of the node's.
        leash=leash.new_leash() if isinstance(planned, RerunPlan) else "",
    )
    try:
        popen = _run_agent(config)
    except OSError as error:
        ours.close()
        line.close()
        raise EasyRemoteError(
            f"the agent of node {spec.node_id} cannot be started: {error}"
        ) from error
    finally:
        theirs.close()
        their_line.close()
    ours.setblocking(False)
    agent = AgentHandle(
        popen.pid, line, popen, dedicated=isinstance(planned, RerunPlan), leash=config.leash
    )
    atexit.register(agent.end_with_script)
    return WorkerEntry(ours, agent, False, None)


def _run_agent(config: AgentConfig) -> subprocess.Popen[bytes]:
    # -P: a file in the working directory must not stand in for a module of the agent.
    popen = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-P", str(AGENT_PROGRAM)],
        stdin=subprocess.PIPE,
        pass_fds=(config.fd, config.signal_fd),
        process_group=0,
    )
    assert popen.stdin is not None
    # An agent that ended at once closes the pipe: its end shows on the socket, too.
    with contextlib.suppress(BrokenPipeError), popen.stdin:
        popen.stdin.write(config.encode())
    return popen


def _may_restart() -> bool:
    """Return whether the agent may start this script again when it dies.

    Under a service manager and as the first process of a container, restarting is theirs. A
    gateway in the same process cannot be brought back by a worker, so the whole would be lame.
    """
    return (
        os.getpid() != 1
        and SERVICE_MANAGER_VARIABLE not in os.environ
        and "easyremote.gateway.server" not in sys.modules
    )


def run_script_under_agent(path: str, args: Sequence[str] = ()) -> int:
    """Run a script as a node: this process becomes its agent and its parent.

    Args:
        path: The script.
        args: Its arguments.

    Returns:
        The exit code for this process.

    Raises:
        EasyRemoteError: There is no such file.
    """
    if not Path(path).is_file():
        raise EasyRemoteError(f"there is no file {path}; name the script that calls node.serve()")
    from .agent_program import run_agent_of_script

    plan = RerunPlan((sys.executable, path, *args), str(Path.cwd()), dict(os.environ))
    return run_agent_of_script(plan)
