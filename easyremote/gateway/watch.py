"""What the gateway hears and sees of its nodes, brought to where calls are placed.

Theory. A node says how it is (telemetry), and the gateway sees how it does: how long the way to it
is, what it lost, how long its answers took. Both go to the node's `scheduler.host.Host`, which
knows what they are worth. Once a second time itself is brought there, too: silence makes a node
doubtful, and a node that was shut out is tried again.

The number of replicas of a function with `scaling=` is decided here, for the queue is here; the
node keeps to the bounds that its owner declared, whatever we say.

Rules of this file. 1) Nothing is decided here but when to look. 2) Calls that may be placed after
a change are placed at once.

Source. features.md N8, R9, G11; promises.md T15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..scheduler.scaling import Load, Replicas, Scaling, step
from .sample import REPLICAS

if TYPE_CHECKING:
    from ..scheduler.model import Resources
    from .placing import Placer
    from .pool import NodeRecord, Offer
    from .registry import Registry

Tell = Callable[[str, dict[str, Any]], None]
"""Says something to a node, by its id."""


class Watch:
    """Everything about the state of nodes that placement goes by."""

    def __init__(self, registry: Registry, placer: Placer, tell: Tell) -> None:
        self._registry = registry
        self._placer = placer
        self._tell = tell

    def heard(self, record: NodeRecord, sample: Mapping[str, Any], now: float) -> bool:
        """A node sent a sample; what it does not name has not changed.

        Returns:
            Whether it has become another machine, as far as calls go: all that it offers was looked
            at again.
        """
        host = record.host
        before, health = _size(host.ledger.total), host.health
        host.heard(sample, now)
        resized = _size(host.ledger.total) != before
        if resized:
            # Calls may fit there now that never did, and the other way round.
            self._registry.refresh(record)
        if host.health != health or any(group.pools for group in record.groups.values()):
            self._placer.pump_node(record)
        return resized

    def tick(self, now: float) -> None:
        """Let time pass, about once a second."""
        for record in self._registry.nodes.values():
            link, host = record.link, record.host
            if link is None:
                continue
            rtt_s = link.rtt_s  # The shortest so far; the first of all may be very long.
            if rtt_s is not None and not _close(rtt_s, host.rtt_s or 0.0):
                host.saw_rtt(rtt_s)
            # One that is shut may be all that is left for a call that waits.
            if host.tick(now) or host.shut:
                self._placer.pump_node(record)
            self._scale(record, now)

    def _scale(self, record: NodeRecord, now: float) -> None:
        """Ask a node for other numbers of replicas, where they should change."""
        wishes: dict[str, int] = {}
        for name, offer in record.offers.items():
            scaling = offer.scaling
            if scaling is None:
                continue
            before = record.replicas.get(name) or Replicas(scaling.min)
            after = record.replicas[name] = step(scaling, before, _load(offer, scaling), now)
            if after.wanted != before.wanted or _too_many(record, offer, scaling, after, now):
                wishes[name] = after.wanted
        if wishes:
            self._tell(record.node_id, {"replicas": wishes})


def _too_many(
    record: NodeRecord, offer: Offer, scaling: Scaling, state: Replicas, now: float
) -> bool:
    """Return whether more replicas than wanted were idle for long.

    A node starts one by itself for a call that comes when there is none.
    """
    there = record.sample.get(REPLICAS, {}).get(offer.name, 0)
    if there <= state.wanted or offer.group.busy:
        record.surplus.pop(offer.name, None)
        return False
    used, since = record.surplus.get(offer.name, (0, now))
    if used != offer.group.used:
        since = now
    elif now - since >= scaling.idle_s:
        del record.surplus[offer.name]
        return True
    record.surplus[offer.name] = offer.group.used, since
    return False


def _close(rtt_s: float, known_s: float) -> bool:
    """Whether a round trip is known well enough."""
    return math.isclose(rtt_s, known_s, rel_tol=0.01, abs_tol=1e-5)


def _size(total: Resources) -> tuple[object, ...]:
    """Return what decides whether a call could ever fit: not what is free just now."""
    devices = total.devices
    gpus = None if devices is None else [(one.index, one.model, one.total_bytes) for one in devices]
    return total.cpus, total.memory_bytes, total.disk_bytes, total.custom, gpus


def _load(offer: Offer, scaling: Scaling) -> Load:
    """Return what a node has to do for one function; each replica runs one call at a time.

    Calls that wait for any of several nodes count in part at each of them.
    """
    group = offer.group
    waiting = sum(pool.queue.waiting / len(pool.places) for pool in group.pools if pool.places)
    ahead = max(0, group.busy - group.slots)
    room = group.slots if scaling.max is None else scaling.max
    return Load(math.ceil(waiting) + ahead, min(group.busy, group.slots), 1, room)
