"""The data classes that programs get and give: nodes, functions, TLS files, weights.

Rules of this file. 1) Plain frozen data. 2) What a newer gateway says more is kept in `facts`.
3) They stand here because gateway and client both make them, and neither imports the other.

Source. api.md, "Facts", 6.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class ScoreWeights:
    """Weights of the four scores by which a node is chosen; they sum to 1."""

    resources: float = 0.3
    latency: float = 0.2
    load: float = 0.3
    capability: float = 0.2


@dataclass(frozen=True)
class TLSConfig:
    """A certificate of your own.

    Attributes:
        certificate_path: PEM file with the certificate, then those of its authority.
        key_path: PEM file with the private key.
    """

    certificate_path: Path | str
    key_path: Path | str


def _split(cls: type[Any], plain: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what of `plain` are fields of a data class, and the rest."""
    known = {one.name for one in fields(cls)} - {"facts"}
    mine = {key: value for key, value in plain.items() if key in known}
    return mine, {key: value for key, value in plain.items() if key not in known}


@dataclass(frozen=True)
class NodeInfo:
    """A node.

    Attributes:
        health: `healthy`, `draining`, `paused` or `offline`.
        in_flight: Calls that were given to it and are not over.
        since: When it connected, in UTC.
        facts: What else is known.
    """

    node_id: str
    capabilities: dict[str, Any]
    functions: list[str]
    in_flight: int
    health: str
    rtt_ms: float | None
    owner: str
    since: datetime
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """Build it of what a gateway says."""
        mine, rest = _split(cls, plain)
        return cls(**mine, facts=rest)


@dataclass(frozen=True)
class FunctionInfo:
    """A function on a node.

    Attributes:
        signature: As Python writes it.
        registered_at: When, in UTC.
        health_status: The health of its node.
        facts: What else is known.
    """

    node_id: str
    function_name: str
    description: str
    signature: str
    parameters: list[Any]
    stream: bool
    registered_at: datetime
    health_status: str
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """Build it of what a gateway says."""
        mine, rest = _split(cls, plain)
        return cls(**mine, facts=rest)
