"""A network in memory: connections with latency, and lines on which things go wrong.

Theory. Every node and client reaches the gateway over a *line* of its own. Bytes that are sent on
a connection travel along the line and arrive later, in order, at the other end, unless something is
wrong with the line. Faults belong to lines, not to connections, as in life: who dials again over a
line that swallows everything gets no further.

Rules of this file. 1) Nothing is decided by chance here but the size of slices, and that by the
line's own source. 2) What a sender was told is taken counts against its capacity until the other
end has read it, also when it was swallowed: a send buffer fills up. 3) There is no TLS, and so no
flipped bits: those would reach the protocol, which TLS never lets them.

Source. toxiproxy's toxics, as `tests.faults` names them.
"""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import trio

from easyremote.config import Address
from easyremote.errors import GatewayUnreachableError
from easyremote.timers import Timers
from easyremote.transport import StreamBroken
from tests.faults import Direction

if TYPE_CHECKING:
    from .stage import Host

CAPACITY_BYTES = 64 * 1024
TRICKLE_EVERY_S = 0.25
POWER_LOSS = 0.3
"""Of the hosts that are killed, those whose kernel says nothing to the gateway."""
HALF_OPEN = 0.5
"""Of the connections whose bytes were swallowed, those of whose end the gateway is not told."""


class Pipe:
    """One direction of a connection."""

    def __init__(self, line: Line, direction: Direction) -> None:
        self.line = line
        self.direction = direction
        self.ready = bytearray()
        self.on_the_way: deque[bytes | None] = deque()
        """Bytes that have not arrived, None for the end; the first `_due` of them have a moment."""
        self.used_bytes = 0
        self.arrived_at = 0.0
        self.closing = False
        """The end is on its way: nothing follows it."""
        self.ended = False
        self.unread = False
        self.broken: str | None = None
        self.changed = trio.lowlevel.ParkingLot()
        self._due = 0

    def push(self, data: bytes | None) -> None:
        """Send bytes, or the end of them (None)."""
        if data is not None:
            self.used_bytes += len(data)
        line = self.line
        if line.swallows or self.unread or self.closing or self.broken is not None:
            return
        self.closing = data is None
        if data is not None and line.left_bytes is not None:
            line.left_bytes -= len(data)
        self.on_the_way.append(data)
        self.move()

    def move(self) -> None:
        """Give what waits at our end of the line a moment to arrive, if the line takes it."""
        line = self.line
        while len(self.on_the_way) > self._due and not line.holds(self.direction):
            data = self.on_the_way[self._due]
            now = trio.current_time()
            when = max(self.arrived_at, now + line.latency_s)
            if data is not None and line.bytes_per_s:
                rate = line.bytes_per_s
                piece = max(1, int(rate * TRICKLE_EVERY_S))
                if len(data) > piece:
                    self.on_the_way[self._due] = data[:piece]
                    self.on_the_way.insert(self._due + 1, data[piece:])
                    data = data[:piece]
                when += len(data) / rate
            self.arrived_at = when
            if when <= now and not self._due:
                self.on_the_way.popleft()
                self._arrive(data)
            else:
                self._due += 1
                line.timers.at(when, partial(self._next_arrives, self.on_the_way))

    def _next_arrives(self, meant: deque[bytes | None]) -> None:
        if meant is not self.on_the_way or not meant:
            return
        self._due -= 1
        data = meant.popleft()
        if not self.line.swallows:
            self._arrive(data)

    def _arrive(self, data: bytes | None) -> None:
        if data is None:
            self.ended = True
        elif not self.unread:
            self.ready += data
        self.changed.unpark_all()

    def hurry(self) -> None:
        """The line is as it should be: what is on its way arrives when it would have from now."""
        self.on_the_way = deque(self.on_the_way)
        self._due = 0
        self.arrived_at = trio.current_time()
        self.move()

    def drop(self) -> None:
        """Lose what is on its way."""
        self.on_the_way = deque()
        self._due = 0
        self.ready.clear()


class End:
    """One end of a connection: a `ByteStream`."""

    def __init__(self, connection: Connection, incoming: Pipe, outgoing: Pipe, peer: str) -> None:
        self.peer = peer
        self.connection = connection
        self._incoming = incoming
        self._outgoing = outgoing
        self._open = True
        self.reset: str | None = None
        """This end knows that the connection is gone; the other one may not."""
        self.dead = False
        """Its process was killed: it says nothing more."""

    def try_receive_into(self, view: memoryview) -> int | None:
        """Receive without waiting."""
        pipe = self._incoming
        self._check(pipe)
        size = min(len(view), len(pipe.ready))
        if not size:
            return 0 if pipe.ended else None
        line = pipe.line
        if line.slice_max:
            size = min(size, line.rng.randint(1, line.slice_max))
        view[:size] = pipe.ready[:size]
        del pipe.ready[:size]
        pipe.used_bytes -= size
        pipe.changed.unpark_all()
        return size

    def try_send(self, view: memoryview) -> int | None:
        """Send without waiting, as much as there is room for."""
        pipe = self._outgoing
        self._check(pipe)
        room = pipe.line.capacity_bytes - pipe.used_bytes
        if room <= 0 and not pipe.unread:
            return None
        size = len(view) if pipe.unread else min(len(view), room)
        pipe.push(bytes(view[:size]))
        line = pipe.line
        if line.left_bytes is not None and line.left_bytes <= 0:
            line.left_bytes = None
            line.cut("the connection was cut after its last bytes")
        return size

    async def wait_receivable(self) -> None:
        """Wait until there are bytes, or the end."""
        await trio.lowlevel.checkpoint()
        pipe = self._incoming
        while self._open and not (pipe.ready or pipe.ended or pipe.broken or self.reset):
            await pipe.changed.park()
        self._check_open()

    async def wait_sendable(self) -> None:
        """Wait until there is room."""
        await trio.lowlevel.checkpoint()
        pipe = self._outgoing
        while self._open and not (
            pipe.used_bytes < pipe.line.capacity_bytes or pipe.unread or pipe.broken or self.reset
        ):
            await pipe.changed.park()
        self._check_open()

    async def aclose(self) -> None:
        """Close; what was sent stays on its way."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Close; what was sent stays on its way."""
        if self._open:
            self._open = False
            if not self.dead:
                self._outgoing.push(None)
                self._incoming.unread = True
            self._incoming.changed.unpark_all()
            self._outgoing.changed.unpark_all()
            self.connection.forget_if_over()

    def die(self) -> None:
        """The process is gone; what it still tries to do is nothing."""
        self.dead = True
        self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise StreamBroken("the stream was closed on this side")

    def _check(self, pipe: Pipe) -> None:
        self._check_open()
        if self.reset is not None:
            raise StreamBroken(self.reset)
        if pipe.broken is not None:
            raise StreamBroken(pipe.broken)


class Connection:
    """Two pipes along one line.

    Attributes:
        doomed: One end is gone and the other could not be told yet.
    """

    def __init__(self, line: Line, number: int) -> None:
        self.line = line
        self.doomed = False
        self.up, self.down = Pipe(line, Direction.UP), Pipe(line, Direction.DOWN)
        self.dialler = End(self, self.down, self.up, "gateway.sim:8080")
        self.accepter = End(self, self.up, self.down, f"{line.address}:{40000 + number}")

    def forget_if_over(self) -> None:
        """Both ends are closed: nothing can happen to it any more."""
        over = not self.dialler._open and not self.accepter._open
        if over and self in self.line.connections:
            self.line.connections.remove(self)

    def cut(self, reason: str) -> None:
        """Reset it: both ends see it at once, bytes on the way are lost."""
        self.doomed = False
        for pipe in (self.up, self.down):
            if pipe.broken is None:
                pipe.broken = reason
                pipe.drop()
                pipe.changed.unpark_all()
        if self in self.line.connections:
            self.line.connections.remove(self)

    def lose(self, reason: str) -> None:
        """The dialler is told that it is gone, the gateway is not: it has to find out."""
        self.dialler.reset = reason
        self.up.drop()
        self.up.unread = self.down.unread = True
        self.down.drop()
        self.up.changed.unpark_all()
        self.down.changed.unpark_all()
        if self in self.line.connections:
            self.line.connections.remove(self)

    def abort(self) -> None:
        """One end was killed: the other sees a reset, as soon as the line lets it through."""
        if self.line.swallows or self.line.held:
            self.doomed = True
        else:
            self.cut("the connection was reset by the peer")


class Line:
    """The way from one host to the gateway, with what is wrong with it."""

    def __init__(self, network: SimNetwork, name: str, number: int, rng: random.Random) -> None:
        self.network = network
        self.name = name
        self.address = f"192.0.2.{number}"
        self.rng = rng
        self.timers = network.timers
        self.connections: list[Connection] = []
        self.capacity_bytes = CAPACITY_BYTES
        self.base_latency_s = 0.0
        self.latency_s = 0.0
        self.slice_max = 0
        self.bytes_per_s = 0
        self.left_bytes: int | None = None
        self.held: set[Direction] = set()
        self.swallows = False
        self.changed = trio.lowlevel.ParkingLot()

    def holds(self, direction: Direction) -> bool:
        """Whether bytes wait in this direction."""
        return direction in self.held

    def cut(self, reason: str = "the connection was reset") -> None:
        """Reset every connection."""
        for connection in list(self.connections):
            connection.cut(reason)

    def give_up(self, reason: str) -> None:
        """Lose every connection; the gateway is told of some."""
        for connection in list(self.connections):
            if self.rng.random() < HALF_OPEN:
                connection.lose(reason)
            else:
                connection.cut(reason)

    def close(self) -> None:
        """End every connection in order, wherever it stands."""
        for connection in list(self.connections):
            for end in (connection.dialler, connection.accepter):
                end._outgoing.push(None)

    def move(self) -> None:
        """Something is no longer wrong: what waited goes on."""
        for connection in list(self.connections):
            if connection.doomed and not self.swallows and not self.held:
                connection.cut("the connection was reset by the peer")
            else:
                connection.up.hurry()
                connection.down.hurry()
        self.changed.unpark_all()


class SimNetwork:
    """All lines, and the gateway's port.

    Attributes:
        backlog: Connections that the gateway's kernel has taken and its process has not.
        listening: Whether somebody has the port open.
    """

    def __init__(self, timers: Timers) -> None:
        self.timers = timers
        self.lines: dict[str, Line] = {}
        self.backlog: deque[End] = deque()
        self.came = trio.lowlevel.ParkingLot()
        self.gateway: Host | None = None
        self.connections_total = 0

    def add_line(self, name: str, rng: random.Random) -> Line:
        """Make the line of a host."""
        line = self.lines[name] = Line(self, name, len(self.lines) + 1, rng)
        return line

    async def dial(self, name: str, address: Address, timeout_s: float) -> End:
        """Connect from a host to the gateway.

        Raises:
            GatewayUnreachableError: Nobody answers, or not in time.
        """
        line = self.lines[name]
        with trio.move_on_after(timeout_s):
            await trio.sleep(2 * line.latency_s)
            while line.swallows or line.held:
                await line.changed.park()
            if self.gateway is None or not self.gateway.up:
                raise GatewayUnreachableError(f"{address} refuses the connection")
            self.connections_total += 1
            connection = Connection(line, self.connections_total)
            line.connections.append(connection)
            self.backlog.append(connection.accepter)
            self.came.unpark_all()
            return connection.dialler
        raise GatewayUnreachableError(f"{address} did not answer within {timeout_s:g} s")

    def abort(self, host: Host) -> None:
        """A host was killed: tear its connections from it."""
        if host is self.gateway:
            for end in self.backlog:
                end.die()
            self.backlog.clear()
            for line in self.lines.values():
                for connection in list(line.connections):
                    connection.accepter.die()
                    connection.abort()
        elif host.name in self.lines:
            for connection in list(self.lines[host.name].connections):
                connection.dialler.die()
                if connection.line.rng.random() < POWER_LOSS:
                    connection.lose("the machine lost its power")
                else:
                    connection.abort()
