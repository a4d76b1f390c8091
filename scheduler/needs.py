"""What users write about resources, read into `Needs` and `Resources`.

Theory. A function says what it needs (`resource_requirements`), a call may ask for more
(`num_gpus=2`), and a node's owner declares what a node has. What a user asks for must be readable,
or the user is told at once; what a node declares is taken as far as it makes sense.

Rules of this file. 1) Pure. 2) Of two demands the larger one counts. 3) An amount that reserves
nothing (`"<8GB"`) is an error that names the place for it.

Source. features.md R4, N4; the names of Ray's options (num_cpus, num_gpus, memory, resources).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from .model import NO_NEEDS, SIZES, Device, Needs, Resources
from .units import read_bytes, read_count, read_wanted, shown

GPUS_MAX = 64
"""Devices of one node that are looked at, and most that one call may ask for."""
CUSTOM_MAX = 32
"""Kinds of resources of users' own in one request, and of one node."""

_KEYS = {
    "cpu": "cpu", "cpus": "cpu", "cpu_cores": "cpu", "num_cpus": "cpu",
    "memory": "memory", "disk": "disk",
    "gpu": "gpu", "gpus": "gpu", "num_gpus": "gpu",
    "gpu_memory": "gpu_memory", "gpu_model": "gpu_model",
}  # fmt: skip


def read_needs(
    requirements: Mapping[str, Any] | None, options: Mapping[str, Any] | None = None
) -> Needs:
    """Return what a call needs.

    Args:
        requirements: `resource_requirements` of the function.
        options: What the caller asks for: the same keys, and `resources` with names of its own.
            Of both, the larger demand counts. Other keys are not looked at.

    Raises:
        ValueError: An amount cannot be read, or more than one GPU is asked for in fractions.

    >>> read_needs({"gpu_memory": "16GB"}, {"num_cpus": 2}).shown()
    'cpu 2, gpu 1, gpu_memory 16 GB'
    """
    if not requirements and not options:
        return NO_NEEDS
    found: dict[str, Any] = {}
    custom: dict[str, float] = {}
    if requirements:
        _read(requirements, found, custom, known_only=False)
    if options:
        _read(options, found, custom, known_only=True)
    gpu_memory = int(found.get("gpu_memory", 0))
    gpus = found.get("gpu", 0.0)
    if gpu_memory or found.get("gpu_model"):
        gpus = gpus or 1.0
    if gpus > 1.0 and gpus % 1:
        raise ValueError(f"gpu is a fraction of one device or a whole number, not {gpus:g}")
    if gpus > GPUS_MAX:
        raise ValueError(f"a call may ask for {GPUS_MAX} GPUs at most, not {gpus:g}")
    if len(custom) > CUSTOM_MAX:
        raise ValueError(f"a call may ask for {CUSTOM_MAX} kinds of resources of its own at most")
    return Needs(
        found.get("cpu", 0.0), int(found.get("memory", 0)), int(found.get("disk", 0)),
        gpus, gpu_memory, found.get("gpu_model", ""),
        tuple(sorted((name, amount) for name, amount in custom.items() if amount)),
    )  # fmt: skip


def _read(
    given: Mapping[str, Any], found: dict[str, Any], custom: dict[str, float], *, known_only: bool
) -> None:
    for name, value in given.items():
        key = _KEYS.get(name)
        if value is None or (key is None and known_only and name != "resources"):
            continue
        if name == "resources":
            if not isinstance(value, Mapping):
                raise ValueError(f"resources is a map of names and amounts, not {shown(value)}")
            _read(value, found, custom, known_only=False)
        elif key == "gpu_model":
            if not isinstance(value, str):
                raise ValueError(f'gpu_model is text such as "A100", not {shown(value)}')
            short, long = sorted((value.lower(), found.get(key, "")), key=len)
            if short not in long:
                raise ValueError(
                    f"the function runs on a {found[key]} and the call asks for a {value}; "
                    "ask for one of them"
                )
            found[key] = long
        elif key is None:
            custom[name] = max(custom.get(name, 0.0), _demand(name, value, read_count))
        else:
            read = read_bytes if key in SIZES else read_count
            found[key] = max(found.get(key, 0), _demand(name, value, read))


def _demand(name: str, value: Any, read: Callable[[object, str], float]) -> float:
    try:
        wanted = read_wanted(value, read, name)
    except ValueError as error:
        close = difflib.get_close_matches(name, _KEYS, n=1)
        if name in _KEYS or not close:
            raise
        raise ValueError(f"{error}; did you mean {close[0]}?") from None
    if wanted.compare in {"<", "<=", "!="}:
        raise ValueError(
            f"{name}={shown(value)} reserves nothing: write the amount that is needed, or compare "
            'what nodes have with capability={"...": "<..."}'
        )
    return wanted.amount


def read_resources(capabilities: Mapping[str, Any]) -> Resources:
    """Return what a node's owner declared, as far as it can be understood; never an error.

    >>> read_resources({"gpu": {"model": "RTX 4090", "memory": "24GB"}, "cpu": {"cores": 8}}).cpus
    8.0
    """
    cpu, gpu = capabilities.get("cpu"), capabilities.get("gpu")
    cpus = None
    if isinstance(cpu, Mapping):
        cpus = _lenient(cpu.get("threads", cpu.get("cores")), read_count)
    memory = _lenient(capabilities.get("memory"), read_bytes)
    disk = _lenient(capabilities.get("disk"), read_bytes)
    devices = _listed(gpu.get("devices")) if isinstance(gpu, Mapping) else None
    listed = devices is not None
    if devices is None and isinstance(gpu, Mapping):
        devices = _counted(gpu)
    custom: dict[str, float] = {}
    declared = capabilities.get("resources")
    if isinstance(declared, Mapping):
        for name, value in list(declared.items())[:CUSTOM_MAX]:
            if isinstance(name, str) and (amount := _lenient(value, read_count)):
                custom[name] = amount
    return Resources(
        cpus,
        None if memory is None else int(memory),
        None if disk is None else int(disk),
        devices,
        custom,
        listed,
    )


def _listed(told: Any) -> tuple[Device, ...] | None:
    """Return the devices that a node lists one by one, None if it does not."""
    if not isinstance(told, list | tuple):
        return None
    found: dict[int, Device] = {}
    for one in told[:GPUS_MAX]:
        if isinstance(one, Mapping) and type(index := one.get("index")) is int and index >= 0:
            total = _lenient(one.get("memory_bytes", one.get("memory")), read_bytes)
            found[index] = Device(index, str(one.get("model", ""))[:128], int(total or 0))
    return tuple(found.values())


def _counted(gpu: Mapping[str, Any]) -> tuple[Device, ...] | None:
    """Return the equal devices that an owner declares, None if their memory is not known."""
    total = _lenient(gpu.get("memory"), read_bytes)
    if not total:
        return None
    count = int(_lenient(gpu.get("count", 1), read_count) or 1)
    model = str(gpu.get("model", ""))[:128]
    return tuple(Device(index, model, int(total)) for index in range(min(count, GPUS_MAX)))


def _lenient(value: Any, read: Callable[[object, str], float]) -> float | None:
    try:
        return read(value, "")
    except ValueError:
        return None
