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

__all__ = [
    "AccessDeniedError",
    "AuthenticationError",
    "EasyRemoteError",
    "FunctionNotFoundError",
    "GatewayUnreachableError",
    "InfeasibleError",
    "LinkLostError",
    "NoCapableNodeError",
    "NoHealthyNodesError",
    "NodeIdConflictError",
    "NodeLostError",
    "NodeNotFoundError",
    "NotConnectedError",
    "OverloadedError",
    "ProtocolViolationError",
    "QuotaExceededError",
    "RemoteExecutionError",
    "SerializationError",
    "TaskCancelledError",
    "TaskTimeoutError",
    "WorkerCrashedError",
]

_MODULE_OF = {
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
