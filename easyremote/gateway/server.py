"""The gateway as a program: `Server`, its port, its banner, its signals.

Theory. A server is a `Gateway` behind a TLS listener, on a thread of its own that runs trio, or on
the thread that called `run`. Everything that it keeps lies in a state folder; the first start
makes key, certificate, database and owner token. TLS and tokens are always on, there is no switch.

Rules of this file. 1) Constructing a server does no I/O. 2) Where the script runs a second time
(as a worker of a node, or in a child of `multiprocessing`), `run` and `start` do nothing. 3) What
an option would do and nothing does yet is refused or said in a log line. 4) Secrets are shown to a
person at a terminal and are written to nothing else.

Source. api.md, "The gateway"; features.md G1 and G2; decisions.md 2, 3, 4, 20.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from ..errors import EasyRemoteError
from ..facts import FunctionInfo, NodeInfo, ScoreWeights, TLSConfig
from ..log import Log, configure
from ..rerun import inert
from ..transport import ALPN, HTTP_ALPN, ByteStream, Incoming, TlsListener
from ..transport.listener import open_listener
from ..transport.tls_stream import bare_server_context
from . import describe
from .banner import print_banner
from .core import Gateway
from .limits import GatewayLimits
from .state import GatewayState
from .token_admin import TokenAdmin

_log = Log("gateway")
R = TypeVar("R")

WEIGHTS_DEFAULT = ScoreWeights()
GRACE_S = 5.0
DRAIN_S = 30.0
"""How long running calls may go on after SIGTERM; a second signal ends the wait."""
START_TIMEOUT_S = 30.0
ASK_TIMEOUT_S = 10.0
"""A gateway that answers no question of its own process for so long is stopping."""


class Server:
    """A gateway.

    Args:
        port: Where to listen; 0 lets the system choose (see the attribute after `start`).
        host: Name or address to listen on; empty for every interface.
        app: Refused for now: mounting routes in an application of your own comes with REST.
        tls: A certificate and key of your own; otherwise they are made.
        auth: Refused for now: tokens are always on, and `tokens()` makes them.
        scheduler: Refused unless None or "least_loaded", which is what is done.
        weights: Weights of the scoring scheduler; without effect until it places calls.
        state_dir: Where everything is kept; None for `gateway/PORT` of the home folder.
        dashboard: Serve the dashboard, where it is installed.
        rest: Serve REST, where it is installed.
        limits: Other limits than the usual ones.
    """

    def __init__(
        self,
        port: int = 8080,
        host: str = "",
        *,
        app: Any = None,
        tls: TLSConfig | None = None,
        auth: Any = None,
        scheduler: Any = None,
        weights: ScoreWeights = WEIGHTS_DEFAULT,
        state_dir: Path | str | None = None,
        dashboard: bool = True,
        rest: bool = True,
        limits: GatewayLimits | None = None,
    ) -> None:
        if type(port) is not int or not 0 <= port <= 65535:
            raise ValueError(f"a port lies between 0 and 65535, not {port!r}")
        if app is not None:
            raise NotImplementedError("app= needs REST, which this version does not serve yet")
        if auth is not None:
            raise NotImplementedError(
                "auth= is not supported yet: tokens are always on; make them with "
                "`easyremote token create` or server.tokens().create(...)"
            )
        if scheduler not in (None, "least_loaded"):
            raise NotImplementedError(
                'scheduler= takes None or "least_loaded" in this version: calls go to the node '
                "with the fewest calls in flight"
            )
        self.port = port
        self.host = host
        self._tls = tls
        self._weights = weights
        self._state_dir = None if state_dir is None else Path(state_dir)
        self._wants_http = dashboard or rest
        self._limits = limits
        self._running: _Running | None = None

    # ---- life ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the gateway until SIGTERM, Ctrl-C or `stop`; calls that run may end first."""
        if self._is_inert():
            return
        self._refuse_second()
        configure()
        running = self._running = _Running(self, on_main=threading.current_thread().name)
        try:
            trio.run(running.main, True)
        finally:
            self._running = None
        if running.error is not None:
            raise running.error

    def start(self, *, blocking: bool = True) -> Server:
        """Run the gateway; with `blocking=False` return as soon as its port is open."""
        if blocking:
            self.run()
            return self
        if self._is_inert():
            return self
        self._refuse_second()
        configure()
        running = self._running = _Running(self, on_main=None)
        running.start_thread()
        if not running.ready.wait(START_TIMEOUT_S) or running.error is not None:
            self._running = None
            error = running.error or EasyRemoteError("the gateway did not start in time")
            raise error
        return self

    def start_background(self) -> Server:
        """Return as soon as the port is open; the same as `start(blocking=False)`."""
        return self.start(blocking=False)

    def stop(self, grace: float = GRACE_S) -> None:
        """Take no new calls, let running ones end for `grace` seconds, then stop.

        May be called from any thread, and again; without effect if the gateway does not run.
        """
        running = self._running
        if running is not None:
            running.stop(grace)
            if running.join():
                self._running = None

    async def __aenter__(self) -> Self:
        """Start in a thread of its own, under asyncio and under trio."""
        await _in_thread(lambda: self.start(blocking=False))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, with the usual grace."""
        await _in_thread(self.stop)

    def _is_inert(self) -> bool:
        if inert():
            _log.info("this is another run of the script: the gateway is not started again")
            return True
        return False

    def _refuse_second(self) -> None:
        if self._running is not None:
            raise RuntimeError("this gateway is running already")

    # ---- what it knows -------------------------------------------------------------------------

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes that are known, connected or not."""
        found = self._ask(lambda gateway: describe.nodes(gateway.registry, None))
        return [NodeInfo.from_plain(one) for one in found]

    def functions(self) -> list[FunctionInfo]:
        """Return the functions of all nodes."""
        found = self._ask(lambda gateway: describe.functions(gateway.registry, None))
        return [FunctionInfo.from_plain(one) for one in found]

    def tokens(self) -> TokenAdmin:
        """Return the administration of tokens: create, list, revoke."""
        return TokenAdmin(self._folder())

    def status(self) -> dict[str, Any]:
        """Return the gauges of the gateway, as `easyremote status` shows them."""
        return self._ask(lambda gateway: gateway.status())

    def _folder(self) -> Path:
        running = self._running
        if running is None or running.folder is None:
            raise RuntimeError("the gateway is not running; call start(blocking=False) or run()")
        return running.folder

    def _ask(self, question: Callable[[Gateway], R]) -> R:
        running = self._running
        if running is None:
            raise RuntimeError("the gateway is not running; call start(blocking=False) or run()")
        return running.ask(question)


class _Running:
    """One run of a server: its thread, its listener, its gateway."""

    def __init__(self, server: Server, on_main: str | None) -> None:
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self.folder: Path | None = None
        self._server = server
        self._gateway: Gateway | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop = trio.Event()
        self._hurry = trio.Event()
        self._grace_s = DRAIN_S
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._ident = 0

    def start_thread(self) -> None:
        """Run in a thread that does not keep the process alive."""
        self._thread = threading.Thread(
            target=self._thread_main, name="easyremote-gateway", daemon=True
        )
        self._thread.start()

    def _thread_main(self) -> None:
        trio.run(self.main, False)

    async def main(self, signals: bool) -> None:
        """Listen and serve until stopped. An error ends up in `error`."""
        self._token = trio.lowlevel.current_trio_token()
        self._ident = threading.get_ident()
        try:
            await self._main(signals)
        except Exception as error:  # noqa: BLE001  # The boundary of the thread.
            self.error = _only(error)
        finally:
            self._over.set()
            self.ready.set()

    async def _main(self, signals: bool) -> None:
        server = self._server
        context = bare_server_context((ALPN, HTTP_ALPN))
        listener = open_listener(server.host, server.port, context)
        try:
            state = _open_state(server, listener.port)
        except BaseException:
            listener.close()
            raise
        try:
            context.load_cert_chain(state.identity.certificate_path, state.identity.key_path)
            self.folder = state.folder
            await self._serve(listener, state, signals)
        finally:
            listener.close()
            state.close()

    async def _serve(self, listener: TlsListener, state: GatewayState, signals: bool) -> None:
        server = self._server
        gateway = self._gateway = Gateway(state, server._limits)  # noqa: SLF001
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run)
            nursery.start_soon(listener.serve, self._handle)
            if signals and threading.current_thread() is threading.main_thread():
                await nursery.start(self._watch_signals)
            server.port = listener.port
            print_banner(state, first=state.incarnation == 1, http=server._wants_http)  # noqa: SLF001
            _log.info("gateway listens", port=listener.port, state=state.folder)
            self.ready.set()
            await self._stop.wait()
            listener.close()
            await self._drain(gateway)
            nursery.cancel_scope.cancel()
        _log.info("gateway stopped", port=listener.port)

    async def _drain(self, gateway: Gateway) -> None:
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                await self._hurry.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(hurry)
            await gateway.drain(self._grace_s)
            nursery.cancel_scope.cancel()

    async def _handle(self, incoming: Incoming) -> None:
        assert self._gateway is not None
        if incoming.protocol == "native":
            await self._gateway.serve_peer(incoming.stream, incoming.authenticated)
        else:
            with trio.move_on_at(incoming.deadline):
                await answer_http(incoming.stream)

    async def _watch_signals(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        wanted = [signal.SIGTERM, signal.SIGINT]
        with trio.open_signal_receiver(*wanted) as received:
            task_status.started()
            async for number in received:
                if self._stop.is_set():
                    self._hurry.set()
                _log.info("signal", name=signal.Signals(number).name)
                self._stop.set()

    # ---- from other threads --------------------------------------------------------------------

    def stop(self, grace_s: float) -> None:
        """Stop soon. Thread-safe."""

        def now() -> None:
            self._grace_s = grace_s
            self._stop.set()

        if self._token is not None:
            try:
                self._token.run_sync_soon(now)
            except trio.RunFinishedError:
                return

    def join(self) -> bool:
        """Wait until it is over, unless that is our own thread; return whether it is."""
        if self._thread is None or self._thread is threading.current_thread():
            return False
        self._thread.join()
        return True

    def ask(self, question: Callable[[Gateway], R]) -> R:
        """Run `question` on the gateway's thread and return its answer."""
        gateway, token = self._gateway, self._token
        if gateway is None or token is None or self._over.is_set():
            raise RuntimeError("the gateway is not running")
        if threading.get_ident() == self._ident:
            return question(gateway)
        answer: Future[R] = Future()

        def answer_now() -> None:
            try:
                answer.set_result(question(gateway))
            except Exception as error:  # noqa: BLE001  # It belongs to who asked.
                answer.set_exception(error)

        try:
            token.run_sync_soon(answer_now)
            return answer.result(ASK_TIMEOUT_S)
        except (trio.RunFinishedError, TimeoutError):
            raise RuntimeError("the gateway is not running") from None


HTTP_ANSWER = (
    "This is an EasyRemote gateway. REST and the dashboard need the extra package: "
    "pip install 'easyremote[http]'\n"
)


async def answer_http(stream: ByteStream) -> None:
    """Give an HTTP client one short answer that says how to get REST, and end."""
    request = bytearray(16 * 1024)
    view, size = memoryview(request), 0
    while size < len(request) and b"\r\n\r\n" not in request[:size]:
        got = stream.try_receive_into(view[size:])
        if got is None:
            await stream.wait_receivable()
        elif not got:
            return
        else:
            size += got
    body = HTTP_ANSWER.encode()
    head = (
        "HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
    left = memoryview(head if request[:5] == b"HEAD " else head + body)
    while left:
        sent = stream.try_send(left)
        if sent is None:
            await stream.wait_sendable()
        else:
            left = left[sent:]


def _open_state(server: Server, port: int) -> GatewayState:
    tls = server._tls  # noqa: SLF001
    return GatewayState.open(
        server._state_dir,  # noqa: SLF001
        [server.host] if server.host else [],
        port,
        certificate_path=None if tls is None else Path(tls.certificate_path),
        key_path=None if tls is None else Path(tls.key_path),
    )


def _only(error: BaseException) -> BaseException:
    """Return the one error in a group of one; a nursery wraps what leaves it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _in_thread(fn: Callable[[], object]) -> None:
    """Run `fn` in a thread, under whichever of asyncio and trio is running."""
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        await trio.to_thread.run_sync(fn)
    else:
        await loop.run_in_executor(None, fn)
