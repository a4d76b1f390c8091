"""The floors of large arrays: what loops of plain blocking sockets carry.

    bulk_chain  client -> TLS relay -> TLS receiver, as the gateway is passed; with `worker`, the
                receiver passes it on over a socket pair, as an agent does to its worker
    direct      one TLS connection, no relay
    memcpy      no connection at all

Rules of this file. As in `floors`. An array is received into fresh memory, as a callee must.
"""

from __future__ import annotations

import multiprocessing as mp
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from easyremote.identity.certificate import ServerIdentity, open_server_identity

from .floors import (
    GONE,
    connected_chain,
    dial_tls,
    listen_tls,
    processes,
    receive_exactly,
)
from .harness import Measure

_BLOCK_BYTES = 256 * 1024
_ORDER = struct.Struct(">cQ")
"""What the client wants: `p` (take this many bytes) or `g` (give them back)."""

Bytes = npt.NDArray[np.uint8]


def _copy(source: socket.socket, sink: socket.socket, size: int, view: memoryview) -> None:
    while size:
        got = source.recv_into(view[: min(size, len(view))])
        if not got:
            raise EOFError
        sink.sendall(view[:got])
        size -= got


def _pass_arrays(front: socket.socket, back: socket.socket) -> None:
    order, view = memoryview(bytearray(_ORDER.size)), memoryview(bytearray(_BLOCK_BYTES))
    with suppress(*GONE):
        while True:
            receive_exactly(front, order)
            back.sendall(order)
            what, size = _ORDER.unpack(order)
            if what == b"p":
                _copy(front, back, size, view)
                _copy(back, front, 1, view)
            else:
                _copy(back, front, size, view)


def _hold_arrays(sock: socket.socket) -> None:
    """Take arrays into fresh memory, as a callee does, and give the last one back."""
    order, array = memoryview(bytearray(_ORDER.size)), np.empty(0, np.uint8)
    with suppress(*GONE):
        while True:
            receive_exactly(sock, order)
            what, size = _ORDER.unpack(order)
            if what == b"p":
                array = np.empty(size, np.uint8)
                receive_exactly(sock, array.data)
                sock.sendall(b"k")
            else:
                sock.sendall(array.data[:size])


def _bulk_relay(pipe: Connection, identity: ServerIdentity) -> None:
    agent, client = listen_tls(pipe, identity, 2)
    _pass_arrays(client, agent)


def _bulk_agent(port: int, worker: socket.socket) -> None:
    _pass_arrays(dial_tls(port), worker)


def _bulk_end(port: int, unused: socket.socket) -> None:
    unused.close()
    _hold_arrays(dial_tls(port))


def _no_worker(unused: socket.socket) -> None:
    unused.close()


def _direct_end(pipe: Connection, identity: ServerIdentity) -> None:
    (client,) = listen_tls(pipe, identity, 1)
    _hold_arrays(client)


class Bulk(NamedTuple):
    """What is measured on a connection that takes arrays and gives them back."""

    send: Measure
    receive: Measure
    verify: Callable[[], None]


def _bulk(client: socket.socket, array: Bytes) -> Bulk:
    size = array.nbytes

    def put() -> None:
        client.sendall(_ORDER.pack(b"p", size))
        client.sendall(array.data)
        assert client.recv(1) == b"k"

    def get() -> Bytes:
        client.sendall(_ORDER.pack(b"g", size))
        taken = np.empty(size, np.uint8)
        receive_exactly(client, taken.data)
        return taken

    def gigabytes_per_s(work: Callable[[], object]) -> float:
        begin = time.perf_counter()
        work()
        return size / (time.perf_counter() - begin) / 1e9

    def verify() -> None:
        put()
        assert np.array_equal(array, get())

    return Bulk(lambda: gigabytes_per_s(put), lambda: gigabytes_per_s(get), verify)


@contextmanager
def bulk_chain(array: Bytes, *, worker: bool) -> Iterator[Bulk]:
    """Yield measurements in GB/s of an array over client -> TLS relay -> TLS receiver.

    Args:
        array: What is sent.
        worker: The receiver is an agent that passes the array on to a worker by a socket pair, as
            our calls do. Without it this is the plain relay loop.
    """
    ends = (_bulk_agent, _hold_arrays) if worker else (_bulk_end, _no_worker)
    with connected_chain(_bulk_relay, *ends) as client:
        yield _bulk(client, array)


@contextmanager
def direct(array: Bytes) -> Iterator[Bulk]:
    """Yield measurements in GB/s of an array over one blocking TLS connection."""
    with tempfile.TemporaryDirectory(prefix="floor-") as folder:
        identity = open_server_identity(Path(folder))
        near, far = mp.Pipe()
        with processes() as start:
            start(_direct_end, far, identity)
            with dial_tls(near.recv()) as client:
                yield _bulk(client, array)


def memcpy(array: Bytes) -> Measure:
    """Return a measurement in GB/s of one copy into fresh memory."""

    def measure() -> float:
        begin = time.perf_counter()
        copied = array.copy()
        taken = time.perf_counter() - begin
        assert copied.nbytes == array.nbytes
        return array.nbytes / taken / 1e9

    return measure


def bare_python() -> float:
    """Return the seconds that an interpreter needs to do nothing."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - begin
