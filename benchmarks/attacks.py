"""Peers of bad will, in a process of their own: each kind of flood, in raw frames.

Theory. An attacker of each kind is a loop: get in (or not), send as much as the transport takes of
one thing that costs it little, read and forget what comes back, and begin again when it is thrown
out. Several such loops run in one process, which takes the orders `go` and `stop` on its standard
input and says on its standard output that it has done so. A `stop` ends every connection.

Rules of this file. 1) Nothing of a link or a client is used: frames are made by `wire` or by hand,
and rules are broken on purpose. 2) An attacker has a valid token of its own, but of its own user.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from easyremote.values import plain
from easyremote.wire import cbor
from easyremote.wire import event as ev
from easyremote.wire import message as ms
from easyremote.wire.connection import Connection
from easyremote.wire.errors import ErrorCode
from easyremote.wire.frame import FrameType, pack
from easyremote.wire.settings import ALPN, MIB, Settings

LOOPS = 4
"""Connections that attack at once."""
PATIENCE_S = 5.0
NICE = 10
"""Attackers are elsewhere in the world: on this machine they must not take the cores away."""
EVIL = "evil"
"""The function and the node of the attackers: it takes calls and never answers."""
_BURST_BYTES = 64 * 1024


class Gone(Exception):
    """The gateway has ended the connection."""


class Target(NamedTuple):
    """What is attacked, and as whom."""

    port: int
    client_token: str
    node_token: str


class Peer:
    """One connection of an attacker."""

    def __init__(self, port: int, role: str, credential: dict[str, Any]) -> None:
        """Connect and get in, or raise `Gone`."""
        try:
            self.socket = _tls(port)
        except OSError as error:
            raise Gone from error
        self.wire = Connection(dialer=True, now=time.monotonic(), settings=Settings(lease_s=3600.0))
        self.wire.hello(role, credential, {"boot": os.urandom(16)})
        try:
            self.pump(lambda: self.wire.ready)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End without a word."""
        self.socket.close()

    def pump(self, done: Callable[[], bool]) -> list[ev.Event]:
        """Send and receive properly until something is so; return what happened."""
        events: list[ev.Event] = []
        deadline = time.monotonic() + PATIENCE_S
        self.socket.settimeout(0.05)
        while not done():
            while chunk := self.wire.data_to_send():
                self._send(b"".join(chunk))
            if time.monotonic() > deadline:
                raise Gone
            with contextlib.suppress(TimeoutError):
                data = self._receive()
                events += self.wire.receive(data, time.monotonic())
                if any(isinstance(event, ev.ConnectionLost) for event in events):
                    raise Gone
        return events

    def pour(self, data: bytes) -> None:
        """Send, and take what comes meanwhile."""
        self.socket.settimeout(0.0)
        view = memoryview(data)
        while view:
            self.drain()
            try:
                view = view[self.socket.send(view) :]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError):
                select.select([self.socket], [self.socket], [], 0.2)
            except OSError as error:
                raise Gone from error

    def drain(self) -> None:
        """Take what has come."""
        self.socket.settimeout(0.0)
        while True:
            try:
                data = self.socket.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                return
            except OSError as error:
                raise Gone from error
            if not data:
                raise Gone
            self.wire.receive(data, time.monotonic())

    def _send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Gone from error

    def _receive(self) -> bytes:
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            raise
        except OSError as error:
            raise Gone from error
        if not data:
            raise Gone
        return data


def _tls(port: int) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    plain_socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    try:
        return context.wrap_socket(plain_socket)
    except BaseException:
        plain_socket.close()
        raise


def _client(target: Target) -> Peer:
    return Peer(target.port, "client", {"token": target.client_token})


def _evil_call(*, segments: list[int] | None = None, function: str = f"{EVIL}.{EVIL}") -> bytes:
    node_id, _, name = function.rpartition(".")
    body = None if segments else b"\x82\x80\xa0"
    nodes = [node_id] if node_id else None
    call = ms.Call(os.urandom(16), name, nodes, {}, None, 0, 0, b"", body, segments or [])
    return ms.encode(call)


# ---- what each kind sends ------------------------------------------------------------------------


def connections(target: Target, running: threading.Event) -> None:
    """Connections that say nothing, half of a greeting, or a token that is none."""
    held: list[socket.socket] = []
    number = 0
    try:
        while running.is_set():
            number += 1
            try:
                if number % 4 == 0:
                    with contextlib.suppress(Gone):
                        Peer(target.port, "client", {"token": "erc_0000000000_nothing"}).close()
                elif number % 4 == 1:
                    held.append(_tls(target.port))
                else:
                    one = socket.create_connection(("127.0.0.1", target.port), PATIENCE_S)
                    one.send(b"\x16\x03\x01" if number % 4 == 2 else b"GET")
                    held.append(one)
            except OSError:
                time.sleep(0.001)
            while len(held) > 50:
                held.pop(0).close()
    finally:
        for one in held:
            one.close()


def _over_and_over(
    target: Target, running: threading.Event, attack: Callable[[Peer], None]
) -> None:
    """Get in, attack until thrown out or stopped, and again."""
    while running.is_set():
        peer = None
        try:
            peer = _client(target)
            while running.is_set():
                attack(peer)
        except Gone:
            time.sleep(0.001)
        finally:
            if peer is not None:
                peer.close()


def streams(target: Target, running: threading.Event) -> None:
    """Calls of a function that does not exist, as many as stream credit allows."""

    def attack(peer: Peer) -> None:
        wire = peer.wire
        while wire.streams_available > 0:
            wire.open(ms.Kind.CALL, _evil_call(function="no_such_function"), end=True)
        peer.pump(lambda: wire.streams_available > 0)

    _over_and_over(target, running, attack)


def resets(target: Target, running: threading.Event) -> None:
    """Calls that are reset in the frame after they were made."""

    def attack(peer: Peer) -> None:
        wire = peer.wire
        while wire.streams_available > 0:
            stream_id = wire.open(ms.Kind.CALL, _evil_call())
            wire.reset(stream_id, ErrorCode.CANCELLED, "")
        peer.pump(lambda: wire.streams_available > 0)

    _over_and_over(target, running, attack)


def provoked(target: Target, running: threading.Event) -> None:
    """Calls of the attackers' own node, which answers so that the gateway must reset."""

    def attack(peer: Peer) -> None:
        wire = peer.wire
        while wire.streams_available > 0:
            wire.open(ms.Kind.CALL, _evil_call(), end=True)
        peer.pump(lambda: wire.streams_available > 0)

    _over_and_over(target, running, attack)


def _pour(peer: Peer, frame: bytes) -> None:
    peer.pour(frame * (_BURST_BYTES // len(frame)))


def pings(target: Target, running: threading.Event) -> None:
    """PING without end."""
    frame = pack(FrameType.PING, 0, 0, 0, b"")
    _over_and_over(target, running, lambda peer: _pour(peer, frame))


def empty(target: Target, running: threading.Event) -> None:
    """Messages without payload and DATA frames of one byte, on calls that nobody takes up."""

    def attack(peer: Peer) -> None:
        wire = peer.wire
        while wire.streams_available > 0:
            stream_id = wire.open(ms.Kind.CALL, _evil_call(), more=True)
            peer.pump(lambda: not wire.wants_write)
            one = pack(FrameType.DATA, 0, 0, stream_id, b"x")
            peer.pour(one * min(2048, max(0, wire.out.outflow.left) // 512))
            wire.out.outflow.sent += MIB
        peer.pump(lambda: wire.streams_available > 0)

    _over_and_over(target, running, attack)


def credits_of_one(target: Target, running: threading.Event) -> None:
    """CREDIT of one byte more, again and again."""

    def attack(peer: Peer) -> None:
        total = peer.wire.settings.window_connection_bytes
        while running.is_set():
            frames = bytearray()
            while len(frames) < _BURST_BYTES:
                total += 1
                frames += pack(FrameType.CREDIT, 0, 0, 0, cbor.encode_frame([total]))
            peer.pour(bytes(frames))

    _over_and_over(target, running, attack)


def half_arrays(target: Target, running: threading.Event) -> None:
    """Calls with an array of a gigabyte each, of which a part comes and then nothing."""

    def attack(peer: Peer) -> None:
        wire = peer.wire
        while wire.streams_available > 0:
            payload = _evil_call(segments=[3, 1 << 30])
            stream_id = wire.open(ms.Kind.CALL, payload, more=True)
            frame = memoryview(bytearray(16 + 100_000))
            for _ in range(10):
                wire.forward_data(stream_id, frame, last=False, end=False)
            with contextlib.suppress(Gone):
                peer.pump(lambda: not wire.wants_write or not wire.ready)
        while running.is_set():
            peer.drain()
            time.sleep(0.05)

    _over_and_over(target, running, attack)


FLOODS: dict[str, Callable[[Target, threading.Event], None]] = {
    "connections": connections,
    "streams": streams,
    "resets": resets,
    "provoked resets": provoked,
    "pings": pings,
    "empty frames": empty,
    "credits of one byte": credits_of_one,
    "half arrays": half_arrays,
}
"""Every kind by its name."""


# ---- the node of the attackers -------------------------------------------------------------------


def _evil_node(target: Target, running: threading.Event, *, answers: bool) -> None:
    """Offer a function; break the order of messages on every call of it, or never answer."""
    secret = hashlib.sha256(target.node_token.encode()).digest()  # The same each time.
    while running.is_set():
        credential = {"node_id": EVIL, "secret": secret, "token": target.node_token}
        try:
            peer = Peer(target.port, "node", credential)
        except Gone:
            time.sleep(0.05)
            continue
        try:
            offer = {"functions": [{"name": EVIL, "group": "main", "slots": 64}]}
            peer.wire.open(ms.Kind.REGISTER, ms.encode(ms.Register(plain.encode(offer), [])))
            while running.is_set():
                events = peer.pump(_soon())
                for event in events if answers else ():
                    if isinstance(event, ev.StreamOpened) and peer.wire.ready:
                        peer.wire.send(event.stream_id, ms.Kind.ITEM, b"\x80", end=True)
        except Gone:
            time.sleep(0.001)
        finally:
            peer.close()


def _silent_node(target: Target, running: threading.Event) -> None:
    _evil_node(target, running, answers=False)


def _breaking_node(target: Target, running: threading.Event) -> None:
    _evil_node(target, running, answers=True)


def _soon() -> Callable[[], bool]:
    until = time.monotonic() + 0.1
    return lambda: time.monotonic() > until


# ---- the process ---------------------------------------------------------------------------------


def main(kind: str, target: Target) -> None:
    """Take orders until standard input ends."""
    flood = FLOODS[kind]
    with contextlib.suppress(OSError):
        os.nice(NICE)
    running = threading.Event()
    threads: list[threading.Thread] = []
    for order in sys.stdin:
        if order.strip() == "go":
            running.set()
            bodies: list[Callable[[Target, threading.Event], None]] = [flood] * LOOPS
            if kind == "provoked resets":
                bodies.append(_breaking_node)
            elif kind != "connections":
                bodies.append(_silent_node)
            threads = [
                threading.Thread(target=body, args=(target, running), daemon=True)
                for body in bodies
            ]
            for thread in threads:
                thread.start()
        else:
            running.clear()
            for thread in threads:
                thread.join(2 * PATIENCE_S)
        print("done", flush=True)


class Attackers:
    """The process of the attackers, as the one that gives it orders sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def order(self, word: str) -> None:
        """Give the order `go` or `stop`, and wait until it was taken."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "done\n":
            raise RuntimeError("the attackers have ended")


@contextmanager
def attackers(kind: str, target: Target) -> Iterator[Attackers]:
    """Start attackers, who wait for orders; end them afterwards."""
    words = [sys.executable, "-m", "benchmarks.attacks", kind, *map(str, target)]
    process = subprocess.Popen(  # noqa: S603  # Our own interpreter and module.
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Attackers(process)
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main(sys.argv[1], Target(int(sys.argv[2]), sys.argv[3], sys.argv[4]))
