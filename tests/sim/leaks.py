"""Nothing is left behind: after every timer has passed, an idle cluster holds nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from easyremote.gateway.registration import RegistrationHandler
from easyremote.gateway.traces import KEPT_MAX

from .functions import SCALED_MIN

if TYPE_CHECKING:
    from easyremote.gateway.pool import NodeRecord

    from .hosts import ClientHost, GatewayHost, NodeHost
    from .world import World


def _gateway(host: GatewayHost) -> dict[str, int]:
    gateway = host.gateway
    assert gateway is not None
    dispatcher, nodes = gateway.dispatcher, gateway.registry.nodes.values()
    handlers = [
        stream.handler for session in gateway.sessions for stream in session.link.streams.values()
    ]
    registrations = sum(isinstance(handler, RegistrationHandler) for handler in handlers)
    connected = sum(session.node is not None for session in gateway.sessions)
    return {
        "stale registrations": registrations - connected,
        "calls pending": dispatcher.pending,
        "calls queued": dispatcher.placer.queued,
        "calls leaving": len(dispatcher.leaving),
        "calls parked": len(dispatcher.parking),
        "bytes parked": dispatcher.parking.bytes_kept,
        "bytes buffered": dispatcher.buffers.used_bytes,
        "calls at nodes": sum(len(node.running) for node in nodes),
        "slots busy": sum(group.busy for node in nodes for group in node.groups.values()),
        "streams": len(handlers) - registrations,
        "calls being written down": len(dispatcher.accounting.writing),
        "reservations": sum(node.host.ledger.reservations for node in nodes),
        "resources promised": sum(map(_promised, nodes)),
        "nodes kept": len(dispatcher.placer.kept),
        "calls of users running": sum(
            share.running for share in gateway.registry.cluster.shares._shares.values()
        ),
        "users in queues": sum(
            len(share.lanes) > QUEUES_MAX
            for share in gateway.registry.cluster.shares._shares.values()
        ),
        "traces too many": max(0, len(dispatcher.placer.traces._known) - KEPT_MAX),
    }


QUEUES_MAX = 200
"""Queues in which an idle user may still have an empty lane: the last one stays (`pending.py`)."""


def _promised(node: NodeRecord) -> int:
    ledger = node.host.ledger
    custom, shares = sum(ledger.custom.values()), sum(ledger.shares.values())
    memory = ledger.memory_bytes + sum(ledger.used_bytes.values())
    return int(any((ledger.cpus, custom, shares, memory)))


def _node(host: NodeHost) -> dict[str, int]:
    agent = host.agent
    assert agent is not None
    alive = [script for script in host.scripts if script.process.status is None]
    scripts = [script for script in alive if script.worker is not None]
    workers = [script.worker for script in scripts if script.worker is not None]
    return {
        "calls running": len(agent._running),
        "nested calls": len(agent._nested),
        "bytes buffered": agent._buffers.used_bytes,
        "calls held": agent.family.main.held,
        "calls held for replicas": sum(pool.held for pool in agent.family.replica_pools()),
        "idle replicas": max(0, agent.family.replicas().get("scaled", 0) - SCALED_MIN),
        "resources in use": len(host.held),
        "calls in workers": sum(worker.in_flight for worker in workers),
        "nested calls unsettled": sum(len(script.session.unsettled) for script in scripts),
    }


def _client(host: ClientHost) -> dict[str, int]:
    session = host.session
    assert session is not None
    return {
        "calls unsettled": len(session.unsettled),
        "calls held": len(session._held) + len(session._fresh),
        "calls to go again": len(session._again),
    }


def check_leaks(world: World) -> None:
    """Report whatever is still held; everybody must be up and connected."""
    found = {world.gateway.name: _gateway(world.gateway)}
    found |= {node.name: _node(node) for node in world.nodes}
    found |= {client.name: _client(client) for client in world.clients}
    for name, held in found.items():
        for what, number in held.items():
            if number:
                world.violation("LEAK", f"{name} still has {number} {what}")
