"""The seam between EasyRemote and the network: how a process reaches others.

Theory. Everything above this package needs a `ByteStream` to a gateway, and a source of incoming
ones. Programs use `RealNetwork` (TCP and TLS 1.3); a simulation puts its own network in its place.

Rules of this file. Nothing here decides anything: `dialer` and `listener` do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import trio

from ..config import Address
from ..errors import EasyRemoteError
from ..wire.settings import ALPN
from .byte_stream import ByteStream
from .dialer import DIAL_TIMEOUT_S, dial
from .listener import Handler, ListenLimits, TlsListener, open_listener
from .tls_stream import HTTP_ALPN, server_context


class TlsFiles(Protocol):
    """Where the accepting side finds its certificate and key."""

    @property
    def certificate_path(self) -> Path:
        """PEM file with the certificate, then those of its authority."""
        ...

    @property
    def key_path(self) -> Path:
        """PEM file with the private key."""
        ...


class Listener(Protocol):
    """The accepting side of a port."""

    port: int

    async def serve(self, handler: Handler) -> None:
        """Give every connection to `handler`, each in a task of its own.

        Returns when the listener is closed and every handler has returned.
        """
        ...

    def close(self) -> None:
        """Accept no more; connections that were accepted live on."""
        ...


class Network(Protocol):
    """The seam: how a process reaches others. A simulation replaces it."""

    async def dial(
        self, address: Address, *, pin: bytes | None, timeout_s: float = DIAL_TIMEOUT_S
    ) -> ByteStream:
        """Connect to a gateway; see `dial`."""
        ...

    async def listen(self, host: str, port: int, *, tls: TlsFiles) -> Listener:
        """Listen on a port; see `listen`."""
        ...


class RealNetwork:
    """TCP and TLS."""

    async def dial(
        self, address: Address, *, pin: bytes | None, timeout_s: float = DIAL_TIMEOUT_S
    ) -> ByteStream:
        """Connect to a gateway; see `dial`."""
        return await dial(address, pin=pin, timeout_s=timeout_s)

    async def listen(self, host: str, port: int, *, tls: TlsFiles) -> Listener:
        """Listen on a port; see `listen`."""
        return await listen(host, port, tls=tls)


async def listen(
    host: str, port: int, *, tls: TlsFiles, limits: ListenLimits | None = None
) -> TlsListener:
    """Listen for the native protocol and HTTP on one TLS port.

    Args:
        host: Name or address; empty for every interface.
        port: 0 lets the system choose; see `Listener.port`.
        tls: The certificate and key to show.
        limits: How much peers get before they are authenticated.

    Raises:
        EasyRemoteError: The port cannot be had, or the files cannot be used.
    """
    try:
        context = server_context(tls.certificate_path, tls.key_path, alpn=(ALPN, HTTP_ALPN))
    except OSError as error:
        raise EasyRemoteError(
            f"the certificate {tls.certificate_path} and the key {tls.key_path} cannot be used: "
            f"{error.strerror or error}. Both must be PEM files and belong together."
        ) from error
    await trio.lowlevel.checkpoint()
    return open_listener(host, port, context, limits)
