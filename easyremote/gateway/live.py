"""From a program's own code to the gateway that runs in it.

Theory. The classes that may be used and derived from beside a server (`FunctionRegistry`,
`SmartLoadBalancer` and so on) hold no copy of anything: each question runs on the thread of the
gateway, and is answered from what it places calls by. Which gateway is meant is said, or it is the
only one that runs in this process.

Rules of this file. 1) No more than one gateway is guessed. 2) Nothing of a gateway is touched on
another thread than its own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .core import Gateway
    from .server import Server

R = TypeVar("R")

_started: weakref.WeakSet[Server] = weakref.WeakSet()
_lock = threading.Lock()


def note_started(server: Server) -> None:
    """A server has begun to run in this process."""
    with _lock:
        _started.add(server)


def only_server() -> Server:
    """Return the server that runs in this process.

    Raises:
        RuntimeError: None does, or several do.
    """
    with _lock:
        running = [server for server in _started if server.is_running]
    if len(running) == 1:
        return running[0]
    if running:
        raise RuntimeError("several gateways run in this process; say which one: (server=...)")
    raise RuntimeError(
        "no gateway runs in this process; start one with Server(...).start(blocking=False), or "
        "give it: (server=...)"
    )


class OfServer:
    """What belongs to a running server."""

    _server: Server | None = None

    def __init__(self, server: Server | None = None) -> None:
        """Belong to a server; None for the only one that runs in this process."""
        self._server = server

    @property
    def server(self) -> Server:
        """The server that it belongs to."""
        return only_server() if self._server is None else self._server

    def bind(self, server: Server) -> None:
        """Belong to a server, unless it belongs to one already."""
        if self._server is None:
            self._server = server

    def _ask(self, question: Callable[[Gateway], R]) -> R:
        """Run `question` on the gateway's thread and return its answer."""
        return self.server.ask(question)

    async def _look(self, question: Callable[[Gateway], R]) -> R:
        """As `_ask`, without holding up the loop that runs here."""
        return await in_thread(lambda: self._ask(question))


async def in_thread(fn: Callable[[], R]) -> R:
    """Run `fn` in a thread, under whichever of asyncio and trio is running."""
    import asyncio

    import trio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return await trio.to_thread.run_sync(fn)
    return await loop.run_in_executor(None, fn)


async def outcome_of(future: Future[Any]) -> Any:
    """Wait for a future of another thread, under whichever of asyncio and trio is running."""
    import asyncio

    import trio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return await trio.to_thread.run_sync(future.result, abandon_on_cancel=True)
    return await asyncio.wrap_future(future)
