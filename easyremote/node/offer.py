"""What a node offers, as its agent knows it: the script's word, and what the machine has.

Rules of this file. 1) Plain data in, plain data out. 2) No I/O.
"""

from __future__ import annotations

from typing import Any

from . import probe
from .spec import NodeSpec


class NodeOffer:
    """The functions and capabilities of a node.

    Attributes:
        functions: Descriptions of the functions by name.
    """

    def __init__(self) -> None:
        self.functions: dict[str, dict[str, Any]] = {}
        self._declared: dict[str, Any] = {}
        self._detected: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}
        self._paused = False
        self._draining = False

    def know(self, detected: dict[str, Any], facts: dict[str, Any]) -> None:
        """Take over what was found out about this machine."""
        self._detected, self._facts = detected, facts

    def take(self, offer: dict[str, Any], *, whole: bool) -> None:
        """Take over what the script says.

        Args:
            offer: What it offers, or a change of that.
            whole: It is all, so what it does not name is gone.
        """
        entries = {str(entry["name"]): entry for entry in offer.get("functions") or ()}
        if whole:
            self.functions = entries
        else:
            self.functions.update(entries)
        for name in offer.get("removed") or ():
            if name not in entries:
                self.functions.pop(name, None)
        if offer.get("capabilities") is not None:
            self._declared = offer["capabilities"]
        self._paused = bool(offer.get("paused", self._paused))
        self._draining = bool(offer.get("draining", self._draining))

    def to_plain(self, spec: NodeSpec, removed: list[str] | None = None) -> dict[str, Any]:
        """Return the offer as it is said to the gateway.

        Args:
            spec: The node.
            removed: Names of functions that are no longer offered.
        """
        accept = spec.accept_code
        return {
            "functions": list(self.functions.values()),
            "removed": removed or [],
            "capabilities": probe.merge(self._detected, self._declared),
            "max_concurrency": spec.max_concurrency,
            "accept_code": accept if isinstance(accept, bool | str) else list(accept),
            "paused": self._paused,
            "draining": self._draining,
            **self._facts,
        }
