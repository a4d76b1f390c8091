"""The nouns of placement: what a call needs, what a node has, and what was decided.

Theory. A request says what it needs; a node says what it has; a placement is a node, why it was
the best, and why others were out. All of these are values: frozen, compared by content, made once.

Rules of this file. 1) Frozen. 2) Sizes are in bytes and shares in [0, 1]; None means that nobody
said, and is never taken for zero. 3) Text of users is read by `read_needs` and `read_resources`.

Source. features.md R4, N4, 1.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .units import show_bytes

SIZES = frozenset({"memory", "disk", "gpu_memory"})
"""Resources that are counted in bytes."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU of a node.

    Attributes:
        index: Its number on the node, as `CUDA_VISIBLE_DEVICES` counts.
        model: Its name, "" if unknown.
        total_bytes: Its memory.
        free_bytes: What is free now by its driver, None if unknown.
        foreign_bytes: What processes use that are not the node's, None if unknown.
        busy: Share of time in which it computes, in [0, 1].
    """

    index: int
    model: str = ""
    total_bytes: int = 0
    free_bytes: int | None = None
    foreign_bytes: int | None = None
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Needs:
    """What one call reserves while it runs. Hashable: calls of equal needs share a pool.

    Attributes:
        cpus: Cores.
        memory_bytes: Main memory.
        disk_bytes: Space on the disk.
        gpus: Devices: a fraction below 1, or a whole number. Without `gpu_memory_bytes` they are
            for this call alone; with it they are shared with calls that fit beside it.
        gpu_memory_bytes: Memory on each of these devices.
        gpu_model: Text that the model's name has in it, in lower case; "" for any.
        custom: Names and amounts of resources that nodes declare themselves, sorted.
    """

    cpus: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpus: float = 0.0
    gpu_memory_bytes: int = 0
    gpu_model: str = ""
    custom: tuple[tuple[str, float], ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is needed."""
        return self is not NO_NEEDS and self != NO_NEEDS

    @property
    def devices(self) -> int:
        """How many devices the call gets."""
        return -int(-self.gpus // 1)

    @property
    def share(self) -> float:
        """How much of each device it takes by count: 1 is all, 0 leaves it to memory."""
        if self.gpus < 1.0:
            return self.gpus
        return 0.0 if self.gpu_memory_bytes else 1.0

    def shown(self) -> str:
        """Write it for people.

        >>> Needs(cpus=2, gpus=1, gpu_memory_bytes=16 * 10**9).shown()
        'cpu 2, gpu 1, gpu_memory 16 GB'
        """
        parts = [
            f"{key} {show_amount(key, amount)}"
            for key, amount in (
                ("cpu", self.cpus),
                ("memory", self.memory_bytes),
                ("disk", self.disk_bytes),
                ("gpu", self.gpus),
                ("gpu_memory", self.gpu_memory_bytes),
                *self.custom,
            )
            if amount
        ]
        if self.gpu_model:
            parts.append(f"gpu_model {self.gpu_model}")
        return ", ".join(parts) or "nothing"


NO_NEEDS = Needs()


@dataclass(frozen=True, slots=True)
class Resources:
    """What a node has in all, as far as it is known. None: not known.

    Attributes:
        devices: Its GPUs; an empty tuple says that it has none.
        custom: Amounts of resources that its owner declared.
        listed: `devices` names each one that calls may use; others are not for them.
    """

    cpus: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    devices: tuple[Device, ...] | None = None
    custom: Mapping[str, float] = field(default_factory=dict[str, float])
    listed: bool = False

    def over(self, detected: Resources) -> tuple[Resources, tuple[str, ...]]:
        """Lay this declaration over what was detected.

        Returns:
            What counts for placement: detected values where there are any, for a declaration makes
            no memory. But where no GPU at all is seen, those that are declared count: a node may
            stand for hardware that it cannot see. And the keys whose declaration is larger than
            what was detected.
        """
        unseen = not detected.devices and (detected.devices is None or bool(self.devices))
        exceeds = [
            key
            for key, mine, theirs in (
                ("cpu", self.cpus, detected.cpus),
                ("memory", self.memory_bytes, detected.memory_bytes),
                ("disk", self.disk_bytes, detected.disk_bytes),
            )
            if mine is not None and theirs is not None and mine > theirs * DECLARED_SLACK
        ]
        if self.devices and detected.devices is not None:
            if len(self.devices) > len(detected.devices):
                exceeds.append("gpu")
            most = max((device.total_bytes for device in detected.devices), default=0)
            if max(device.total_bytes for device in self.devices) > most * DECLARED_SLACK:
                exceeds.append("gpu_memory")
        merged = Resources(
            self.cpus if detected.cpus is None else detected.cpus,
            self.memory_bytes if detected.memory_bytes is None else detected.memory_bytes,
            self.disk_bytes if detected.disk_bytes is None else detected.disk_bytes,
            self.devices if unseen else self._known(detected.devices or ()),
            self.custom,
        )
        return merged, tuple(exceeds)

    def _known(self, detected: tuple[Device, ...]) -> tuple[Device, ...]:
        """Return the detected devices that may be used, with the models that were declared."""
        mine = {device.index: device for device in self.devices or ()}
        return tuple(
            replace(device, model=mine[device.index].model)
            if device.index in mine and not device.model
            else device
            for device in detected
            if device.index in mine or not self.listed
        )


DECLARED_SLACK = 1.1
"""A machine sold with 24 GB shows a little less: that is not a lie."""


class Scores(NamedTuple):
    """Why a node is liked: four preferences in [0, 1], and what is taken off their weighted sum.

    Attributes:
        resources: What stays free once the call is there.
        latency: How soon it answers.
        load: Free slots.
        capability: Soft preferences that it meets.
        cheap: How little it costs; counts in the strategy `cost` alone.
        ahead: Calls per slot if no slot is free, else 0; taken off with a weight of its own.
        slow: How often its usual body doubles the reference; taken off with a weight of its own.
        doubt: How little it is trusted, in [0, 1]; taken off as it is.
    """

    resources: float
    latency: float
    load: float
    capability: float
    cheap: float = 1.0
    ahead: float = 0.0
    slow: float = 0.0
    doubt: float = 0.0


class Rejection(NamedTuple):
    """Why one node cannot run one call.

    Attributes:
        reason: One word: `full`, `stale`, `suspect`, `excluded`, `lacks`, or what a caller adds.
        key: Which resource it lacks, "" otherwise.
        want: How much of it is wanted.
        have: How much there is; None if unknown.
        never: It would not fit on the empty machine either.
    """

    reason: str
    key: str = ""
    want: float | str = 0.0
    have: float | str | None = None
    never: bool = False

    def shown(self) -> str:
        """Write it for people.

        >>> Rejection("lacks", "gpu_memory", 16e9, 8e9, never=True).shown()
        'has 8 GB gpu_memory (want 16 GB)'
        """
        if self.reason != "lacks":
            return self.reason
        want = show_amount(self.key, self.want)
        if self.have is None:
            return f"has not said how much {self.key} it has (want {want})"
        left = "" if self.never else " left"
        return f"has {show_amount(self.key, self.have) or 'no'} {self.key}{left} (want {want})"


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """A node as a strategy sees it, at one moment.

    Attributes:
        node_id: Its id.
        slots: Calls that it runs at once.
        busy: Calls that it has.
        limit: Calls that it may have.
        latency_s: Round trip and mean body, as far as known.
        cpu_free: Share of its processors that is free, None if unknown.
        memory_free: Share of its memory, None if unknown.
        price: What a call costs there, as its owner declared.
        stale_s: Age of its last sample, None if it never sent one.
        scores: Of the default policy.
        total: Their weighted sum, with what is taken off.
    """

    node_id: str
    slots: int
    busy: int
    limit: int
    latency_s: float | None
    cpu_free: float | None
    memory_free: float | None
    price: float
    stale_s: float | None
    scores: Scores
    total: float


@dataclass(frozen=True, slots=True)
class Placement:
    """The choice, and why: what `future.placement` shows.

    Attributes:
        node_id: The node.
        scores: Of that node, at that moment.
        total: The weighted sum of them.
        weights: Their weights, by name.
        devices: The GPUs that were reserved there.
        candidates: How many nodes could have run it.
        excluded: Why others could not, by node id.
    """

    node_id: str
    scores: Scores
    total: float
    weights: Mapping[str, float]
    devices: tuple[int, ...] = ()
    candidates: int = 1
    excluded: Mapping[str, Rejection] = field(default_factory=dict[str, Rejection])

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data, for the wire and for `future.placement`."""
        return {
            "node_id": self.node_id,
            "total": self.total,
            "scores": self.scores._asdict(),
            "weights": dict(self.weights),
            "gpus": list(self.devices),
            "candidates": self.candidates,
            "excluded": {node_id: why.shown() for node_id, why in self.excluded.items()},
        }


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """No choice, with the reasons; see `explain`.

    Attributes:
        rejections: By node id.
        needs: What was asked for.
        never: No node that is known could run it, even if all were empty.
    """

    rejections: Mapping[str, Rejection]
    needs: Needs = NO_NEEDS

    @property
    def never(self) -> bool:
        """Whether waiting is of no use: every node has said that it is too small."""
        return bool(self.rejections) and all(why.never for why in self.rejections.values())


def show_amount(key: str, amount: float | str) -> str:
    """Write an amount of a resource for people; "" for nothing."""
    if isinstance(amount, str):
        return amount
    if key in SIZES:
        return show_bytes(amount) if amount else ""
    return f"{amount:g}" if amount else ""
