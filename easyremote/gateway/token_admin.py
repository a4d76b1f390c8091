"""`server.tokens()`: create, list and revoke tokens from the program that runs the gateway.

Rules of this file. 1) It works beside the running gateway, as the command line does: what it
writes is good at once. 2) A new token is returned once, as its join string and as bare text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..identity.role import Role, Scopes
from .records import EXPIRES_DEFAULT_S, TokenInfo, parse_role
from .state import GatewayState


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was just made; its secret is shown this once.

    Attributes:
        id: Its public id, by which it is listed and revoked.
        text: The bare bearer token.
        join: The join string: address, pin and token in one.
    """

    id: str
    text: str = field(repr=False)
    join: str = field(repr=False)


class TokenAdmin:
    """Administers the tokens of one gateway."""

    def __init__(self, folder: Path) -> None:
        """Work on the gateway whose state is in `folder`."""
        self._folder = folder

    def create(
        self,
        user: str,
        role: Role | str = Role.GUEST,
        *,
        expires_s: float | None = None,
        levels: tuple[str, ...] | list[str] = (),
        node_id: str | None = None,
        functions: tuple[str, ...] | list[str] = (),
        nodes: tuple[str, ...] | list[str] = (),
        single_use: bool = False,
        shared: bool = False,
        note: str = "",
    ) -> NewToken:
        """Make a token.

        Args:
            user: Whose calls, quotas and bills go under it.
            role: What it may do.
            expires_s: Seconds that it lasts; None for the usual time of the role.
            levels: Access levels that it carries.
            node_id: The only node id that a node token is good for.
            functions: Patterns of functions that it may call or, for a node, register.
            nodes: Patterns of nodes that it may call.
            single_use: A node token that enrols one node.
            shared: Several people use it.
            note: For people.

        Raises:
            ValueError: A field does not fit.
        """
        role = parse_role(role)
        state = GatewayState.attach(self._folder)
        try:
            token = state.store.create_token(
                role,
                user,
                expires_s=EXPIRES_DEFAULT_S[role] if expires_s is None else expires_s,
                levels=levels,
                node_id=node_id,
                scopes=Scopes(tuple(functions), tuple(nodes)),
                single_use=single_use,
                shared=shared,
                created_by=state.owner,
                note=note,
            )
            return NewToken(token.id, token.text(), state.join_string(token))
        finally:
            state.close()

    def list(self) -> list[TokenInfo]:
        """Return all tokens, oldest first, without their secrets."""
        state = GatewayState.attach(self._folder)
        try:
            return state.store.list_tokens()
        finally:
            state.close()

    def revoke(self, token_id: str) -> bool:
        """Make a token void and end the links that live on it; False if it was void already."""
        state = GatewayState.attach(self._folder)
        try:
            return state.store.revoke(token_id, state.owner)
        finally:
            state.close()
