"""A fault proxy: plays a plan of `tests.faults` on real connections between two real processes.

Theory. A dialler (a client or a node) is told the address of the proxy instead of the gateway's.
Each connection becomes two, and in each direction bytes go through two tasks: one that takes them
off the socket as soon as they come, and one that hands them on when the faults of the link let
them pass. A fault belongs to the *link*, not to one connection: a dialler that comes back while
the link is stalled finds it stalled. TLS is not opened, so a fault may fall anywhere in a record.

Rules of this file. 1) What a fault needs is kept in `_Way`, one for each direction. 2) Bytes are
lost or changed by faults that say so, and by no other. 3) A cut is a reset (SO_LINGER 0), a close
is a FIN: the two are different news for a TLS peer.

Source. The toxics of toxiproxy; `tests.faults`, which is also the language of the simulator.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from tests.faults import Direction, Fault, Step

PIECE_BYTES = 64 * 1024
PIECES_WAITING_MAX = 256
"""Pieces that are held back in one direction before the sender feels it."""
CLOSE_S = 1.0
"""How long a connection that is closed in order waits for the ends to close theirs."""

_HOLDING = (Fault.STALL, Fault.ONE_WAY)
_NOT_A_FAULT_OF_BYTES = frozenset({Fault.CUT, Fault.CLOSE})


@dataclass
class _Way:
    """What is wrong with one direction of the link now. Times are of trio's clock."""

    held_until: float = 0.0
    vanish_until: float = 0.0
    trickle_until: float = 0.0
    trickle_per_s: int = 1
    late_until: float = 0.0
    late_s: float = 0.0
    slice_until: float = 0.0
    slice_max: int = 1
    bytes_left: int | None = None
    flips: int = 0
    healed: trio.Event = field(default_factory=trio.Event)
    """Set and replaced when the faults of this direction are over before their time."""


class FaultProxy:
    """The link of one dialling side.

    Attributes:
        link: Its name, as steps of a plan call it.
        port: Where it listens, once it serves.
        connections: How many came so far.
        applied: How often each fault was applied.
    """

    def __init__(self, link: str, target_port: int, *, rng: random.Random | None = None) -> None:
        self.link = link
        self.port = 0
        self.connections = 0
        self.applied: dict[Fault, int] = {}
        self._target_port = target_port
        self._rng = rng or random.Random()
        self._ways = {Direction.UP: _Way(), Direction.DOWN: _Way()}
        self._open: set[_Connection] = set()
        self._nursery: trio.Nursery | None = None

    async def serve(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on 127.0.0.1 and relay until cancelled; starts with the port."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        name: tuple[str, int] = listener.socket.getsockname()
        self.port = name[1]
        async with listener, trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started(self.port)
            while True:
                near = await listener.accept()
                self.connections += 1
                nursery.start_soon(self._relay, near)

    async def play(self, plan: Iterable[Step]) -> None:
        """Apply the steps of this link, each at its time from now."""
        began = trio.current_time()
        for step in sorted(plan, key=lambda step: step.at_s):
            if step.link == self.link:
                await trio.sleep_until(began + step.at_s)
                self.apply(step)

    def apply(self, step: Step) -> None:
        """Let one fault begin now."""
        self.applied[step.fault] = self.applied.get(step.fault, 0) + 1
        if step.fault is Fault.CUT:
            self._cut()
        elif step.fault is Fault.CLOSE:
            for connection in list(self._open):
                connection.close()
        else:
            until = trio.current_time() + step.duration_s
            for direction, way in self._ways.items():
                if step.direction in (direction, Direction.BOTH):
                    _afflict(way, step, until)
            if step.fault is Fault.BLACK_HOLE:
                assert self._nursery is not None
                self._nursery.start_soon(self._cut_at, until)

    def heal(self) -> None:
        """End every fault now; what was held back is delivered."""
        for direction, way in self._ways.items():
            self._ways[direction] = _Way()
            way.healed.set()

    async def _cut_at(self, when: float) -> None:
        await trio.sleep_until(when)
        self._cut()

    def _cut(self) -> None:
        for connection in list(self._open):
            connection.cut()

    async def _relay(self, near: trio.SocketStream) -> None:
        async with near:
            try:
                far = await trio.open_tcp_stream("127.0.0.1", self._target_port)
            except OSError:  # The gateway is away: the dialler is told so, by a reset.
                _reset(near)
                return
            async with far:
                connection = _Connection(near, far)
                self._open.add(connection)
                try:
                    with connection.scope:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._direction, connection, Direction.UP)
                            nursery.start_soon(self._direction, connection, Direction.DOWN)
                    if connection.orderly:
                        await connection.part()
                finally:
                    self._open.discard(connection)

    async def _direction(self, connection: _Connection, direction: Direction) -> None:
        """Relay one direction, from its first byte to its end."""
        up = direction is Direction.UP
        source, sink = connection.ends if up else connection.ends[::-1]
        send, receive = trio.open_memory_channel[tuple[float, bytes]](PIECES_WAITING_MAX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take, connection, direction, source, send)
            async with receive:
                async for due, data in receive:
                    await trio.sleep_until(due)
                    await self._deliver(connection, direction, sink, data)
            await self._pass_hold(direction)
            if not self._vanishing:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await sink.send_eof()

    async def _take(
        self, connection: _Connection, direction: Direction, source: trio.SocketStream,
        send: trio.MemorySendChannel[tuple[float, bytes]],
    ) -> None:  # fmt: skip
        async with send:
            while True:
                try:
                    data = await source.receive_some(PIECE_BYTES)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._broken(connection)
                    return
                if not data:
                    return
                now = trio.current_time()
                way = self._ways[direction]
                await send.send((now + (way.late_s if now < way.late_until else 0.0), bytes(data)))

    async def _deliver(
        self, connection: _Connection, direction: Direction, sink: trio.SocketStream, data: bytes
    ) -> None:
        """Hand bytes on as the faults of the direction allow."""
        while data:
            await self._pass_hold(direction)
            way, now = self._ways[direction], trio.current_time()
            if now < way.vanish_until:
                return
            size = len(data)
            if now < way.trickle_until:
                size = 1
            elif now < way.slice_until:
                size = self._rng.randint(1, way.slice_max)
            if way.bytes_left is not None:
                size = min(size, way.bytes_left)
                way.bytes_left -= min(size, len(data))
            piece, data = data[:size], data[size:]
            if way.flips and piece:
                way.flips -= 1
                piece = self._flipped(piece)
            try:
                await sink.send_all(piece)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._broken(connection)
                return
            if way.bytes_left == 0:
                way.bytes_left = None
                connection.cut()
                return
            if now < way.trickle_until and data:
                with trio.move_on_at(min(now + 1.0 / way.trickle_per_s, way.trickle_until)):
                    await way.healed.wait()

    @property
    def _vanishing(self) -> bool:
        now = trio.current_time()
        return any(now < way.vanish_until for way in self._ways.values())

    def _broken(self, connection: _Connection) -> None:
        """One end is gone: the other one is told, unless nobody is told anything now."""
        if not self._vanishing:
            connection.cut()

    async def _pass_hold(self, direction: Direction) -> None:
        """Wait while the direction is stalled."""
        while trio.current_time() < (way := self._ways[direction]).held_until:
            with trio.move_on_at(way.held_until):
                await way.healed.wait()

    def _flipped(self, piece: bytes) -> bytes:
        """Return `piece` with one bit changed."""
        changed = bytearray(piece)
        changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)


class _Connection:
    """One connection of the dialler and the one to the gateway that carries it on."""

    def __init__(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        self.ends = (near, far)
        self.scope = trio.CancelScope()
        self.orderly = False

    def cut(self) -> None:
        """Reset both ends at once; bytes on the way are lost."""
        if not self.scope.cancel_called:
            for end in self.ends:
                _reset(end)
            self.scope.cancel()

    def close(self) -> None:
        """End both directions in order, wherever they stand."""
        if not self.scope.cancel_called:
            self.orderly = True
            self.scope.cancel()

    async def part(self) -> None:
        """Say FIN to both ends and let them close: unread bytes would turn it into a reset."""
        with trio.move_on_after(CLOSE_S):
            async with trio.open_nursery() as nursery:
                for end in self.ends:
                    nursery.start_soon(_see_off, end)


async def _see_off(end: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await end.send_eof()
        while await end.receive_some(PIECE_BYTES):
            pass


def _reset(end: trio.SocketStream) -> None:
    """Close a connection so that its peer sees a reset."""
    with suppress(OSError):
        end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.socket.close()


def _afflict(way: _Way, step: Step, until: float) -> None:
    """Note a fault of bytes; one of the same kind that goes on is replaced."""
    assert step.fault not in _NOT_A_FAULT_OF_BYTES
    if step.fault in _HOLDING:
        way.held_until = until
    elif step.fault is Fault.BLACK_HOLE:
        way.vanish_until = until
    elif step.fault is Fault.TRICKLE:
        way.trickle_until, way.trickle_per_s = until, max(1, step.amount)
    elif step.fault is Fault.LATENCY:
        way.late_until, way.late_s = until, step.amount / 1000
    elif step.fault is Fault.SLICE:
        way.slice_until, way.slice_max = until, max(1, step.amount)
    elif step.fault is Fault.LIMIT:
        way.bytes_left = step.amount
    else:
        assert step.fault is Fault.CORRUPT
        way.flips += 1
