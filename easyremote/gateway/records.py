"""What the gateway knows about tokens and nodes, and the answers to those it does not let in.

Rules of this file. 1) No record holds a secret. 2) A refusal says to the peer what it may know,
and to the audit what happened. 3) Names that people choose are bounded and printable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..identity.role import Principal, Role, Scopes
from ..identity.token import TokenKind
from ..wire.errors import ErrorCode

DAY_S = 86_400.0
EXPIRES_DEFAULT_S: Mapping[Role, float | None] = {
    Role.VIEWER: None,
    Role.GUEST: None,
    Role.MEMBER: None,
    Role.NODE: DAY_S,
    Role.OPERATOR: None,
    Role.OWNER: None,
}
"""How long a token lasts where nobody says: an enrolment token one day, as those of kubeadm."""
EXPIRES_MAX_S = 100 * 365 * DAY_S
NAME_CHARS_MAX = 128
LEVELS_MAX = 32
NOTE_CHARS_MAX = 500

COLUMNS = (
    "id, verifier, kind, role, user, node_id, scopes, levels, shared, created_at, expires_at, "
    "revoked_at, last_used_at, uses_left, created_by, note"
)
MARKS = ", ".join("?" * len(COLUMNS.split(",")))


class Refusal(NamedTuple):
    """Why somebody was not let in."""

    code: ErrorCode
    reason: str
    """What the peer is told."""
    cause: str
    """What the audit and the log say; never more than names and ids."""
    token_id: str | None = None


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What the gateway knows about a token; the secret is not part of it."""

    id: str
    kind: TokenKind
    role: Role
    user: str
    node_id: str | None
    scopes: Scopes
    levels: frozenset[str]
    shared: bool
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    uses_left: int | None
    created_by: str
    note: str

    def said(self) -> dict[str, Any]:
        """Return what the audit says of a new token."""
        return {
            "token": self.id,
            "role": self.role.value,
            "user": self.user,
            "node_id": self.node_id,
            "levels": sorted(self.levels),
        }

    def to_plain(self) -> dict[str, Any]:
        """Return the token as plain data, for lists and for the wire."""
        return {
            "id": self.id,
            "role": self.role.value,
            "user": self.user,
            "node_id": self.node_id,
            "scopes": self.scopes.to_plain(),
            "levels": sorted(self.levels),
            "shared": self.shared,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "revoked_at": self.revoked_at,
            "last_used_at": self.last_used_at,
            "uses_left": self.uses_left,
            "created_by": self.created_by,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class EnrolledNode:
    """An enrolled node."""

    node_id: str
    user: str
    token_id: str
    enrolment: int
    enrolled_at: float


def check_name(name: str, what: str) -> str:
    """Return `name` if a user, level or node may be called so.

    Raises:
        ValueError: It is empty or too long, or has control characters or spaces at its ends.
    """
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise ValueError(
            f"{what} has 1 to {NAME_CHARS_MAX} printable characters and no space at its ends"
        )
    return name


def parse_role(role: Role | str) -> Role:
    """Return the role that is called so, or raise `ValueError` with the names of all."""
    try:
        return Role(role)
    except ValueError:
        known = ", ".join(known.value for known in Role)
        raise ValueError(f"{role!r} is no role; the roles are {known}") from None


def token_info(row: Any) -> TokenInfo:
    """Return the record of a row of `COLUMNS`."""
    return TokenInfo(
        id=row[0],
        kind=TokenKind(row[2]),
        role=Role(row[3]),
        user=row[4],
        node_id=row[5],
        scopes=Scopes.from_plain(json.loads(row[6])),
        levels=frozenset(json.loads(row[7])),
        shared=bool(row[8]),
        created_at=row[9],
        expires_at=row[10],
        revoked_at=row[11],
        last_used_at=row[12],
        uses_left=row[13],
        created_by=row[14],
        note=row[15],
    )


def token_row(info: TokenInfo, verifier: bytes) -> tuple[object, ...]:
    """Return the row of `COLUMNS` of a record: what `token_info` reads."""
    return (
        info.id,
        verifier,
        info.kind.value,
        info.role.value,
        info.user,
        info.node_id,
        json.dumps(info.scopes.to_plain()),
        json.dumps(sorted(info.levels)),
        int(info.shared),
        info.created_at,
        info.expires_at,
        info.revoked_at,
        info.last_used_at,
        info.uses_left,
        info.created_by,
        info.note,
    )


def check_token(info: TokenInfo) -> None:
    """See that a new token makes sense.

    Raises:
        ValueError: A field is empty, too long, or does not fit the role.
    """
    check_name(info.user, "a user")
    if info.role is not Role.NODE and (info.uses_left is not None or info.node_id is not None):
        raise ValueError("only a token of role node is bound to a node id or to a single use")
    if info.node_id is not None:
        check_name(info.node_id, "a node id")
    if info.expires_at is not None:
        lasts_s = info.expires_at - info.created_at
        if not 0 < lasts_s < EXPIRES_MAX_S:
            raise ValueError("a token lasts more than 0 seconds and less than 100 years")
    if len(info.levels) > LEVELS_MAX or len(info.note) > NOTE_CHARS_MAX:
        raise ValueError(
            f"a token has at most {LEVELS_MAX} levels and a note of {NOTE_CHARS_MAX} characters"
        )
    for level in info.levels:
        check_name(level, "a level")


def principal_of(info: TokenInfo) -> Principal:
    """Return who shows this token."""
    return Principal(
        info.user,
        info.role,
        info.id,
        info.levels,
        info.scopes,
        info.node_id,
        info.expires_at,
        info.shared,
    )


def principal_of_node(
    node_id: str, user: str, token: TokenInfo, enrolment: int | None
) -> Principal:
    """Return the principal of a node: a node and nothing else, whatever token enrolled it."""
    scopes = token.scopes if token.role is Role.NODE else Scopes()
    return Principal(user, Role.NODE, token.id, scopes=scopes, node_id=node_id, enrolment=enrolment)


def refuse_invalid(cause: str, token_id: str | None = None) -> Refusal:
    """Return the one answer to everybody whose secret is not known to be right."""
    return Refusal(ErrorCode.AUTH_INVALID, "this token is not valid here", cause, token_id)


def refuse_revoked(token_id: str) -> Refusal:
    """Return the answer to who shows the right secret of a void token."""
    return Refusal(
        ErrorCode.AUTH_REVOKED,
        "this token was revoked; ask the gateway's operator for a new one",
        "revoked token",
        token_id,
    )


def refuse_enrolment(who: Principal) -> Refusal:
    """Return the answer to a node whose token is none for nodes."""
    return Refusal(
        ErrorCode.FORBIDDEN,
        f"a token of role {who.role.value} cannot enrol a node; create one with: "
        f"easyremote token create --role node --user {who.user}",
        "role may not enrol",
        who.token_id,
    )


def refuse_node_id(node_id: str, cause: str, token_id: str | None = None) -> Refusal:
    """Return the answer to somebody who claims a node id that another machine has."""
    return Refusal(
        ErrorCode.FORBIDDEN,
        f"the node id {node_id!r} belongs to another machine. Choose another id, or have the "
        f"gateway's operator free it with: easyremote node forget {node_id}",
        cause,
        token_id,
    )
