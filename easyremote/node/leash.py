"""What a worker's code started, wherever it went: found again and ended when the worker has ended.

Theory. A function may start programs, fork, and forget about both. Whatever still runs when its
worker has died, or when the node has ended, is nobody's. The kernel helps only partly: a process
group is left by whoever opens a session of its own, and a subreaper inherits only from processes
below it, which a script that started its agent is not. So each worker wears a *label* that its
descendants inherit by nature:

    programs      one variable of the environment
    forked        the same; and a page of shared memory with the label as its name, for children of
                  a script that put the label on while it ran already

A descendant that starts with an empty environment of its own is not found by its label; its
process group or the subreaper covers most of those. The tracker of `multiprocessing` is spared: it
ends by itself after it has removed the shared memory that the others left.

Rules of this file. 1) A process is judged and killed through one pidfd: its number may be used
again in between. 2) What ran before the label was put on is never touched. 3) Linux only.

Source. proc_pid_environ(5), proc_pid_maps(5), memfd_create(2), pidfd_send_signal(2).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import signal
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

LABEL_VARIABLE = "EASYREMOTE_FAMILY"
"""In the environment of everything that a worker starts: the node's leash and the worker's number.
It is no secret and grants nothing."""

ROUNDS_MAX = 20
"""Looks at all processes in one sweep: one that forks all the time needs several."""
DYING_S = 0.02
"""Pause between two looks, in which what was killed disappears."""

_LINUX = sys.platform == "linux"
_TRACKER = b"multiprocessing.resource_tracker"


def new_leash() -> str:
    """Return a name that no other node has."""
    return secrets.token_hex(8)


def label(leash: str, number: int) -> str:
    """Return the label of one worker; number 0 is the first run of the script."""
    return f"{leash}.{number}."


@contextlib.contextmanager
def worn(text: str) -> Iterator[None]:
    """Let everything that this process starts or forks inside the block inherit a label."""
    if not (_LINUX and text):
        yield
        return
    before = os.environ.get(LABEL_VARIABLE)
    os.environ[LABEL_VARIABLE] = text
    descriptor = os.memfd_create(_page_name(text), os.MFD_CLOEXEC)
    try:
        os.truncate(descriptor, mmap.PAGESIZE)
        page = mmap.mmap(descriptor, mmap.PAGESIZE)
    finally:
        os.close(descriptor)
    try:
        yield
    finally:
        page.close()
        if os.environ.get(LABEL_VARIABLE) == text:
            os.environ.pop(LABEL_VARIABLE)
            if before is not None:
                os.environ[LABEL_VARIABLE] = before


def _page_name(text: str) -> str:
    return f"easyremote-{text}"


def sweep(prefix: str, spared: Collection[int] = ()) -> int:
    """Kill every process whose label begins with `prefix`; blocks for some hundredths of a second.

    Args:
        prefix: A label, or the leash of a whole node; empty finds nothing.
        spared: Processes that stay, beside this one.

    Returns:
        How many were killed.
    """
    killed: set[int] = set()
    if not (_LINUX and prefix):
        return 0
    for _ in range(ROUNDS_MAX):
        found = {pid for pid in _others(spared) if _kill_if(pid, prefix)}
        if not found:
            break
        killed |= found
        time.sleep(DYING_S)
    return len(killed)


def _others(spared: Collection[int]) -> Iterator[int]:
    own = os.getpid()
    for name in os.listdir("/proc"):  # noqa: PTH208 - `Path` objects for all of them are slow
        if name.isdigit() and (pid := int(name)) != own and pid not in spared:
            yield pid


def _kill_if(pid: int, prefix: str) -> bool:
    """Kill a process if it wears a label; False if it does not, or is dead or somebody else's."""
    folder = Path("/proc", str(pid))
    try:
        if folder.stat().st_uid != os.getuid():
            return False
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _wears(folder, prefix):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def _wears(folder: Path, prefix: str) -> bool:
    variable = f"\0{LABEL_VARIABLE}={prefix}".encode()
    if variable not in b"\0" + folder.joinpath("environ").read_bytes():
        page = f"/memfd:{_page_name(prefix)}".encode()
        if page not in folder.joinpath("maps").read_bytes():
            return False
    return _TRACKER not in folder.joinpath("cmdline").read_bytes()
