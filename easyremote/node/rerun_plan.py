"""How the user's script is run once more: captured when this module is imported.

Theory. A worker that died, and every replica, is the user's script run again: same interpreter,
same arguments, same working directory, same environment. All of that is captured early, before
the script can change it. Not every program can be run again: what was typed into a prompt or a
notebook exists in this process only, and running a test runner again would run the tests.

What an agent says to a script that it starts travels in one environment variable: the *marker*.

Rules of this file. 1) No secret stands in a marker. 2) A marker counts only for the process whose
parent wrote it: a program that the user's code starts may inherit the variable, but has another
parent.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from .. import rerun

ADOPT_VARIABLE = "EASYREMOTE_AGENT"
"""Set for the first run of a script under `easyremote node`: its first `serve()` uses the agent
that started it. Nothing else about that run is special."""

MARKER_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class RerunPlan:
    """A command that runs the script again.

    Attributes:
        argv: Interpreter, its options, script, arguments.
        cwd: Working directory.
        env: The environment at the start; may hold secrets.
    """

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(repr=False)

    def to_plain(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {"argv": list(self.argv), "cwd": self.cwd, "env": dict(self.env)}

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> RerunPlan:
        """Read what `to_plain` made."""
        return cls(tuple(value["argv"]), value["cwd"], dict(value["env"]))


@dataclass(frozen=True, slots=True)
class Marker:
    """What an agent says to a script that it starts.

    Attributes:
        fd: The inherited descriptor of the socket to the agent.
        signal_fd: The inherited descriptor of the signal line.
        agent: Process id of the agent, the parent of the script.
        node_id: The node whose `serve()` becomes the worker; None means the first one.
        serve: Which `serve()` of that node, counted from 1.
        group: The slot group that a replica serves; None serves everything.
    """

    fd: int
    signal_fd: int
    agent: int
    node_id: str | None = None
    serve: int = 1
    group: str | None = None

    def encode(self) -> str:
        """Return the marker as the value of an environment variable."""
        return json.dumps(astuple(self))

    @classmethod
    def decode(cls, text: str | None) -> Marker | None:
        """Return the marker in `text`, or None if it is none, or not meant for this process."""
        if text is None or len(text) > MARKER_BYTES_MAX:
            return None
        try:
            marker = cls(*json.loads(text))
        except (ValueError, TypeError):
            return None
        numbers = (marker.fd, marker.signal_fd, marker.agent, marker.serve)
        if not all(type(number) is int for number in numbers) or marker.agent != os.getppid():
            return None
        return marker


_MARKER = Marker.decode(rerun.worker_marker())
_ADOPT = Marker.decode(os.environ.pop(ADOPT_VARIABLE, None))


def _captured_cwd() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # It was removed under us.
        return str(Path.home())


_CAPTURED = RerunPlan((sys.executable, *sys.orig_argv[1:]), _captured_cwd(), dict(os.environ))


def worker_marker() -> Marker | None:
    """Return the marker of a second run of the script, None in a first run."""
    return _MARKER


def adopting_marker() -> Marker | None:
    """Return the marker of the agent that started this first run, if one did."""
    return _ADOPT


def plan_rerun(*, blocking: bool) -> RerunPlan | str:
    """Return how this script is run again, or the reason why it cannot be.

    Args:
        blocking: Whether the `serve()` in question blocks.
    """
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if hasattr(builtins, "__IPYTHON__") or hasattr(sys, "ps1"):
        return "it is an interactive session"
    if getattr(sys, "frozen", False) or not sys.executable:
        return "it is a frozen program"
    if "_pytest.config" in sys.modules:
        return "it is a test run"
    is_file = path is not None and Path(path).is_file()
    if not is_file and getattr(main, "__spec__", None) is None:
        return "it was not started from a file"
    if not blocking:
        return "its serve() does not block"
    if threading.current_thread() is not threading.main_thread():
        return "its serve() is not on the main thread"
    return _CAPTURED
