"""The processes of a campaign: started, found, hit, and all gone at the end.

Theory. Who belongs to a campaign is written in the environment that every process inherits, so a
worker that an agent started, or a child that was left behind, is found by reading `/proc`, whoever
its parent is by now. What a process *is* stands in its command line.

Rules of this file. 1) A signal goes through a pidfd of a process that was looked at after the
descriptor was open: a number that is used again is never hit. 2) Nothing is ended by name. 3) Every
process writes to a log of its own, which outlives it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).with_name("programs")
RUN_VARIABLE = "CHAOS_RUN"
MEMBER_VARIABLE = "CHAOS_MEMBER"


class Role(StrEnum):
    """What a process is."""

    GATEWAY = "gateway"
    AGENT = "agent"
    WORKER = "worker"
    """Worker 0 of a node: its script."""
    REPLICA = "replica"
    """A further run of the script, for an isolated function."""
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Proc:
    """One living process of the campaign."""

    pid: int
    role: Role
    member: str
    """`gateway`, `node-2`, `client-1`."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class World:
    """One gateway, nodes and clients, in a folder."""

    folder: Path
    lease_s: float
    port: int = field(default_factory=free_port)
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further environment of every process."""
    started: dict[str, int] = field(default_factory=dict)
    """How often each member was started."""
    born: dict[int, float] = field(default_factory=dict)
    """When each of our own children was started, by its pid."""
    _strangers: set[int] = field(default_factory=set)
    """Processes that were looked at and are none of ours; nobody joins a campaign later."""
    _known: set[Proc] = field(default_factory=set)
    """Processes of ours that were seen, and may have ended since."""
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where the gateway listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def home(self) -> Path:
        """EASYREMOTE_HOME of every process."""
        return self.folder / "home"

    @property
    def markers(self) -> Path:
        """Where bodies say that they ran."""
        return self.folder / "markers"

    def environment(self, member: str) -> dict[str, str]:
        """Return the environment of a process."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("EASYREMOTE_")}
        clean.pop("INVOCATION_ID", None)  # Else restarting would be the service manager's.
        return {
            **clean,
            "EASYREMOTE_HOME": str(self.home),
            "EASYREMOTE_LEASE_S": f"{self.lease_s:g}",
            "EASYREMOTE_RESTARTS_MAX": "1000000",
            "PYTHONPATH": str(ROOT),
            RUN_VARIABLE: self.run_id,
            MEMBER_VARIABLE: member,
            **self.extra,
        }

    # ---- starting --------------------------------------------------------------------------------

    def start_gateway(self) -> subprocess.Popen[bytes]:
        """Start the gateway, or start it again, on the same port and folder."""
        words = ["-m", "easyremote", "gateway", "run", "--host", "127.0.0.1"]
        return self.start("gateway", [*words, "--port", str(self.port)])

    def start_node(
        self, node_id: str, *, by_command: bool, port: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Start a node by `easyremote node`, or its script by itself."""
        script = [str(PROGRAMS / "node.py"), f"127.0.0.1:{port or self.port}", node_id]
        lead = ["-m", "easyremote", "node"] if by_command else []
        return self.start(node_id, [*lead, *script, str(self.markers)], env)

    def start_client(
        self, client_id: str, member: str, *, rate: float, seed: int, settle_s: float,
        port: int | None = None, env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Start a client, which begins to call at once."""
        words = [str(PROGRAMS / "client.py"), f"127.0.0.1:{port or self.port}", client_id]
        words += [str(self.folder / f"{client_id}.jsonl"), f"{rate:g}", str(seed), f"{settle_s:g}"]
        return self.start(member, words, env)

    def start(
        self, member: str, words: list[str], env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a Python process as `member`."""
        self.started[member] = self.started.get(member, 0) + 1
        with (self.folder / f"{member}.log").open("ab") as log:
            popen = subprocess.Popen(
                [sys.executable, *words],
                env={**self.environment(member), **(env or {})},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.children.append(popen)
        self.born[popen.pid] = time.monotonic()
        return popen

    def wait_port(self, limit_s: float) -> bool:
        """Wait until the gateway listens."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            time.sleep(0.02)
        return False

    # ---- finding and hitting ---------------------------------------------------------------------

    def scan(self) -> list[Proc]:
        """Return every living process of this campaign."""
        self.children = [child for child in self.children if child.poll() is None]
        pids = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
        self._strangers &= pids  # A number that has been free may be one of ours the next time.
        found = [proc for pid in pids - self._strangers if (proc := self.look(pid)) is not None]
        return sorted(found, key=lambda proc: (proc.member, proc.role, proc.pid))

    def hit(self, proc: Proc, number: signal.Signals) -> bool:
        """Send a signal to exactly this process; False if it is gone."""
        try:
            pidfd = os.pidfd_open(proc.pid)
        except OSError:
            return False
        try:
            if self.look(proc.pid) != proc:
                return False
            signal.pidfd_send_signal(pidfd, number)
        except OSError:
            return False
        finally:
            os.close(pidfd)
        return True

    def look(self, pid: int) -> Proc | None:
        """Return what `pid` is, None if it is gone, a zombie, or none of ours."""
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return None
        if f"{RUN_VARIABLE}={self.run_id}\0".encode() not in environ:
            if environ:  # That of a zombie, and of a process that is being made, is empty.
                self._strangers.add(pid)
            return None
        facts = dict(
            entry.partition("=")[::2] for entry in environ.decode(errors="replace").split("\0")
        )
        proc = Proc(pid, _role(words, facts), facts.get(MEMBER_VARIABLE, "?"))
        self._known.add(proc)
        return proc

    # ---- the end ---------------------------------------------------------------------------------

    def wait_gone(self, member: str, limit_s: float) -> list[Proc]:
        """Wait until no process of a member is left; return those that are."""
        until = time.monotonic() + limit_s
        while True:
            self.scan()
            ours = {child.pid for child in self.children}  # Whose end was not seen yet.
            self._known = {p for p in self._known if p.pid in ours or not _ended(p.pid)}
            left = [proc for proc in self._known if proc.member == member]
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.02)

    def end(self) -> list[Proc]:
        """Kill whatever is left; return what that was."""
        left = self.scan()
        for _ in range(50):
            now = self.scan()
            if not now:
                break
            for proc in now:
                self.hit(proc, signal.SIGKILL)
            time.sleep(0.05)
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)
        return left


def _ended(pid: int) -> bool:
    """Return whether a process is over.

    A killed one loses its memory, by which it is known, before its sockets; and while it has
    threads it is a zombie that still has them, but then `wait` of its parent says so.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state in "ZX"


def _role(words: list[str], facts: Mapping[str, str]) -> Role:
    programs = {Path(word).name for word in words}
    if "agent_main.py" in programs or words[2:4] == ["easyremote", "node"]:
        return Role.AGENT
    if words[2:4] == ["easyremote", "gateway"]:
        return Role.GATEWAY
    if "client.py" in programs:
        return Role.CLIENT
    marker = facts.get("EASYREMOTE_WORKER")
    return Role.REPLICA if marker is not None and not marker.endswith(" null]") else Role.WORKER
