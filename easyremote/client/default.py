"""Which client a call goes through, when the program does not say.

Theory. In this order: the function's own gateway or credential; inside a running function on a
node, the link of that node; the client of `connect()`; a client that is made now, of what
environment and files say.

Rules of this file. The object at the end is the one state of this package that is not passed
around. A forked child begins without it.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from .. import seam
from .session import Session
from .trust import TrustNodes

if TYPE_CHECKING:
    from .client import Client
    from .options import Route, Where


class Defaults:
    """The clients that calls fall back on."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: at first, and in a forked child."""
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._gateway: str | None = None
        self._own: dict[Where, Client] = {}
        self._nested: tuple[seam.CallLink, Session] | None = None

    def set(self, client: Client) -> None:
        """Make `client` the default; the one before it ends when nobody holds it."""
        with self._lock:
            self._client = client

    def set_gateway(self, address: str) -> None:
        """Say which gateway a client that is made by need uses."""
        from ..config import parse_address

        parse_address(address)
        with self._lock:
            self._gateway = address
            self._client = None

    def client(self) -> Client:
        """Return the default client, made now if there is none."""
        client = self._client
        if client is not None and not client.closed:
            return client
        from .client import Client

        with self._lock:
            client = self._client
            if client is None or client.closed:
                client = self._client = Client(self._gateway)
            return client

    def client_for(self, where: Where) -> Client:
        """Return the client of a function with a gateway or credential of its own."""
        from .client import Client

        with self._lock:
            client = self._own.get(where)
            if client is None or client.closed:
                client = self._own[where] = Client(
                    where.gateway or self._gateway, token=where.token, auth=where.auth
                )
            return client

    def nested(self, link: seam.CallLink) -> Session:
        """Return the session of the calls that a running function makes."""
        known = self._nested
        if known is not None and known[0] is link:
            return known[1]
        with self._lock:
            trust: TrustNodes = "owner" if self._client is None else self._client.trust_nodes
            session = Session(link, trust_nodes=trust, injected=True)
            session.start()
            self._nested = (link, session)
            return session

    def shutdown(self) -> None:
        """Close all of them."""
        with self._lock:
            closing = [*self._own.values()]
            if self._client is not None:
                closing.append(self._client)
            self._client, self._own = None, {}
        for client in closing:
            client.close()


defaults = Defaults()


def session_for(route: Route) -> Session:
    """Return the session through which a call of this route goes now."""
    if route.where is not None:
        return defaults.client_for(route.where).session
    if seam.current_ticket.get():
        link = seam.injected()
        if link is not None:
            return defaults.nested(link)
    return defaults.client().session


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=defaults.forget)
