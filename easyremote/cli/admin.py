"""Tokens, enrolled nodes and the audit of a gateway: beside it, or over the network.

Theory. Whoever can read a gateway's state folder owns it: on that machine commands work on the
folder, whether the gateway runs or not, and what they write is good at once. From elsewhere an
operator or owner asks the gateway itself. Both ways answer alike.

Rules of this file. 1) Answers are plain data, without secrets but the one that was just made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..config import parse_address
from ..errors import EasyRemoteError
from ..gateway.records import EXPIRES_DEFAULT_S, parse_role
from ..gateway.state import GatewayState
from ..identity.join import JoinString
from ..identity.role import Scopes

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """A token that somebody wants.

    Attributes:
        expires_s: Seconds that it lasts; infinity for ever, None for the usual time of the role.
    """

    role: str
    user: str
    expires_s: float | None = None
    levels: tuple[str, ...] = ()
    node_id: str | None = None
    functions: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    single_use: bool = False
    shared: bool = False
    note: str = ""


class Admin(Protocol):
    """What an owner does to a gateway."""

    def create_token(self, order: TokenOrder) -> str:
        """Make a token and return its join string."""
        ...

    def list_tokens(self) -> list[dict[str, Any]]:
        """Return all tokens, the oldest first."""
        ...

    def revoke_token(self, token_id: str) -> bool:
        """Make a token void; False if it was void already."""
        ...

    def forget_node(self, node_id: str) -> bool:
        """Free the id of an enrolled node; False if nobody has it."""
        ...

    def verify_audit(self) -> dict[str, Any]:
        """Walk the audit: `good`, `rows` and `first_bad`."""
        ...

    def list_audit(self) -> list[dict[str, Any]]:
        """Return all entries of the audit, the oldest first."""
        ...


def administer(
    port: int | None, state_dir: Path | None, gateway: str | None, auth: str | None
) -> Admin:
    """Return the way to a gateway that the options name.

    Raises:
        ValueError: They name two.
    """
    if gateway is None and auth is None:
        return LocalAdmin(port, state_dir)
    if port is not None or state_dir is not None:
        raise ValueError(
            "--port and --state-dir name a gateway of this machine, --gateway and --auth one that "
            "is asked over the network; give one or the other"
        )
    return RemoteAdmin(gateway, auth)


class LocalAdmin:
    """Works on the state folder."""

    def __init__(self, port: int | None, state_dir: Path | None) -> None:
        self._port = port
        self._state_dir = state_dir

    def _on(self, work: Callable[[GatewayState], R]) -> R:
        with closing(GatewayState.attach(self._state_dir, self._port)) as state:
            return work(state)

    def create_token(self, order: TokenOrder) -> str:
        """Make a token and return its join string."""

        def create(state: GatewayState) -> str:
            role = parse_role(order.role)
            expires_s = EXPIRES_DEFAULT_S[role] if order.expires_s is None else order.expires_s
            token = state.store.create_token(
                role,
                order.user,
                expires_s=None if expires_s in (None, math.inf) else expires_s,
                levels=order.levels,
                node_id=order.node_id,
                scopes=Scopes(order.functions, order.nodes),
                single_use=order.single_use,
                shared=order.shared,
                created_by=state.owner,
                note=order.note,
            )
            return state.join_string(token)

        return self._on(create)

    def list_tokens(self) -> list[dict[str, Any]]:
        """Return all tokens, the oldest first."""
        return self._on(lambda state: [info.to_plain() for info in state.store.list_tokens()])

    def revoke_token(self, token_id: str) -> bool:
        """Make a token void; False if it was void already."""

        def revoke(state: GatewayState) -> bool:
            if state.store.token(token_id) is None:
                raise EasyRemoteError(
                    f"no token has the id {token_id!r}; see: easyremote token list"
                )
            return state.store.revoke(token_id, state.owner)

        return self._on(revoke)

    def forget_node(self, node_id: str) -> bool:
        """Free the id of an enrolled node; False if nobody has it."""
        return self._on(lambda state: state.store.forget_node(node_id, state.owner))

    def verify_audit(self) -> dict[str, Any]:
        """Walk the audit: `good`, `rows` and `first_bad`."""

        def verify(state: GatewayState) -> dict[str, Any]:
            check = state.store.verify_audit()
            return {"good": check.good, "rows": check.rows, "first_bad": check.first_bad}

        return self._on(verify)

    def list_audit(self) -> list[dict[str, Any]]:
        """Return all entries of the audit, the oldest first."""
        return self._on(
            lambda state: _all_pages(
                lambda after: [row._asdict() for row in state.store.audit_rows(after=after)]
            )
        )


class RemoteAdmin:
    """Asks the gateway."""

    def __init__(self, gateway: str | None, auth: str | None) -> None:
        self._gateway = gateway
        self._auth = auth

    def _ask(self, name: str, **args: Any) -> Any:
        from .ask import converse

        return converse(self._gateway, self._auth, lambda gateway: gateway.ask(name, **args))

    def create_token(self, order: TokenOrder) -> str:
        """Make a token and return its join string."""
        args: dict[str, Any] = {
            "role": order.role,
            "user": order.user,
            "levels": list(order.levels),
            "node_id": order.node_id,
            "functions": list(order.functions),
            "nodes": list(order.nodes),
            "single_use": order.single_use,
            "shared": order.shared,
            "note": order.note,
        }
        if order.expires_s is not None:
            args["expires_s"] = None if order.expires_s == math.inf else order.expires_s
        return str(self._ask("token.create", **args)["join"])

    def list_tokens(self) -> list[dict[str, Any]]:
        """Return all tokens, the oldest first."""
        return list(self._ask("token.list"))

    def revoke_token(self, token_id: str) -> bool:
        """Make a token void; False if it was void already."""
        return bool(self._ask("token.revoke", id=token_id))

    def forget_node(self, node_id: str) -> bool:
        """Free the id of an enrolled node; False if nobody has it."""
        return bool(self._ask("node.forget", node_id=node_id))

    def verify_audit(self) -> dict[str, Any]:
        """Walk the audit: `good`, `rows` and `first_bad`."""
        return dict(self._ask("audit.verify"))

    def list_audit(self) -> list[dict[str, Any]]:
        """Return all entries of the audit, the oldest first."""
        return _all_pages(lambda after: self._ask("audit.list", after=after))


def _all_pages(page: Callable[[int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the entries of all pages; a page is what comes behind a sequence number."""
    found: list[dict[str, Any]] = []
    while more := page(found[-1]["seq"] if found else 0):
        found += more
    return found


def readdressed(join: str, addresses: tuple[str, ...]) -> str:
    """Return a join string with other addresses: those under which others reach the gateway.

    Raises:
        ValueError: One is no address, or they have different ports.
    """
    if not addresses:
        return join
    parsed = JoinString.parse(join)
    named = [parse_address(text, parsed.port) for text in addresses]
    if len({address.port for address in named}) != 1:
        raise ValueError("a join string has one port for all its addresses")
    hosts = tuple(dict.fromkeys(address.host for address in named))
    return replace(parsed, hosts=hosts, port=named[0].port).encode()
