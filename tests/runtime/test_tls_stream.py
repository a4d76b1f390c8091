"""What TLS adds to the kit: cuts are seen, half-sent records are cuts, odd waits are honoured."""

from __future__ import annotations

import gc
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from easyremote.identity.certificate import ServerIdentity
from easyremote.transport import SocketStream, StreamBroken, TlsStream
from easyremote.transport.tls_stream import client_context, open_tls, server_context

from .streams import (
    LIMIT_S,
    fill,
    receive_exactly,
    receive_rest,
    receive_some,
    send_all,
    send_for_ever,
    tcp_pair,
    tls_over,
)

pytestmark = pytest.mark.trio


def end_without_goodbye(stream: TlsStream) -> None:
    """Send FIN, as the system does for a process that dies, without `close_notify`."""
    stream._failed = True
    stream.close_now()


def reset(stream: TlsStream) -> None:
    """Send RST."""
    stream._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end_without_goodbye(stream)


async def test_a_connection_that_was_reset_before_the_handshake_is_closed() -> None:
    """Whoever was reset while it waited is an OSError, and no descriptor is left behind."""
    near, far = tcp_pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    near.close()
    with trio.fail_after(LIMIT_S):
        await trio.lowlevel.wait_readable(far)
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the moment
            await open_tls(far, client_context(pinned=True, alpn="x"), peer="near")

    assert far.fileno() == -1
    gc.collect()  # An SSLSocket that was lost would warn now.


@pytest.mark.parametrize("cut", [end_without_goodbye, reset])
async def test_a_cut_is_never_an_end(
    identity: ServerIdentity, cut: Callable[[TlsStream], None]
) -> None:
    """A connection that ends without `close_notify` is `StreamBroken`, never a clean end."""
    with trio.fail_after(LIMIT_S):
        near, far = await tls_over(*tcp_pair(), identity)
        await send_all(near, b"half of something")
        assert await receive_exactly(far, 17) == b"half of something"
        cut(near)
        with pytest.raises(StreamBroken):
            await receive_rest(far)
        with pytest.raises(StreamBroken):
            await receive_rest(far)
        far.close_now()


async def test_a_close_in_the_middle_of_a_record_is_a_cut(identity: ServerIdentity) -> None:
    """Closing while a write is half done does not look like a clean end to the other side."""
    with trio.fail_after(LIMIT_S):
        near, far = await tls_over(*tcp_pair(), identity)
        taken, again = fill(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.aclose)
            got = bytearray()
            with pytest.raises(StreamBroken):
                await receive_rest(far, got)
            far.close_now()

    assert got
    assert (taken + again).startswith(got)


async def test_one_flipped_bit_breaks_the_stream(identity: ServerIdentity) -> None:
    """Bytes that were changed on the way are never delivered."""
    near_side, near_proxy = tcp_pair()
    far_side, far_proxy = tcp_pair()
    flip = False

    async def pump(source: SocketStream, sink: SocketStream) -> None:
        view = memoryview(bytearray(65536))
        while size := await receive_some(source, view):
            if flip:
                view[size - 1] ^= 1
            await send_all(sink, view[:size])

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            left, right = SocketStream(near_proxy, "near"), SocketStream(far_proxy, "far")
            nursery.start_soon(pump, left, right)
            nursery.start_soon(pump, right, left)
            near, far = await tls_over(near_side, far_side, identity)
            await send_all(near, b"intact")
            assert await receive_exactly(far, 6) == b"intact"
            flip = True
            await send_all(near, b"changed")
            with pytest.raises(StreamBroken):
                await receive_rest(far)
            nursery.cancel_scope.cancel()
        for stream in (near, far, left, right):
            stream.close_now()


async def test_a_send_that_fails_leaves_the_last_words_readable(identity: ServerIdentity) -> None:
    """After a failed send, what the other side said before it went away can still be read."""
    with trio.fail_after(LIMIT_S):
        near, far = await tls_over(*tcp_pair(), identity)
        await send_all(far, b"you are not welcome")
        far.close_now()
        with pytest.raises(StreamBroken):
            await send_for_ever(near)

        assert await receive_exactly(near, 19) == b"you are not welcome"
        near.close_now()


class ScriptedSocket(socket.socket):
    """A real socket that answers its first receive and its first send as a script says."""

    receive_error: ssl.SSLError | None = None
    send_error: ssl.SSLError | None = None

    def selected_alpn_protocol(self) -> str | None:
        return None

    def unwrap(self) -> socket.socket:
        return self

    def recv_into(self, *args: Any) -> int:
        if (error := self.receive_error) is not None:
            self.receive_error = None
            raise error
        return super().recv_into(*args)

    def send(self, *args: Any) -> int:
        if (error := self.send_error) is not None:
            self.send_error = None
            raise error
        return super().send(*args)


def scripted() -> tuple[TlsStream, ScriptedSocket, socket.socket]:
    near, far = socket.socketpair()
    sock = ScriptedSocket(fileno=near.detach())
    return TlsStream(cast("ssl.SSLSocket", sock), "scripted"), sock, far


async def test_a_read_that_wants_to_write_waits_for_room() -> None:
    """During a key update a read may wait for room to send; nothing has to arrive for that."""
    stream, sock, far = scripted()
    sock.receive_error = ssl.SSLWantWriteError()
    with trio.fail_after(LIMIT_S):
        assert stream.try_receive_into(memoryview(bytearray(9))) is None
        await stream.wait_receivable()
        far.send(b"now")

        assert await receive_some(stream, memoryview(bytearray(9))) == 3
    stream.close_now()
    far.close()


async def test_a_write_that_wants_to_read_waits_for_bytes() -> None:
    """A write may have to wait for bytes, together with a reader that waits for them, too."""
    stream, sock, far = scripted()
    sock.send_error = ssl.SSLWantReadError()
    with trio.fail_after(LIMIT_S):
        assert stream.try_send(memoryview(b"data")) is None
        woken: list[str] = []

        async def wait_sendable() -> None:
            await stream.wait_sendable()
            woken.append("sender")

        async def wait_receivable() -> None:
            await stream.wait_receivable()
            woken.append("receiver")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_receivable)
            nursery.start_soon(wait_sendable)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            far.send(b"key update")

        assert sorted(woken) == ["receiver", "sender"]
        assert stream.try_send(memoryview(b"data")) == 4
    stream.close_now()
    far.close()


async def test_a_retry_with_other_bytes_is_our_bug(identity: ServerIdentity) -> None:
    """OpenSSL has encrypted what it was offered: offering something else is refused."""
    with trio.fail_after(LIMIT_S):
        near, far = await tls_over(*tcp_pair(), identity)
        _, again = fill(near)
        with pytest.raises(AssertionError, match="same bytes"):
            near.try_send(memoryview(again)[1:])
        near.close_now()
        far.close_now()


async def test_older_tls_is_refused(identity: ServerIdentity) -> None:
    """Neither side speaks anything older than TLS 1.3."""
    server = server_context(identity.certificate_path, identity.key_path, alpn=("x",))
    client = client_context(pinned=True, alpn="x")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    near_sock, far_sock = tcp_pair()

    async def accept() -> None:
        with pytest.raises(ssl.SSLError):
            await open_tls(far_sock, server, peer="client", server_side=True)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            with pytest.raises(ssl.SSLError):
                await open_tls(near_sock, old, peer="server")

    assert server.minimum_version == client.minimum_version == ssl.TLSVersion.TLSv1_3
    assert server.num_tickets == 0
