"""The link of a client process: dial, introduce ourselves, come back after a loss.

Theory. A client process has one io thread per client, and one link on it at a time. The first
attempt to connect decides: whatever goes wrong then is an error of `connect()`, or of the calls
that wait. Once there was a link, its loss is news, not an error: it is dialled again, after pauses
that grow and are spread by chance, until it is there or the gateway refuses us.

Rules of this file. 1) The address and credential are looked up at every attempt: a gateway that
was set up anew is found. 2) The pin is checked before a credential leaves (`transport.dial`).
3) Everything but `post`, `start`, `wait_ready` and `close` belongs to the io thread.

Source. seam.py, which this implements; supervise.py, the pauses.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

import trio

from ..bridge import IoThread
from ..config import with_lease
from ..errors import (
    AuthenticationError,
    EasyRemoteError,
    GatewayUnreachableError,
    LinkLostError,
    NotConnectedError,
)
from ..handlers import LinkHandler, StreamHandler
from ..identity.credential import Resolved
from ..link import Link
from ..log import Log
from ..seam import CallLinkListener
from ..stream import Stream
from ..supervise import Backoff
from ..transport import ByteStream, Network, RealNetwork
from ..wire.errors import ErrorCode, RemoteProtocolError
from ..wire.settings import Settings

_log = Log("client")

GREET_S = 20.0
"""Time in which a gateway says whether it takes us in; it delays who failed often before."""

FINAL = frozenset({ErrorCode.FORBIDDEN, ErrorCode.VERSION, ErrorCode.CLIENT_TOO_OLD})
"""Refusals that do not pass by themselves, beside those of the credential."""


class ClientLink(LinkHandler):
    """The link of one client. See the module.

    Attributes:
        info: What the gateway said when it took us in; empty before.
        error: Why there is no link, None while there is one.
    """

    def __init__(
        self, resolve: Callable[[], Resolved], hello: dict[str, object], *,
        network: Network | None = None, backoff: Backoff | None = None,
        io: IoThread | None = None, settings: Settings | None = None,
    ) -> None:  # fmt: skip
        """Prepare a link; nothing is dialled before `start`.

        Args:
            resolve: Says where the gateway is and what to show it, at each attempt.
            hello: What we say about ourselves.
            network: The way to the gateway; the real one by default.
            backoff: The pauses between attempts.
            io: Where the link runs; a thread of its own by default.
            settings: The limits of the link; the usual ones by default.
        """
        self.info: dict[str, object] = {}
        self.error: EasyRemoteError | None = None
        self._resolve = resolve
        self._hello = hello
        self._network = network or RealNetwork()
        self._backoff = backoff or Backoff()
        self._io = io or IoThread("easyremote-client")
        self._settings = settings or with_lease(Settings())
        self._listener: CallLinkListener | None = None
        self._refused: Callable[[EasyRemoteError], None] | None = None
        self._taken_in: Callable[[dict[str, object]], None] | None = None
        self._link: Link | None = None
        self._stream: ByteStream | None = None
        self._parted: trio.Event | None = None
        self._ready = threading.Event()
        self._decided = threading.Event()
        self._starting = threading.Lock()
        self._started = False
        self._closing = False
        self._ever = False

    # ---- the seam ------------------------------------------------------------------------------

    def post(self, fn: Callable[[], object]) -> None:
        """Run `fn` on the io thread soon; the first one starts the link."""
        if not self._started:
            self.start()
        self._io.post(fn)

    def listen(self, listener: CallLinkListener) -> None:
        """Tell `listener` of the link from now on."""
        self._listener = listener
        if self._link is not None:
            listener.link_up(self._link)

    def on_io_thread(self) -> bool:
        """Whether the caller runs on the io thread."""
        return self._io.on_io_thread()

    # ---- its life (any thread) -----------------------------------------------------------------

    def tell(
        self, taken_in: Callable[[dict[str, object]], None],
        refused: Callable[[EasyRemoteError], None],
    ) -> None:  # fmt: skip
        """Say who hears what a gateway said at the start, and that there will be no link."""
        self._taken_in = taken_in
        self._refused = refused

    def start(self) -> None:
        """Start to dial, unless that was done before; returns at once."""
        with self._starting:
            if self._started:
                return
            self._io.start()
            self._started = True
            _live.add(self)
        self._io.spawn(self._run)

    def wait_ready(self, timeout_s: float) -> None:
        """Block until the gateway has taken us in.

        Raises:
            EasyRemoteError: It refuses us, or cannot be reached.
        """
        self._decided.wait(timeout_s)
        if self.error is not None:
            raise self.error
        if not self._ready.is_set():
            raise GatewayUnreachableError(
                f"the gateway did not take us in within {timeout_s:g} s; try again"
            )

    @property
    def closed(self) -> bool:
        """Whether it was closed, or has given up for good."""
        return self._closing

    def close(self, timeout_s: float = 2.0) -> None:
        """Say goodbye and end the thread; not on the io thread."""
        self._closing = True
        _live.discard(self)
        if not self._started or not self._io.alive:
            return
        if self._io.on_io_thread():
            self._say_goodbye()
            return
        gone = threading.Event()
        self._io.spawn(self._part, gone)
        gone.wait(timeout_s)
        self._io.stop()

    async def _part(self, gone: threading.Event) -> None:
        self._say_goodbye()
        # The goodbye leaves while `Link.run` ends; that closes the stream.
        if self._parted is not None:
            with trio.move_on_after(1.0):
                await self._parted.wait()
        gone.set()

    def _say_goodbye(self) -> None:
        if self._link is not None:
            self._link.close()

    def forget_in_child(self) -> None:
        """In a forked child: close our copy of the socket without a word on the connection."""
        self._closing = True
        sock = getattr(self._stream, "_sock", None)
        if sock is not None:
            # The bare descriptor: a TLS goodbye would end the connection of the parent.
            os.close(sock.detach())

    # ---- connecting (io thread) ----------------------------------------------------------------

    async def _run(self) -> None:
        while not self._closing:
            error = await self._attempt()
            if self._closing:
                return
            if not self._ever or _is_final(error):
                self._end(error)
                return
            pause_s = self._backoff.next_s()
            _log.warning(
                "no link to the gateway, trying again", reason=error, pause_s=round(pause_s, 2)
            )
            await trio.sleep(pause_s)

    def _end(self, error: EasyRemoteError) -> None:
        """There will be no link."""
        self.error = error
        self._closing = True
        self._decided.set()
        if self._refused is not None:
            self._refused(error)

    async def _attempt(self) -> EasyRemoteError:
        """Connect once and stay as long as it lasts; return why it ended."""
        self.error = None
        try:
            resolved = self._resolve()
            self._stream = stream = await self._dial(resolved)
        except EasyRemoteError as error:
            return error
        except (ValueError, OSError) as error:
            return NotConnectedError(f"the settings of EasyRemote cannot be used: {error}")
        self._parted = trio.Event()
        link = Link(stream, self, dialer=True, outbox=self._io.outbox, settings=self._settings)
        link.hello("client", {"token": resolved.token}, self._hello)
        try:
            with trio.CancelScope() as scope:
                scope.deadline = trio.current_time() + GREET_S
                self._greeting = scope
                await link.run()
            if scope.cancelled_caught:
                return GatewayUnreachableError(
                    f"{link.peer} did not answer the greeting within {GREET_S:g} s; try again"
                )
        finally:
            self._stream = None
            self._parted.set()
            if self._link is not None:  # A bug of ours must not leave anybody waiting.
                self.on_lost(link, LinkLostError("the link broke in this process"))
        return self.error or GatewayUnreachableError("the gateway said goodbye")

    async def _dial(self, resolved: Resolved) -> ByteStream:
        """Return a stream to the first address that answers."""
        failed: EasyRemoteError | None = None
        for address in resolved.addresses:
            try:
                return await self._network.dial(address, pin=resolved.pin)
            except GatewayUnreachableError as error:
                failed = failed or error
        assert failed is not None
        raise failed

    # ---- what happens on the link --------------------------------------------------------------

    def on_welcome(self, link: Link, info: dict[str, object]) -> None:
        """The gateway took us in."""
        self._greeting.deadline = float("inf")
        if self._ever:
            _log.info("back at the gateway", gateway=link.peer)
        self._ever = True
        self._backoff.reset()
        self._link = link
        self.info = info
        if self._taken_in is not None:
            self._taken_in(info)
        self._ready.set()
        self._decided.set()
        if self._listener is not None:
            self._listener.link_up(link)

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        """A gateway opens no streams to a client."""
        raise RemoteProtocolError(ErrorCode.PROTOCOL, "a client takes no calls")

    def on_stream_credit(self, link: Link) -> None:
        """More calls may be opened."""
        if self._listener is not None and link is self._link:
            self._listener.link_credit()

    def on_drain(self, link: Link, reason: str) -> None:
        """The gateway is stopping: it ends the link soon, and we come back to its successor."""
        _log.info("the gateway drains", gateway=link.peer, reason=reason)

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        """The link is over; its streams were told before."""
        was_up, self._link = self._link is not None, None
        self.error = error or GatewayUnreachableError(f"{link.peer} said goodbye")
        if was_up and self._listener is not None:
            self._listener.link_down(self.error)


def _is_final(error: EasyRemoteError) -> bool:
    """Return whether trying again cannot help: somebody has to do something first."""
    return isinstance(error, AuthenticationError | NotConnectedError) or error.code in FINAL


_live: weakref.WeakSet[ClientLink] = weakref.WeakSet()
"""For forked children alone: whose sockets must be closed there."""


def _in_child() -> None:
    for link in list(_live):
        link.forget_in_child()
    _live.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
