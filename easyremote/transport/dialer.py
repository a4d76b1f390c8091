"""Dialling a gateway, and making sure that it is the right one.

Theory. The gateway is known by its *pin*, the hash of its public key, which came with the join
string. The order matters: TLS handshake, which proves that the other side has the private key;
comparison of the pin; only then may a credential be sent. Without a pin the certificate must come
from an authority that this machine trusts, and carry the host's name.

Rules of this file. 1) No byte of ours leaves before the peer is known. 2) Errors are ours, and say
what to do next. 3) A name with several addresses (`localhost` often has two) is reachable if one
of them is.

Source. RFC 8305 (trying addresses), RFC 7469 (pins), promises.md section 4.2.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import ssl
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import trio

from ..config import Address
from ..errors import AuthenticationError, EasyRemoteError, GatewayUnreachableError
from ..wire.settings import ALPN
from .socket_stream import tune
from .tls_stream import TlsStream, client_context, open_tls

DIAL_TIMEOUT_S = 10.0
"""For the name, TCP and TLS together."""
_NEXT_ADDRESS_S = 0.25
"""Time after which the next address is tried beside the first (RFC 8305 section 5)."""
_TURNED_AWAY_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Pauses after a gateway hung up during the handshake, which it does when a crowd comes."""


async def dial(
    address: Address,
    *,
    pin: bytes | None,
    alpn: str = ALPN,
    timeout_s: float = DIAL_TIMEOUT_S,
) -> TlsStream:
    """Connect to a gateway and make sure that it is the right one.

    Args:
        address: Where it listens.
        pin: SHA-256 of its public key; None to rely on the authorities of this machine.
        alpn: The protocol to speak.
        timeout_s: For everything together.

    Returns:
        A stream on which nothing of ours has been sent yet.

    Raises:
        GatewayUnreachableError: Nobody answers, or whoever answers is no gateway.
        AuthenticationError: It is not the gateway that is expected. Nothing was sent to it.
    """
    context = client_context(pinned=pin is not None, alpn=alpn)
    stage = _Stage()
    with trio.move_on_after(timeout_s):
        stream = await _dial(address, context, stage)
        try:
            if pin is not None:
                _check_pin(address, stream, pin)
            _check_alpn(address, stream, alpn)
        except BaseException:
            stream.close_now()
            raise
        return stream
    raise GatewayUnreachableError(f"{address} {stage.late(timeout_s, address.port)}")


class _Stage:
    """How far a dial got, for the message when it is late."""

    def __init__(self) -> None:
        self.connected = False

    def late(self, timeout_s: float, port: int) -> str:
        if self.connected:
            return (
                f"accepts connections, but did not finish a TLS handshake within {timeout_s:g} s: "
                f"the machine may be overloaded, or something else listens on this port"
            )
        return (
            f"did not answer within {timeout_s:g} s: check the address, that the machine is up, "
            f"and that no firewall blocks TCP port {port}"
        )


async def _dial(address: Address, context: ssl.SSLContext, stage: _Stage) -> TlsStream:
    targets = await _resolve(address)
    for pause_s in (*_TURNED_AWAY_PAUSES_S, None):
        sock = await _connect(address, targets)
        stage.connected = True
        tune(sock)
        try:
            return await open_tls(
                sock, context, peer=str(address), server_hostname=address.host.rstrip(".")
            )
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as error:
            if pause_s is None:
                raise GatewayUnreachableError(
                    f"{address} hangs up during the TLS handshake: it is no gateway, or too many "
                    f"connect from here at once. Try again in a moment."
                ) from error
        except OSError as error:
            raise _not_a_gateway(address, error) from error
        # A crowd that was sent away together should not come back together.
        await trio.sleep(pause_s * random.uniform(0.5, 1.5))
    raise AssertionError("the last pause is None")


async def _resolve(address: Address) -> list[tuple[int, Any]]:
    """Return (family, socket address), families in turn, in the system's order of preference."""
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise GatewayUnreachableError(
            f"the name {address.host!r} is not known here ({error}): check its spelling and the "
            f"DNS of this machine"
        ) from error
    first = found[0][0]
    mine = [(family, where) for family, _, _, _, where in found if family == first]
    others = [(family, where) for family, _, _, _, where in found if family != first]
    return [one for pair in zip_longest(mine, others) for one in pair if one is not None]


async def _connect(address: Address, targets: Sequence[tuple[int, Any]]) -> socket.socket:
    """Return the first TCP connection that succeeds."""
    winners: list[socket.socket] = []
    errors: list[OSError] = []

    async def attempt(family: int, where: Any, failed: trio.Event) -> None:
        try:
            sock = await _connect_one(family, where)
        except OSError as error:
            errors.append(error)
            failed.set()
        else:
            winners.append(sock)
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for family, where in targets:
                failed = trio.Event()
                nursery.start_soon(attempt, family, where, failed)
                with trio.move_on_after(_NEXT_ADDRESS_S):
                    await failed.wait()
    except BaseException:
        for sock in winners:
            sock.close()
        raise
    for sock in winners[1:]:
        sock.close()
    if winners:
        return winners[0]
    raise GatewayUnreachableError(f"cannot connect to {address}: {_advice(errors, address.port)}")


async def _connect_one(family: int, where: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        code = sock.connect_ex(where)
        if code in {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR}:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except BaseException:
        sock.close()
        raise
    if code:
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


def _advice(errors: Sequence[OSError], port: int) -> str:
    codes = {error.errno for error in errors}
    if errno.ECONNREFUSED in codes:
        return (
            "the machine answers, but nothing listens on this port. Start a gateway there with "
            f"`easyremote gateway run --port {port}`, or check the address"
        )
    if codes & {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return "there is no way to this machine; check the address and the network"
    told = "; ".join(dict.fromkeys(str(error) for error in errors)) or "no address was found"
    return f"{told}; check the address and the network"


def _not_a_gateway(address: Address, error: OSError) -> EasyRemoteError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthenticationError(
            f"the certificate of {address} is not one that this machine trusts "
            f"({error.verify_message}). Nothing was sent. Use the gateway's join string, which "
            f"carries its key, or give the gateway a certificate from a public authority."
        )
    if isinstance(error, ssl.SSLError):
        return GatewayUnreachableError(
            f"{address} answers, but not as a gateway does ({error.reason or error}): check that "
            f"host and port are those of a gateway, and that its version fits this one"
        )
    return GatewayUnreachableError(f"the connection to {address} broke: {error}. Try again.")


def _check_alpn(address: Address, stream: TlsStream, alpn: str) -> None:
    if stream.alpn != alpn:
        raise GatewayUnreachableError(
            f"{address} speaks TLS, but not the protocol of EasyRemote ({alpn}): check that host "
            f"and port are those of a gateway of this version"
        )


def _check_pin(address: Address, stream: TlsStream, pin: bytes) -> None:
    """Compare the peer's key with the pin.

    Raises:
        AuthenticationError: It is another key.
    """
    from ..identity.pin import pin_of, pin_text, same_pin

    certificate = stream.peer_certificate()
    try:
        actual = pin_of(certificate or b"")
    except ValueError:
        actual = b""
    if not same_pin(pin, actual):
        raise AuthenticationError(
            f"{address} has another key than the gateway that you expect: {pin_text(actual)} "
            f"instead of {pin_text(pin)}. Nothing was sent to it. If the gateway was set up anew, "
            f"get a new join string from its owner; if not, somebody may be listening in between."
        )
