"""The accepting side of a port: who may come in, and which protocol they get.

Theory. Until a peer has authenticated itself it is a stranger, and strangers get little: a seat
among few, ten seconds, and no memory beyond one TLS handshake. The loop that accepts awaits
nobody; each connection is greeted by a task of its own. The first byte tells TLS from plain text,
the ClientHello tells which protocol is wanted:

    first byte is not 0x16           an explanation in plain text, close
    ALPN offers `easyremote/1`       the native protocol
    ALPN offers `http/1.1`           HTTP
    no ALPN at all                   HTTP (HTTP/1.1 clients need not say so)
    anything else, or unreadable     close

A TLS handshake is the dearest thing that a stranger can make us do. Handshakes therefore take
turns: between two steps of any of them everybody else's tasks get theirs, so that a crowd of
strangers costs the peers that are in a fraction of their time, not all of it.

Rules of this file. 1) A seat is taken when the connection is accepted, and given back when the
handler says that the peer is authenticated, or when the connection ends. 2) A crowd from one
address cannot keep others out; whoever finds no seat costs no task and no line in the log of their
own. 3) A handler that fails takes down its own connection only.

Source. OpenSSH `MaxStartups`; RFC 7301; promises.md T30 and T31.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import trio

from ..config import Address
from ..errors import EasyRemoteError
from ..log import Log
from ..wire.settings import ALPN
from .byte_stream import ByteStream
from .client_hello import (
    HANDSHAKE_RECORD,
    NO_PROTOCOL_ALERT,
    RECORD_HEADER_BYTES,
    alpn_offered,
    record_size,
)
from .plain_text import REQUEST_BYTES_MAX, answer_plain_text
from .socket_stream import LINGER_S, SocketStream, tune
from .tls_stream import HTTP_ALPN, TlsStream, open_tls

_log = Log("listener")

HANDSHAKE_TIMEOUT_S = 10.0
"""For TLS, HELLO and authentication together."""
PREAUTH_MAX = 256
"""Connections that are not yet authenticated."""
PREAUTH_PER_IP_MAX = 16
"""Of these, from one IPv4 address or one IPv6 network of 64 bits."""
_BACKLOG = 512
_ACCEPTS_PER_TURN = 64
_TOLD_EVERY_S = 10.0
"""How often the log says that connections were turned away."""
_CLOSE_WAIT = 8
"""State of a TCP connection whose peer has closed, as Linux numbers it."""
_FULL_PAUSE_S = 0.1
"""Pause after the system has run out of descriptors or memory."""
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})
_PEEK_PAUSES_S = (0.001, 0.256)
"""First and longest pause while a ClientHello is incomplete."""

ProtocolName = Literal["native", "http"]


@dataclass(eq=False, slots=True)
class Incoming:
    """One accepted connection, TLS done, its peer not yet authenticated.

    Attributes:
        stream: The connection; closed when the handler returns.
        protocol: Which parser it gets.
        deadline: When the peer must have authenticated itself, on trio's clock.
    """

    stream: ByteStream
    protocol: ProtocolName
    deadline: float
    _on_authenticated: Callable[[], None] = field(default=lambda: None, repr=False)

    def authenticated(self) -> None:
        """Give the seat of strangers back; more than once does no harm."""
        self._on_authenticated()


Handler = Callable[[Incoming], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ListenLimits:
    """How much strangers get."""

    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S
    preauth_max: int = PREAUTH_MAX
    preauth_per_ip_max: int = PREAUTH_PER_IP_MAX


class _Seats:
    """Connections that are not yet authenticated, counted by where they come from."""

    def __init__(self, limits: ListenLimits) -> None:
        self._limits = limits
        self._by_network: Counter[str] = Counter()
        self.taken = 0

    def take(self, host: str) -> Callable[[], None] | None:
        """Take a seat; None if there is none left, else the function that gives it back."""
        network = place_of(host)
        if self.taken >= self._limits.preauth_max:
            return None
        if self._by_network[network] >= self._limits.preauth_per_ip_max:
            return None
        self.taken += 1
        self._by_network[network] += 1
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self.taken -= 1
                self._by_network[network] -= 1
                if not self._by_network[network]:
                    del self._by_network[network]

        return give_back


class TlsListener:
    """Listening sockets that speak TLS. Made by `open_listener`."""

    def __init__(
        self, sockets: list[socket.socket], context: ssl.SSLContext, limits: ListenLimits
    ) -> None:
        """Take over `sockets`, which are bound and may listen already."""
        self._sockets = sockets
        self._context = context
        self._limits = limits
        self._seats = _Seats(limits)
        self._turn = trio.Lock()
        self._turned_away = 0
        self._told_at = -math.inf
        self.addresses = [_address(sock.getsockname()) for sock in sockets]
        self.port = self.addresses[0].port

    @property
    def strangers(self) -> int:
        """Connections that are not yet authenticated."""
        return self._seats.taken

    def admit(self) -> None:
        """Let connections in: from now on a peer's TCP connection succeeds.

        Raises:
            EasyRemoteError: Somebody else listens on the port by now.
        """
        try:
            for sock in self._sockets:
                sock.listen(_BACKLOG)
        except OSError as error:
            raise EasyRemoteError(f"cannot listen on port {self.port}: {_advice(error)}") from error

    async def serve(self, handler: Handler) -> None:
        """Accept and greet; return when the listener is closed and every handler has returned."""
        async with trio.open_nursery() as nursery:
            for sock in self._sockets:
                nursery.start_soon(self._accept_loop, sock, handler, nursery)

    def close(self) -> None:
        """Accept no more; connections that were accepted live on."""
        for sock in self._sockets:
            if sock.fileno() >= 0:
                trio.lowlevel.notify_closing(sock)
                sock.close()

    async def _accept_loop(
        self, listening: socket.socket, handler: Handler, nursery: trio.Nursery
    ) -> None:
        while listening.fileno() >= 0:
            try:
                await trio.lowlevel.wait_readable(listening)
            except trio.ClosedResourceError:
                return
            try:
                for _ in range(_ACCEPTS_PER_TURN):
                    sock, address = listening.accept()
                    peer = _address(address)
                    give_back = self._seats.take(peer.host)
                    if give_back is None:
                        self._turn_away(sock, peer)
                    else:
                        nursery.start_soon(self._greet, sock, peer, handler, give_back)
            except BlockingIOError:
                continue
            except OSError as error:
                # Whoever hung up before we accepted is no trouble of ours.
                if error.errno in _FULL:
                    _log.error("cannot accept connections", reason=error.strerror)
                    await trio.sleep(_FULL_PAUSE_S)

    def _turn_away(self, sock: socket.socket, address: Address) -> None:
        """Close a connection for which there is no seat."""
        sock.close()
        self._turned_away += 1
        now = trio.current_time()
        if now - self._told_at >= _TOLD_EVERY_S:
            count, self._turned_away, self._told_at = self._turned_away, 0, now
            _log.warning(
                "too many connections without authentication", peer=address, turned_away=count
            )

    async def _greet(
        self,
        sock: socket.socket,
        address: Address,
        handler: Handler,
        give_back: Callable[[], None],
    ) -> None:
        """Do the handshake with one peer, then hand it over."""
        deadline = trio.current_time() + self._limits.handshake_timeout_s
        stream: TlsStream | None = None
        try:
            with trio.move_on_at(deadline):
                stream = await self._handshake(sock, address)
            if stream is None:
                return
            protocol: ProtocolName = "native" if stream.alpn == ALPN else "http"
            await handler(Incoming(stream, protocol, deadline, give_back))
        except (OSError, trio.ClosedResourceError) as error:
            _log.debug("connection ended", peer=address, reason=error)
        except Exception as error:  # noqa: BLE001  # The task boundary: others must not suffer.
            _log.error("connection handler failed", peer=address, exception=error)
        finally:
            give_back()
            if stream is None:
                sock.close()
            else:
                with trio.move_on_after(2 * LINGER_S) as scope:
                    scope.shield = True
                    await stream.aclose()

    async def _handshake(self, sock: socket.socket, address: Address) -> TlsStream | None:
        """Return the TLS stream, or None if the peer was sent away."""
        sock.setblocking(False)
        tune(sock)
        begin = await _peek_first_record(sock)
        if not begin:
            return None
        if begin[0] != HANDSHAKE_RECORD:
            answer = answer_plain_text(begin, self.port)
            _log.debug("plain text on the TLS port", peer=address)
            await _send_away(sock, address, answer)
            return None
        offered = alpn_offered(begin)
        if offered and not {ALPN, HTTP_ALPN} & set(offered):
            _log.debug("unknown protocol offered", peer=address, offered=", ".join(offered))
            await _send_away(sock, address, NO_PROTOCOL_ALERT)
            return None
        stream = await open_tls(
            sock, self._context, peer=str(address), server_side=True, turn=self._turn
        )
        if stream.alpn is None and offered != ():
            await stream.aclose()
            return None
        return stream


async def _peek_first_record(sock: socket.socket) -> bytes:
    """Return the first record, or what there is of a connection that is not TLS; not consumed."""
    pause_s, pause_max_s = _PEEK_PAUSES_S
    while True:
        await trio.lowlevel.wait_readable(sock)
        with contextlib.suppress(BlockingIOError):
            data = sock.recv(RECORD_HEADER_BYTES, socket.MSG_PEEK)
            if not data:
                return b""
            if data[0] != HANDSHAKE_RECORD:
                return sock.recv(REQUEST_BYTES_MAX, socket.MSG_PEEK)
            wanted = record_size(data)
            data = sock.recv(wanted, socket.MSG_PEEK)
            if len(data) >= wanted > RECORD_HEADER_BYTES:
                return data
            if _hung_up(sock):
                return b""
        # The socket is readable and stays so: waiting for it would spin.
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, pause_max_s)


def _hung_up(sock: socket.socket) -> bool:
    """Return whether the peer has closed its side behind what it sent; False where unknown.

    What was peeked at hides the end behind it, and no honest handshake ends in the middle.
    """
    info = getattr(socket, "TCP_INFO", None)
    return info is not None and sock.getsockopt(socket.IPPROTO_TCP, info, 1)[0] == _CLOSE_WAIT


async def _send_away(sock: socket.socket, address: Address, answer: bytes) -> None:
    """Say the last word, if there is one, and close so that it arrives."""
    stream = SocketStream(sock, str(address))
    try:
        if answer:
            stream.try_send(memoryview(answer))
    finally:
        await stream.aclose()


def open_listener(
    host: str,
    port: int,
    context: ssl.SSLContext,
    limits: ListenLimits | None = None,
    *,
    hold: bool = False,
) -> TlsListener:
    """Listen on a port.

    Args:
        host: Name or address; empty for every interface, IPv6 and IPv4 where the machine has both.
        port: 0 lets the system choose; see `TlsListener.port`.
        context: Made by `server_context` with both protocol names.
        limits: How much strangers get.
        hold: Only take the port; no peer gets in before `TlsListener.admit`.

    Raises:
        EasyRemoteError: The port cannot be had; the message says why and what to do.
    """
    try:
        sockets = _listen_everywhere(port) if not host else _listen_on(host, port)
    except OSError as error:
        where = f"port {port}" + (f" of {host}" if host else "")
        raise EasyRemoteError(f"cannot listen on {where}: {_advice(error)}") from error
    listener = TlsListener(sockets, context, limits or ListenLimits())
    if not hold:
        listener.admit()
    return listener


def _listen_everywhere(port: int) -> list[socket.socket]:
    if socket.has_dualstack_ipv6():
        try:
            return [_listen(socket.AF_INET6, ("::", port, 0, 0), v6_only=False)]
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
    return [_listen(socket.AF_INET, ("0.0.0.0", port))]  # noqa: S104  # What was asked for.


def _listen_on(host: str, port: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, _, _, _, where in dict.fromkeys(found):
        # With port 0 the second address gets the port that the system chose for the first.
        chosen = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(_listen(family, (where[0], chosen, *where[2:]), v6_only=True))
        except OSError as error:
            failed = failed or error
    if not sockets:
        raise failed or OSError(errno.EADDRNOTAVAIL, "no such address")
    return sockets


def _listen(family: int, where: tuple[object, ...], *, v6_only: bool = True) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if sys.platform != "win32":  # There it would let another program take the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6_only))
        sock.bind(where)
    except BaseException:
        sock.close()
        raise
    return sock


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "something listens there already; stop it, or choose another port with --port"
    if error.errno == errno.EACCES:
        return "this user may not; ports below 1024 need privileges, choose a higher one"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return "this machine has no such address; leave the host away to listen on all of them"
    return error.strerror or str(error)


def _address(sockaddr: tuple[object, ...]) -> Address:
    """Return host and port of a socket address; an IPv4 peer of an IPv6 socket by its IPv4."""
    host, port = str(sockaddr[0]), sockaddr[1]
    assert isinstance(port, int)
    return Address(host.removeprefix("::ffff:") if "." in host else host, port)


def place_of(host: str) -> str:
    """Return what counts as one place: an IPv4 address, or the /64 of an IPv6 address.

    What is no address (a stream in memory has a name) is a place of its own.
    """
    try:
        ip = ipaddress.ip_address(host.partition("%")[0].strip("[]"))
    except ValueError:
        return host
    if ip.version == 4:
        return str(ip)
    return str(ipaddress.ip_network((ip, 64), strict=False))
