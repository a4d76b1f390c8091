"""Byte streams on sockets: what TLS and plain sockets share, and the plain one.

Theory. A non-blocking socket is tried first and waited for only when it has nothing. Trying costs
a microsecond or two when it succeeds, but more when it fails, for a failure is an exception. So
after the *first* successful read the kernel is asked how much is left (`FIONREAD`), which spares
a lone message the failing second read; a busy stream goes on reading until it fails.

Closing. A kernel that closes a socket with unread data in it sends RST and throws away what was
not yet delivered, our goodbye included. `aclose` therefore ends only the sending half, reads what
still comes and throws it away until the other side ends, too, or half a second is over.

Rules of this file. 1) Every error leaves as `StreamBroken`. 2) One receiver and one sender may
wait at a time; TLS may make both wait for the same direction, which is the one case that is shared.

Source. RFC 9112 section 9.6 (closing without losing the last bytes); tcp(7), ioctl FIONREAD.
"""

from __future__ import annotations

import array
import contextlib
import socket
import sys
from enum import Enum

import trio

from .byte_stream import StreamBroken

if sys.platform == "win32":
    _FIONREAD = None
else:
    import fcntl
    import termios

    _FIONREAD = termios.FIONREAD

LINGER_S = 0.5
"""Time that the other side has to end its half after we ended ours."""
SEND_BYTES_MAX = 512 * 1024
"""Most bytes taken by one `try_send`, above the largest frame: the unit in which others pass."""

CLOSED_HERE = "the stream was closed on this side"


class Direction(Enum):
    """What a socket can be ready for."""

    RECEIVE = "receive"
    SEND = "send"


class SocketBase:
    """Waiting and closing for a connected socket; owns it from now on."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        """Make `sock` non-blocking and take it over."""
        sock.setblocking(False)
        self.peer = peer
        self._sock = sock
        self._fd = sock.fileno()
        self._open = True
        self._ended = False
        """The other side has ended or the stream broke: nothing is left to be read."""
        self._reads = 0
        """Successful reads since the socket was last found empty."""
        self._left = array.array("i", [0])
        self._waits: dict[Direction, trio.Event] = {}

    @property
    def closed(self) -> bool:
        """Whether this side has closed the stream."""
        return not self._open

    def fileno(self) -> int:
        """Return the descriptor of the socket, -1 after it was closed."""
        return self._sock.fileno()

    async def wait_receivable(self) -> None:
        """Wait until the socket has bytes, or its end."""
        self._reads = 0
        await self._wait(Direction.RECEIVE)

    async def wait_sendable(self) -> None:
        """Wait until the socket has room."""
        await self._wait(Direction.SEND)

    async def _wait(self, direction: Direction) -> None:
        if not self._open:
            raise StreamBroken(CLOSED_HERE)
        if (shared := self._waits.get(direction)) is not None:
            await shared.wait()
            return
        done = self._waits[direction] = trio.Event()
        try:
            if direction is Direction.RECEIVE:
                await trio.lowlevel.wait_readable(self._sock)
            else:
                await trio.lowlevel.wait_writable(self._sock)
        except trio.ClosedResourceError:
            raise StreamBroken(CLOSED_HERE) from None
        except OSError as error:
            raise StreamBroken(str(error)) from error
        finally:
            del self._waits[direction]
            done.set()

    def _is_empty(self) -> bool:
        """Return whether the kernel holds no bytes for us; asked after the first read only."""
        if self._reads != 1 or _FIONREAD is None:
            return False
        fcntl.ioctl(self._fd, _FIONREAD, self._left)
        # The end of the stream looks like an empty one here: the next try is a real read.
        self._reads = 2 if self._left[0] else 0
        return not self._reads

    def close_now(self) -> None:
        """Close without waiting."""
        if self._open:
            self._begin_close()
            self._sock.close()

    async def aclose(self) -> None:
        """End our half, let the other side end its half for a moment, and close."""
        if not self._open:
            await trio.lowlevel.checkpoint()
            return
        self._begin_close()
        try:
            if self._ended:
                await trio.lowlevel.checkpoint()
            else:
                with contextlib.suppress(OSError):
                    await self._linger()
        finally:
            self._sock.close()

    def _begin_close(self) -> None:
        self._say_goodbye()
        self._open = False
        if self._waits:
            trio.lowlevel.notify_closing(self._sock)

    def _say_goodbye(self) -> None:
        """Tell the other side that our half is over, if the kind of stream has a way to."""

    async def _linger(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)
        scratch = bytearray(64 * 1024)
        with trio.move_on_after(LINGER_S):
            while True:
                try:
                    if not self._sock.recv_into(scratch):
                        return
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._sock)
                else:
                    await trio.lowlevel.checkpoint()


class SocketStream(SocketBase):
    """A byte stream on a plain socket: the pair between agent and worker, or TCP in tests.

    A plain socket cannot tell a process that died from one that ended the stream.
    """

    def try_receive_into(self, view: memoryview) -> int | None:
        """Receive without waiting."""
        assert len(view) > 0
        if not self._open:
            raise StreamBroken(CLOSED_HERE)
        if self._is_empty():
            return None
        try:
            size = self._sock.recv_into(view)
        except BlockingIOError:
            self._reads = 0
            return None
        except OSError as error:
            self._ended = True
            raise StreamBroken(f"the connection broke: {error}") from error
        if size:
            self._reads += 1
        else:
            self._reads, self._ended = 0, True
        return size

    def try_send(self, view: memoryview) -> int | None:
        """Send without waiting."""
        assert len(view) > 0
        if not self._open:
            raise StreamBroken(CLOSED_HERE)
        try:
            return self._sock.send(view[:SEND_BYTES_MAX] if len(view) > SEND_BYTES_MAX else view)
        except BlockingIOError:
            return None
        except OSError as error:
            raise StreamBroken(f"the connection broke: {error}") from error


def tune(sock: socket.socket) -> None:
    """Set the options of a TCP connection that carries frames.

    Small frames leave at once; the kernel holds little that is not on its way, so that they do
    not queue behind bulk; and a peer that acknowledges nothing for 15 s is dead.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    if (option := getattr(socket, "TCP_NOTSENT_LOWAT", None)) is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, NOTSENT_LOWAT_BYTES)


USER_TIMEOUT_MS = 15_000
"""The lease of the protocol: three pings."""
NOTSENT_LOWAT_BYTES = 128 * 1024
