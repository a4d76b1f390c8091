"""The floors: what the machine can do with the same bytes, the same hops and TLS, and no runtime.

Theory. A call travels client -> gateway -> agent -> worker and back. Its floor is a chain of
processes that are connected alike (TLS, TLS, a socket pair) and do nothing but pass bytes on:

    chain       blocking sockets, one message at a time: the floor of a lone call
    poll_chain  the same chain with poll loops and batches: the floor of many calls at once. Each
                hop looks at the header of each message, as who routes must, and at nothing else

The floors of large arrays are in `bulk_floors`.

Rules of this file. 1) Every hop is a process of its own. 2) TLS is set up as the product does it.
3) Each floor is a context manager; it yields what is measured, and ends its processes.
"""

from __future__ import annotations

import multiprocessing as mp
import select
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from easyremote.identity.certificate import ServerIdentity, open_server_identity
from easyremote.transport.socket_stream import tune
from easyremote.transport.tls_stream import client_context, server_context

from .harness import Measure, median_us

_ALPN = "floor/1"
_BATCH_BYTES = 64 * 1024
_HEADER = struct.Struct(">IBBHQ")
"""As ours: payload length, type, flags, kind, stream id."""
GONE = (EOFError, OSError)


class MessageSizes(NamedTuple):
    """Bytes of one call and of its answer on the wire, headers included."""

    call: int
    result: int


def message_sizes() -> MessageSizes:
    """Return the sizes of a call without arguments and of its empty result, as we send them."""
    from easyremote.wire.frame import HEADER_SIZE
    from easyremote.wire.message import Call, Result, encode

    call = Call(bytes(16), "noop", ["bench"], {}, None, 0, 0, b"", b"\x82\x80\xa0", [])
    result = Result(0, 1e-6, b"\xf6", [])
    return MessageSizes(HEADER_SIZE + len(encode(call)), HEADER_SIZE + len(encode(result)))


# ---- processes and connections -------------------------------------------------------------


def receive_exactly(sock: socket.socket, view: memoryview) -> None:
    """Fill `view`."""
    while view:
        size = sock.recv_into(view)
        if not size:
            raise EOFError
        view = view[size:]


def listen_tls(pipe: Connection, identity: ServerIdentity, peers: int) -> list[ssl.SSLSocket]:
    """Accept so many TLS peers, telling the parent the port and then each arrival."""
    context = server_context(identity.certificate_path, identity.key_path, alpn=(_ALPN,))
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pipe.send(listening.getsockname()[1])
        for _ in range(peers):
            sock, _ = listening.accept()
            tune(sock)
            accepted.append(context.wrap_socket(sock, server_side=True))
            pipe.send("accepted")
    return accepted


def dial_tls(port: int) -> ssl.SSLSocket:
    """Connect to a process of the chain."""
    sock = socket.create_connection(("127.0.0.1", port))
    tune(sock)
    return client_context(pinned=True, alpn=_ALPN).wrap_socket(sock)


@contextmanager
def processes() -> Iterator[Callable[..., None]]:
    """Yield a function that starts a process; end them all afterwards."""
    context = mp.get_context("spawn")
    started: list[Any] = []

    def start(target: Callable[..., None], *args: object) -> None:
        process = context.Process(target=target, args=args, daemon=True)
        process.start()
        started.append(process)

    try:
        yield start
    finally:
        for process in started:
            process.join(1.0)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def connected_chain(
    relay: Callable[..., None], agent: Callable[..., None], worker: Callable[..., None], *args: int
) -> Iterator[ssl.SSLSocket]:
    """Start relay, agent and worker; yield the client's end of the chain."""
    with tempfile.TemporaryDirectory(prefix="floor-") as folder:
        identity = open_server_identity(Path(folder))
        near, far = mp.Pipe()
        left, right = socket.socketpair()
        with processes() as start:
            start(relay, far, identity, *args)
            port = near.recv()
            start(agent, port, left, *args)
            start(worker, right, *args)
            assert near.recv() == "accepted"
            left.close()
            right.close()
            with dial_tls(port) as client:
                yield client


# ---- one message at a time -----------------------------------------------------------------


def _pass_on(front: socket.socket, back: socket.socket, call: int, result: int) -> None:
    there, again = memoryview(bytearray(call)), memoryview(bytearray(result))
    with suppress(*GONE):
        while True:
            receive_exactly(front, there)
            back.sendall(there)
            receive_exactly(back, again)
            front.sendall(again)


def _chain_relay(pipe: Connection, identity: ServerIdentity, call: int, result: int) -> None:
    agent, client = listen_tls(pipe, identity, 2)
    _pass_on(client, agent, call, result)


def _chain_agent(port: int, worker: socket.socket, call: int, result: int) -> None:
    _pass_on(dial_tls(port), worker, call, result)


def _chain_worker(agent: socket.socket, call: int, result: int) -> None:
    view, answer = memoryview(bytearray(call)), bytes(result)
    with suppress(*GONE):
        while True:
            receive_exactly(agent, view)
            agent.sendall(answer)


@contextmanager
def chain(calls: int = 500) -> Iterator[Measure]:
    """Yield a measurement of the median round trip, in microseconds, over the blocking chain."""
    sizes = message_sizes()
    with connected_chain(_chain_relay, _chain_agent, _chain_worker, *sizes) as client:
        call, view = bytes(sizes.call), memoryview(bytearray(sizes.result))

        def round_trip() -> None:
            client.sendall(call)
            receive_exactly(client, view)

        yield lambda: median_us(round_trip, calls)


# ---- many messages at once -----------------------------------------------------------------


def _message(size: int, number: int = 0) -> bytes:
    return _HEADER.pack(size - _HEADER.size, 17, 1, 1, number) + bytes(size - _HEADER.size)


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole messages in `data`, and the rest."""
    messages, position, size = [], 0, len(data)
    while position + _HEADER.size <= size:
        length, _, _, _, _ = _HEADER.unpack_from(data, position)
        end = position + _HEADER.size + length
        if end > size:
            break
        messages.append(data[position:end])
        position = end
    return messages, data[position:]


class _Side:
    """One non-blocking connection of a poll loop, with what is to be sent on it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.waiting = bytearray()
        self._block = b""
        self._rest = b""

    def receive(self) -> list[bytes]:
        """Return every whole message that has arrived."""
        parts = [self._rest]
        with suppress(BlockingIOError, ssl.SSLWantReadError):
            while True:
                data = self.sock.recv(_BATCH_BYTES)
                if not data:
                    raise EOFError
                parts.append(data)
        messages, self._rest = _split(b"".join(parts))
        return messages

    def flush(self) -> bool:
        """Send what waits; return whether all of it has gone."""
        with suppress(BlockingIOError, ssl.SSLWantWriteError):
            while self._block or self.waiting:
                if not self._block:
                    self._block = bytes(self.waiting[:_BATCH_BYTES])
                    del self.waiting[:_BATCH_BYTES]
                self._block = self._block[self.sock.send(self._block) :]
            return True
        return False


def _poll_on(left: socket.socket, right: socket.socket) -> None:
    """Pass bytes on both ways."""
    one, two = _Side(left), _Side(right)
    pairs = {left.fileno(): (one, two), right.fileno(): (two, one)}
    poller = select.poll()
    for number in pairs:
        poller.register(number, select.POLLIN)
    with suppress(*GONE):
        while True:
            for number, happened in poller.poll():
                source, sink = pairs[number]
                if happened & ~select.POLLOUT:
                    sink.waiting += b"".join(source.receive())
                for side in (source, sink):
                    wanted = select.POLLIN if side.flush() else select.POLLIN | select.POLLOUT
                    poller.modify(side.sock.fileno(), wanted)


def _poll_relay(pipe: Connection, identity: ServerIdentity, *_: int) -> None:
    agent, client = listen_tls(pipe, identity, 2)
    _poll_on(client, agent)


def _poll_agent(port: int, worker: socket.socket, *_: int) -> None:
    _poll_on(dial_tls(port), worker)


def _poll_worker(agent: socket.socket, _: int, result: int) -> None:
    rest = b""
    with suppress(*GONE):
        while data := agent.recv(_BATCH_BYTES):
            messages, rest = _split(rest + data)
            agent.sendall(b"".join([_message(result) for _ in messages]))


@contextmanager
def poll_chain(outstanding: int = 5000) -> Iterator[Measure]:
    """Yield a measurement of messages a second over the chain of poll loops."""
    sizes = message_sizes()
    with connected_chain(_poll_relay, _poll_agent, _poll_worker, *sizes) as client:
        side = _Side(client)
        poller = select.poll()
        poller.register(client.fileno(), select.POLLIN)

        def measure() -> float:
            begin = time.perf_counter()
            side.waiting += b"".join([_message(sizes.call, n) for n in range(outstanding)])
            left = outstanding
            while left:
                wanted = select.POLLIN if side.flush() else select.POLLIN | select.POLLOUT
                poller.modify(client.fileno(), wanted)
                poller.poll()
                left -= len(side.receive())
            return outstanding / (time.perf_counter() - begin)

        yield measure
