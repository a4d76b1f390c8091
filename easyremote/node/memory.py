"""How much memory a worker may use, and how much it uses.

Theory. A limit that the kernel enforces on addresses (RLIMIT_AS) breaks libraries that reserve far
more than they touch, CUDA first of all. So the agent looks at what is resident: often while a call
runs in a process that has a limit, seldom while none does, and never in a process without one. A
process over its limit is killed whole, so only processes with one call at a time have limits:
those of a function with `isolation="process"`. The script itself is never killed for memory.

What forked processes share counts once: the plain sum over a process and its descendants is cheap
and too high, so the exact one, which walks their page tables, is taken only where the cheap one is
over the limit.

Rules of this file. 1) No sleeping, no killing: `family` does both. 2) A process that vanishes while
it is looked at uses nothing. 3) Without /proc only the process itself counts, by psutil.

Source. proc_pid_statm(5), proc_pid_smaps_rollup(5); features.md R4 for how sizes are written.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEMORY_KEY = "memory"
"""The key of `resource_requirements` that is also the limit of an isolated function."""

LOOK_EVERY_S = 0.1
"""Time between looks at a process that runs a call: how far it can get beyond its limit."""
LOOK_IDLE_S = 1.0

UNITS = {
    "": 1, "B": 1,
    "K": 10**3, "KB": 10**3, "KIB": 2**10, "M": 10**6, "MB": 10**6, "MIB": 2**20,
    "G": 10**9, "GB": 10**9, "GIB": 2**30, "T": 10**12, "TB": 10**12, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(>=|<=|==|=|>|<)?\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_KIB = 1024


def parse_size(value: object) -> tuple[str, int]:
    """Return the comparison in front of a size, "" if there is none, and the size in bytes.

    Raises:
        ValueError: It is no size; the message says how to write one.

    >>> parse_size("2GiB"), parse_size(">=1.5 MB"), parse_size(4096)
    (('', 2147483648), ('>=', 1500000), ('', 4096))
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**62:
        return "", int(value)
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        compare, number, unit = found.groups()
        factor = UNITS.get(unit.upper())
        if factor is not None and 0 < (size_bytes := int(float(number) * factor)) < 2**62:
            return compare or "", size_bytes
    raise ValueError(f'a size is written as "512MB", "16GiB" or a number of bytes, not {value!r}')


def limit_of(requirements: Mapping[str, Any] | None) -> int | None:
    """Return how many bytes a process of a function may use, None for any number.

    What a function asks for is what it may use. A requirement that says "at least", as in
    `">=16GB"`, bounds nothing.
    """
    if not requirements or requirements.get(MEMORY_KEY) is None:
        return None
    compare, size_bytes = parse_size(requirements[MEMORY_KEY])
    return None if compare.startswith(">") else size_bytes


def used_bytes(pid: int, limit_bytes: int) -> int:
    """Return the resident memory of a process and its descendants.

    The number is exact where it is over `limit_bytes`, and may be too high below.
    """
    if not _PROC.joinpath("self").exists():
        return _used_without_proc(pid)
    pids = [pid]
    for known in pids:  # It grows while it is walked.
        pids += children_of(known)
    sizes = [resident_bytes(one) for one in pids]
    if sum(sizes) <= limit_bytes or len(pids) == 1:
        return sum(sizes)
    return sum(map(_own_bytes, pids, sizes))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of one process, what it shares included; 0 if it is gone."""
    try:
        text = _PROC.joinpath(str(pid), "statm").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.split()[1]) * _PAGE_BYTES


def _own_bytes(pid: int, resident: int) -> int:
    """Return a process's share of its resident memory: a page of two processes counts half."""
    with contextlib.suppress(OSError):
        text = _PROC.joinpath(str(pid), "smaps_rollup").read_text(encoding="ascii")
        found = re.search(r"^Pss:\s*([0-9]+) kB$", text, re.MULTILINE)
        if found is not None:
            return int(found[1]) * _KIB
    return resident


def children_of(pid: int) -> list[int]:
    """Return the processes that one process started and that have not ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in _PROC.joinpath(str(pid), "task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, thread.joinpath("children").read_text(encoding="ascii").split())
    return found


def _used_without_proc(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def human(size_bytes: int) -> str:
    """Write a size for people.

    >>> human(268435456), human(1500), human(3 * 2**30)
    ('256 MiB', '1500 B', '3 GiB')
    """
    for unit in ("GiB", "MiB"):
        factor = UNITS[unit.upper()]
        if size_bytes >= factor:
            return f"{size_bytes / factor:.4g} {unit}"
    return f"{size_bytes} B"


def over(used: int, limit_bytes: int, whose: str) -> str:
    """Say that a process used too much, as the end of "the process that ran f ..."."""
    return (
        f"used {human(used)} of memory, more than its limit of {human(limit_bytes)} ({whose}), "
        "and was killed"
    )
