"""The gateway: authenticates, places and relays calls; it never unpickles anything.

The names below are for programs that run a gateway and want to look into it, or change how it
chooses nodes. Importing this package loads nothing: a name brings its module along (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .balancing import LoadBalancer, NodeResources, NodeStatus, SmartLoadBalancer
    from .orchestrator import (
        APIGenerator,
        ConnectedNode,
        FunctionRegistry,
        GatewayOrchestrator,
        NotAvailableError,
    )

__all__ = [
    "APIGenerator",
    "ConnectedNode",
    "FunctionRegistry",
    "GatewayOrchestrator",
    "LoadBalancer",
    "NodeResources",
    "NodeStatus",
    "NotAvailableError",
    "SmartLoadBalancer",
]

_MODULE_OF = {
    "LoadBalancer": "balancing",
    "NodeResources": "balancing",
    "NodeStatus": "balancing",
    "SmartLoadBalancer": "balancing",
    "APIGenerator": "orchestrator",
    "ConnectedNode": "orchestrator",
    "FunctionRegistry": "orchestrator",
    "GatewayOrchestrator": "orchestrator",
    "NotAvailableError": "orchestrator",
}


def __getattr__(name: str) -> object:
    """Load the module of a name when it is first used."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what is here, loaded or not."""
    return sorted({*globals(), *__all__})
