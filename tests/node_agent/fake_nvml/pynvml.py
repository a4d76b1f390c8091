"""A stand-in for NVML on a machine without GPUs: put this folder on PYTHONPATH of a node.

Two devices of 24 GB. `FAKE_NVML` names a JSON file that says what is different, read at each
question: {"count": 2, "used": {"0": bytes}, "utilisation": {"0": percent},
"processes": {"0": [[pid, bytes]]}}.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TOTAL_BYTES = 24 * 10**9


class NVMLError(Exception):
    """What every function here may raise."""


def _said() -> dict[str, Any]:
    path = os.environ.get("FAKE_NVML")
    found: dict[str, Any] = json.loads(Path(path).read_text()) if path else {}
    return found


def nvmlInit() -> None:  # noqa: N802
    if _said().get("broken"):
        raise NVMLError("no driver")


def nvmlShutdown() -> None:  # noqa: N802
    pass


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return int(_said().get("count", 2))


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    if not 0 <= index < nvmlDeviceGetCount():
        raise NVMLError("invalid argument")
    return index


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:  # noqa: N802
    for index in range(nvmlDeviceGetCount()):
        if nvmlDeviceGetUUID(index) == uuid:
            return index
    raise NVMLError("not found")


def nvmlDeviceGetUUID(handle: int) -> str:  # noqa: N802
    return f"GPU-{handle:08x}-aaaa"


def nvmlDeviceGetName(handle: int) -> str:  # noqa: N802
    return "Fake RTX 4090"


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:  # noqa: N802
    used = int(_said().get("used", {}).get(str(handle), 0))
    return SimpleNamespace(total=TOTAL_BYTES, free=TOTAL_BYTES - used, used=used)


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(gpu=int(_said().get("utilisation", {}).get(str(handle), 0)), memory=0)


def nvmlDeviceGetTemperature(handle: int, sensor: int) -> int:  # noqa: N802
    return 40 + handle


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[SimpleNamespace]:  # noqa: N802
    listed = _said().get("processes", {}).get(str(handle), [])
    return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in listed]


def nvmlDeviceGetGraphicsRunningProcesses(handle: int) -> list[SimpleNamespace]:  # noqa: N802
    return []
