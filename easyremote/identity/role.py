"""Who may do what: the closed table of roles and operations.

Theory. A role is a row of this table; nothing outside the table grants anything. Scopes, levels
and node ids of a token only narrow what its role allows. Functions have rules of their own
(`access_level`, `auth_required`), which are checked beside this table.

Rules of this file. 1) Each operation is named here and each role lists it or not: the table is
the test. 2) A new token is a guest unless somebody says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from .token import TokenKind


class Role(StrEnum):
    """What a principal is."""

    VIEWER = "viewer"
    GUEST = "guest"
    MEMBER = "member"
    NODE = "node"
    OPERATOR = "operator"
    OWNER = "owner"


class Operation(StrEnum):
    """What the gateway asks the table about."""

    VIEW = "view"
    """See nodes, functions within scope, and the dashboard."""
    CALL = "call"
    """Call functions with plain data, and see one's own calls."""
    SHIP = "ship"
    """Send pickles and code, and make actors, where a node accepts that."""
    SERVE = "serve"
    """Enrol a node, register functions and answer calls."""
    OPERATE = "operate"
    """Drain and disconnect nodes, set quotas, see everybody's calls, read the audit."""
    ADMINISTER = "administer"
    """Create, list and revoke tokens; forget nodes."""


_O = Operation
ALLOWED: Mapping[Role, frozenset[Operation]] = {
    Role.VIEWER: frozenset({_O.VIEW}),
    Role.GUEST: frozenset({_O.VIEW, _O.CALL}),
    Role.MEMBER: frozenset({_O.VIEW, _O.CALL, _O.SHIP}),
    Role.NODE: frozenset({_O.SERVE}),
    Role.OPERATOR: frozenset({_O.VIEW, _O.CALL, _O.SHIP, _O.SERVE, _O.OPERATE}),
    Role.OWNER: frozenset(_O),
}
"""Everything that each role may do; what is not listed is refused."""

KIND_OF_ROLE: Mapping[Role, TokenKind] = {
    Role.VIEWER: TokenKind.CLIENT,
    Role.GUEST: TokenKind.CLIENT,
    Role.MEMBER: TokenKind.CLIENT,
    Role.NODE: TokenKind.NODE,
    Role.OPERATOR: TokenKind.ADMIN,
    Role.OWNER: TokenKind.ADMIN,
}

PATTERNS_MAX = 64
PATTERN_CHARS_MAX = 256


@dataclass(frozen=True, slots=True)
class Scopes:
    """What narrows a role. An empty tuple narrows nothing.

    Attributes:
        functions: Shell patterns; one must match the function's name or `NODE.FUNCTION`. For a
            node: the names that it may register.
        nodes: Shell patterns of the node ids that may be called.
    """

    functions: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse lists that would make each check slow.

        Raises:
            ValueError: Too many patterns, or one too long or empty.
        """
        for patterns in (self.functions, self.nodes):
            if len(patterns) > PATTERNS_MAX:
                raise ValueError(f"a token has at most {PATTERNS_MAX} patterns of a kind")
            if not all(0 < len(pattern) <= PATTERN_CHARS_MAX for pattern in patterns):
                raise ValueError(f"a pattern has 1 to {PATTERN_CHARS_MAX} characters")

    def allow(self, function: str, node_id: str = "") -> bool:
        """Return whether a function, on a node if one is named, is inside these scopes."""
        if self.nodes and node_id and not _matches(self.nodes, node_id):
            return False
        if not self.functions:
            return True
        return _matches(self.functions, function) or (
            bool(node_id) and _matches(self.functions, f"{node_id}.{function}")
        )

    def to_plain(self) -> dict[str, list[str]]:
        """Return the scopes as they are stored and shown."""
        return {"functions": list(self.functions), "nodes": list(self.nodes)}

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Scopes:
        """Read what `to_plain` made."""
        return cls(tuple(value.get("functions", ())), tuple(value.get("nodes", ())))


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is at the other end of a link, as the gateway established it.

    Attributes:
        user: The name that quotas, bills and `accept_code` go by.
        role: The row of the table.
        token_id: The token that was shown; for an enrolled node the one that enrolled it.
        levels: Access levels that the token carries.
        scopes: What narrows the role.
        node_id: The only node id that a node token is good for; the id of an enrolled node.
        expires_at: Epoch seconds after which this principal is nobody, or None.
        shared: Whether several people use the token, so that it is no individual.
        enrolment: Number of the enrolment by which a node is known, or None: not an enrolled node.
    """

    user: str
    role: Role
    token_id: str
    levels: frozenset[str] = frozenset()
    scopes: Scopes = Scopes()
    node_id: str | None = None
    expires_at: float | None = None
    shared: bool = False
    enrolment: int | None = None

    def may(self, operation: Operation) -> bool:
        """Return whether the table allows `operation`."""
        return operation in ALLOWED[self.role]

    def may_call(self, function: str, node_id: str = "") -> bool:
        """Return whether a function is inside the role and the scopes (it may need a level)."""
        return self.may(Operation.CALL) and self.scopes.allow(function, node_id)

    def may_register(self, function: str, node_id: str) -> bool:
        """Return whether a node of this principal may offer `function`."""
        if not self.may(Operation.SERVE) or self.node_id not in (None, node_id):
            return False
        return self.scopes.allow(function)

    def has_level(self, level: str | None) -> bool:
        """Return whether the principal holds `level`; None asks for none."""
        return level is None or self.role is Role.OWNER or level in self.levels
