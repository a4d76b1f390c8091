"""What must hold at every step of the gateway: reservations, places, turns, and seconds of quotas.

Theory. A promise that is checked when all is over is checked once. Here the methods that place
calls are watched: before a call is given away and after, and twice a second between all of them.
What they must have decided is worked out here a second time, in the plainest way.

    a reservation is taken    nothing is promised twice, and not more than there is
    a queue says who is next  of that user's calls the first; of the users the one who used least,
                              or the one who waits longest and has lost patience
    a place chooses a queue   one in which somebody has lost patience, if there is one
    a call is given away      the node is not kept for another; seconds are left of its quota
    at any time               each reservation is of a call that is there; places count right

Rules of this file. 1) A watcher changes nothing. 2) What a node said before counts, also where it
lied: these are promises about what the gateway knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import trio

from easyremote.gateway import placing
from easyremote.gateway.placing import Placer
from easyremote.scheduler.host import Host
from easyremote.scheduler.pending import PendingQueue
from easyremote.scheduler.reserve import Ledger

from .functions import SECONDS_MAX
from .seeded import Replacement

if TYPE_CHECKING:
    from easyremote.gateway.core import Gateway

    from .world import World

EVERY_S = 0.5
SLACK = 1e-6
PASSES_MAX = 25
"""Calls that may pass another one by which a node should be kept for it: some for each such call
that waits longer."""


class Watcher:
    """Watches the product in a run.

    Attributes:
        world: The running one.
    """

    def __init__(self) -> None:
        self.world: World | None = None
        self._passed: Counter[bytes] = Counter()

    def replacements(self) -> list[Replacement]:
        """Return the product's methods with a check around them."""
        return [
            (Host, "reserve", self._reserve(Host.reserve)),
            (PendingQueue, "head", self._head(PendingQueue.head)),
            (placing, "_first", self._first(placing._first)),
            (Placer, "_dispatch", self._dispatch(Placer._dispatch)),
            (Placer, "leave", self._leave(Placer.leave)),
        ]

    def _wrong(self, promise: str, sentence: str) -> None:
        if self.world is not None:
            self.world.violation(promise, sentence)

    # ---- what is watched -----------------------------------------------------------------------

    def _reserve(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def watched(host: Host, needs: Any) -> Any:
            reservation = method(host, needs)
            for what, promised, total in _sums(host.ledger, reservation) if reservation else ():
                if total is None or promised > total + SLACK:
                    self._wrong("FIT", f"{promised} of {total} {what} are promised")
            return reservation

        return watched

    def _head(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def watched(queue: PendingQueue[Any], now: float) -> Any:
            head = method(queue, now)
            if head is not None:
                self._check_turn(queue, head, now)
            return head

        return watched

    def _check_turn(self, queue: PendingQueue[Any], head: Any, now: float) -> None:
        lane = head.level.lane
        best = min(lane, key=lambda call: (-call.priority, call.sequence))
        if best is not head:
            self._wrong("PRIO", f"{_name(head)} goes before {_name(best)} of the same user")
        lanes = [one for one in queue._lanes.values() if one.waiting]
        late = [one for one in lanes if now - one.since >= queue.patience_s()]
        if len(lanes) > 1 and late:
            self._count("a user loses patience")
            if lane.since > min(one.since for one in late) + SLACK:
                self._wrong("P13", f"{lane.share.user} goes before somebody who waits for long")
        elif lane.share.key > min(one.share.key for one in lanes) * (1 + SLACK) + SLACK:
            self._wrong("P13", f"{lane.share.user} goes first, and has used more than others")
        if len(lanes) > 1:
            self._count("several users wait for one place")
        if len(lane.levels) > 1:
            self._count("a priority matters")

    def _first(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def watched(group: Any, passed: Any, now: float) -> Any:
            chosen = method(group, passed, now)
            if chosen is not None and len(group.pools) > 1:
                self._count("several queues wait for one place")
                queues = [pool.queue for pool in group.pools if pool not in passed]
                late = [since for queue in queues if (since := _late_since(queue, now)) is not None]
                mine = _late_since(chosen.queue, now)
                shut = group.host.shut
                if late and not shut and (mine is None or mine > min(late) + SLACK):
                    self._wrong("P13", f"a call waits too long for {group.name}")
            return chosen

        return watched

    def _dispatch(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def watched(placer: Placer, call: Any, pool: Any, offer: Any, now: float) -> Any:
            record = offer.record
            kept_for = placer.kept.get(record)
            reserved_before = record.host.ledger.reservations
            given = method(placer, call, pool, offer, now)
            if not given:
                return given
            if record.host.ledger.reservations > reserved_before:
                self._count("a call reserves what it needs")
                if kept_for is not None and kept_for.level is not None and kept_for is not call:
                    self._wrong("P13", f"{_name(call)} gets {record.node_id}, which is kept")
                self._check_passed(call, offer, now)
            if call.charge is not None and call.charge.strict:
                self._check_seconds(call)
            return given

        return watched

    def _leave(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def watched(placer: Placer, call: Any) -> Any:
            if call in placer.kept.values():
                self._count("a node was kept for a call")
            return method(placer, call)

        return watched

    def _check_passed(self, call: Any, offer: Any, now: float) -> None:
        """Count how many calls pass one that waits, on nodes that could run it."""
        for pool in offer.group.pools:
            lane = pool.queue._only
            if not pool.needy or not pool.queue.waiting or lane is None:
                continue
            head = lane.levels[0].head()
            earlier = head.sequence < call.sequence and now - head.since >= placing.PASS_S
            if earlier and pool.ranked.needs_at(offer.group):
                self._passed[head.message.call_id] += 1
                if self._passed[head.message.call_id] == PASSES_MAX:
                    self._wrong("P13", f"{_name(head)} was passed by {PASSES_MAX} others")

    def _check_seconds(self, call: Any) -> None:
        """A quota in seconds: no call is given away when nothing is left by what is written."""
        world, facts = self.world, call.charge.facts
        most = SECONDS_MAX.get(facts.function)
        if world is None or most is None or world.gateway.store is None:
            return
        ((used,),) = world.gateway.store.rows(
            "SELECT total(seconds) FROM quota_use WHERE user = ? AND function = ?",
            facts.user, facts.function,
        )  # fmt: skip
        if used >= most:
            self._wrong("QUOTA", f"{_name(call)} is given away after {used:.2f} of {most} s")

    def _count(self, what: str) -> None:
        if self.world is not None:
            self.world.reached[what] += 1

    # ---- at any time ---------------------------------------------------------------------------

    async def run(self, world: World) -> None:
        """Look at the gateway's books twice a second, as long as the run lasts."""
        while True:
            await trio.sleep(EVERY_S)
            if world.gateway.gateway is not None:
                self._check_nodes(world.gateway.gateway)

    def _check_nodes(self, gateway: Gateway) -> None:
        for record in gateway.registry.nodes.values():
            held = record.host.ledger._held
            calls = {one.reservation: one for one in record.running.values() if one.reservation}
            for reservation in held - calls.keys():
                self._wrong("FIT", f"{record.node_id}: nobody has {reservation.needs.shown()}")
            for reservation in calls.keys() - held:
                self._wrong("FIT", f"{record.node_id}: {_name(calls[reservation])} holds nothing")
            if record.link is not None:
                self._check_busy(record)
            for scaled in record.replicas.values():
                if scaled.wanted > 1:
                    self._count("several replicas are wanted")

    def _check_busy(self, record: Any) -> None:
        there: Counter[str] = Counter(
            call.offer.group.name for call in record.running.values() if not call.children
        )
        for name, group in record.groups.items():
            if group.busy != there[name]:
                self._wrong(
                    "FIT", f"{record.node_id}, {name}: {group.busy} counted, {there[name]} there"
                )


def _sums(ledger: Ledger, latest: Any) -> list[tuple[str, float, float | None]]:
    """Return of each resource of which something was just promised: all promises, and the total."""
    needs, held, total = latest.needs, [one.needs for one in ledger._held], ledger.total
    found: list[tuple[str, float, float | None]] = []
    if needs.cpus:
        found.append(("cpus", sum(one.cpus for one in held), total.cpus))
    if needs.memory_bytes:
        found.append(("memory", sum(one.memory_bytes for one in held), total.memory_bytes))
    for name, _ in needs.custom:
        taken = sum(dict(one.custom).get(name, 0.0) for one in held)
        found.append((name, taken, total.custom.get(name)))
    for index in latest.devices:
        there = [one.needs for one in ledger._held if index in one.devices]
        memory = sum(one.gpu_memory_bytes for one in there)
        found.append((f"GPU {index}", sum(one.share for one in there), 1.0))
        found.append((f"memory of GPU {index}", memory, ledger.devices[index].total_bytes))
    return found


def _late_since(queue: PendingQueue[Any], now: float) -> float | None:
    """Return since when the user waits who has lost patience; None if nobody has."""
    late = [
        lane.since for lane in queue._lanes.values()
        if lane.waiting and now - lane.since >= queue.patience_s()
    ]  # fmt: skip
    return min(late, default=None)


def _name(call: Any) -> str:
    return f"{call.message.function} {call.message.call_id.hex()[:8]} of {call.principal.user}"
