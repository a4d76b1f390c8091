"""What threads do in the product, done by tasks: the io thread, and the loop of async bodies."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from easyremote.bridge import IoThread
from easyremote.node.loops import TrioLoop, _Inbox
from easyremote.outbox import Outbox

if TYPE_CHECKING:
    from easyremote.node.executor import Executor


class LoopBridge(IoThread):
    """An `IoThread` without a thread: what is posted runs in a task of the host."""

    def __init__(self, nursery: trio.Nursery) -> None:
        """Serve in `nursery`, which ends with the host."""
        self.outbox = Outbox()
        self._posted = deque()
        self._awake = False
        self._nursery = nursery
        self._event = trio.Event()
        nursery.start_soon(self._serve)

    async def _serve(self) -> None:
        while True:
            await self._event.wait()
            self._event = trio.Event()
            self._drain()

    def _wake(self) -> None:
        self._awake = True
        self._event.set()

    def start(self) -> None:
        """Do nothing: it runs."""

    def stop(self, timeout_s: float = 5.0) -> None:
        """Do nothing: it ends with its host."""

    @property
    def alive(self) -> bool:
        """Whether it takes work."""
        return True

    def on_io_thread(self) -> bool:
        """Everything is on one thread here, so nothing may block."""
        return True


class BodyLoop(TrioLoop):
    """The loop of async bodies, on the worker's own nursery."""

    def __init__(self, executor: Executor, nursery: trio.Nursery, bridge: LoopBridge) -> None:
        self._executor = executor
        self._nursery = nursery
        self._inbox = _Inbox()
        self._inbox.wake = bridge.post

    def close(self) -> None:
        """Do nothing: bodies end with their process."""
