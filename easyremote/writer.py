"""The sending half of a link: chunks of a connection into a byte stream, as far as it takes them.

Theory. Sending is tried at once, by whoever caused it; only a stream that is full is waited for,
by the task that runs `run`. A peer that does not take its bytes costs memory, so its patience is
limited twice: something must be taken within a deadline, and what the peer itself causes to be
said (answers, credit, notices) must not pile up beyond a limit while it takes nothing.

Rules of this file. 1) A chunk is sent whole before the next one is asked for. 2) The clock is
looked at only when the stream is full: a send that succeeds costs nothing more.

Source. promises.md, `OUT_PENDING_MAX` and `WRITE_DEADLINE`.
"""

from __future__ import annotations

import trio

from .transport import ByteStream
from .wire.connection import Connection
from .wire.errors import ErrorCode, ProtocolError
from .wire.outgoing import Chunk

WRITE_BUDGET_BYTES = 256 * 1024
"""Bytes that one flush sends before the writer task takes over."""
CHUNK_COST_BYTES = 4 * 1024
"""Bytes that a chunk counts there at least: about what a small one takes to send."""


class Writer:
    """What a link sends with.

    Attributes:
        full: The stream takes nothing now, or a flush has sent enough: the task goes on.
        full_since: When the stream last took something before it became full; None if it is not.
    """

    __slots__ = ("_chunk", "_connection", "_stream", "_wake", "full", "full_since")

    def __init__(self, stream: ByteStream, connection: Connection) -> None:
        self._stream = stream
        self._connection = connection
        self._chunk: Chunk = []
        self._wake = trio.Event()
        self.full = False
        self.full_since: float | None = None

    @property
    def pending(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._chunk) or self._connection.wants_write

    def send(self) -> None:
        """Send until there is nothing, the stream is full, or the budget is spent.

        Raises:
            StreamBroken: The stream can no longer be used; what was left is forgotten.
        """
        next_chunk, budget = self._connection.data_to_send, WRITE_BUDGET_BYTES
        while budget > 0:
            if not self._chunk:
                self._chunk = next_chunk()
                if not self._chunk:
                    self.full_since = None
                    return
            sent = self._send_chunk()
            if self.full:
                return
            budget -= max(sent, CHUNK_COST_BYTES)
        self._becomes_full(None)

    def _send_chunk(self) -> int:
        """Send the current chunk, or as much of it as the stream takes; return its size."""
        chunk, try_send, total = self._chunk, self._stream.try_send, 0
        while chunk:
            buffer = chunk[0]
            sent = try_send(memoryview(buffer))
            if sent is None:
                since = self.full_since
                self._becomes_full(trio.current_time() if total or since is None else since)
                break
            total += sent
            self.full_since = None
            if sent == len(buffer):
                del chunk[0]
            else:
                chunk[0] = memoryview(buffer)[sent:]
        return total

    def _becomes_full(self, since: float | None) -> None:
        self.full = True
        self.full_since = since
        self._wake.set()

    async def wait_full(self) -> None:
        """Wait until there is something to wait for: the stream is full."""
        await self._wake.wait()
        self._wake = trio.Event()

    def overdue(self, now: float) -> ProtocolError | None:
        """Say what is wrong with a peer that does not take its bytes; None if nothing is."""
        if self.full_since is None:
            return None
        settings = self._connection.settings
        if now >= self.full_since + settings.write_deadline_s:
            return ProtocolError(
                ErrorCode.STALLED, f"took no byte for {settings.write_deadline_s:g} s"
            )
        if self._connection.out.caused_bytes > settings.out_pending_bytes_max:
            return ProtocolError(ErrorCode.STALLED, "asks for more than it takes")
        return None

    def next_timeout(self) -> float | None:
        """Return when `overdue` is worth asking, on trio's clock."""
        since = self.full_since
        return None if since is None else since + self._connection.settings.write_deadline_s

    def forget(self) -> None:
        """The stream is gone: nothing is sent any more."""
        self._chunk = []
