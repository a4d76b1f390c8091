"""A dial reaches the right gateway or says what is wrong, and never talks to a wrong one."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
import trio.abc

from easyremote.config import Address
from easyremote.errors import AuthenticationError, GatewayUnreachableError
from easyremote.identity.certificate import ServerIdentity
from easyremote.transport import Incoming, RealNetwork, StreamBroken, TlsListener, dial, listen
from easyremote.transport.tls_stream import open_tls, server_context

from .streams import LIMIT_S, receive_exactly, receive_rest, send_all

pytestmark = pytest.mark.trio

WRONG_PIN = b"\x01" * 32


class Recorder:
    """A handler that keeps every application byte that it receives."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.done = trio.Event()

    async def __call__(self, incoming: Incoming) -> None:
        data = bytearray()
        view = memoryview(bytearray(4096))
        try:
            while True:
                size = incoming.stream.try_receive_into(view)
                if size is None:
                    await incoming.stream.wait_receivable()
                elif size:
                    data += view[:size]
                else:
                    break
        except StreamBroken:
            pass
        self.received.append(bytes(data))
        self.done.set()


@asynccontextmanager
async def gateway(
    identity: ServerIdentity, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[TlsListener, Recorder]]:
    recorder = Recorder()
    listener = await listen(host, 0, tls=identity)
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, recorder)
            yield listener, recorder
            listener.close()
            nursery.cancel_scope.cancel()


@contextmanager
def tcp_server() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening, listening.getsockname()[1]


async def test_the_right_pin_gives_a_silent_stream(identity: ServerIdentity) -> None:
    """The gateway is reached, and gets no application byte that the caller did not send."""
    async with gateway(identity) as (listener, recorder):
        stream = await RealNetwork().dial(Address("127.0.0.1", listener.port), pin=identity.pin)
        await send_all(stream, b"HELLO")
        await stream.aclose()
        await recorder.done.wait()

        assert recorder.received == [b"HELLO"]


async def test_a_wrong_pin_is_refused_before_a_byte_is_sent(identity: ServerIdentity) -> None:
    """A gateway with another key sees not one application byte."""
    async with gateway(identity) as (listener, recorder):
        with pytest.raises(AuthenticationError, match="Nothing was sent"):
            await dial(Address("127.0.0.1", listener.port), pin=WRONG_PIN)
        await recorder.done.wait()

        assert recorder.received == [b""]


async def test_a_pin_of_another_length_never_fits(identity: ServerIdentity) -> None:
    """A pin that was cut is a wrong pin."""
    async with gateway(identity) as (listener, _):
        for pin in (b"", identity.pin[:16]):
            with pytest.raises(AuthenticationError):
                await dial(Address("127.0.0.1", listener.port), pin=pin)


async def test_without_a_pin_an_unknown_authority_is_refused(identity: ServerIdentity) -> None:
    """A self-signed certificate is worth nothing without its pin; the way out is named."""
    async with gateway(identity) as (listener, recorder):
        with pytest.raises(AuthenticationError, match="join string"):
            await dial(Address("127.0.0.1", listener.port), pin=None)

        assert recorder.received == []


async def test_without_a_pin_a_known_authority_is_trusted(
    identity: ServerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that this machine trusts is enough, for the names that stand in it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(identity.certificate_path))
    async with gateway(identity, "0.0.0.0") as (listener, _):
        for host in ("localhost", "127.0.0.1"):
            stream = await dial(Address(host, listener.port), pin=None)
            stream.close_now()
        with pytest.raises(AuthenticationError, match=r"127\.0\.0\.2"):
            await dial(Address("127.0.0.2", listener.port), pin=None)


async def test_nobody_listens() -> None:
    """A refused connection says how to start a gateway."""
    with tcp_server() as (_, port):
        pass
    with trio.fail_after(LIMIT_S), pytest.raises(GatewayUnreachableError, match="gateway run"):
        await dial(Address("127.0.0.1", port), pin=WRONG_PIN)


async def test_somebody_else_listens() -> None:
    """A service without TLS is told apart from a gateway."""
    with tcp_server() as (listening, port):
        listening.setblocking(False)

        async def speak_ssh() -> None:
            await trio.lowlevel.wait_readable(listening)
            sock, _ = listening.accept()
            with sock:
                sock.send(b"SSH-2.0-OpenSSH_9.9\r\n")
                await trio.sleep_forever()

        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(speak_ssh)
                with pytest.raises(GatewayUnreachableError, match="not as a gateway does"):
                    await dial(Address("127.0.0.1", port), pin=WRONG_PIN)
                nursery.cancel_scope.cancel()


async def test_a_silent_server_is_given_up() -> None:
    """A port that accepts and says nothing costs the timeout, not for ever."""
    with (
        tcp_server() as (_, port),
        pytest.raises(GatewayUnreachableError, match=r"TLS handshake within 0\.2 s"),
    ):
        await dial(Address("127.0.0.1", port), pin=WRONG_PIN, timeout_s=0.2)


async def test_another_protocol_on_tls_is_no_gateway(identity: ServerIdentity) -> None:
    """A TLS server that does not agree on our protocol gets nothing from us."""
    context = server_context(identity.certificate_path, identity.key_path, alpn=("h2",))
    async with raw_server(lambda _: context) as port:
        with pytest.raises(GatewayUnreachableError, match="easyremote/1"):
            await dial(Address("127.0.0.1", port), pin=identity.pin)


@asynccontextmanager
async def raw_server(
    choose: Callable[[int], ssl.SSLContext | None],
) -> AsyncIterator[int]:
    """Greet connection n with a context, or hang up where there is None; then echo."""
    with tcp_server() as (listening, port):
        listening.setblocking(False)

        async def greet(sock: socket.socket, context: ssl.SSLContext) -> None:
            stream = await open_tls(sock, context, peer="client", server_side=True)
            await send_all(stream, await receive_rest(stream))
            await stream.aclose()

        async def accept(nursery: trio.Nursery) -> None:
            number = 0
            while True:
                await trio.lowlevel.wait_readable(listening)
                sock, _ = listening.accept()
                context = choose(number)
                number += 1
                if context is None:
                    sock.close()
                else:
                    nursery.start_soon(greet, sock, context)

        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept, nursery)
                yield port
                nursery.cancel_scope.cancel()


async def test_a_gateway_that_turns_a_crowd_away_is_tried_again(identity: ServerIdentity) -> None:
    """Being hung up on during the handshake is not final: the dial comes back a little later."""
    context = server_context(identity.certificate_path, identity.key_path, alpn=("easyremote/1",))
    async with raw_server(lambda number: None if number < 2 else context) as port:
        stream = await dial(Address("127.0.0.1", port), pin=identity.pin)
        stream.close_now()


async def test_a_gateway_that_always_hangs_up_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a few tries the dial says what happens."""
    monkeypatch.setattr("easyremote.transport.dialer._TURNED_AWAY_PAUSES_S", (0.001, 0.001))
    async with raw_server(lambda _: None) as port:
        with pytest.raises(GatewayUnreachableError, match="hangs up"):
            await dial(Address("127.0.0.1", port), pin=WRONG_PIN)


class TwoAddresses(trio.abc.HostnameResolver):
    """Every name has two addresses: one where nobody listens, and the real one."""

    def __init__(self, dead: int, alive: int) -> None:
        self.ports = (dead, alive)

    async def getaddrinfo(self, *args: Any) -> Any:
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, ("127.0.0.1", port)) for port in self.ports]

    async def getnameinfo(self, *args: Any) -> Any:
        raise NotImplementedError


async def test_one_reachable_address_is_enough(identity: ServerIdentity) -> None:
    """A name is reachable if one of its addresses is, whichever comes first."""
    with tcp_server() as (_, dead):
        pass
    async with gateway(identity) as (listener, _):
        for ports in ((dead, listener.port), (listener.port, dead)):
            trio.socket.set_custom_hostname_resolver(TwoAddresses(*ports))
            stream = await dial(Address("gw.example.org", 1), pin=identity.pin)
            stream.close_now()


async def test_an_address_that_does_not_answer_is_passed_by(identity: ServerIdentity) -> None:
    """A first address that swallows the connection does not delay the second for long."""
    with tcp_server() as (listening, deaf):
        listening.listen(0)
        crowd = []
        try:
            # With its queue full, the system drops what comes: a firewall looks the same.
            for _ in range(4):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", deaf))
                crowd.append(sock)
            async with gateway(identity) as (listener, _):
                trio.socket.set_custom_hostname_resolver(TwoAddresses(deaf, listener.port))
                stream = await dial(Address("gw.example.org", 1), pin=identity.pin, timeout_s=5)
                stream.close_now()
        finally:
            for sock in crowd:
                sock.close()


async def test_an_unknown_name_says_so() -> None:
    """A name that nobody knows is named, with what to check."""

    class Nobody(TwoAddresses):
        async def getaddrinfo(self, *args: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    trio.socket.set_custom_hostname_resolver(Nobody(1, 1))
    with pytest.raises(GatewayUnreachableError, match=r"'gw\.example\.org' is not known"):
        await dial(Address("gw.example.org", 1), pin=WRONG_PIN)


async def test_a_dial_that_is_cancelled_leaves_nothing() -> None:
    """Cancelling in the middle of a handshake closes the connection."""
    with tcp_server() as (listening, port), trio.fail_after(LIMIT_S):
        listening.setblocking(False)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def cancel_when_connected() -> None:
                    await trio.lowlevel.wait_readable(listening)
                    scope.cancel()

                nursery.start_soon(cancel_when_connected)
                await dial(Address("127.0.0.1", port), pin=WRONG_PIN)
        sock, _ = listening.accept()
        with sock:
            sock.setblocking(True)
            sock.settimeout(LIMIT_S)
            while sock.recv(4096):
                pass


async def test_both_directions_work_after_a_dial(identity: ServerIdentity) -> None:
    """What the gateway sends at once is not lost in the handshake."""
    listener = await listen("127.0.0.1", 0, tls=identity)

    async def greet(incoming: Incoming) -> None:
        await send_all(incoming.stream, b"welcome")
        assert await receive_rest(incoming.stream) == b"thanks"

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, greet)
            stream = await dial(Address("127.0.0.1", listener.port), pin=identity.pin)
            assert await receive_exactly(stream, 7) == b"welcome"
            await send_all(stream, b"thanks")
            await stream.aclose()
            listener.close()
