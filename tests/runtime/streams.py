"""Pairs of connected byte streams of every kind, and the few loops that tests need on them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from easyremote.identity.certificate import ServerIdentity
from easyremote.transport import (
    ALPN,
    HTTP_ALPN,
    ByteStream,
    SocketStream,
    TlsStream,
    memory_stream_pair,
)
from easyremote.transport.tls_stream import client_context, open_tls, server_context

KINDS = ("tls", "socket", "memory")
LIMIT_S = 60
"""No test of this folder takes longer, whatever happens."""


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    return near, far


async def tls_over(
    near: socket.socket, far: socket.socket, identity: ServerIdentity
) -> tuple[TlsStream, TlsStream]:
    """Return a TLS client on `near` and a TLS server on `far`."""
    server = server_context(identity.certificate_path, identity.key_path, alpn=(ALPN, HTTP_ALPN))
    client = client_context(pinned=True, alpn=ALPN)
    made: dict[str, TlsStream] = {}

    async def open_one(name: str, sock: socket.socket, context: ssl.SSLContext) -> None:
        made[name] = await open_tls(sock, context, peer=name, server_side=name == "server")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_one, "client", near, client)
        nursery.start_soon(open_one, "server", far, server)
    return made["client"], made["server"]


@asynccontextmanager
async def stream_pair(
    kind: str, identity: ServerIdentity
) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    """Yield two connected ends of a kind; both are closed afterwards."""
    near: ByteStream
    far: ByteStream
    if kind == "tls":
        near, far = await tls_over(*tcp_pair(), identity)
    elif kind == "socket":
        left, right = socket.socketpair()
        near, far = SocketStream(left, "right"), SocketStream(right, "left")
    else:
        near, far = memory_stream_pair()
    try:
        yield near, far
    finally:
        near.close_now()
        far.close_now()


async def send_all(stream: ByteStream, data: bytes | bytearray | memoryview) -> None:
    """Send everything, waiting where there is no room."""
    view = memoryview(data)
    while view:
        sent = stream.try_send(view)
        if sent is None:
            await stream.wait_sendable()
        else:
            view = view[sent:]
            await trio.lowlevel.checkpoint()


async def send_for_ever(stream: ByteStream) -> None:
    """Send until the stream breaks."""
    while True:
        await send_all(stream, b"x" * 1000)


async def receive_some(stream: ByteStream, view: memoryview) -> int:
    """Receive at least a byte, or 0 at the end."""
    while (size := stream.try_receive_into(view)) is None:
        await stream.wait_receivable()
    return size


async def receive_exactly(stream: ByteStream, size_bytes: int) -> bytearray:
    """Receive so many bytes; the stream must have them."""
    data = bytearray(size_bytes)
    view = memoryview(data)
    while view:
        size = await receive_some(stream, view)
        assert size, "the stream ended too early"
        view = view[size:]
        await trio.lowlevel.checkpoint()
    return data


async def receive_rest(stream: ByteStream, data: bytearray | None = None) -> bytes:
    """Receive until the agreed end, into `data` if it is given."""
    data = bytearray() if data is None else data
    view = memoryview(bytearray(65536))
    while size := await receive_some(stream, view):
        data += view[:size]
        await trio.lowlevel.checkpoint()
    return bytes(data)


def fill(stream: ByteStream) -> tuple[bytes, bytes]:
    """Send until there is no room; return what was taken, and what must be offered again."""
    taken = bytearray()
    block = 0
    while True:
        data = bytes([block % 251]) * 10_000
        sent = stream.try_send(memoryview(data))
        if sent is None:
            return bytes(taken), data
        taken += data[:sent]
        if sent < len(data):
            return bytes(taken), data[sent:]
        block += 1
