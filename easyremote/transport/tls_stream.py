"""A byte stream over TLS 1.3: a non-blocking `SSLSocket` driven by trio.

Theory. `ssl.SSLSocket` reads straight into the caller's buffer and writes straight from it, where
wrappers on `MemoryBIO` copy twice. In non-blocking mode each operation either does something or
says what it waits for: mostly its own direction, but a key update makes a read wait for room and
may make a write wait for bytes.

Rules of this file. 1) OpenSSL holds bytes that `select` cannot see, so a reader reads until it is
told to wait. 2) A write is all or nothing and is repeated with the same bytes. 3) The end of the
stream is the peer's `close_notify`; a connection that ends without one was cut. 4) No session
tickets: they sit unread in the client's socket and turn its close into a reset that destroys what
it sent last. 5) One `SSLSocket`, one thread.

Source. RFC 8446 section 6.1 (closure alerts), 4.6.3 (key update); `performance.md`, "TLS stream".
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path

import trio

from .byte_stream import StreamBroken
from .socket_stream import CLOSED_HERE, SEND_BYTES_MAX, Direction, SocketBase

HTTP_ALPN = "http/1.1"


class TlsStream(SocketBase):
    """A byte stream on a TLS connection whose handshake is done.

    Attributes:
        alpn: The protocol that both sides agreed on, or None.
    """

    _sock: ssl.SSLSocket

    def __init__(self, sock: ssl.SSLSocket, peer: str) -> None:
        """Take over `sock`, made by `open_tls`."""
        super().__init__(sock, peer)
        self.alpn = sock.selected_alpn_protocol()
        self._receive_waits_for = Direction.RECEIVE
        self._send_waits_for = Direction.SEND
        self._retry_bytes = 0
        self._failed = False
        """OpenSSL reported a fatal error: it must not be asked to say goodbye."""

    def peer_certificate(self) -> bytes | None:
        """Return the peer's certificate as DER, if it showed one."""
        return self._sock.getpeercert(binary_form=True)

    def try_receive_into(self, view: memoryview) -> int | None:
        """Receive at most one record without waiting."""
        assert len(view) > 0
        if not self._open:
            raise StreamBroken(CLOSED_HERE)
        if self._is_empty():
            return None
        try:
            size = self._sock.recv_into(view)
        except ssl.SSLWantReadError:
            self._reads = 0
            return None
        except ssl.SSLWantWriteError:
            self._reads = 0
            self._receive_waits_for = Direction.SEND
            return None
        except ssl.SSLZeroReturnError:
            size = 0
        except OSError as error:
            self._ended = self._failed = True
            raise StreamBroken(_explain(error)) from error
        if size:
            # What did not fit into the view is left in OpenSSL, where the kernel does not see it.
            self._reads += 1 if size < len(view) else 2
        else:
            self._reads, self._ended = 0, True
        return size

    def try_send(self, view: memoryview) -> int | None:
        """Send up to `SEND_BYTES_MAX` bytes, all of them or none, without waiting."""
        assert len(view) > 0
        if not self._open:
            raise StreamBroken(CLOSED_HERE)
        if len(view) > SEND_BYTES_MAX:
            view = view[:SEND_BYTES_MAX]
        assert self._retry_bytes in {0, len(view)}, "a send must be repeated with the same bytes"
        try:
            size = self._sock.send(view)
        except ssl.SSLWantWriteError:
            self._retry_bytes = len(view)
            return None
        except ssl.SSLWantReadError:
            self._retry_bytes = len(view)
            self._send_waits_for = Direction.RECEIVE
            return None
        except OSError as error:
            # What was received before stays readable: it may say why the peer went away.
            self._failed = True
            raise StreamBroken(_explain(error)) from error
        self._retry_bytes = 0
        return size

    async def wait_receivable(self) -> None:
        """Wait for what the last read was told to wait for."""
        self._reads = 0
        direction, self._receive_waits_for = self._receive_waits_for, Direction.RECEIVE
        await self._wait(direction)

    async def wait_sendable(self) -> None:
        """Wait for what the last write was told to wait for."""
        direction, self._send_waits_for = self._send_waits_for, Direction.SEND
        await self._wait(direction)

    def _say_goodbye(self) -> None:
        """Send `close_notify` if that is possible now; the peer's is not waited for.

        After half of a record it must not be sent, and OpenSSL does not: the peer sees a cut.
        """
        if not self._failed:
            with contextlib.suppress(OSError, ValueError):
                self._sock.unwrap()


def _explain(error: OSError) -> str:
    if isinstance(error, ssl.SSLEOFError):
        return "the connection was cut: it ended without a TLS close"
    if isinstance(error, ssl.SSLError):
        return f"the TLS connection broke: {error.reason or error}"
    return f"the connection broke: {error}"


async def open_tls(
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    peer: str,
    server_side: bool = False,
    server_hostname: str | None = None,
    turn: trio.Lock | None = None,
) -> TlsStream:
    """Do the TLS handshake on a connected socket, which this function takes over.

    Args:
        sock: The socket; closed if the handshake does not succeed.
        context: Made by `client_context` or `server_context`.
        peer: Name of the other end, for logs.
        server_side: Whether we are the one that was dialled.
        server_hostname: Whom we dialled, for the certificate's name check.
        turn: Shared by handshakes that take turns: each step is followed by everybody else's.

    Raises:
        ssl.SSLError: What OpenSSL has against the peer; `SSLEOFError` if it hung up.
        OSError: The connection broke.
    """
    try:
        sock.setblocking(False)
        sock.getpeername()  # Of one that was reset `wrap_socket` would lose the descriptor.
        tls = context.wrap_socket(
            sock,
            server_side=server_side,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except BaseException:
        sock.close()
        raise
    try:
        while True:
            try:
                if turn is not None:
                    async with turn:  # Getting it is a checkpoint, even if nobody has it.
                        tls.do_handshake()
                else:
                    tls.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(tls)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(tls)
            else:
                return TlsStream(tls, peer)
    except BaseException:
        tls.close()
        raise


def server_context(
    certificate_path: Path, key_path: Path, *, alpn: tuple[str, ...]
) -> ssl.SSLContext:
    """Return a context for the accepting side: TLS 1.3 only, no tickets.

    Args:
        certificate_path: PEM file with the certificate, then those of its authority.
        key_path: PEM file with the private key.
        alpn: Names of the protocols that are spoken, best first.

    Raises:
        OSError: A file cannot be read (`ssl.SSLError` if it does not hold what it should).
    """
    context = bare_server_context(alpn)
    context.load_cert_chain(certificate_path, key_path)
    return context


def bare_server_context(alpn: tuple[str, ...]) -> ssl.SSLContext:
    """Return such a context without a certificate; load one before the first handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.set_alpn_protocols(list(alpn))
    return context


def client_context(*, pinned: bool, alpn: str | None) -> ssl.SSLContext:
    """Return a context for the dialling side: TLS 1.3 only.

    Args:
        pinned: The caller compares the peer's key with a pin after the handshake. Otherwise the
            certificate must come from an authority that this machine trusts, for the right name.
        alpn: The protocol that we want to speak, if any.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_default_certs()
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context
