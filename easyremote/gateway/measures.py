"""A gateway's own metrics: what `server.metrics()` says, and the same numbers as gauges.

Rules of this file. 1) Nothing is measured here: `meter.py` counts outcomes and times, the registry
knows the nodes. 2) Reading costs one look at each function that is offered.

Source. features.md 1.7, GatewayMetrics; `easyremote/metrics.py` defines each field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..metrics import GatewayMetrics
from .meter import jain

if TYPE_CHECKING:
    from .core import Gateway
    from .pool import NodeRecord
    from .registry import Registry

GAUGES = {
    "calls_per_second": "requests_per_second",
    "error_rate": "error_rate",
    "response_s": "avg_response_time",
    "routing_s": "request_routing_latency",
    "routing_p50_s": "request_routing_p50",
    "routing_p99_s": "request_routing_p99",
    "balance": "node_utilization_balance",
    "functions_active": "active_functions",
}
"""The gauges that are metrics, with the fields that they show."""


def measure(gateway: Gateway, now: float) -> GatewayMetrics:
    """Return what a gateway measures of itself.

    Args:
        gateway: Asked on its own thread.
        now: On trio's clock.
    """
    dispatcher, registry = gateway.dispatcher, gateway.registry
    connected = [record for record in registry.nodes.values() if record.link is not None]
    uptime_s = gateway.uptime_s(now)
    rates = dispatcher.meter.rates(now, uptime_s)
    mean_s, median_s, p99_s = dispatcher.meter.routing()
    return GatewayMetrics(
        connected_nodes=len(connected),
        active_functions=sum(_active(record) for record in connected),
        requests_per_second=rates.per_second,
        node_utilization_balance=balance(registry),
        request_routing_latency=mean_s,
        uptime=uptime_s,
        error_rate=rates.error_rate,
        avg_response_time=rates.response_s,
        request_routing_p50=median_s,
        request_routing_p99=p99_s,
        calls_queued=dispatcher.placer.queued,
        calls_finished=dispatcher.meter.finished_total,
        calls_failed=dispatcher.meter.failed_total,
        replicas={
            f"{record.node_id}.{name}": count
            for record in connected
            for name, count in record.sample.get("replicas", {}).items()
        },
    )


def measured_gauges(gateway: Gateway, now: float) -> dict[str, Any]:
    """Return the metrics that are gauges, by the names of gauges."""
    metrics = measure(gateway, now)
    return {gauge: getattr(metrics, field) for gauge, field in GAUGES.items()}


def balance(registry: Registry) -> float:
    """Return how evenly the connected nodes are loaded: Jain's index of busy slots over slots."""
    return jain(_load(record) for record in registry.nodes.values() if record.link is not None)


def _load(record: NodeRecord) -> float:
    slots = sum(group.slots for group in record.groups.values())
    return sum(group.busy for group in record.groups.values()) / slots if slots else 0.0


def _active(record: NodeRecord) -> int:
    """Return how many functions of a node could be called now."""
    return len(record.offers) if record.takes_calls and not record.host.shut else 0
