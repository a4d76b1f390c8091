"""What this machine is, and how busy: detected capabilities and samples.

Theory. A node that declares nothing still advertises what it has: cores, memory, GPUs. What its
owner declares counts more, because an owner may front hardware that this machine cannot see; a
declaration beyond what was detected is kept and flagged.

Rules of this file. 1) A missing GPU, driver or library is normal and never an error. 2) Nothing
here waits: CPU use is counted since the last sample. 3) Detected values are plain data under the
same keys that owners use.

Source. features.md N4 and N8.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Iterator, Mapping
from typing import Any

GIB = 1024**3
GPUS_MAX = 64


def detect() -> dict[str, Any]:
    """Return what this machine has, as a tree of plain data. Takes a moment; blocks."""
    import psutil

    found: dict[str, Any] = {
        "cpu": {
            "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
            "threads": usable_threads(),
            "architecture": platform.machine(),
        },
        "memory": {"total": _gib(psutil.virtual_memory().total)},
    }
    gpus = detect_gpus()
    if gpus:
        found["gpu"] = {
            "model": gpus[0]["model"],
            "memory": gpus[0]["memory"],
            "count": len(gpus),
            "devices": gpus,
        }
    return found


def usable_threads() -> int:
    """Return how many hardware threads this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def detect_gpus() -> list[dict[str, Any]]:
    """Return the GPUs that NVML knows; none if there is no NVML."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return list(_gpus(pynvml))
    except pynvml.NVMLError:
        return []
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _gpus(pynvml: Any) -> Iterator[dict[str, Any]]:
    for index in range(min(pynvml.nvmlDeviceGetCount(), GPUS_MAX)):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(handle)
        yield {
            "index": index,
            "model": name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name),
            "memory": _gib(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        }


def _gib(size_bytes: int) -> str:
    """Write a size as owners do: `24GiB`, `7.8GiB`."""
    return f"{size_bytes / GIB:.4g}GiB"


def facts() -> dict[str, Any]:
    """Return what discovery shows about the program and the machine."""
    from .. import __version__

    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "hostname": socket.gethostname(),
    }


def merge(detected: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the declared capabilities laid over the detected ones.

    Args:
        detected: What `detect` found.
        declared: What the owner says; wins wherever both speak.

    Returns:
        A new tree. `declared_exceeds_detected` lists the paths, as `cpu.cores`, at which more was
        declared than was found.
    """
    exceeding: list[str] = []
    merged = _merge(detected, declared, "", exceeding)
    if "gpu" in declared and "gpu" not in detected:
        exceeding.append("gpu")
    if exceeding:
        merged["declared_exceeds_detected"] = exceeding
    return merged


def _merge(
    detected: Mapping[str, Any], declared: Mapping[str, Any], path: str, exceeding: list[str]
) -> dict[str, Any]:
    merged = dict(detected)
    for key, value in declared.items():
        where = f"{path}{key}"
        known = detected.get(key)
        if isinstance(value, Mapping):
            below = known if isinstance(known, Mapping) else {}
            merged[key] = _merge(below, value, f"{where}.", exceeding)
            continue
        merged[key] = value
        size, limit = _number(value), _number(known)
        if size is not None and limit is not None and size > limit * 1.01:
            exceeding.append(where)
    return merged


_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4,
}  # fmt: skip


def _number(value: Any) -> float | None:
    """Return a number, or a size such as `24GB`, as a number; None if it is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str):
        return None
    text = value.strip().lower()
    digits = text.rstrip("bikmgt ")
    unit = _UNITS.get(text[len(digits) :].strip())
    try:
        return None if unit is None else float(digits) * unit
    except ValueError:
        return None


class Sampler:
    """Takes samples of how busy this machine is."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        psutil.cpu_percent(interval=None)  # The first call only remembers the counters.

    def sample(self) -> dict[str, Any]:
        """Return one sample; costs a few reads of `/proc`."""
        memory = self._psutil.virtual_memory()
        return {
            "cpu_percent": float(self._psutil.cpu_percent(interval=None)),
            "memory_percent": float(memory.percent),
            "memory_available_bytes": int(memory.available),
        }
