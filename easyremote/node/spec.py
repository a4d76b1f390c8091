"""What a node says about itself to its agent, and what an agent hands to a worker.

Rules of this file. 1) Everything in a `NodeSpec` is plain data: it crosses a process boundary.
2) No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from . import memory

AcceptCode = bool | str | Sequence[str]
"""Who may send this node pickles: nobody, "owner", "members", or the principals named."""


ENFORCED = frozenset({"memory", "gpus"})
"""Limits whose effect is there."""


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """What the owner of a node allows at most.

    Attributes:
        memory: Memory of all workers together, as "8GB", "8GiB" or bytes. Past it the largest
            process of an isolated function is killed; the script itself never is.
        gpus: Indices of the GPUs that calls may use, as `CUDA_VISIBLE_DEVICES` of the node counts
            them; None means all of them.
        hours: Times of day at which calls are taken, as "20:00-07:00"; None means always.
    """

    memory: int | str | None = None
    gpus: tuple[int, ...] | None = None
    hours: str | None = None

    def check(self) -> None:
        """Refuse what is no limit.

        Raises:
            ValueError: `memory` is no size, or `gpus` are no indices.
        """
        if self.memory is not None:
            memory.parse_size(self.memory)
        if self.gpus is not None and not all(type(one) is int and one >= 0 for one in self.gpus):
            raise ValueError(f"limits.gpus are indices of GPUs such as (0, 1), not {self.gpus!r}")

    def unenforced(self) -> list[str]:
        """Return the names of the limits that are set and that nothing enforces yet."""
        return [name for name in self.named() if name not in ENFORCED]

    def named(self) -> list[str]:
        """Return the names of the limits that are set."""
        return [name for name, value in asdict(self).items() if value is not None]


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node: where it belongs, what it is called, and what it offers.

    Attributes:
        gateway: Address of the gateway as text, or None: the environment or the profile says.
        node_id: Name of the node, unique per gateway.
        capabilities: The declared capabilities, a tree of plain data.
        token: Bearer token, if one was given.
        join: Join string, if one was given.
        accept_code: Who may send this node pickles.
        limits: What the owner allows at most, as a dict of `NodeLimits`.
        max_concurrency: Sync calls at once in the group `main`; None is one.
        functions: The functions, as `register.Function.entry` describes them.
        script: How this process was started: argv, cwd, main file.
    """

    gateway: str | None
    node_id: str
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    token: str | None = field(default=None, repr=False)
    join: str | None = field(default=None, repr=False)
    accept_code: AcceptCode = "owner"
    limits: Mapping[str, Any] = field(default_factory=dict)
    max_concurrency: int | None = None
    functions: Sequence[Mapping[str, Any]] = ()
    script: Mapping[str, Any] = field(default_factory=dict)


def accepts_pickles(accept_code: AcceptCode, principal: str, roles: Sequence[str],
                    is_owner: bool) -> bool:  # fmt: skip
    """Return whether a call of `principal` may bring pickles to this node.

    A guest never may, whoever it is: a narrower token narrows what its holder can do.

    Args:
        accept_code: What the node's owner decided.
        principal: Who calls.
        roles: The roles of the token that it called with.
        is_owner: Whether this principal enrolled the node.
    """
    if accept_code is False or not may_ship(roles):
        return False
    if accept_code is True or accept_code == "members":
        return True
    if accept_code == "owner":
        return is_owner
    return not isinstance(accept_code, str) and principal in accept_code


def may_ship(roles: Sequence[str]) -> bool:
    """Return whether a token with these roles may send and receive pickles at all."""
    return "member" in roles or "operator" in roles or "owner" in roles
