"""Which functions run in replicas of the script: how many of them, and on which devices.

Theory. The script runs its functions itself, one call at a time. Two declarations ask for more: a
function that needs GPUs can run once per device on a machine with several, and a function with
`scaling=` runs in as many processes as its queue deserves. Both mean the same to a node: a slot
group of the function's own, whose calls run in replicas of the script. A replica for a GPU function
is *pinned*: it sees its devices and no other, from its first instruction, because CUDA looks once.

What the script said of its functions is rewritten here, for only the agent knows the machine:

    script: train, group main, 1 slot  --two GPUs fit-->  train, group fn:train, 2 slots, pinned

With one GPU, or none that this machine sees, nothing is gained by a process, and the script keeps
the function. So it does if it cannot be run again (a notebook): there is nothing to replicate.

Rules of this file. 1) Pure. 2) What the owner declares (`max_concurrency`) counts more than what
is computed. 3) An entry is never edited: a rewritten one is a copy.

Source. features.md R4 and R9.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..scheduler.model import Device, Needs
from ..scheduler.needs import read_needs, read_resources
from ..scheduler.scaling import Scaling, read_scaling

Devices = tuple[int, ...]
"""Indexes of GPUs, as `CUDA_VISIBLE_DEVICES` of the node counts them."""

GROUP_PREFIX = "fn:"


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """How one function runs in replicas.

    Attributes:
        group: Its slot group.
        slots: Replicas at most, and calls at once at most.
        devices: Sets of devices to which replicas are pinned, one after the other; empty if its
            replicas are not pinned.
        scaling: What its owner declared, where their number is decided from outside.
    """

    group: str
    slots: int
    devices: tuple[Devices, ...] = ()
    scaling: Scaling | None = None

    @property
    def least(self) -> int:
        """Replicas that are kept although no call waits."""
        return 0 if self.scaling is None else self.scaling.min

    def bound(self, count: int) -> int:
        """Return the number of replicas nearest to `count` that the owner and the machine allow."""
        return count if self.scaling is None else self.scaling.bound(count, self.slots)


def needs_of(entry: Mapping[str, Any]) -> Needs | None:
    """Return what the calls of a function need; None if nobody can read what it says."""
    try:
        return read_needs(entry.get("requirements"))
    except ValueError:
        return None


def devices_of(detected: Mapping[str, Any], declared: Mapping[str, Any]) -> tuple[Device, ...]:
    """Return the GPUs of a node: those that were detected, else those that its owner declares."""
    gpu = detected.get("gpu")
    if isinstance(gpu, Mapping):
        return tuple(
            Device(one["index"], str(one["model"]), int(one["memory_bytes"]))
            for one in gpu.get("devices", ())
        )
    return read_resources(declared).devices or ()


def fitting(devices: Sequence[Device], needs: Needs) -> Devices:
    """Return the devices on which a call could run if they were empty."""
    return tuple(
        device.index
        for device in devices
        if device.total_bytes >= needs.gpu_memory_bytes and needs.gpu_model in device.model.lower()
    )


def plan_of(
    entry: Mapping[str, Any], devices: Sequence[Device], threads: int
) -> ReplicaPlan | None:
    """Return how a function runs in replicas; None if the script runs it itself.

    Args:
        entry: What the script says of it.
        devices: The GPUs of the node.
        threads: Hardware threads that may be used.
    """
    scaling = scaling_of(entry)
    needs = needs_of(entry)
    sets: tuple[Devices, ...] = ()
    if needs is not None and needs.gpus and len(devices) > 1:
        sets = _sets(fitting(devices, needs), needs)
    isolated = entry.get("isolation") == "process"
    if scaling is None and not sets and not isolated:
        return None
    group = f"{GROUP_PREFIX}{entry['name']}"
    declared = entry.get("max_concurrency")
    if scaling is not None:
        room = scaling.max or declared or max(1, len(sets) if sets else threads)
        return ReplicaPlan(group, max(room, scaling.min), sets, scaling)
    slots = declared or (len(sets) if sets else entry.get("slots", 1))
    return ReplicaPlan(group, slots, sets)


def _sets(fit: Devices, needs: Needs) -> tuple[Devices, ...]:
    """Return the sets of devices that calls may have beside each other."""
    if needs.gpus < 1.0:
        return tuple((index,) for index in fit for _ in range(int(1.0 / needs.gpus)))
    count = needs.devices
    return tuple(fit[at : at + count] for at in range(0, len(fit) - count + 1, count))


def rewritten(entry: Mapping[str, Any], plan: ReplicaPlan, slots: int) -> dict[str, Any]:
    """Return what the gateway is told of a function that runs in replicas.

    Args:
        entry: What the script says of it.
        plan: How it runs.
        slots: Calls at once, now.
    """
    told = {**entry, "group": plan.group, "slots": slots}
    if plan.scaling is not None:
        told["scaling"] = {**asdict(plan.scaling), "max": plan.slots}
    return told


def scaling_of(entry: Mapping[str, Any]) -> Scaling | None:
    """Return what a function says of its replicas; None if it says nothing that can be read."""
    given = entry.get("scaling")
    try:
        return None if given is None else read_scaling(given)
    except ValueError:
        return None


def chosen(devices: Any, known: Collection[int]) -> Devices | None:
    """Return the devices that the gateway chose for a call; None if it chose none.

    Args:
        devices: What the dispatch says.
        known: Those that there are; empty if this machine sees none, and the gateway is believed.
    """
    if not isinstance(devices, list | tuple) or not devices:
        return None
    indexes = tuple(one for one in devices if type(one) is int and 0 <= one < 64)
    return tuple(one for one in indexes if not known or one in known) or None
