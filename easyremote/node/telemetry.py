"""How busy this machine is: samples, taken beside the work, and what of them is news.

Theory. A gateway places calls by what is free *now*, so a node says every second how busy it is.
The numbers come from the kernel (through psutil) and from NVML; both are read in a thread, because
a driver or a network disk may hang, and a heartbeat must not. What has hardly changed is not said
again: a sample on the wire is a *delta* of what was said before. An empty one still says "I am
here, and all is as it was". Every `FULL_EVERY_S`, and after each connection, all is said again, so
that nothing wrong lasts.

    sample ---> Delta ---> {"full": True, everything} | {what has changed} | {}

Rules of this file. 1) Nothing here waits but for the system itself: CPU use and rates are counted
since the sample before. 2) One sample costs a fixed number of reads, however many processes and
connections the machine has; what must walk over processes is done seldom. 3) What this system does
not tell is left out, never made up.

Source. features.md N8; proc(5); psutil; Linux documentation, "Control Group v2".
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import trio

from ..log import Log
from . import memory
from .nvml import Nvml

_log = Log("node")

SAMPLE_EVERY_S = 1.0
FULL_EVERY_S = 30.0
"""How often everything is said, and not only what has changed."""

FIRST_LOOK_S = 0.1
"""Time over which the CPU is looked at for the very first sample."""

SAMPLE_WAIT_S = 2.0
"""Time after which a sample is given up: a driver or a disk hangs."""

THREADS_MAX = 2
"""Threads that may hang in samples that were given up."""

TREE_EVERY = 5
"""One sample in so many walks over the node's own processes."""

ANCESTORS_MAX = 64
"""How far up the parents of a process are followed."""

GROUPS_MAX = 16
"""Control groups around a process that are looked at."""
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")

_GRAINS: dict[str, float] = {
    "cpu_percent": 1.0,
    "memory_percent": 0.5,
    "load_1m": 0.05,
}
"""A change of less than this is no news."""
_RELATIVE_GRAIN = 0.005
"""The same for other numbers, as a share of what was said before."""
_COUNTS = frozenset({"calls_running", "cpu_count"})
"""Numbers of which every change is news."""


class Sampler:
    """Takes samples of this machine. Used by one thread at a time.

    Attributes:
        roots: The processes that this node began with; what they started is the node's, too.
    """

    def __init__(self, roots: Iterable[int] = (), *, nvml: Nvml | None = None) -> None:
        """Begin to count.

        Args:
            roots: The node's processes; this one is always among them.
            nvml: The GPUs, None for none.
        """
        import psutil

        self.roots = {os.getpid(), *roots}
        self._psutil = psutil
        self._nvml = nvml
        self._taken = 0
        self._own_bytes = 0

    def sample(self) -> dict[str, Any]:
        """Return one sample; blocks for some reads of `/proc` and some calls of the driver."""
        psutil = self._psutil
        total_bytes, available_bytes = usable_memory()
        if self._taken % TREE_EVERY == 0:
            self._own_bytes = own_bytes(self.roots)
        self._taken += 1
        first_s = FIRST_LOOK_S if self._taken == 1 else None
        sample: dict[str, Any] = {
            "cpu_percent": usable_share(psutil.cpu_percent(interval=first_s, percpu=True)),
            "cpu_count": usable_threads(),
            "memory_total_bytes": total_bytes,
            "memory_available_bytes": available_bytes,
            "memory_percent": round(100.0 * (1.0 - available_bytes / total_bytes), 1),
            "memory_own_bytes": self._own_bytes,
        }
        with contextlib.suppress(OSError):
            sample["load_1m"] = os.getloadavg()[0]
        with contextlib.suppress(OSError):
            disk = psutil.disk_usage(os.curdir)  # Where the functions of this node write.
            sample["disk_free_bytes"], sample["disk_total_bytes"] = int(disk.free), int(disk.total)
        with contextlib.suppress(OSError):
            if (net := psutil.net_io_counters()) is not None:
                sample["net_sent_bytes"] = int(net.bytes_sent)
                sample["net_received_bytes"] = int(net.bytes_recv)
        sample["gpus"] = [] if self._nvml is None else self._nvml.sample(self._is_own)
        return sample

    def _is_own(self, pid: int) -> bool | None:
        """Whether a process descends from this node; None if it cannot be seen from here."""
        for _ in range(ANCESTORS_MAX):
            if pid in self.roots:
                return True
            try:
                parent = self._psutil.Process(pid).ppid()
            except self._psutil.NoSuchProcess:
                return None
            except self._psutil.Error:
                return False
            if parent <= 1:
                return False
            pid = parent
        return False

    def close(self) -> None:
        """Let the driver go."""
        if self._nvml is not None:
            self._nvml.close()


class Sampling:
    """Samples of this machine, taken in a thread: what hangs there costs telemetry, not the node.

    After the first time that a sample had to be given up, the GPUs are no longer asked.
    """

    def __init__(self, roots: Iterable[int] = ()) -> None:
        self._roots = tuple(roots)
        self._limiter = trio.CapacityLimiter(THREADS_MAX)
        self._source = _Source(self._roots, gpus=True)

    async def take(self) -> dict[str, Any]:
        """Return the next sample; an empty one if it could not be had in time."""
        with trio.move_on_after(SAMPLE_WAIT_S):
            return await trio.to_thread.run_sync(
                self._source.sample, abandon_on_cancel=True, limiter=self._limiter
            )
        if self._source.gpus:
            _log.warning("telemetry takes too long; the GPUs are no longer asked")
            self._source = _Source(self._roots, gpus=False)
        return {}


class _Source:
    """A sampler that is made in the thread that uses it first: opening a driver may hang, too."""

    def __init__(self, roots: Iterable[int], *, gpus: bool) -> None:
        self.gpus = gpus
        self._roots = roots
        self._sampler: Sampler | None = None
        self._failed = False

    def sample(self) -> dict[str, Any]:
        """Return a sample; an empty one if this machine cannot be asked."""
        try:
            if self._sampler is None:
                self._sampler = Sampler(self._roots, nvml=Nvml.open() if self.gpus else None)
            sample = self._sampler.sample()
        except Exception as error:  # noqa: BLE001 - the task boundary: telemetry ends no node
            if not self._failed:
                self._failed = True
                _log.warning("this machine cannot be sampled", reason=repr(error))
            return {}
        if not self.gpus:
            del sample["gpus"]  # They hang: it is not known what there is.
        return sample


def usable_threads() -> int:
    """Return how many hardware threads this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_share(percents: Sequence[float]) -> float:
    """Return how busy the hardware threads are, in percent, that this process may use.

    Args:
        percents: Of each thread of the machine, by its number. Where some are switched off the
            numbers do not say which; then all count.
    """
    usable: Sequence[int] = range(len(percents))
    if hasattr(os, "sched_getaffinity"):
        own = sorted(os.sched_getaffinity(0))
        if own[-1] < len(percents):
            usable = own
    return round(sum(percents[number] for number in usable) / max(1, len(usable)), 1)


def usable_memory() -> tuple[int, int]:
    """Return how much memory this process may use in all, and how much of that is available.

    In a container the machine's memory is somebody else's: what counts is the tightest limit of
    the control groups around this process.
    """
    import psutil

    found = psutil.virtual_memory()
    machine = total = int(found.total)
    available = int(found.available)
    for folder in _control_groups():
        limit, used = _number_in(folder / "memory.max"), _number_in(folder / "memory.current")
        if limit is None or used is None or not 0 < limit < machine:
            continue
        cache = _number_after(folder / "memory.stat", "inactive_file") or 0
        total = min(total, limit)
        available = min(available, max(0, limit - used + cache))
    return total, available


def _control_groups() -> list[Path]:
    """Return the control groups (version 2) of this process, from its own up to the topmost."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    path = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if path is None:
        return []
    group = Path(path)
    return [_GROUPS / str(one).lstrip("/") for one in (group, *group.parents)][:GROUPS_MAX]


def _number_in(path: Path) -> int | None:
    """Return the number that a file holds; None if there is none, as in `max`."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _number_after(path: Path, name: str) -> int | None:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return next((int(ln.split()[1]) for ln in text.splitlines() if ln.startswith(f"{name} ")), None)


def own_bytes(roots: Iterable[int]) -> int:
    """Return the resident memory of processes and of what they started, each counted once."""
    pids = sorted(set(roots))
    known = set(pids)
    for pid in pids:  # It grows while it is walked.
        fresh = [child for child in memory.children_of(pid) if child not in known]
        known.update(fresh)
        pids += fresh
    return sum(memory.resident_bytes(pid) for pid in pids)


class Delta:
    """What of each sample is news to the gateway."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, Any] = {}
        self._full_at = -math.inf

    def restart(self) -> None:
        """Whoever listens knows nothing: the next sample is whole."""
        self._full_at = -math.inf

    def of(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return what is to be said of a sample; a whole one has `full` in it."""
        now = self._clock()
        gone = self._said.keys() - sample.keys()
        if gone or now - self._full_at >= FULL_EVERY_S:
            self._full_at = now
            self._said = dict(sample)
            return {"full": True, **sample}
        news = {key: value for key, value in sample.items() if self._is_news(key, value)}
        self._said.update(news)
        return news

    def _is_news(self, key: str, value: Any) -> bool:
        before = self._said.get(key)
        if key == "gpus" and isinstance(before, list) and isinstance(value, list):
            return len(before) != len(value) or any(map(_gpu_changed, before, value))
        return _changed(key, before, value)


def _gpu_changed(before: dict[str, Any], now: dict[str, Any]) -> bool:
    if before.keys() != now.keys():
        return True
    return any(
        abs(now[key] - before[key]) >= 0.02
        if key == "utilisation"
        else _changed(key, before[key], now[key])
        for key in now
    )


def _changed(key: str, before: Any, now: Any) -> bool:
    """Whether a value differs from what was said by more than a grain."""
    if key in _COUNTS or not _is_number(before) or not _is_number(now):
        return bool(before != now)
    grain = _GRAINS.get(key)
    if grain is None:
        grain = abs(before) * _RELATIVE_GRAIN
    return bool(before != now and abs(now - before) >= grain)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TCP_ACKED_RECEIVED = slice(120, 136)
"""Where `struct tcp_info` has `tcpi_bytes_acked` and `tcpi_bytes_received`, 8 bytes each."""


def transferred_bytes(fd: int) -> int | None:
    """Return the bytes that a TCP connection has moved, both ways; None if it does not say.

    The kernel counts them anyway, so nothing has to be counted where they pass.
    """
    import socket
    import sys

    if sys.platform != "linux" or fd < 0:
        return None
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return None
    counts = info[_TCP_ACKED_RECEIVED]
    if len(counts) < 16:
        return None
    return int.from_bytes(counts[:8], sys.byteorder) + int.from_bytes(counts[8:], sys.byteorder)
