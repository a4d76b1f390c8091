"""Replicas and devices, as the agent sees them: who runs which call, and on which GPUs.

Theory. The script says what it offers; this machine and the gateway say how much of it. How many
replicas a scaled function has is the gateway's wish, for it sees the queue; what is allowed is the
owner's word, so a wish is bent to the declared bounds. Which devices a call gets is the gateway's
decision, for it keeps the reservations; this node makes it true. Where the gateway has decided
nothing, a call that needs GPUs gets all devices of the process that runs it. A replica without a
call may hold a model in the memory of its device, for which nobody has a reservation: it makes room
when a call of somebody else needs the memory.

Rules of this file. 1) What the gateway says is checked: it is a wish of somebody else. 2) The
gateway is told how many calls fit whenever that changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .pools import Pool, ReplicaPool
from .replica_plan import Devices, chosen, needs_of
from .visible import GPUS_KEY

if TYPE_CHECKING:
    from .agent_calls import DispatchedCall
    from .family import Family
    from .offer import NodeOffer


class Replicas:
    """The replicas of one node."""

    def __init__(
        self, family: Family, offer: NodeOffer, free_bytes: Callable[[], dict[int, int]]
    ) -> None:
        """Begin.

        Args:
            family: The workers.
            offer: What is offered.
            free_bytes: Returns the memory that was free on each device a moment ago.
        """
        self._family = family
        self._offer = offer
        self._free_bytes = free_bytes

    def offered(self) -> None:
        """The offer has changed: keep what is declared, and nothing of what is gone."""
        plans = self._offer.plans
        for pool in self._family.replica_pools():
            if pool.function not in plans:
                pool.keep(0, 1)
        for name, plan in plans.items():
            if plan.scaling is not None:
                pool = self._family.replica_pool(self._offer.functions[name], plan)
                self._offer.slots[name] = pool.slots
                pool.wanted()

    def pool_of(self, function: str) -> Pool:
        """Return where the calls of a function go."""
        entry = self._offer.functions[function]
        return self._family.pool_of(entry, self._offer.plans.get(function))

    def equip(self, call: DispatchedCall) -> None:
        """Take over which devices a call has; a pool with pinned replicas tells it itself."""
        said = call.context.get(GPUS_KEY)
        if said is None and not self._offer.functions[call.function].get("requirements"):
            return  # Most calls.
        known = [device.index for device in self._offer.devices]
        call.devices = chosen(said, known)
        if isinstance(call.pool, ReplicaPool) and call.pool.sets:
            if call.devices is not None:
                self._make_room(call, call.pool, call.devices)
            return
        devices = call.devices
        if devices is None and known and self._needs_gpus(call.function):
            devices = tuple(known)
        if devices is not None:
            call.see(devices)

    def _make_room(self, call: DispatchedCall, pool: ReplicaPool, devices: Devices) -> None:
        """End idle replicas on the devices of a call, if they hold what it needs."""
        needs = needs_of(self._offer.functions[call.function])
        if needs is None or pool.can_serve(devices):
            return
        free = self._free_bytes()
        if any(
            free.get(index, needs.gpu_memory_bytes) < needs.gpu_memory_bytes for index in devices
        ):
            for other in self._family.replica_pools():
                other.leave(devices)

    def _needs_gpus(self, function: str) -> bool:
        needs = needs_of(self._offer.functions[function])
        return needs is not None and bool(needs.gpus)

    def wish(self, wanted: Any) -> list[str]:
        """Have as many replicas as the gateway wants, within what is declared.

        Args:
            wanted: Numbers by the names of functions, as they came.

        Returns:
            The functions of which more or fewer calls fit now.
        """
        if type(wanted) is not dict:
            return []
        return [
            name
            for name, count in wanted.items()
            if type(count) is int and self.set_replicas(name, count)
        ]

    def set_replicas(self, function: str, count: int) -> bool:
        """Keep so many replicas of a function, within what is declared.

        Returns:
            Whether more or fewer calls fit now.
        """
        plan = self._offer.plans.get(function)
        if plan is None or plan.scaling is None:
            return False
        pool = self._family.replica_pool(self._offer.functions[function], plan)
        before, kept = pool.slots, plan.bound(count)
        pool.keep(kept, max(1, kept))
        self._offer.slots[function] = pool.slots
        return pool.slots != before

    def counts(self) -> dict[str, int]:
        """Return how many replicas serve each scaled function."""
        alive = self._family.replicas()
        return {n: alive.get(n, 0) for n, plan in self._offer.plans.items() if plan.scaling}
