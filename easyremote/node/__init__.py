"""The node: a machine that offers functions. `ComputeNode` is the way in.

`node.py` is what providers use; `worker.py` and what it uses run in the provider's own process;
`agent.py` and `launch.py` are the network process beside it.
"""

from __future__ import annotations

# Imported first: it captures how the script was started, before the script changes that.
from . import rerun_plan  # noqa: F401  # pyright: ignore[reportUnusedImport]
from .context import CallContext, context
from .node import ComputeNode
from .serving import ServeHandle
from .spec import NodeLimits

__all__ = ["CallContext", "ComputeNode", "NodeLimits", "ServeHandle", "context"]
