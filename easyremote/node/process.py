"""Processes of a node: how they are started, watched and ended, so that none is left behind.

Theory. Three kernel features make a family of processes safe. A *pidfd* names one process for as
long as it is open, becomes readable when the process ends, and cannot be confused by a number that
is used again; a closed socket proves less, because a forked child may still hold the other end.
PDEATHSIG kills a child when the thread that forked it ends, so a worker cannot outlive its agent.
A *subreaper* inherits the orphans of its descendants, so that it can collect or kill them.

Rules of this file. 1) Children are started on the main thread alone: PDEATHSIG fires when the
forking thread ends, and trio ends its cached threads whenever it likes. 2) A child leads a process
group of its own: Ctrl-C in a terminal reaches the user's script and nobody else. 3) What a child
leaves in its group is killed when the child is collected, before its number can be used again.
4) Where a feature is missing (not Linux), waiting polls once a second.

Source. prctl(2) PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER; pidfd_open(2); waitid(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import trio

POLL_S = 1.0
"""How often a process is looked at where there is no pidfd."""
KILL_WAIT_S = 5.0
"""Time in which a killed process disappears; longer only in a broken kernel call."""
TERM_S = 1.0
"""Time between SIGTERM and SIGKILL for a process that did not end when it was asked to."""
DYING_S = 0.01
"""Pause between two looks at what was killed."""
EXIT_ORPHAN = 70
"""Exit code of a child whose parent was gone before it began."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"


class ExitStatus(NamedTuple):
    """How a process ended; both are None where only its end was seen."""

    exit_code: int | None
    signal: int | None
    why: str = ""
    """Why we killed it, as the end of a sentence; empty if we did not."""

    @classmethod
    def of(cls, returncode: int) -> ExitStatus:
        """Read the `returncode` of `subprocess`."""
        return cls(None, -returncode) if returncode < 0 else cls(returncode, None)

    def describe(self) -> str:
        """Return the end as people say it."""
        if self.why:
            return self.why
        if self.signal is not None:
            try:
                return f"was killed by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"was killed by signal {self.signal}"
        if self.exit_code is not None:
            return f"exited with code {self.exit_code}"
        return "ended"

    def detail(self) -> dict[str, Any]:
        """Return the end as the detail of a WORKER_DIED failure."""
        return {"exit_code": self.exit_code, "signal": self.signal}


UNKNOWN_END = ExitStatus(None, None)


class Process(Protocol):
    """A process that is watched, whoever started it."""

    pid: int

    async def wait(self) -> ExitStatus:
        """Wait until it is gone; any number of tasks may wait."""
        ...

    def kill(self) -> None:
        """End it at once; without effect if it is gone."""
        ...

    def terminate(self) -> None:
        """Ask it to end; without effect if it is gone."""
        ...


class Child:
    """A process that this one started."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self._popen = popen

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, None while it runs."""
        code = self._popen.returncode
        return None if code is None else ExitStatus.of(code)

    def collect(self) -> None:
        """If it has ended: kill what it left in its group, and take its exit status."""
        if self._popen.returncode is not None:
            return
        if _is_zombie(self.pid):
            # Its number, which is also that of its group, is ours until it is collected.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._popen.poll()

    async def wait(self) -> ExitStatus:
        """Wait until it is gone."""
        self.collect()
        while (status := self.status) is None:
            await _wait_pid(self.pid)
            self.collect()
        return status

    def kill(self) -> None:
        """End it and its group at once."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it, alone, to end."""
        self.collect()
        if self._popen.returncode is None:
            self._popen.terminate()

    def _signal(self, number: signal.Signals) -> None:
        self.collect()
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)


class Stranger:
    """A process that somebody else started: its end is seen, its exit status is not."""

    def __init__(self, pid: int) -> None:
        """Watch `pid`, which must be alive or the parent of this process."""
        self.pid = pid
        self._pidfd = _open_pidfd(pid)

    async def wait(self) -> ExitStatus:
        """Wait until it is gone."""
        if self._pidfd is not None:
            await _wait_pidfd(self._pidfd)
            return UNKNOWN_END
        while _is_alive(self.pid):  # noqa: ASYNC110 - nothing tells us
            await trio.sleep(POLL_S)
        return UNKNOWN_END

    @property
    def alive(self) -> bool:
        """Whether it is still there."""
        return _is_alive(self.pid)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._pidfd is not None and hasattr(signal, "pidfd_send_signal"):
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)

    def close(self) -> None:
        """Stop watching."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


# ---- starting ------------------------------------------------------------------------------------


def start_child(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    pass_fds: Sequence[int] = (),
    dies_with_us: bool = True,
) -> Child:
    """Start a program in a process group of its own, with nothing on its stdin.

    Args:
        argv: The program and its arguments.
        env: Its whole environment.
        cwd: Its working directory.
        pass_fds: Descriptors that it inherits, under the same numbers.
        dies_with_us: It is killed when this process ends, however that happens (Linux).

    Raises:
        OSError: It cannot be started.
    """
    assert threading.current_thread() is threading.main_thread()
    popen = subprocess.Popen(  # noqa: S603 - the user's own script
        list(argv),
        stdin=subprocess.DEVNULL,
        env=dict(env),
        cwd=cwd,
        pass_fds=pass_fds,
        process_group=0,
        preexec_fn=_bind_to(os.getpid()) if dies_with_us and _LINUX else None,  # noqa: PLW1509
    )
    return Child(popen)


def _bind_to(parent: int) -> Any:
    """Return what a forked child runs before its program, to die with `parent`."""
    prctl = _prctl()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # It died before the line above took effect.
            os._exit(EXIT_ORPHAN)

    return in_child


def _prctl() -> Any:
    return ctypes.CDLL(None, use_errno=True).prctl


def become_subreaper() -> bool:
    """Inherit the orphans of all descendants from now on; False where there is no such thing."""
    return _LINUX and _prctl()(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


# ---- ending --------------------------------------------------------------------------------------


async def end_process(process: Process, grace_s: float) -> ExitStatus:
    """Let a process end by itself for `grace_s`, then ask it, then kill it."""
    with trio.move_on_after(grace_s):
        return await process.wait()
    process.terminate()
    with trio.move_on_after(TERM_S):
        return await process.wait()
    process.kill()
    with trio.move_on_after(KILL_WAIT_S):
        return await process.wait()
    return UNKNOWN_END


def reap(children: Sequence[Child]) -> int:
    """Collect every process that has ended and whose parent we are; return how many orphans.

    Args:
        children: Those that we started ourselves, whose exit status somebody waits for.
    """
    for child in children:
        child.collect()
    known = {child.pid: child for child in children}
    orphans = 0
    while (pid := _some_zombie()) is not None:
        child_known = known.get(pid)
        if child_known is not None:
            child_known.collect()
            continue
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        orphans += 1
    return orphans


def kill_descendants(children: Sequence[Child]) -> int:
    """Kill everything below this process, orphans that it inherited included; return how many."""
    import psutil

    killed: set[int] = set()
    until = time.monotonic() + KILL_WAIT_S
    while time.monotonic() < until:  # A killed process leaves its children to us: look again.
        left = psutil.Process().children(recursive=True)
        if not left:
            break
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.add(process.pid)
        time.sleep(DYING_S)
        reap(children)
    return len(killed)


def _some_zombie() -> int | None:
    """Return a child that has ended and was not collected, without collecting it."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def _is_zombie(pid: int) -> bool:
    """Return whether a child of ours has ended and was not collected yet."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False  # Somebody else collected it; `Popen.poll` copes with that.
    return found is not None


# ---- watching ------------------------------------------------------------------------------------


def _open_pidfd(pid: int) -> int | None:
    """Return a descriptor for a process, or None where the system has none."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


async def _wait_pid(pid: int) -> None:
    """Wait until a child that was not collected yet has ended, or, without a pidfd, a moment."""
    pidfd = _open_pidfd(pid)
    if pidfd is None:
        await trio.sleep(POLL_S)
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


async def _wait_pidfd(pidfd: int) -> None:
    """Wait for a process by a descriptor that others may be waiting on, too."""
    own = os.dup(pidfd)
    try:
        await trio.lowlevel.wait_readable(own)
    finally:
        os.close(own)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def has_terminal() -> bool:
    """Return whether this process belongs to a terminal that is still there."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(descriptor)
    return True


# ---- descriptors ---------------------------------------------------------------------------------

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
"""Sockets of ours in this process. Forking is a matter of the whole process, and so is this."""


def close_in_forked_children(sock: socket.socket) -> None:
    """Close `sock` in every child that this process forks without exec.

    A child of the user's code that kept it would keep the link alive after its owner has died.
    """
    _sockets.add(sock)


def _close_all() -> None:
    for sock in list(_sockets):
        sock.close()
    _sockets.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
