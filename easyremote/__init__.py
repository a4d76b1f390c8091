"""Share functions from any machine and call them from anywhere, as if they were local.

Theory. A *gateway* that everybody can reach connects *nodes*, which offer functions, with
*clients*, which call them. `ComputeNode` offers, `remote` calls, `Server` is the gateway.

Rules of this file. 1) It is the public API and nothing else. 2) Importing it is cheap: a name
brings its module along when it is first used (PEP 562), so a script that only calls functions
never loads the gateway. 3) Every public name stands in `__all__`, in `_MODULE_OF`, and in the
imports that type checkers read; a test holds the three together.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .client.client import Client, connect, shutdown
    from .client.future import Future
    from .client.gather import as_completed, cancel, gather, get, wait
    from .client.remote import CallOptions, MapResult, RemoteFunction, RemoteStreamFunction, remote
    from .client.stream import RemoteStream
    from .errors import (
        AccessDeniedError,
        AuthenticationError,
        EasyRemoteError,
        FunctionNotFoundError,
        GatewayUnreachableError,
        InfeasibleError,
        LinkLostError,
        NoCapableNodeError,
        NodeIdConflictError,
        NodeLostError,
        NodeNotFoundError,
        NoHealthyNodesError,
        NotConnectedError,
        OverloadedError,
        ProtocolViolationError,
        QuotaExceededError,
        RemoteExecutionError,
        SerializationError,
        TaskCancelledError,
        TaskTimeoutError,
        WorkerCrashedError,
    )
    from .facts import FunctionInfo, NodeInfo, Placement, QuotaState, TLSConfig, Usage
    from .gateway.server import Server
    from .identity.credential import Credential
    from .metrics import ClientMetrics, ComputeNodeMetrics, GatewayMetrics
    from .node.context import CallContext, context
    from .node.node import ComputeNode
    from .node.serving import ServeHandle
    from .node.spec import NodeLimits
    from .scheduler.policy import ScoreWeights

__all__ = [
    "AccessDeniedError",
    "AuthenticationError",
    "CallContext",
    "CallOptions",
    "Client",
    "ClientMetrics",
    "ComputeNode",
    "ComputeNodeMetrics",
    "Credential",
    "EasyRemoteError",
    "FunctionInfo",
    "FunctionNotFoundError",
    "Future",
    "GatewayMetrics",
    "GatewayUnreachableError",
    "InfeasibleError",
    "LinkLostError",
    "MapResult",
    "NoCapableNodeError",
    "NoHealthyNodesError",
    "NodeIdConflictError",
    "NodeInfo",
    "NodeLimits",
    "NodeLostError",
    "NodeNotFoundError",
    "NotConnectedError",
    "OverloadedError",
    "Placement",
    "ProtocolViolationError",
    "QuotaExceededError",
    "QuotaState",
    "RemoteExecutionError",
    "RemoteFunction",
    "RemoteStream",
    "RemoteStreamFunction",
    "ScoreWeights",
    "SerializationError",
    "ServeHandle",
    "Server",
    "TLSConfig",
    "TaskCancelledError",
    "TaskTimeoutError",
    "Usage",
    "WorkerCrashedError",
    "as_completed",
    "cancel",
    "connect",
    "context",
    "gather",
    "get",
    "remote",
    "shutdown",
    "wait",
]

_MODULE_OF = {
    "Client": "client.client",
    "connect": "client.client",
    "shutdown": "client.client",
    "Future": "client.future",
    "as_completed": "client.gather",
    "cancel": "client.gather",
    "gather": "client.gather",
    "get": "client.gather",
    "wait": "client.gather",
    "CallOptions": "client.remote",
    "MapResult": "client.remote",
    "RemoteFunction": "client.remote",
    "RemoteStreamFunction": "client.remote",
    "remote": "client.remote",
    "RemoteStream": "client.stream",
    "AccessDeniedError": "errors",
    "AuthenticationError": "errors",
    "EasyRemoteError": "errors",
    "FunctionNotFoundError": "errors",
    "GatewayUnreachableError": "errors",
    "InfeasibleError": "errors",
    "LinkLostError": "errors",
    "NoCapableNodeError": "errors",
    "NoHealthyNodesError": "errors",
    "NodeIdConflictError": "errors",
    "NodeLostError": "errors",
    "NodeNotFoundError": "errors",
    "NotConnectedError": "errors",
    "OverloadedError": "errors",
    "ProtocolViolationError": "errors",
    "QuotaExceededError": "errors",
    "RemoteExecutionError": "errors",
    "SerializationError": "errors",
    "TaskCancelledError": "errors",
    "TaskTimeoutError": "errors",
    "WorkerCrashedError": "errors",
    "FunctionInfo": "facts",
    "NodeInfo": "facts",
    "Placement": "facts",
    "QuotaState": "facts",
    "TLSConfig": "facts",
    "Usage": "facts",
    "Server": "gateway.server",
    "Credential": "identity.credential",
    "ClientMetrics": "metrics",
    "ComputeNodeMetrics": "metrics",
    "GatewayMetrics": "metrics",
    "CallContext": "node.context",
    "ComputeNode": "node.node",
    "NodeLimits": "node.spec",
    "ServeHandle": "node.serving",
    "context": "node.context",
    "ScoreWeights": "scheduler.policy",
}
"""Where each public name lives, relative to this package."""


def __getattr__(name: str) -> object:
    """Load the module of a public name when it is first used."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what is public, loaded or not."""
    return sorted({*globals(), *__all__})
