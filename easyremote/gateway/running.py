"""One run of a server: its thread, its listener, its gateway, its signals.

Theory. The port is opened first, because with port 0 it decides which state folder is meant; then
the state is opened, which makes key and certificate at the first start; then connections are
served until somebody says stop. Stopping drains: no new calls, running ones may end within the
grace, and a second signal ends the wait.

Rules of this file. 1) Everything lives in one `trio.run`; other threads come in by `stop` and `ask`
alone. 2) What went wrong is in `error` when `ready` is set.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from ..facts import TLSConfig
from ..log import Log
from ..scheduler.policy import DEFAULT, Policy
from ..transport import ALPN, HTTP_ALPN, Incoming, TlsListener
from ..transport.listener import open_listener
from ..transport.tls_stream import bare_server_context
from ..tuning import Slack
from .banner import print_banner
from .core import Gateway
from .http_answer import answer_http
from .limits import GatewayLimits
from .state import GatewayState

_log = Log("gateway")
R = TypeVar("R")

DRAIN_S = 30.0
"""How long running calls may go on after SIGTERM; a second signal ends the wait."""
ASK_TIMEOUT_S = 10.0
"""A gateway that answers no question of its own process for so long is stopping."""


LOOK_S = 1.0
"""How often it is seen whether memory can be given back."""
CALM_BYTES = 1024 * 1024
"""With less than this under way a gateway is calm."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a server was told."""

    host: str
    port: int
    tls: TLSConfig | None
    state_dir: Path | None
    wants_http: bool
    limits: GatewayLimits | None
    addresses: tuple[str, ...]
    policy: Policy = DEFAULT


class Running:
    """One run of a server: its thread, its listener, its gateway."""

    def __init__(self, options: Options, listening: Callable[[int], None]) -> None:
        """Prepare a run.

        Args:
            options: What the server was told.
            listening: Called with the real port as soon as it is open.
        """
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self.folder: Path | None = None
        self._options = options
        self._listening = listening
        self._gateway: Gateway | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop = trio.Event()
        self._hurry = trio.Event()
        self._grace_s = DRAIN_S
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._nursery: trio.Nursery | None = None
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
        options = self._options
        context = bare_server_context((ALPN, HTTP_ALPN))
        listener = open_listener(options.host, options.port, context, hold=True)
        try:
            state = _open_state(options, listener.port)
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
        options = self._options
        gateway = self._gateway = Gateway(state, options.limits, policy=options.policy)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(gateway.run)
            listener.admit()  # Only now: whoever gets a connection gets an answer, too.
            nursery.start_soon(listener.serve, self._handle)
            if signals and threading.current_thread() is threading.main_thread():
                await nursery.start(self._watch_signals)
                nursery.start_soon(_give_memory_back, gateway)  # This process is ours alone.
            self._listening(listener.port)
            print_banner(state, first=state.incarnation == 1, http=options.wants_http)
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
            with trio.CancelScope(deadline=incoming.deadline) as strangers:

                def authenticated() -> None:
                    strangers.deadline = math.inf
                    incoming.authenticated()

                await self._gateway.serve_peer(incoming.stream, authenticated)
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

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._over.is_set()

    def begin(self, task: Callable[[Gateway], Awaitable[R]]) -> Future[R]:
        """Run a task beside the gateway, on its thread; it is cancelled when the gateway stops.

        Thread-safe.
        """
        gateway, token, answer = self._gateway, self._token, Future[R]()
        if gateway is None or token is None or self._over.is_set():
            raise RuntimeError("the gateway is not running")

        async def run() -> None:
            try:
                answer.set_result(await task(gateway))
            except Exception as error:  # noqa: BLE001  # It belongs to who asked.
                answer.set_exception(error)
            finally:
                if not answer.done():
                    answer.set_exception(RuntimeError("the gateway was stopped meanwhile"))

        def begin_now() -> None:
            assert self._nursery is not None
            try:
                self._nursery.start_soon(run)
            except RuntimeError:  # Its nursery is closed: it is on its way out.
                answer.set_exception(RuntimeError("the gateway is not running"))

        try:
            token.run_sync_soon(begin_now)
        except trio.RunFinishedError:
            raise RuntimeError("the gateway is not running") from None
        return answer

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


async def _give_memory_back(gateway: Gateway) -> None:
    """Let a burst leave nothing behind."""
    slack = Slack()
    while True:
        await trio.sleep(LOOK_S)
        calm = gateway.dispatcher.buffers.used_bytes < CALM_BYTES
        slack.look(trio.current_time(), calm=calm)


def _open_state(options: Options, port: int) -> GatewayState:
    tls = options.tls
    return GatewayState.open(
        options.state_dir,
        options.addresses or ((options.host,) if options.host else ()),
        port,
        certificate_path=None if tls is None else Path(tls.certificate_path),
        key_path=None if tls is None else Path(tls.key_path),
    )


def _only(error: BaseException) -> BaseException:
    """Return the one error in a group of one; a nursery wraps what leaves it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
