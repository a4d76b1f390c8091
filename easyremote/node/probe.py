"""What this machine is: detected capabilities, and what its owner declares laid over them.

Theory. A node that declares nothing still advertises what it has: cores, memory, GPUs. What its
owner declares counts more, because an owner may front hardware that this machine cannot see; a
declaration beyond what was detected is kept and flagged.

Rules of this file. 1) A missing GPU, driver or library is normal and never an error. 2) Detected
values are plain data under the same keys that owners use.

Source. features.md N4.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Collection, Mapping
from typing import Any

from ..scheduler.model import DECLARED_SLACK
from ..scheduler.units import quantity
from .nvml import Nvml
from .telemetry import usable_memory, usable_threads

GIB = 1024**3


def detect() -> dict[str, Any]:
    """Return what this machine has, as a tree of plain data. Takes a moment; blocks."""
    import psutil

    found: dict[str, Any] = {
        "cpu": {
            "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
            "threads": usable_threads(),
            "architecture": platform.machine(),
        },
        "memory": {"total": _gib(usable_memory()[0])},
    }
    return {**found, **_described(detect_gpus())}


def detect_gpus() -> list[dict[str, Any]]:
    """Return the GPUs that this node may use; none if there is no NVML."""
    nvml = Nvml.open()
    if nvml is None:
        return []
    try:
        return [
            {
                "index": gpu.index,
                "model": gpu.model,
                "memory": _gib(gpu.memory_total_bytes),
                "memory_bytes": gpu.memory_total_bytes,
            }
            for gpu in nvml.gpus
        ]
    finally:
        nvml.close()


def with_gpus(detected: Mapping[str, Any], indexes: Collection[int]) -> dict[str, Any]:
    """Return what was detected, less the GPUs that the node's owner does not let it use."""
    found = dict(detected)
    devices = found.pop("gpu", {}).get("devices", ())
    gpus = [one for one in devices if one["index"] in indexes]
    return {**found, **_described(gpus)}


def _described(gpus: list[dict[str, Any]]) -> dict[str, Any]:
    """Return GPUs as owners declare them."""
    if not gpus:
        return {}
    first = gpus[0]
    return {
        "gpu": {
            "model": first["model"], "memory": first["memory"], "count": len(gpus),
            "devices": gpus,
        }
    }  # fmt: skip


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
        size, limit = quantity(value), quantity(known)
        slack = DECLARED_SLACK if isinstance(value, str) else 1.0
        if size is not None and limit is not None and size > limit * slack:
            exceeding.append(where)
    return merged
