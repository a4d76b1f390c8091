"""Which boots of which nodes hold calls: what a gateway must know that was started anew.

Theory. A call that was given to a node may run there although nobody at the gateway remembers it.
After a restart the gateway asks the nodes; so it must know on the disk whom to ask, before it gives
the first call to a node. A node counts as online from its first link until it has been away for so
long that none of its callers waits any more. The number of a boot, its epoch, fences: grants of
an earlier one are void. The same agent that comes back keeps its epoch.

Rules of this file. 1) Functions over an open `Database`, run inside its transactions. 2) Wall time
decides nothing but how fresh a boot or a start is; a clock that went back makes boots look fresh
and starts old, and both mean doubt.

Source. decisions.md 9.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from .database import Database

LOST_BEFORE = "lost_before"
STARTS = "starts"
STARTS_MAX = 256
"""Starts that are remembered; what is older than the oldest of them is certainly not recent."""


class Boots(NamedTuple):
    """What the disk says about nodes when a gateway starts."""

    online: frozenset[str]
    """Nodes that may hold calls of earlier starts."""
    changed: bool
    """Some node was itself started anew so lately that callers of its lost calls still wait."""
    lost_before: int
    """Incarnation before which nobody can say any more what became of a call."""
    recent_from: int = 0
    """Incarnation before which nodes do not remember any more what they have had."""
    known: Mapping[str, bytes] = {}
    """The boots of these nodes: only those can say what became of their calls."""


def boot_of(store: Database, node_id: str) -> bytes:
    """Return the boot of a node's agent that was let in last; empty for none."""
    found = store.rows("SELECT boot FROM nodes WHERE node_id = ?", node_id)
    return bytes(found[0][0]) if found else b""


def take_boot(store: Database, node_id: str, boot: bytes) -> int:
    """Write down that a boot of a node's agent is here; return its epoch.

    Args:
        store: The store.
        node_id: An enrolled node.
        boot: Names the run of its agent; an empty one is always another one.

    Raises:
        LookupError: There is no such node.
    """
    with store.transaction() as connection:
        found = store.rows("SELECT boot, boot_epoch FROM nodes WHERE node_id = ?", node_id)
        if not found:
            raise LookupError(f"no node {node_id!r} is enrolled")
        known, epoch = bytes(found[0][0]), int(found[0][1])
        if boot and known == boot:
            connection.execute("UPDATE nodes SET online = 1 WHERE node_id = ?", (node_id,))
            return epoch
        # The first boot of all has no calls before it.
        booted_at = store.clock() if epoch else 0.0
        connection.execute(
            "UPDATE nodes SET boot = ?, boot_epoch = ?, booted_at = ?, online = 1 "
            "WHERE node_id = ?",
            (boot, epoch + 1, booted_at, node_id),
        )
        return epoch + 1


def mark_offline(store: Database, node_ids: list[str], lost_before: int = 0) -> None:
    """Write down that nobody waits for calls of these nodes any more.

    Args:
        store: The store.
        node_ids: The nodes.
        lost_before: Where they never said what they held: the incarnation that waited for them.
    """
    with store.transaction() as connection:
        connection.executemany(
            "UPDATE nodes SET online = 0 WHERE node_id = ?", [(one,) for one in node_ids]
        )
        if lost_before:
            store.set_meta(LOST_BEFORE, str(lost_before))


def note_start(store: Database, incarnation: int) -> None:
    """Write down when the gateway was started."""
    with store.transaction():
        starts = [*_starts(store), [incarnation, store.clock()]]
        store.set_meta(STARTS, json.dumps(starts[-STARTS_MAX:]))


def _starts(store: Database) -> list[list[float]]:
    found: list[list[float]] = json.loads(store.get_meta(STARTS) or "[]")
    return found


def _recent_from(store: Database, memory_s: float) -> int:
    """Return the first incarnation that ended less than `memory_s` ago, when the next one began."""
    starts, now = _starts(store), store.clock()
    recent = [number for number, at in starts if 0 <= now - at < memory_s]
    return int(min(recent) - 1) if recent else 0


def read_boots(store: Database, fresh_s: float, memory_s: float) -> Boots:
    """Return what a gateway that starts must know.

    Args:
        store: The store.
        fresh_s: How long callers wait for calls of a boot that is over.
        memory_s: How long nodes remember calls that they have had.
    """
    since = store.clock() - fresh_s
    online = store.rows("SELECT node_id, boot FROM nodes WHERE online = 1")
    known = {str(node_id): bytes(boot) for node_id, boot in online}
    return Boots(
        frozenset(known),
        bool(store.rows("SELECT 1 FROM nodes WHERE booted_at > 0 AND booted_at >= ?", since)),
        int(store.get_meta(LOST_BEFORE) or 0),
        _recent_from(store, memory_s),
        known,
    )
