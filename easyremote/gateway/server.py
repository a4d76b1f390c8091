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

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from ..errors import EasyRemoteError
from ..facts import FunctionInfo, NodeInfo, TLSConfig
from ..log import Log, configure
from ..metrics import GatewayMetrics
from ..rerun import inert
from ..scheduler.policy import ScoreWeights
from ..tuning import tune_for_relaying
from . import describe
from .core import Gateway
from .limits import GatewayLimits
from .live import OfServer, in_thread, note_started
from .measures import measure
from .running import Options, Running
from .strategies import Scheduler, read_scheduler
from .token_admin import TokenAdmin

_log = Log("gateway")
R = TypeVar("R")

WEIGHTS_DEFAULT = ScoreWeights()
GRACE_S = 5.0
START_TIMEOUT_S = 30.0


class Server:
    """A gateway.

    Args:
        port: Where to listen; 0 lets the system choose (see the attribute after `start`).
        host: Name or address to listen on; empty for every interface.
        app: Refused for now: mounting routes in an application of your own comes with REST.
        tls: A certificate and key of your own; otherwise they are made.
        auth: Refused for now: tokens are always on, and `tokens()` makes them.
        scheduler: How the node is chosen that runs a call: "score" (as None: resources, latency,
            load and capability, weighed), "round_robin", "least_loaded", "latency", "cost" or
            "random"; a function of snapshots and needs that returns one of the snapshots, its
            `node_id`, or None to let the call wait; or an instance of a class of yours that
            derives from `easyremote.gateway.SmartLoadBalancer`. One that raises, waits or
            answers nonsense is named in the log once, and the scores decide. It is asked on
            the gateway's thread for each call that comes in: it has to be quick.
        weights: How much each score counts, with "score" and strategies of your own.
        state_dir: Where everything is kept; None for `gateway/PORT` of the home folder.
        dashboard: Serve the dashboard, where it is installed.
        rest: Serve REST, where it is installed.
        limits: Other limits than the usual ones.
        addresses: Host names or addresses under which others reach the gateway, for join strings
            and the certificate: behind a router or in a cloud it cannot know them by itself.
    """

    def __init__(
        self,
        port: int = 8080,
        host: str = "",
        *,
        app: Any = None,
        tls: TLSConfig | None = None,
        auth: Any = None,
        scheduler: Scheduler | None = None,
        weights: ScoreWeights = WEIGHTS_DEFAULT,
        state_dir: Path | str | None = None,
        dashboard: bool = True,
        rest: bool = True,
        limits: GatewayLimits | None = None,
        addresses: Sequence[str] = (),
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
        self._policy = read_scheduler(scheduler, None if weights == WEIGHTS_DEFAULT else weights)
        if isinstance(scheduler, OfServer):
            scheduler.bind(self)
        self.port = port
        self.host = host
        self._tls = tls
        self._state_dir = None if state_dir is None else Path(state_dir)
        self._wants_http = dashboard or rest
        self._limits = limits
        self._addresses = tuple(addresses)
        self._running: Running | None = None

    # ---- life ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the gateway until SIGTERM, Ctrl-C or `stop`; calls that run may end first."""
        if self._is_inert():
            return
        self._refuse_second()
        configure()
        running = self._running = Running(self._options(), self._listening)
        tune_for_relaying()
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
        running = self._running = Running(self._options(), self._listening)
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
        await in_thread(lambda: self.start(blocking=False))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, with the usual grace."""
        await in_thread(self.stop)

    def _options(self) -> Options:
        return Options(
            self.host,
            self.port,
            self._tls,
            self._state_dir,
            self._wants_http,
            self._limits,
            tuple(self._addresses),
            self._policy,
        )

    def _listening(self, port: int) -> None:
        self.port = port
        note_started(self)

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
        found = self.ask(lambda gateway: describe.nodes(gateway.registry, None))
        return [NodeInfo.from_plain(one) for one in found]

    def functions(self) -> list[FunctionInfo]:
        """Return the functions of all nodes."""
        found = self.ask(lambda gateway: describe.functions(gateway.registry, None))
        return [FunctionInfo.from_plain(one) for one in found]

    def tokens(self) -> TokenAdmin:
        """Return the administration of tokens: create, list, revoke."""
        return TokenAdmin(self._folder())

    def status(self) -> dict[str, Any]:
        """Return the gauges of the gateway, as `easyremote status` shows them."""
        return self.ask(lambda gateway: gateway.status())

    def metrics(self) -> GatewayMetrics:
        """Return what the gateway measures of itself: nodes, rates, times, how even the load is."""
        return self.ask(lambda gateway: measure(gateway, trio.current_time()))

    def _folder(self) -> Path:
        running = self._running
        if running is None or running.folder is None:
            raise RuntimeError("the gateway is not running; call start(blocking=False) or run()")
        return running.folder

    @property
    def is_running(self) -> bool:
        """Whether its port is open, or is about to be closed."""
        running = self._running
        return running is not None and not running.is_over

    def ask(self, question: Callable[[Gateway], R]) -> R:
        """Return what `question` finds of the gateway's inner state, on the gateway's thread.

        For extensions; what it is given is no stable interface.
        """
        return self._now().ask(question)

    def begin(self, task: Callable[[Gateway], Awaitable[R]]) -> Future[R]:
        """Run a task beside the gateway, on the trio loop of its thread; for extensions."""
        return self._now().begin(task)

    def _now(self) -> Running:
        running = self._running
        if running is None:
            raise RuntimeError("the gateway is not running; call start(blocking=False) or run()")
        return running
