"""Samples of telemetry as they come from nodes: checked, bounded, and put together.

Theory. A node says once how everything is, and from then on what has changed; so the gateway keeps
the sum of what it was told. A broken or hostile node may say anything: what is kept has a known
type, a finite value and a bounded size, and what is not understood is dropped, alone, so that one
bad reading does not hide the rest. Whether a value can be *believed* is for the scheduler to judge.

Rules of this file. 1) Pure. 2) A kept sample is never edited: each one is a new value.

Source. promises.md T15.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

VALUES_MAX = 64
KEY_CHARS_MAX = 64
GPUS_MAX = 64
REPLICAS_MAX = 4096
NUMBER_MAX = 2.0**62

FULL = "full"
"""Says that a sample is whole: what it does not name is gone."""
GPUS = "gpus"
REPLICAS = "replicas"

_GPU_NUMBERS: dict[str, tuple[float, float]] = {
    "memory_total_bytes": (0, 2.0**50),
    "memory_free_bytes": (0, 2.0**50),
    "memory_foreign_bytes": (0, 2.0**50),
    "utilisation": (0, 1),
    "temperature_c": (-100, 1000),
    "processes": (0, 65536),
}
"""What is kept of a device, and between which bounds."""


def merged(kept: Mapping[str, Any], sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a node after one more sample.

    Args:
        kept: What was known before.
        sample: What the node says: everything, if it says `full`, else what has changed.
    """
    known: dict[str, Any] = {} if sample.get(FULL) is True else dict(kept)
    for key, value in sample.items():
        if key == GPUS:
            known[GPUS] = _gpus(value)
        elif key == REPLICAS:
            known[REPLICAS] = _replicas(value)
        elif _is_number(value) and _has_room(known, key):
            known[key] = value
    return known


def _has_room(known: dict[str, Any], key: str) -> bool:
    named = type(key) is str and len(key) <= KEY_CHARS_MAX
    return named and (key in known or len(known) < VALUES_MAX)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= NUMBER_MAX


def _gpus(value: Any) -> list[dict[str, Any]]:
    """Return the devices in a sample, each index once; what is no device is dropped."""
    devices: dict[int, dict[str, Any]] = {}
    if type(value) is list:
        for entry in value[:GPUS_MAX]:
            device = _gpu(entry)
            if device is not None:
                devices.setdefault(device["index"], device)
    return list(devices.values())


def _gpu(entry: Any) -> dict[str, Any] | None:
    if type(entry) is not dict:
        return None
    index = entry.get("index")
    if type(index) is not int or not 0 <= index < GPUS_MAX:
        return None
    device: dict[str, Any] = {"index": index}
    for key, (least, most) in _GPU_NUMBERS.items():
        number: Any = entry.get(key)
        if _is_number(number) and least <= number <= most:
            device[key] = number
    total = device.get("memory_total_bytes")
    if total is None:
        return None
    for key in ("memory_free_bytes", "memory_foreign_bytes"):
        if device.get(key, 0) > total:
            del device[key]
    device.setdefault("memory_foreign_bytes", None)
    return device


def _replicas(value: Any) -> dict[str, int]:
    """Return how many replicas serve each scaled function."""
    if type(value) is not dict:
        return {}
    counts = {
        name: number
        for name, number in value.items()
        if type(name) is str and len(name) <= KEY_CHARS_MAX
        and type(number) is int and 0 <= number <= 65536
    }  # fmt: skip
    return dict(list(counts.items())[:REPLICAS_MAX])
