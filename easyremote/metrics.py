"""What nodes, gateways and clients measure of themselves: three data classes, snapshots by value.

Theory. A metric is worth what its definition is worth, so each field says here how it is computed,
and each is computed from something that was measured. The names are those that the roles of the
project promise; what else is worth showing stands after them, with a default, so that a snapshot
can always be built from the promised fields alone.

Rules of this file. 1) Data only: who measures is `node/ledger.py`, the gateway and the client.
2) Shares and rates of nothing have a defined value, never a division by zero. 3) The annotations
are real classes, not texts: tools that make tables of these classes read them.

Source. The roles of the project, "Role Performance Metrics"; features.md 1.7.
"""

from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035 - the roles spell the annotation so


@dataclass(frozen=True)
class ComputeNodeMetrics:
    """One node, as `node.metrics()` sees it.

    Attributes:
        cpu_usage: Percent of all cores in use, 0 to 100; samples of a second, smoothed over one.
        memory_usage: Percent of the machine's memory that is not available, 0 to 100.
        gpu_usage: Percent of utilisation, the mean over the GPUs that this node may use; 0.0
            without GPUs.
        functions_executed: Calls that ran here and finished since `serve()`, successful or not. A
            call that was refused or cancelled is neither.
        avg_execution_time: Seconds, the mean wall time of the bodies of those calls; 0.0 if none.
        success_rate: Share of those calls that succeeded; 1.0 if there were none.
        uptime: Seconds since `serve()`. A script that died and was started again does not reset it.
        connection_stability: Share of the uptime in which the gateway had the node registered.
        data_transfer_rate: Bytes a second on the link to the gateway, both ways, smoothed over ten
            seconds.
        revenue_generated: Sum of the node's billing records, as its gateway says; where prices have
            several currencies, of those in the currency of most of its paid calls.
        user_satisfaction: In 0 to 1: the explicit rating that users gave (`client.rate()`), if
            they did; else Apdex over the finished calls. A call satisfies if it succeeded within
            its target, half satisfies within four targets, and fails to satisfy otherwise; the
            target is a quarter of the function's declared timeout, else twice its own mean body
            time, at least a second. So it is waiting that is blamed, not long work. 1.0 if there
            were no calls.
        calls_running: Calls that are here now and have not ended.
        memory_own_bytes: Resident memory of the node's own processes.
        gpus: The GPUs in detail, as they are sampled.
        replicas: Processes that serve a function of its own, ready or starting, by function.
    """

    cpu_usage: float
    memory_usage: float
    gpu_usage: float
    functions_executed: int
    avg_execution_time: float
    success_rate: float
    uptime: float
    connection_stability: float
    data_transfer_rate: float
    revenue_generated: float
    user_satisfaction: float
    calls_running: int = 0
    memory_own_bytes: int = 0
    gpus: list[dict[str, Any]] = field(default_factory=list)
    replicas: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class GatewayMetrics:
    """A gateway, as `server.metrics()` sees it. Rates are taken over the last ten seconds.

    Attributes:
        connected_nodes: Nodes that have a link now.
        active_functions: Distinct paths `node.function` that could be called now.
        requests_per_second: Calls a second that came to an outcome.
        node_utilization_balance: Jain index of the loads of the nodes (busy slots over slots):
            1 if all are equally loaded, 1/n if one of n has all the load; 1.0 without load.
        request_routing_latency: Seconds from the moment when a request was complete to the moment
            when its forwarded frame was written; time in a queue is not routing.
        uptime: Seconds since the start.
        error_rate: Share of the calls that came to an outcome and failed; 0.0 if there were none.
        avg_response_time: Seconds from a call's arrival to its outcome; 0.0 if there were none.
        request_routing_p50: The median of the routing latency, in seconds.
        request_routing_p99: Its 99th percentile, in seconds.
        calls_queued: Calls that wait for a node now.
        calls_finished: Calls that came to an outcome since the start.
        calls_failed: Those of them that failed.
        replicas: Replicas of each scaled function that its nodes keep now, by path.
    """

    connected_nodes: int
    active_functions: int
    requests_per_second: float
    node_utilization_balance: float
    request_routing_latency: float
    uptime: float
    error_rate: float
    avg_response_time: float
    request_routing_p50: float = 0.0
    request_routing_p99: float = 0.0
    calls_queued: int = 0
    calls_finished: int = 0
    calls_failed: int = 0
    replicas: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientMetrics:
    """A client, as `client.metrics()` sees it.

    Attributes:
        functions_called: Calls that were submitted.
        avg_call_frequency: Calls a second since the client connected.
        preferred_node_types: Specializations of the nodes that served the calls, most used first.
        avg_response_time: Seconds from the call to its outcome, over calls with an outcome; 0.0
            if there are none.
        success_rate: Share of the calls with an outcome that succeeded; 1.0 if there are none.
        cost_efficiency: Successful calls per unit of cost, of the calls whose accounts are closed;
            None if they were free.
        retry_rate: Attempts beyond the first, per call; 0.0 without calls.
        feature_adoption: Share of the published list of features (`CLIENT_FEATURES`) that this
            client has used.
        features_used: Which of them.
    """

    functions_called: int
    avg_call_frequency: float
    preferred_node_types: List[str]  # noqa: UP006 - as above
    avg_response_time: float
    success_rate: float
    cost_efficiency: float
    retry_rate: float
    feature_adoption: float
    features_used: list[str] = field(default_factory=list)


CLIENT_FEATURES: dict[str, str] = {
    "node_id": "calls that name their node",
    "capability": "calls that say what their node must have",
    "prefer": "calls that say what it should have",
    "resources": "calls that reserve processors, memory or GPUs",
    "priority": "calls that go before others of the same user",
    "load_balancing": "a strategy of the caller's own",
    "scaling": "replicas for a function",
    "timeout": "deadlines",
    "retries": "attempts beyond the first, if they are needed",
    "detached": "calls that go on without their caller",
    "reattach": "calls that another program made",
    "streams": "functions that yield",
    "streamed_arguments": "arguments that are iterators",
    "large_data": "arrays and other large values",
    "progress": "reports of running calls",
    "cancel": "calls that are stopped",
    "placement": "where a call is, and why there",
    "why_waiting": "why a call waits",
    "discovery": "which nodes and functions there are",
    "accounts": "quotas and costs",
}
"""What a client can use, each by a name: the list behind `ClientMetrics.feature_adoption`."""
