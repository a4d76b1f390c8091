"""Who may use the gateway: tokens and enrolled nodes.

Theory. Authentication happens when a link says HELLO and must not wait for a disk, so the tokens
and nodes are held in memory, indexed by id, and read again when the database says that somebody
has changed them: SQLite's `data_version` notices commits of other connections and processes in
microseconds, and a `revision` counter tells changes of tokens and nodes from all others. A token
that the command line creates is good at once; one that it revokes is refused at once, and links
that live on it are ended by whoever calls `standing` when `generation` has changed.

Rules of this file. 1) No secret is stored, logged or put in an error. 2) An unknown id and a wrong
secret are one answer, after the same work. Only who shows the right secret learns that it has
expired or was revoked. 3) A refusal is a value. 4) A node id belongs to the secret that enrolled
it until somebody forgets it.

Source. promises.md of the design, sections 2.1, 2.2 and 4.2; RFC 5802 for the verifier.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..identity.role import KIND_OF_ROLE, Operation, Principal, Role, Scopes
from ..identity.token import SECRET_BYTES, Token, same_verifier, verifier_of
from ..wire.errors import ErrorCode
from .database import Database
from .records import (
    COLUMNS,
    MARKS,
    EnrolledNode,
    Refusal,
    TokenInfo,
    check_name,
    check_token,
    parse_role,
    principal_of,
    principal_of_node,
    refuse_enrolment,
    refuse_invalid,
    refuse_node_id,
    refuse_revoked,
    token_info,
    token_row,
)


class Store(Database):
    """Tokens and nodes, on disk and in memory. Used by one thread at a time."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Open the store; see `Database`. Randomness is an argument for the simulation's sake."""
        super().__init__(path, clock=clock)
        self.generation = 0
        """Grows whenever tokens or nodes have changed."""
        self._random_bytes = random_bytes
        self._nobody = random_bytes(32)
        self._tokens: dict[str, tuple[TokenInfo, bytes]] = {}
        self._nodes: dict[str, tuple[EnrolledNode, bytes]] = {}
        self._used: dict[str, float] = {}
        self._seen_version = -1
        self._seen_revision = ""
        self._stale = True
        self.refresh()

    # ---- the index -----------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read tokens and nodes again if somebody has changed them; return whether."""
        version = self.data_version()
        if version == self._seen_version and not self._stale:
            return False
        # Revision first: what changes after it makes the next refresh read again.
        revision = self.get_meta("revision") or ""
        self._seen_version, changed = version, revision != self._seen_revision or self._stale
        if not changed:
            return False
        self._tokens = {
            row[0]: (token_info(row), row[1])
            for row in self.rows(f"SELECT {COLUMNS} FROM tokens")  # noqa: S608
        }
        self._nodes = {
            row[1]: (EnrolledNode(row[1], row[3], row[4], row[0], row[5]), row[2])
            for row in self.rows(
                "SELECT enrolment, node_id, verifier, user, token_id, enrolled_at FROM nodes"
            )
        }
        self._seen_revision, self._stale = revision, False
        self.generation += 1
        return True

    def _touch(self) -> None:
        """Tell every connection that tokens or nodes are about to change. In a transaction."""
        self.count_up("revision")
        self._stale = True

    def _rolled_back(self) -> None:
        self._stale = True

    # ---- tokens --------------------------------------------------------------------------

    def create_token(
        self,
        role: Role | str,
        user: str,
        *,
        expires_s: float | None = None,
        levels: Iterable[str] = (),
        node_id: str | None = None,
        scopes: Scopes | None = None,
        single_use: bool = False,
        shared: bool = False,
        created_by: str = "gateway",
        note: str = "",
    ) -> Token:
        """Make a token. This is the only time that its secret is known.

        Args:
            role: What the bearer may do.
            user: The principal.
            expires_s: Seconds that it lasts, or None for ever; see `EXPIRES_DEFAULT_S`.
            levels: Access levels that the bearer holds.
            node_id: The only node id that it can enrol.
            scopes: What narrows the role.
            single_use: A node token that enrols one node.
            shared: Several people use it, so it is no individual.
            created_by: The principal that asked for it.
            note: For people.

        Raises:
            ValueError: A field is empty, too long, or does not fit the role.
        """
        known = parse_role(role)
        token = Token.new(KIND_OF_ROLE[known], self._random_bytes)
        now = self.clock()
        info = TokenInfo(
            id=token.id,
            kind=token.kind,
            role=known,
            user=user,
            node_id=node_id,
            scopes=scopes or Scopes(),
            levels=frozenset(levels),
            shared=shared,
            created_at=now,
            expires_at=None if expires_s is None else now + expires_s,
            revoked_at=None,
            last_used_at=None,
            uses_left=1 if single_use else None,
            created_by=created_by,
            note=note,
        )
        check_token(info)
        with self.transaction() as connection:
            self._touch()
            connection.execute(
                f"INSERT INTO tokens ({COLUMNS}) VALUES ({MARKS})",  # noqa: S608
                token_row(info, token.verifier()),
            )
            self.audit("token_created", created_by, info.said())
        return token

    def token(self, token_id: str) -> TokenInfo | None:
        """Return what is known about a token, or None."""
        self.refresh()
        found = self._tokens.get(token_id)
        return None if found is None else found[0]

    def list_tokens(self) -> list[TokenInfo]:
        """Return all tokens, the oldest first; revoked and expired ones, too."""
        self.refresh()
        return sorted((info for info, _ in self._tokens.values()), key=lambda t: t.created_at)

    def revoke(self, token_id: str, by: str = "gateway") -> bool:
        """Make a token void for ever, at once.

        Returns:
            False if there is none of this id or it was void already.
        """
        with self.transaction() as connection:
            done = connection.execute(
                "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
                (self.clock(), token_id),
            ).rowcount
            if done:
                self._touch()
                self.audit("token_revoked", by, {"token": token_id})
        return bool(done)

    def authenticate(self, text: str) -> Principal | Refusal:
        """Say whose token this is. Synchronous and fast: one query, two hashes.

        Args:
            text: The token as it came from the peer; any text.
        """
        found = self._known_token(text)
        if isinstance(found, Refusal):
            return found
        refusal = self._refuse_token(found)
        if refusal is not None:
            return refusal
        self._used[found.id] = self.clock()
        return principal_of(found)

    def _known_token(self, text: str) -> TokenInfo | Refusal:
        """Return the token that `text` is, whatever its standing."""
        self.refresh()
        if not text:
            return Refusal(ErrorCode.AUTH_REQUIRED, "a token is needed", "no token")
        try:
            token = Token.parse(text)
        except ValueError:
            return refuse_invalid("malformed token")
        info, verifier = self._tokens.get(token.id, (None, self._nobody))
        # The comparison is made in every case, so that its time tells nothing.
        same = same_verifier(verifier, token.verifier())
        if info is None:
            return refuse_invalid("unknown token", token.id)
        if not same or info.kind is not token.kind:
            return refuse_invalid("wrong secret", token.id)
        return info

    def _refuse_token(self, info: TokenInfo) -> Refusal | None:
        """Return why a token with the right secret is not good now, or None: it is."""
        if info.revoked_at is not None:
            return refuse_revoked(info.id)
        if info.expires_at is not None and info.expires_at <= self.clock():
            return Refusal(
                ErrorCode.AUTH_EXPIRED,
                "this token has expired; ask for a new one",
                "expired token",
                info.id,
            )
        if info.uses_left == 0:
            return Refusal(
                ErrorCode.AUTH_EXPIRED,
                "this single-use token was used already; ask for a new one",
                "used token",
                info.id,
            )
        return None

    def principal(self, token_id: str) -> Principal | None:
        """Return who calls by the token of this id, None if it is not good now."""
        self.refresh()
        token = self._tokens.get(token_id)
        if token is None or self._refuse_token(token[0]) is not None:
            return None
        return principal_of(token[0])

    def standing(self, principal: Principal) -> Refusal | None:
        """Return why somebody who was let in may not stay, or None: may stay.

        To be asked for each live link when `generation` has changed, and at `expires_at`.
        """
        self.refresh()
        token = self._tokens.get(principal.token_id)
        if principal.enrolment is None:
            return self._refuse_token(token[0]) if token else refuse_invalid("unknown token")
        node = self._nodes.get(principal.node_id or "")
        if node is None or node[0].enrolment != principal.enrolment:
            return refuse_node_id(principal.node_id or "", "the node was forgotten")
        # The enrolment outlives its token, unless that was revoked.
        bound = self._tokens.get(node[0].token_id)
        if bound is None or bound[0].revoked_at is not None:
            return refuse_revoked(node[0].token_id)
        return None

    def take_used(self) -> dict[str, float]:
        """Return when tokens were last used since the last call, to be given to `mark_used`."""
        used, self._used = self._used, {}
        return used

    def mark_used(self, used: Mapping[str, float]) -> None:
        """Store when tokens were last used. Does not count as a change of them."""
        if not used:
            return
        with self.transaction() as connection:
            connection.executemany(
                "UPDATE tokens SET last_used_at = max(coalesce(last_used_at, 0), ?) WHERE id = ?",
                [(at, token_id) for token_id, at in used.items()],
            )

    # ---- nodes ---------------------------------------------------------------------------

    def check_node(self, node_id: str, secret: bytes, token_text: str = "") -> Principal | Refusal:
        """Say whether a node may come in under `node_id`. Synchronous, writes nothing.

        Args:
            node_id: The id that it claims.
            secret: Its node secret.
            token_text: The token beside it, needed for the first time only.

        Returns:
            The node's principal. Where its `enrolment` is None, the node is new (or the token
            that had enrolled it was revoked and this one takes its place): `enrol_node` has to
            succeed before the node is welcomed.
        """
        self.refresh()
        try:
            check_name(node_id, "a node id")
        except ValueError as error:
            return Refusal(ErrorCode.BAD_ARGUMENT, str(error), "malformed node id")
        if len(secret) != SECRET_BYTES:
            return refuse_invalid("malformed node secret")
        node = self._nodes.get(node_id)
        if node is not None:
            if not same_verifier(node[1], verifier_of(secret)):
                # Only who has some token of this gateway learns that the id is taken.
                known = self._known_token(token_text)
                if isinstance(known, Refusal):
                    return known
                return refuse_node_id(node_id, "wrong node secret", known.id)
            bound = self._tokens.get(node[0].token_id)
            if bound is not None and bound[0].revoked_at is None:
                return principal_of_node(node_id, node[0].user, bound[0], node[0].enrolment)
            if not token_text:
                return refuse_revoked(node[0].token_id)
        who = self.authenticate(token_text)
        if isinstance(who, Refusal):
            return who
        info = self._tokens[who.token_id][0]
        if not who.may(Operation.SERVE):
            return refuse_enrolment(who)
        if info.node_id not in (None, node_id):
            return Refusal(
                ErrorCode.FORBIDDEN,
                f"this token is for the node {info.node_id!r} alone",
                "token of another node id",
                who.token_id,
            )
        if node is not None and node[0].user != who.user:
            return refuse_node_id(node_id, "token of another user", who.token_id)
        return principal_of_node(node_id, who.user, info, None)

    def enrol_node(self, node_id: str, secret: bytes, token_text: str) -> Principal | Refusal:
        """Bind `node_id` to a node secret, durably; does nothing where that was done before.

        Args and result: as `check_node`, but a principal has its `enrolment`.
        """
        with self.transaction() as connection:
            # Again, and now nobody else can write: two machines may want one id at once.
            self._stale = True
            who = self.check_node(node_id, secret, token_text)
            if isinstance(who, Refusal):
                if who.code is ErrorCode.FORBIDDEN:
                    said = {"node_id": node_id, "cause": who.cause, "token": who.token_id}
                    self.audit("enrolment_refused", who.token_id or "unknown", said)
                return who
            if who.enrolment is not None:
                return who
            self._touch()
            _use_up(connection, who.token_id)
            connection.execute(
                "INSERT INTO nodes (node_id, verifier, user, token_id, enrolled_at, boot_epoch) "
                "VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (node_id) "
                "DO UPDATE SET token_id = excluded.token_id",
                (node_id, verifier_of(secret), who.user, who.token_id, self.clock()),
            )
            self.audit("node_enrolled", who.user, {"node_id": node_id, "token": who.token_id})
            self.refresh()
            enrolment = self._nodes[node_id][0].enrolment
            return principal_of_node(node_id, who.user, self._tokens[who.token_id][0], enrolment)

    def forget_node(self, node_id: str, by: str = "gateway") -> bool:
        """Free a node id, so that another machine may enrol; return whether it was taken."""
        with self.transaction() as connection:
            done = connection.execute("DELETE FROM nodes WHERE node_id = ?", (node_id,)).rowcount
            if done:
                self._touch()
                self.audit("node_forgotten", by, {"node_id": node_id})
        return bool(done)

    def list_nodes(self) -> list[EnrolledNode]:
        """Return all enrolled nodes, by id."""
        self.refresh()
        return sorted((info for info, _ in self._nodes.values()), key=lambda n: n.node_id)


def _use_up(connection: sqlite3.Connection, token_id: str) -> None:
    """Count one enrolment against a token that has a limit."""
    connection.execute(
        "UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ? AND uses_left > 0", (token_id,)
    )
