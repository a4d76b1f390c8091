"""What the simulated nodes have, and what they say of it: honestly, seldom, wrongly, or falsely.

Theory. A machine has processors, memory, GPUs and licenses, and the bodies on it use them. What a
node says about that follows from its mood: an honest one tells how it is; a mute one falls silent
for a while although its link stands; an absurd one says what cannot be; a liar says that all of it
is free, and more of it than there is. The mood lasts until all is healed.

Rules of this file. 1) What a machine has never changes. 2) What is said is distorted where it
leaves the node, so that the node's own code sees the truth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from typing import TYPE_CHECKING, Any

import trio

from easyremote.scheduler.model import Needs

if TYPE_CHECKING:
    from .hosts import NodeHost

GB = 10**9
MUTE_FROM_S, MUTE_UNTIL_S = 6.0, 22.0
"""When mute nodes say nothing: long enough that they get no more calls."""


class Mood(StrEnum):
    """How a node speaks of itself."""

    HONEST = "honest"
    MUTE = "mute"
    ABSURD = "absurd"
    LIAR = "liar"


@dataclass(frozen=True, slots=True)
class Machine:
    """What one node has.

    Attributes:
        cpus: Processors.
        memory_bytes: Main memory.
        gpus: Memory of each GPU.
        licenses: A resource that its owner made up and declares; the one thing nobody measures.
        declares_gpus: Its owner declares the GPUs; else they are known by telemetry alone.
        fast: It has a capability that callers may want.
        mood: How it speaks.
    """

    cpus: int = 4
    memory_bytes: int = 16 * GB
    gpus: tuple[int, ...] = ()
    licenses: int = 0
    declares_gpus: bool = True
    fast: bool = False
    mood: Mood = Mood.HONEST

    def capabilities(self) -> dict[str, Any]:
        """Return what its owner declares."""
        found: dict[str, Any] = {"cpu": {"threads": self.cpus}, "memory": self.memory_bytes}
        if self.licenses:
            found["resources"] = {"license": self.licenses}
        if self.declares_gpus:
            found["gpu"] = {
                "devices": [
                    {"index": index, "model": "Simulated", "memory": size}
                    for index, size in enumerate(self.gpus)
                ]
            }
        if self.fast:
            found["fast"] = True
        return found

    def ever_fits(self, needs: Needs) -> bool:
        """Return whether a call could run here if nothing else did."""
        large = sum(size >= needs.gpu_memory_bytes for size in self.gpus)
        custom = all(name == "license" and n <= self.licenses for name, n in needs.custom)
        return (
            needs.cpus <= self.cpus and needs.memory_bytes <= self.memory_bytes and custom
            and (not needs.gpus or large >= needs.devices)
        )  # fmt: skip


def draw_machine(rng: random.Random, *, plain: bool, calm: bool) -> Machine:
    """Return a machine.

    Args:
        rng: Draws it.
        plain: It has nothing that calls ask for.
        calm: It speaks the truth.
    """
    if plain:
        return Machine()
    moods = (Mood.HONEST, Mood.HONEST, Mood.HONEST, Mood.MUTE, Mood.ABSURD, Mood.LIAR)
    gpus: tuple[int, ...] = rng.choice(((), (16 * GB,), (24 * GB,), (24 * GB, 24 * GB)))
    return Machine(
        rng.choice((2, 4)), rng.choice((8, 16)) * GB, gpus, rng.choice((0, 1, 2, 3)),
        rng.random() < 0.7, rng.random() < 0.5, Mood.HONEST if calm else rng.choice(moods),
    )  # fmt: skip


@dataclass(eq=False, slots=True)
class Held:
    """What one running body uses."""

    number: int
    needs: Needs
    gpus: tuple[int, ...]
    since: float


class MachineSampling:
    """Stands for `telemetry.Sampling`: says how the machine of this host is."""

    host: Callable[[], NodeHost]

    def __init__(self, roots: object = ()) -> None:
        """Look at the machine on whose host this is made."""
        self._host = type(self).host()

    async def take(self) -> dict[str, Any]:
        """Return the truth, at once."""
        host = self._host
        machine, held = host.machine, list(host.held.values())
        memory = min(machine.memory_bytes, sum(one.needs.memory_bytes for one in held))
        busy = min(1.0, len(held) / machine.cpus)
        return {
            "cpu_percent": 100.0 * busy, "cpu_count": machine.cpus, "load_1m": float(len(held)),
            "memory_total_bytes": machine.memory_bytes,
            "memory_available_bytes": machine.memory_bytes - memory,
            "memory_percent": 100.0 * memory / machine.memory_bytes,
            "memory_own_bytes": memory,
            "gpus": [_gpu(index, size, held) for index, size in enumerate(machine.gpus)],
        }  # fmt: skip


def _gpu(index: int, size_bytes: int, held: list[Held]) -> dict[str, Any]:
    here = [one for one in held if index in one.gpus]
    used = min(size_bytes, sum(one.needs.gpu_memory_bytes for one in here))
    return {
        "index": index, "memory_total_bytes": size_bytes, "memory_free_bytes": size_bytes - used,
        "memory_foreign_bytes": 0, "utilisation": float(bool(here)), "temperature_c": 50.0,
        "processes": len(here),
    }  # fmt: skip


ABSURD: tuple[Any, ...] = (
    -1, -0.5, 1e300, math.nan, math.inf, "much", True, None, [1], {"a": 1}, 2**62,
)  # fmt: skip


def distorted(report: Callable[..., None], host_of: Callable[[], NodeHost]) -> Callable[..., None]:
    """Return the method that sends samples, with the mood of the node in between."""

    @wraps(report)
    def said(session: Any, sample: dict[str, Any]) -> None:
        host = host_of()
        world, machine, now = host.world, host.machine, trio.current_time()
        mood = Mood.HONEST if world.healed_at is not None else machine.mood
        if mood is Mood.MUTE and MUTE_FROM_S <= now < MUTE_UNTIL_S:
            world.reached["a node says nothing"] += 1
            return
        if mood is Mood.ABSURD:
            world.reached["a node says nonsense"] += 1
            sample = {
                key: host.rng.choice(ABSURD) if host.rng.random() < 0.3 else value
                for key, value in sample.items()
            }
        elif mood is Mood.LIAR:
            world.reached["a node lies"] += 1
            sample = {**sample, **_lies(machine)}
        report(session, sample)

    return said


def _lies(machine: Machine) -> dict[str, Any]:
    total = 4 * machine.memory_bytes
    return {
        "cpu_percent": 0.0, "cpu_count": 64, "memory_total_bytes": total,
        "memory_available_bytes": total, "memory_own_bytes": 0, "memory_percent": 0.0,
        "gpus": [
            {**_gpu(index, 4 * size, []), "utilisation": 0.0}
            for index, size in enumerate((*machine.gpus, 24 * GB))
        ],
    }  # fmt: skip


def overcommitted(host: NodeHost) -> str | None:
    """Return what of a machine the bodies on it use more of than there is; None if nothing.

    What a node lies about is not looked at: who believes it is right to.
    """
    machine, held = host.machine, list(host.held.values())
    licenses = sum(amount for one in held for _, amount in one.needs.custom)
    if licenses > machine.licenses + 1e-9:
        return f"{licenses:g} of {machine.licenses} licenses"
    if machine.mood in (Mood.LIAR, Mood.ABSURD):
        return None
    cpus = sum(one.needs.cpus for one in held)
    if cpus > machine.cpus + 1e-9:
        return f"{cpus:g} of {machine.cpus} processors"
    memory = sum(one.needs.memory_bytes for one in held)
    if memory > machine.memory_bytes:
        return f"{memory} of {machine.memory_bytes} bytes of memory"
    for index, size in enumerate(machine.gpus):
        used = sum(one.needs.gpu_memory_bytes for one in held if index in one.gpus)
        if used > size:
            return f"{used} of {size} bytes of GPU {index}"
    return None
