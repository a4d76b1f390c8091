"""The data classes that programs get and give: nodes, functions, placements, usage, TLS files.

Rules of this file. 1) Plain frozen data. 2) What a newer gateway says more is kept in `facts`.
3) They stand here because gateway and client both make them, and neither imports the other.

Source. api.md, "Facts", 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self


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


@dataclass(frozen=True)
class Usage:
    """What one call has used, and what it costs: of `future.usage` and of `client.usage()`.

    Attributes:
        function: Its name.
        node_id: The node that ran it, None if that is not known.
        seconds: Wall time of the body on its worker.
        bytes_in: Size of the encoded arguments.
        bytes_out: Size of the encoded result.
        gpu_seconds: Seconds times the GPUs that were reserved for it; None if nobody counted.
        cost: What it costs, in `currency`; None if the function is not billed.
        call_id: The `id` of its future.
        user: Whose call it was.
        started_at: When it was taken, in UTC.
        outcome: How it ended, as the gateway recorded it; empty where nothing was recorded.
        facts: What else is known.
    """

    function: str
    node_id: str | None = None
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    gpu_seconds: float | None = None
    cost: float | None = None
    currency: str | None = None
    call_id: str = ""
    user: str = ""
    started_at: datetime | None = None
    outcome: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """Build it of what a gateway says; times are epoch seconds or dates, ids bytes or hex."""
        mine, rest = _split(cls, plain)
        if isinstance(mine.get("call_id"), bytes):
            mine["call_id"] = mine["call_id"].hex()
        if isinstance(mine.get("started_at"), int | float):
            mine["started_at"] = datetime.fromtimestamp(mine["started_at"], UTC)
        return cls(**mine, facts=rest)


SCORES = ("resources", "latency", "load", "capability")
"""The four scores, which are shown even where they count nothing."""
ROUNDING = 5e-5


@dataclass(frozen=True)
class Placement:
    """Where a call was put, and why there.

    `str()` of it is the explanation: the scores times the weights add up to the total.

    Attributes:
        node_id: The node that has it, or had it.
        attempt: How often it was given to a node.
        scores: The scores of that node in [0, 1], each better if higher: `resources`, `latency`,
            `load`, `capability`; and `total`, by which nodes were compared. Empty if nothing was
            compared. What is taken off stands there, too, unless it is nothing: `slow`, how often
            the usual body doubles 50 ms; `ahead`, the calls per slot where none is free; and
            `doubt`, how little the node is trusted.
        weights: By what each score counts in the total; below 0 for what is taken off.
        excluded: Why other nodes could not have it then, by node id.
        candidates: How many nodes could have had it; None if that is not known.
        gpus: The devices that are reserved for it there.
        at: When, in epoch seconds; None if that is not known.
    """

    node_id: str
    attempt: int = 1
    scores: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    at: float | None = None
    candidates: int | None = None
    gpus: Sequence[int] = ()

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], attempt: int = 1) -> Self:
        """Build it of what a gateway says."""
        mine, rest = _split(cls, {"attempt": attempt, **plain})
        if "total" in rest:
            mine["scores"] = {**mine.get("scores", {}), "total": rest["total"]}
        return cls(**mine)

    @property
    def total(self) -> float | None:
        """The score by which nodes were compared; None if nothing was compared."""
        return self.scores.get("total")

    def __str__(self) -> str:
        """Explain it so that a reader can add it up again."""
        lines, explained = [f"{self.node_id}{self._how()}"], 0.0
        for name, score in self.scores.items():
            weight = self._weight(name)
            if name == "total" or (name not in SCORES and weight == 0.0):
                continue
            row = f"  {name:<12}{score:7.4f}"
            if weight is not None:
                row += f" x {weight:.4g} = {score * weight:7.4f}"
                explained += score * weight
            lines.append(row)
        if len(lines) == 1:
            lines.append("  no scores: there was nothing to compare")
        elif (total := self.total) is not None:
            rest = total - explained
            more = (
                "" if abs(rest) < ROUNDING else f", of which {rest:+.4f} comes from none of these"
            )
            lines.append(f"  {'total':<12}{total:7.4f}{more}")
        lines += [f"  not {node_id}: {why}" for node_id, why in self.excluded.items()]
        return "\n".join(lines)

    def _weight(self, name: str) -> float | None:
        """Return by what a score counts; None if that is not known and the score is not 0."""
        return self.weights.get(name, None if self.scores.get(name) else 0.0)

    def _how(self) -> str:
        tried = "" if self.attempt <= 1 else f", attempt {self.attempt}"
        if self.at is None:
            return tried
        when = datetime.fromtimestamp(self.at, UTC)
        return f"{tried}, chosen {when:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True)
class QuotaState:
    """What is left of one limit of one quota.

    Attributes:
        function: The name of the function that it limits.
        unit: What is limited: `seconds` of execution, `calls` or `bytes`.
        limit: How much is allowed in one period.
        used: How much was used, running calls included.
        remaining: How much is left.
        period: hour, day, week, month or rolling_24h.
        resets_at: Epoch seconds at which there is some again, if it is used up.
        mode: `soft` lets a running call finish, `hard` cuts it off.
        user: Whose use it is.
        sub_account: The part of a shared token that it is of; empty for none.
        node_ids: The nodes that hold users to it.
        facts: What else is known.
    """

    function: str
    unit: str
    limit: float
    used: float
    remaining: float
    period: str
    resets_at: float
    mode: str = "soft"
    user: str = ""
    sub_account: str = ""
    node_ids: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """Build it of what a gateway says."""
        mine, rest = _split(cls, plain)
        return cls(**mine, facts=rest)
