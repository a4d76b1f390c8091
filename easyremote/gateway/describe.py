"""Nodes and functions as everybody sees them: plain data, filtered by what the asker may see.

Rules of this file. 1) Pure. 2) Nothing outside the asker's scopes is mentioned or counted.

Source. api.md, "Facts", 6; features.md G5 and I2.
"""

from __future__ import annotations

from typing import Any

from ..identity.role import Principal
from ..scheduler.capability import Effort, Wishes, matches
from .pool import NodeRecord, Offer, function_tags
from .registry import Registry, sees_node, visible
from .routing import denial


def node_info(
    record: NodeRecord, principal: Principal | None, now: float | None = None
) -> dict[str, Any]:
    """Return what a principal may know of a node; None is the gateway's own process.

    Args:
        record: The node.
        principal: Who asks.
        now: On trio's clock; without it nothing is said of how long ago the node was heard.
    """
    link = record.link
    rtt_s = None if link is None else link.rtt_s
    seen = [o for o in record.offers.values() if principal is None or visible(o, principal)]
    slots = sum(group.slots for group in record.groups.values())
    busy = sum(group.busy for group in record.groups.values())
    return {
        "node_id": record.node_id,
        "capabilities": record.capabilities,
        "labels": list(record.labels),
        "functions": [offer.name for offer in seen],
        "callable": [o.name for o in seen if principal is None or denial(principal, o) is None],
        "prices": {o.name: price for o in seen if (price := o.entry.facts.get("billing"))},
        "in_flight": len(record.running),
        "slots": slots,
        "health": record.health,
        "draining": record.draining,
        "paused": record.paused,
        "busy": busy,
        "load": busy / slots if slots else 0.0,
        "streams": 0 if link is None else link.streams_open,
        "rtt_ms": None if rtt_s is None else round(rtt_s * 1000.0, 3),
        **_measured(record, seen),
        "owner": record.owner,
        "since": record.since,
        "sample": dict(record.sample),
        **_heard(record, now),
        **{key: value for key, value in record.facts.items() if key in ("version", "platform")},
    }


def _measured(record: NodeRecord, seen: list[Offer]) -> dict[str, Any]:
    """Say what the scores of a node are made of: shares that are free, and usual times.

    Processors that calls will need since the last sample are not free, where they have the least.
    """
    usual_s = record.host.rtt_s
    free = [share for group in record.groups.values() if (share := group.cpu_free) is not None]
    return {
        "cpu_free": min(free, default=None),
        "memory_free": record.host.view.memory_free,
        "usual_rtt_ms": None if usual_s is None else usual_s * 1000.0,
        "usual_ms": {
            o.name: usual * 1000.0 for o in seen if (usual := o.group.usual_s) is not None
        },
    }


SPECIALIZATIONS_MAX = 16


def specialization(record: NodeRecord) -> list[str]:
    """Return what a node's owner says that it is for."""
    declared = record.capabilities.get("specialization")
    listed = declared if type(declared) is list else [declared]
    return [one for one in listed if type(one) is str][:SPECIALIZATIONS_MAX]


def _heard(record: NodeRecord, now: float | None) -> dict[str, Any]:
    """Say how long a node has been silent, and how long it may go on so."""
    if now is None:
        return {}
    link = record.link
    if link is None:
        return {"last_heard_s": max(0.0, now - record.last_seen), "lease_left_s": 0.0}
    connection = link.connection
    silent_s = max(0.0, now - connection.heard_at)
    left_s = max(0.0, connection.settings.lease_s - silent_s)
    return {"last_heard_s": silent_s, "lease_left_s": left_s}


def function_info(offer: Offer, principal: Principal | None) -> dict[str, Any]:
    """Return what a principal may know of a function on a node."""
    entry = offer.entry
    return {
        **entry.facts,
        "node_id": offer.record.node_id,
        "function_name": offer.name,
        "path": offer.path,
        "description": entry.description,
        "signature": entry.signature,
        "parameters": entry.facts.get("parameters", []),
        "stream": entry.stream,
        "timeout_s": entry.timeout_s,
        "idempotent": entry.idempotent,
        "auth_required": entry.auth_required,
        "access_level": entry.access_level,
        "callable": principal is None or denial(principal, offer) is None,
        "owner": offer.record.owner,
        "registered_at": offer.registered_at,
        "health_status": offer.record.health,
    }


def nodes(
    registry: Registry, principal: Principal | None, now: float | None = None
) -> list[dict[str, Any]]:
    """Return the nodes that a principal may see, by id; `now` as for `node_info`."""
    return [
        node_info(record, principal, now)
        for _, record in sorted(registry.nodes.items())
        if principal is None or sees_node(record, principal)
    ]


def find_nodes(
    registry: Registry, principal: Principal, now: float | None, wishes: Wishes,
    function: str | None = None, *, connected: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the nodes that have what is wanted, those that would serve soonest first.

    Args:
        registry: Where they are looked for.
        principal: Who asks; what it may not see is not found.
        now: As for `node_info`.
        wishes: What a node must have; nothing finds all.
        function: The name of a function that it must offer; the tags of that function count, too.
            Without it, those of all functions do.
        connected: Leave out nodes that are away.

    Raises:
        TooMuch: Finding out would take too long.
    """
    effort = Effort()
    found: list[dict[str, Any]] = []
    for record in registry.nodes.values():
        if not sees_node(record, principal) or (connected and record.link is None):
            continue
        offers = [
            offer
            for offer in record.offers.values()
            if visible(offer, principal) and (function is None or offer.name == function)
        ]
        if function is not None and not offers:
            continue
        tags = record.labels + [tag for offer in offers for tag in function_tags(offer)]
        if matches(wishes, record.capabilities, tags, effort):
            found.append(node_info(record, principal, now))
    found.sort(key=_soonest)
    return found


def _soonest(info: dict[str, Any]) -> tuple[bool, float, float, str]:
    rtt_ms = info["rtt_ms"]
    away = info["health"] != "healthy"
    return away, info["load"], float("inf") if rtt_ms is None else rtt_ms, info["node_id"]


def functions(
    registry: Registry, principal: Principal | None, node_id: str | None = None,
    name: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the functions that a principal may see, by node and name."""
    return [
        function_info(offer, principal)
        for _, record in sorted(registry.nodes.items())
        if node_id is None or record.node_id == node_id
        for _, offer in sorted(record.offers.items())
        if (name is None or offer.name == name) and (principal is None or visible(offer, principal))
    ]
