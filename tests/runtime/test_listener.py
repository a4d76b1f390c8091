"""Strangers get a parser by what they ask for, ten seconds, one seat of few, and nothing else."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from easyremote.config import Address
from easyremote.errors import EasyRemoteError
from easyremote.identity.certificate import ServerIdentity
from easyremote.transport import (
    ALPN,
    Incoming,
    ListenLimits,
    SocketStream,
    StreamBroken,
    TlsListener,
    dial,
    listen,
)
from easyremote.transport.tls_stream import client_context, open_tls

from .streams import LIMIT_S, receive_exactly, receive_rest, receive_some, send_all

pytestmark = pytest.mark.trio


class Running(NamedTuple):
    """A listener that serves, and what its handler has seen."""

    listener: TlsListener
    incoming: list[Incoming]
    nursery: trio.Nursery


@asynccontextmanager
async def running(
    identity: ServerIdentity, limits: ListenLimits | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Running]:
    """Serve with a handler that says hello and stays until the other side ends."""
    seen: list[Incoming] = []

    async def handler(incoming: Incoming) -> None:
        seen.append(incoming)
        await send_all(incoming.stream, b"hello")
        if await receive_rest(incoming.stream) == b"crash":
            raise RuntimeError("a bug in the handler")

    listener = await listen(host, 0, tls=identity, limits=limits)
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, handler)
            yield Running(listener, seen, nursery)
            listener.close()
            nursery.cancel_scope.cancel()


def plain(port: int, source: str = "127.0.0.1") -> SocketStream:
    """Return a TCP connection to the listener without TLS."""
    sock = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
    return SocketStream(sock, "listener")


async def strangers_are(listener: TlsListener, count: int) -> None:
    """Wait until the listener counts so many strangers."""
    while listener.strangers != count:
        await trio.sleep(0.001)


async def hears_nothing(stream: SocketStream) -> bool:
    """Return whether the other side closes without a byte."""
    try:
        data = await receive_rest(stream)
    except StreamBroken:
        data = b""
    stream.close_now()
    return data == b""


@pytest.mark.parametrize(
    ("offered", "protocol"),
    [
        ((ALPN,), "native"),
        (("http/1.1",), "http"),
        (("h2", "http/1.1"), "http"),
        (("http/1.1", ALPN), "native"),
        ((), "http"),
    ],
)
async def test_alpn_decides_the_parser(
    identity: ServerIdentity, offered: tuple[str, ...], protocol: str
) -> None:
    """The native protocol only by its name; HTTP by its name or without any."""
    context = client_context(pinned=True, alpn=None)
    if offered:
        context.set_alpn_protocols(list(offered))
    async with running(identity) as (listener, incoming, _):
        sock = socket.create_connection(("127.0.0.1", listener.port))
        stream = await open_tls(sock, context, peer="listener")
        assert await receive_exactly(stream, 5) == b"hello"
        stream.close_now()

        assert [one.protocol for one in incoming] == [protocol]


@pytest.mark.parametrize("offered", [("h2",), ("easyremote/2", "spdy/3")])
async def test_an_unknown_protocol_gets_no_parser(
    identity: ServerIdentity, offered: tuple[str, ...]
) -> None:
    """Who offers only names that we do not know is sent away before any handler sees it."""
    context = client_context(pinned=True, alpn=None)
    context.set_alpn_protocols(list(offered))
    async with running(identity) as (listener, incoming, _):
        sock = socket.create_connection(("127.0.0.1", listener.port))
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            await open_tls(sock, context, peer="listener")

        assert incoming == []


async def talk(port: int, names: tuple[str, ...], *, in_pieces: bool) -> bytes:
    """Do a handshake by hand; return what the server says then until it closes or says hello."""
    context = client_context(pinned=True, alpn=None)
    if names:
        context.set_alpn_protocols(list(names))
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(received, sent)
    stream = plain(port)
    view = memoryview(bytearray(65536))
    heard = b""
    first = True
    while heard != b"hello":
        try:
            if client.version() is None:
                client.do_handshake()
            if not (words := client.read(100)):
                break
            heard += words
        except ssl.SSLWantReadError:
            data = sent.read()
            if data and first and in_pieces:
                body = data[5:]
                parts = (body[:40], body[40:])
                data = b"".join(data[:3] + len(part).to_bytes(2, "big") + part for part in parts)
            first = False
            if data:
                await send_all(stream, data)
            size = await receive_some(stream, view)
            received.write(view[:size])
            if not size:
                break
        except ssl.SSLZeroReturnError:
            break
    stream.close_now()
    return heard


async def test_a_hello_that_hides_its_offer_gets_no_parser(identity: ServerIdentity) -> None:
    """A hello spread over records may hide an unknown name: it is not taken for HTTP."""
    async with running(identity) as (listener, incoming, _):
        assert await talk(listener.port, (), in_pieces=False) == b"hello"
        assert await talk(listener.port, (), in_pieces=True) == b""
        assert await talk(listener.port, ("h2",), in_pieces=True) == b""
        assert await talk(listener.port, (ALPN,), in_pieces=True) == b"hello"

        assert [one.protocol for one in incoming] == ["http", "native"]


async def test_a_hello_may_come_in_drops(identity: ServerIdentity) -> None:
    """A slow network that delivers the hello in small pieces is served like any other."""
    context = client_context(pinned=True, alpn=ALPN)
    near, proxy_near = socket.socketpair()
    async with running(identity) as (listener, incoming, nursery):
        left, right = SocketStream(proxy_near, "near"), plain(listener.port)

        async def drip() -> None:
            view = memoryview(bytearray(50))
            while True:
                size = left.try_receive_into(view)
                if size is None:
                    await left.wait_receivable()
                elif not size:
                    return
                else:
                    await send_all(right, view[:size])
                    await trio.sleep(0.002)

        async def back() -> None:
            view = memoryview(bytearray(5000))
            while True:
                size = right.try_receive_into(view)
                if size is None:
                    await right.wait_receivable()
                elif not size:
                    return
                else:
                    await send_all(left, view[:size])

        nursery.start_soon(drip)
        nursery.start_soon(back)
        stream = await open_tls(near, context, peer="listener")
        assert await receive_exactly(stream, 5) == b"hello"
        nursery.cancel_scope.cancel()
        for one in (stream, left, right):
            one.close_now()

        assert [one.protocol for one in incoming] == ["native"]


async def test_plain_http_is_redirected(identity: ServerIdentity) -> None:
    """`http://` on the TLS port is answered with where to go, and then closed."""
    async with running(identity) as (listener, incoming, _):
        stream = plain(listener.port)
        await send_all(stream, b"GET /x HTTP/1.1\r\nHost: gw.example.org\r\n\r\n")
        answer = await receive_rest(stream)
        stream.close_now()

        assert answer.startswith(b"HTTP/1.1 307 ")
        assert b"Location: https://gw.example.org:%d/x\r\n" % listener.port in answer
        assert incoming == []


@pytest.mark.parametrize("data", [b"\x89ER1\r\n\x1a\n" + b"x" * 100, b"SSH-2.0-x\r\n", b"\x17"])
async def test_other_plain_text_gets_nothing(identity: ServerIdentity, data: bytes) -> None:
    """Bytes that are neither TLS nor HTTP get no answer at all."""
    async with running(identity) as (listener, incoming, _):
        stream = plain(listener.port)
        await send_all(stream, data)

        assert await hears_nothing(stream)
        assert incoming == []


async def test_broken_tls_gets_no_handler(identity: ServerIdentity) -> None:
    """A record that is no ClientHello ends the connection, and only that."""
    async with running(identity) as (listener, incoming, _):
        stream = plain(listener.port)
        await send_all(stream, b"\x16\x03\x01\x00\x05hello")
        answer = await receive_rest(stream)
        stream.close_now()
        good = await dial(Address("127.0.0.1", listener.port), pin=identity.pin)
        assert await receive_exactly(good, 5) == b"hello"
        good.close_now()

        assert answer[:1] in {b"", b"\x15"}
        assert len(incoming) == 1


@pytest.mark.parametrize("begin", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_stranger_has_little_time(identity: ServerIdentity, begin: bytes) -> None:
    """A connection that does not finish its handshake in time is closed, its seat is free."""
    async with running(identity, ListenLimits(handshake_timeout_s=0.1)) as (listener, incoming, _):
        stream = plain(listener.port)
        if begin:
            await send_all(stream, begin)
        assert await hears_nothing(stream)
        await strangers_are(listener, 0)

        assert incoming == []


async def test_a_crowd_from_one_address_does_not_keep_others_out(
    identity: ServerIdentity,
) -> None:
    """Over its limit an address is turned away at once, while another one is served."""
    limits = ListenLimits(preauth_per_ip_max=3)
    async with running(identity, limits) as (listener, _, _):
        crowd = [plain(listener.port, "127.0.0.2") for _ in range(3)]
        await strangers_are(listener, 3)
        assert await hears_nothing(plain(listener.port, "127.0.0.2"))
        stream = await dial(Address("127.0.0.1", listener.port), pin=identity.pin)
        assert await receive_exactly(stream, 5) == b"hello"
        stream.close_now()
        for one in crowd:
            one.close_now()


async def test_strangers_are_limited_in_all(identity: ServerIdentity) -> None:
    """Over the limit of all strangers nobody new is let in, until a seat is free again."""
    async with running(identity, ListenLimits(preauth_max=2)) as (listener, _, _):
        crowd = [plain(listener.port, f"127.0.0.{number}") for number in (2, 3)]
        await strangers_are(listener, 2)
        assert await hears_nothing(plain(listener.port, "127.0.0.4"))
        crowd.pop().close_now()
        stream = await dial(Address("127.0.0.1", listener.port), pin=identity.pin)
        assert await receive_exactly(stream, 5) == b"hello"
        stream.close_now()
        crowd.pop().close_now()


async def test_an_authenticated_peer_gives_its_seat_back(identity: ServerIdentity) -> None:
    """Who is known no longer counts as a stranger, however long the connection lives."""
    limits = ListenLimits(preauth_max=1)
    async with running(identity, limits) as (listener, incoming, _):
        streams = []
        for number in range(5):
            stream = await dial(Address("127.0.0.1", listener.port), pin=identity.pin)
            assert await receive_exactly(stream, 5) == b"hello"
            streams.append(stream)
            assert listener.strangers == 1
            incoming[number].authenticated()
            incoming[number].authenticated()
            assert listener.strangers == 0
        for stream in streams:
            await stream.aclose()


async def test_a_handler_that_fails_takes_only_its_own_down(identity: ServerIdentity) -> None:
    """A bug in one handler closes its connection; another connection does not notice."""
    async with running(identity) as (listener, incoming, _):
        address = Address("127.0.0.1", listener.port)
        other = await dial(address, pin=identity.pin)
        assert await receive_exactly(other, 5) == b"hello"
        victim = await dial(address, pin=identity.pin)
        await send_all(victim, b"crash")
        await victim.aclose()
        await strangers_are(listener, 1)
        assert incoming[0].stream.try_send(memoryview(b"alive")) == 5
        assert await receive_exactly(other, 5) == b"alive"
        other.close_now()


async def test_closing_the_listener_lets_connections_live(identity: ServerIdentity) -> None:
    """After `close` nobody new comes in; `serve` returns when the last handler is done."""
    listener = await listen("127.0.0.1", 0, tls=identity)
    served = trio.Event()

    async def handler(incoming: Incoming) -> None:
        await send_all(incoming.stream, await receive_rest(incoming.stream))

    async def serve() -> None:
        await listener.serve(handler)
        served.set()

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            stream = await dial(Address("127.0.0.1", listener.port), pin=identity.pin)
            listener.close()
            listener.close()
            with pytest.raises(ConnectionRefusedError):
                plain(listener.port)
            assert not served.is_set()
            await stream.aclose()
            await served.wait()


async def test_every_interface_is_heard(identity: ServerIdentity) -> None:
    """Without a host, IPv4 and (where there is any) IPv6 reach the same port."""
    async with running(identity, host="") as (listener, incoming, _):
        hosts = ["127.0.0.1", "localhost"]
        if socket.has_dualstack_ipv6():
            hosts.append("::1")
        for host in hosts:
            stream = await dial(Address(host, listener.port), pin=identity.pin)
            assert await receive_exactly(stream, 5) == b"hello"
            stream.close_now()

        assert [one.stream.peer.rpartition(":")[0] for one in incoming[:1]] == ["127.0.0.1"]


async def test_localhost_is_heard_on_one_port(identity: ServerIdentity) -> None:
    """A name with several addresses gets the same port on each of them."""
    async with running(identity, host="localhost") as (listener, _, _):
        assert {address.port for address in listener.addresses} == {listener.port}
        for address in listener.addresses:
            stream = await dial(address, pin=identity.pin)
            stream.close_now()


async def test_a_port_in_use_says_what_to_do(identity: ServerIdentity) -> None:
    """The second listener of a port is told so, with a way out."""
    async with running(identity) as (listener, _, _):
        with pytest.raises(EasyRemoteError, match="--port"):
            await listen("127.0.0.1", listener.port, tls=identity)
    with pytest.raises(EasyRemoteError, match="no such address"):
        await listen("192.0.2.1", 0, tls=identity)


async def test_unusable_files_are_named(identity: ServerIdentity, tmp_path: Path) -> None:
    """A certificate or key that cannot be used is named in the error."""
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for path in (broken, tmp_path / "missing.pem"):
        files = ServerIdentity(path, identity.key_path, identity.pin)
        with pytest.raises(EasyRemoteError, match=path.name):
            await listen("127.0.0.1", 0, tls=files)


async def test_a_crowd_that_is_turned_away_fills_no_log(
    identity: ServerIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever finds no seat gets neither a task nor a line of their own."""
    async with running(identity, ListenLimits(preauth_max=0)) as (listener, _, nursery):
        tasks = len(nursery.child_tasks)
        for _ in range(50):
            assert await hears_nothing(plain(listener.port))
        assert len(nursery.child_tasks) == tasks
    lines = [r for r in caplog.records if "too many connections" in r.getMessage()]
    assert len(lines) == 1


async def test_whoever_hangs_up_inside_its_hello_gives_its_seat_back_at_once(
    identity: ServerIdentity,
) -> None:
    """Half of a ClientHello and a close do not keep a seat for ten seconds."""
    async with running(identity) as (listener, incoming, _):
        stream = plain(listener.port)
        assert stream.try_send(memoryview(b"\x16\x03\x01")) == 3
        await strangers_are(listener, 1)
        stream.close_now()
        with trio.fail_after(2.0):
            await strangers_are(listener, 0)
        assert incoming == []
