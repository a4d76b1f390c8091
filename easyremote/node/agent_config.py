"""What an agent is told when it starts, and what a worker announces to its agent.

Theory. Both may hold secrets (a token, an environment), so neither stands on a command line: the
configuration goes through a pipe, the announcement through the socket pair, before the protocol
of links begins on it. Both are JSON, read once, by a process of the same user.

Rules of this file. 1) Plain data only. 2) An announcement is one length and that many bytes.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import EasyRemoteError
from .rerun_plan import RerunPlan
from .spec import NodeSpec

ANNOUNCEMENT_BYTES_MAX = 16 * 1024 * 1024
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent is told by the script that starts it.

    Attributes:
        spec: The node; its functions come later, on the worker's link.
        fd: The agent's end of the socket to the script.
        signal_fd: The agent's end of the signal line.
        script_pid: The process that starts the agent and is its first worker.
        serve: Which `serve()` of that node in the script this is, counted from 1.
        rerun: How the script is run again, None if it cannot be.
        rerun_obstacle: Why it cannot be, for people.
        restarts: Whether the agent may start the script again when it dies.
        leash: What the labels of the node's workers begin with; empty if they wear none.
    """

    spec: NodeSpec
    fd: int
    signal_fd: int
    script_pid: int
    serve: int
    rerun: RerunPlan | None
    rerun_obstacle: str
    restarts: bool
    leash: str = ""

    def encode(self) -> bytes:
        """Return the configuration as bytes."""
        value = {
            "spec": spec_to_plain(self.spec),
            "fd": self.fd,
            "signal_fd": self.signal_fd,
            "script_pid": self.script_pid,
            "serve": self.serve,
            "rerun": None if self.rerun is None else self.rerun.to_plain(),
            "rerun_obstacle": self.rerun_obstacle,
            "restarts": self.restarts,
            "leash": self.leash,
        }
        return json.dumps(value).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> AgentConfig:
        """Read what `encode` made."""
        value = json.loads(data)
        rerun = value["rerun"]
        return cls(
            spec=spec_from_plain(value["spec"]),
            fd=value["fd"],
            signal_fd=value["signal_fd"],
            script_pid=value["script_pid"],
            serve=value["serve"],
            rerun=None if rerun is None else RerunPlan.from_plain(rerun),
            rerun_obstacle=value["rerun_obstacle"],
            restarts=value["restarts"],
            leash=value["leash"],
        )


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a script that an agent started says first.

    Attributes:
        spec: The node whose `serve()` was reached.
        serve: Which `serve()` of that node.
        rerun_obstacle: Why the script cannot be run as a replica; empty if it can.
    """

    spec: NodeSpec
    serve: int = 1
    rerun_obstacle: str = ""

    def send(self, sock: socket.socket) -> None:
        """Send it over a socket that blocks.

        Raises:
            OSError: The agent is gone.
        """
        value = {
            "spec": spec_to_plain(self.spec),
            "serve": self.serve,
            "rerun_obstacle": self.rerun_obstacle,
        }
        data = json.dumps(value).encode("ascii")
        sock.sendall(_LENGTH.pack(len(data)) + data)

    @classmethod
    def decode(cls, data: bytes) -> Announcement:
        """Read the bytes behind the length."""
        value = json.loads(data)
        return cls(spec_from_plain(value["spec"]), value["serve"], value["rerun_obstacle"])


async def receive_announcement(
    receive: Callable[[int], Any],
) -> Announcement | None:
    """Read an announcement with an asynchronous `receive(size) -> bytes`.

    Returns:
        The announcement, or None if the other side ended before it was complete.

    Raises:
        EasyRemoteError: What came is no announcement.
    """
    head = await _exactly(receive, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > ANNOUNCEMENT_BYTES_MAX:
        raise EasyRemoteError("a worker said something else than an announcement")
    data = await _exactly(receive, length)
    try:
        return None if data is None else Announcement.decode(data)
    except (ValueError, KeyError, TypeError) as error:
        raise EasyRemoteError("a worker said something else than an announcement") from error


async def _exactly(receive: Callable[[int], Any], size_bytes: int) -> bytes | None:
    got = bytearray()
    while len(got) < size_bytes:
        more = await receive(size_bytes - len(got))
        if not more:
            return None
        got += more
    return bytes(got)


def spec_to_plain(spec: NodeSpec) -> dict[str, Any]:
    """Return a spec as plain data, without its functions: those go over the link."""
    plain = asdict(replace(spec, functions=()))
    accept = plain["accept_code"]
    plain["accept_code"] = accept if isinstance(accept, bool | str) else list(accept)
    return plain


def spec_from_plain(value: Mapping[str, Any]) -> NodeSpec:
    """Read what `spec_to_plain` made."""
    return NodeSpec(**value)
