"""What of a node is promised to calls that run there, and whether one more fits.

Theory. A reservation holds what a call needs until its body is gone, whatever it uses meanwhile.
What is left is the smaller of two views: what the ledger promised, and what the node measures. A
process that is not the node's (foreign) takes memory that the ledger never promised, so

        left = total - foreign - reserved          or, where foreign use is unknown,
        left = min(total - reserved, free now)

holds for main memory and for each GPU. What the node uses itself without a reservation counts like
foreign use as far as it exceeds the reservations. Cores are promised and not measured: a busy core
is shared, only slower. On several GPUs a call gets those on which it fits most tightly, so that
large calls find large gaps (best fit).

Rules of this file. 1) Pure. 2) `fits` answers with devices or with a `Rejection`, and promises
nothing; `take` promises what fits. 3) Never is more promised than there is. 4) What a node has not
said it does not have, yet: such a rejection is never final.

Source. Best fit for bin packing, Johnson 1973; NVML's memory info for what is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .model import Device, Needs, Rejection, Resources

_SLACK = 1e-9
"""Sums of fractions are not exact."""


@dataclass(frozen=True, eq=False, slots=True)
class Reservation:
    """What one call holds on one node, until it is given back.

    Attributes:
        needs: How much.
        devices: Indexes of the GPUs that it may use; `Dispatch.context["gpus"]`.
    """

    needs: Needs
    devices: tuple[int, ...]


class Ledger:
    """The reservations on one node.

    Attributes:
        total: What the node has.
        version: Grows with every change.
    """

    __slots__ = (
        "_held", "_memory_taken", "cpus", "custom", "devices", "disk_bytes", "disk_free_bytes",
        "memory_bytes", "memory_free_bytes", "memory_own_bytes", "shares", "total", "used_bytes",
        "version",
    )  # fmt: skip

    def __init__(self, total: Resources | None = None) -> None:
        self.total = total or Resources()
        self.version = 0
        self.devices: dict[int, Device] = {}
        self.memory_free_bytes: int | None = None
        self.memory_own_bytes: int | None = None
        self.disk_free_bytes: int | None = None
        self.clear()
        self.measured(self.total)

    def clear(self) -> None:
        """Give everything back: the node has started again, and runs nothing."""
        self._held: set[Reservation] = set()
        self.cpus = 0.0
        self.memory_bytes = 0
        self.disk_bytes = 0
        self.custom: dict[str, float] = {}
        self.shares: dict[int, float] = {}
        self.used_bytes: dict[int, int] = {}
        self._memory_taken: dict[int, int] = {}
        self.version += 1

    def measured(
        self,
        total: Resources,
        memory_free_bytes: int | None = None,
        memory_own_bytes: int | None = None,
        disk_free_bytes: int | None = None,
    ) -> None:
        """Take over what a node has and what of it is free now; None for what is unknown."""
        self.total = total
        self.devices = {device.index: device for device in total.devices or ()}
        self.memory_free_bytes = memory_free_bytes
        self.memory_own_bytes = memory_own_bytes
        self.disk_free_bytes = disk_free_bytes
        self.version += 1

    # ---- what is left ------------------------------------------------------------------------

    def memory_left(self) -> float | None:
        """Return the main memory that can still be promised; None if the node has not said."""
        return self._memory_left(self.total.memory_bytes)

    def _memory_left(self, total: int | None) -> float | None:
        free, own, reserved = self.memory_free_bytes, self.memory_own_bytes, self.memory_bytes
        if total is None:
            return None
        if free is None:
            return total - reserved
        if own is None:
            return min(total - reserved, free)
        return total - max(0, total - free - own) - max(reserved, own)

    def device_left(self, device: Device) -> int:
        """Return the memory of a GPU that can still be promised."""
        reserved = self.used_bytes.get(device.index, 0)
        left = device.total_bytes - reserved
        if device.foreign_bytes is not None:
            return left - device.foreign_bytes
        return left if device.free_bytes is None else min(left, device.free_bytes)

    def _amounts(self, needs: Needs) -> Iterable[tuple[str, float, float | None, float | None]]:
        """Yield for each resource but GPUs: its name, the demand, what is left, the total."""
        total = self.total
        if needs.cpus:
            left = None if total.cpus is None else total.cpus - self.cpus
            yield "cpu", needs.cpus, left, total.cpus
        if needs.memory_bytes:
            yield "memory", needs.memory_bytes, self.memory_left(), total.memory_bytes
        if needs.disk_bytes:
            yield "disk", needs.disk_bytes, self._disk_left(), total.disk_bytes
        for name, amount in needs.custom:
            whole = total.custom.get(name, 0.0)
            yield name, amount, whole - self.custom.get(name, 0.0), whole

    def _disk_left(self) -> float | None:
        total, free = self.total.disk_bytes, self.disk_free_bytes
        if total is None:
            return free
        return total - self.disk_bytes if free is None else min(total, free) - self.disk_bytes

    # ---- does it fit -------------------------------------------------------------------------

    def fits(self, needs: Needs) -> tuple[int, ...] | Rejection:
        """Return the devices that a call would get, none if it needs none; or why it cannot run.

        A rejection is `never` if the call would not fit on the empty machine either.
        """
        for key, want, left, total in self._amounts(needs):
            if left is None or want > left + _SLACK:
                never = total is not None and want > total + _SLACK
                return Rejection("lacks", key, want, total if never else left, never)
        return self._pick(needs) if needs.gpus else ()

    def ever(self, needs: Needs) -> Rejection | None:
        """Return why a call would not fit on the empty machine; None if it would, or may."""
        for key, want, _, total in self._amounts(needs):
            if total is not None and want > total + _SLACK:
                return Rejection("lacks", key, want, total, never=True)
        found = self._lacks_device(needs) if needs.gpus else None
        return found if found is not None and found.never else None

    def could(self, needs: Needs) -> bool:
        """Return whether a call would fit if all were given back, beside what others use."""
        free, own = self.memory_free_bytes, self.memory_own_bytes
        if free is not None:
            free += self.memory_bytes if own is None else own
        devices = self.total.devices
        if devices is not None:
            used = self.used_bytes
            devices = tuple(
                one
                if one.free_bytes is None
                else replace(one, free_bytes=one.free_bytes + used.get(one.index, 0))
                for one in devices
            )
        empty = Ledger()
        empty.measured(replace(self.total, devices=devices), free, None, self.disk_free_bytes)
        return not isinstance(empty.fits(needs), Rejection)

    def _pick(self, needs: Needs) -> tuple[int, ...] | Rejection:
        lacks = self._lacks_device(needs)
        if lacks is not None:
            return lacks
        share, model = needs.share, needs.gpu_model
        room: list[tuple[int, float, int]] = []
        best_left = 0
        for device in self._models(model):
            taken = self.shares.get(device.index, 0.0)
            left = self.device_left(device)
            if taken + share > 1.0 + _SLACK or (share == 0.0 and taken >= 1.0 - _SLACK):
                continue
            if share >= 1.0 and self._memory_taken.get(device.index):
                continue
            best_left = max(best_left, left)
            if needs.gpu_memory_bytes <= left:
                # A device for this call alone is the emptiest one, others are filled up.
                room.append((left if share < 1.0 else -left, -taken, device.index))
        if len(room) < needs.devices:
            if needs.gpu_memory_bytes and len(room) == 0:
                return Rejection("lacks", "gpu_memory", needs.gpu_memory_bytes, max(0, best_left))
            return Rejection("lacks", "gpu", needs.gpus, len(room))
        room.sort()
        return tuple(sorted(index for _, _, index in room[: needs.devices]))

    def _models(self, model: str) -> list[Device]:
        return [d for d in self.devices.values() if not model or model in d.model.lower()]

    def _lacks_device(self, needs: Needs) -> Rejection | None:
        """Return what is missing of the GPUs of the empty machine."""
        if self.total.devices is None:
            return Rejection("lacks", "gpu", needs.gpus)
        models = self._models(needs.gpu_model)
        if needs.gpu_model and not models:
            have = ", ".join(sorted({d.model for d in self.devices.values()})) or "no GPU"
            return Rejection("lacks", "gpu_model", needs.gpu_model, have, never=True)
        large = [d for d in models if d.total_bytes >= needs.gpu_memory_bytes]
        if needs.gpu_memory_bytes and not large:
            most = max((d.total_bytes for d in models), default=0)
            return Rejection("lacks", "gpu_memory", needs.gpu_memory_bytes, most, never=True)
        if len(large) < needs.devices:
            return Rejection("lacks", "gpu", needs.gpus, len(large), never=True)
        return None

    def free_after(self, needs: Needs, devices: tuple[int, ...]) -> float:
        """Return the smallest share of a requested resource that would stay free, in [0, 1]."""
        least = 1.0
        for _, want, left, total in self._amounts(needs):
            if left is not None and total:
                least = min(least, (left - want) / total)
        for index in devices:
            device = self.devices[index]
            share = 1.0 - self.shares.get(index, 0.0) - needs.share
            if needs.gpu_memory_bytes:
                left = self.device_left(device) - needs.gpu_memory_bytes
                share = min(share, left / device.total_bytes)
            least = min(least, share)
        return max(0.0, least)

    # ---- promise and give back -----------------------------------------------------------------

    def take(self, needs: Needs, devices: tuple[int, ...]) -> Reservation:
        """Promise what `fits` just found."""
        assert len(devices) == (needs.devices if needs.gpus else 0)
        reservation = Reservation(needs, devices)
        self._held.add(reservation)
        self._count(reservation, 1)
        return reservation

    def give_back(self, reservation: Reservation) -> None:
        """The body is gone. What was given back by `clear` already changes nothing."""
        if reservation in self._held:
            self._held.remove(reservation)
            self._count(reservation, -1)

    def _count(self, reservation: Reservation, sign: int) -> None:
        needs = reservation.needs
        self.cpus += sign * needs.cpus
        self.memory_bytes += sign * needs.memory_bytes
        self.disk_bytes += sign * needs.disk_bytes
        for name, amount in needs.custom:
            self.custom[name] = self.custom.get(name, 0.0) + sign * amount
        for index in reservation.devices:
            self.shares[index] = self.shares.get(index, 0.0) + sign * needs.share
            self.used_bytes[index] = self.used_bytes.get(index, 0) + sign * needs.gpu_memory_bytes
            self._memory_taken[index] = self._memory_taken.get(index, 0) + sign
        if not self._held:  # Nothing is left of what fractions do not add up to.
            self.cpus = 0.0
            self.custom.clear()
            self.shares.clear()
        self.version += 1

    @property
    def reservations(self) -> int:
        """How many calls hold something."""
        return len(self._held)
