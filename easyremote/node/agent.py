"""The agent: the process of a node that owns the network, and looks after the workers.

Theory. A node is a small family. The agent never runs the user's code, so nothing that code does
can hold up a heartbeat; the workers run nothing else. The agent relays calls to them, says what
became of the calls of one that died, and has it started again. When it is asked to stop it
drains: no new calls, the running ones may finish, everybody says goodbye, nobody is left behind.

    gateway <==TLS==> agent <--socket pair--> worker 0 (the script)
                        |  <--socket pair--> replica of the script, for one isolated function
                        +--- ...

    SERVING --drain--> DRAINING --idle, grace over, told again--> ENDING --> over
       +--------- refused, script gone for good ------------------^

Rules of this file. 1) One trio run on the main thread, which is also the thread that forks.
2) Everything that was started has ended before `run` returns. 3) Nothing happens while nothing
happens, but one sample in a second.

Source. decisions.md, "Processes of a node"; runtime.md.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ..alive import Alive
from ..config import Address
from ..errors import EasyRemoteError, detail_of
from ..flow import Buffers
from ..handlers import StreamHandler
from ..log import Log
from ..outbox import Outbox
from ..stream import Stream
from ..timers import Timers
from ..transport import ByteStream, dial
from ..wire.errors import ErrorCode
from ..wire.message import FLAG_ATTACH, Dispatch, decode
from . import probe
from .agent_calls import DispatchedCall
from .agent_config import Announcement
from .agent_nested import NestedCall, NestedCalls
from .agent_orphans import Orphanage
from .agent_refusals import refuse, refuse_again
from .agent_replicas import Replicas
from .agent_session import Dial, GatewaySession
from .family import EXIT_FAILED, Family
from .offer import NodeOffer
from .process import become_subreaper
from .reporting import Reporter
from .rerun_plan import RerunPlan
from .restart import RestartIntensity
from .spec import NodeSpec
from .workers import WorkerProcess

_log = Log("node")

DRAIN_S = 30.0
"""How long running calls may go on after the node was asked to stop."""
SAME_STOP_S = 0.5
"""Time in which further signals to stop count as the first one."""
GOODBYE_S = 2.0
"""How long the goodbye to the gateway may take."""
DETECT_S = 5.0
BUFFERED_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of all calls together that may wait here without slowing other calls on their link."""

RESTARTS = RestartIntensity()


class Agent:
    """The agent of one node. See the module.

    Attributes:
        outbox: The links of this thread that have something to send.
        family: The workers.
        exit_code: Of this process, once `run` has returned.
    """

    def __init__(
        self, plan: RerunPlan | None, *, obstacle: str = "", restarts: bool = True,
        intensity: RestartIntensity = RESTARTS, drain_s: float = DRAIN_S,
        connect: Dial | None = None, rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        """Prepare an agent; inside a trio run.

        Args:
            plan: How the script is run again, None if it cannot be.
            obstacle: Why it cannot be, or cannot be as a replica.
            restarts: Whether a script that died is started again.
            intensity: How often.
            drain_s: How long running calls may go on when the node stops.
            connect: How the gateway is dialled; over TLS by default.
            rng: Spreads the attempts to come back to the gateway.
        """
        self.outbox = Outbox()
        self.exit_code = 0
        self.family = Family(self, plan, obstacle=obstacle, restarts=restarts, intensity=intensity)
        self._drain_s = drain_s
        self._dial = connect or _dial
        self._rng = rng
        self._timers = Timers(trio.current_time)
        self._buffers = Buffers(BUFFERED_BYTES_MAX)
        self._offer = NodeOffer()
        self._reporter = Reporter(self._state)
        self._replicas = Replicas(self.family, self._offer, self._reporter.free_bytes)
        self._session: GatewaySession | None = None
        self._registered_info: dict[str, Any] = {}
        self._running: dict[bytes, DispatchedCall] = {}
        self._orphans = Orphanage(self._timers, heard_at=self._heard_at)
        self._alive: Alive | None = None
        self._restarted = False
        self._nested = NestedCalls()
        self._stop_at: float | None = None
        self._draining = False
        self._ending = False
        self._detected = trio.Event()
        self._idle = trio.Event()
        self._hurry = trio.Event()
        self._over = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(
        self, first: Callable[[], WorkerProcess], spec: NodeSpec | None = None, serve: int = 1
    ) -> int:
        """Serve until the node is stopped or cannot go on.

        Args:
            first: Makes the first worker; called once the agent is up.
            spec: The node, None if the first worker will announce it.
            serve: Which `serve()` of the script it is, if the node is known.

        Returns:
            The exit code of this process. No child is left.
        """
        become_subreaper()
        with (
            trio.open_signal_receiver(*_stop_signals()) as stops,
            trio.open_signal_receiver(signal.SIGCHLD) as deaths,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_stops, stops)
                nursery.start_soon(self._watch_deaths, deaths)
                await self.serve(first, spec, serve)
                nursery.cancel_scope.cancel()
        self.family.kill_rest()
        return self.exit_code or self.family.script_exit_code

    async def serve(
        self, first: Callable[[], WorkerProcess], spec: NodeSpec | None = None, serve: int = 1
    ) -> None:
        """Do what `run` does, but for signals and what concerns this process alone."""
        self.family.spec, self.family.serve = spec, serve
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._timers.run)
            nursery.start_soon(self._detect)
            nursery.start_soon(self.family.supervise, first)
            await self._over.wait()
            nursery.cancel_scope.cancel()

    def start_task(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run a task that ends with the agent."""
        assert self._nursery is not None
        self._nursery.start_soon(async_fn, *args)

    async def _watch_stops(self, stops: Any) -> None:
        """The first SIGTERM or Ctrl-C drains, the second one ends at once."""
        async for number in stops:
            self.stop_signal(signal.Signals(number).name)

    async def _watch_deaths(self, deaths: Any) -> None:
        async for _ in deaths:
            self.family.reap()

    @property
    def _node_id(self) -> str:
        spec = self.family.spec
        return "?" if spec is None else spec.node_id

    # ---- what workers say ------------------------------------------------------------------------

    def worker_announced(self, worker: WorkerProcess, announcement: Announcement) -> None:
        """A script that we started reached `serve()`; in a first run it says which node it is."""
        if self.family.spec is None:
            self.family.spec, self.family.serve = announcement.spec, announcement.serve
            self.family.obstacle = announcement.rerun_obstacle

    def worker_ready(self, worker: WorkerProcess) -> None:
        """It takes calls."""
        self.family.worker_ready(worker)

    def worker_credit(self, worker: WorkerProcess) -> None:
        """It takes more calls than before."""
        self.family.worker_credit(worker)

    def worker_offers(self, worker: WorkerProcess, offer: dict[str, Any], first: bool) -> None:
        """The script says what it offers; what a replica says is the same once more."""
        spec = self.family.spec
        if worker.group is not None or spec is None or self._ending:
            return
        if offer.get("stuck"):
            self.family.restart_stuck(worker)
            return
        self._offer.bound(spec.limits, replicable=self.family.replicable)
        self._offer.take(offer, whole=first)
        if self._detected.is_set():
            self._replicas.offered()
        session = self._session
        if session is None:
            self._session = session = GatewaySession(self, spec, self.outbox, self._dial, self._rng)
            self.start_task(self._connect, session)
        elif first:
            session.register()
        else:
            session.update(self._offer.to_plain(spec, list(offer.get("removed") or ())))
        if session.registered:
            worker.say_registered(self._registered_info)

    def worker_calls(
        self, worker: WorkerProcess, stream: Stream, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        """A function that runs there calls another one: let it out if its ticket is good."""
        call = NestedCall(self._timers, self._buffers, stream, payload, more, end)
        if call.message.ticket not in worker.calls:
            call.refuse(
                ErrorCode.FORBIDDEN,
                "calls on the link of a worker are made by functions while they run; elsewhere, "
                "connect() a client",
            )
        else:
            self._nested.take(call, self._session)
        return call

    def worker_asks(
        self, worker: WorkerProcess, stream: Stream, kind: int, payload: bytes
    ) -> StreamHandler:
        """It opened a stream for something else than a call."""
        return self._reporter.answer(stream, kind, payload)

    def worker_drains(self, worker: WorkerProcess, reason: str) -> None:
        """The owner of the node wants it drained."""
        self.drain(reason or "the script asked for it")

    # ---- what the gateway says -------------------------------------------------------------------

    async def _detect(self) -> None:
        """Find out what this machine has; a driver that hangs costs its GPUs, not the node."""
        with trio.move_on_after(DETECT_S):
            detected = await trio.to_thread.run_sync(probe.detect, abandon_on_cancel=True)
            self._offer.know(detected, probe.facts())
        self._detected.set()

    async def _connect(self, session: GatewaySession) -> None:
        await self._detected.wait()
        self._replicas.offered()
        worker = self.family.main.worker
        roots = [] if worker is None else [worker.process.pid]
        gpus = None if self.family.spec is None else self.family.spec.limits.get("gpus")
        self.start_task(self._reporter.run, session, roots, gpus)
        await session.run()

    def _state(self) -> dict[str, Any]:
        """Return what of a sample the agent itself knows."""
        return {"calls_running": len(self._running), "replicas": self._replicas.counts()}

    def offer(self) -> dict[str, Any]:
        """Return all that the node offers."""
        assert self.family.spec is not None
        plain = self._offer.to_plain(self.family.spec)
        return {**plain, **self._orphans.to_plain(restarted=self._restarted)}

    def gateway_welcomed(self, *, restarted: bool) -> None:
        """The gateway let us in again: the one that we had, or one that was started anew."""
        self._restarted = self._restarted or restarted  # Until it has heard what we had.

    def _heard_at(self) -> float:
        """Return when the gateway was last known to be alive."""
        link = None if self._session is None else self._session.link
        if link is not None:
            self._alive = link.alive  # After the loss of the link, it is asked for once more.
        return trio.current_time() if self._alive is None else self._alive.heard_at

    def gateway_lost(self) -> None:
        """The link to the gateway is gone."""
        self._reporter.lost()
        self._orphans.link_lost()
        self._look_at_nested()

    def gateway_registered(self, info: dict[str, Any]) -> None:
        """The gateway has taken the node: tell the script."""
        self._registered_info = info
        self._restarted = False
        self._reporter.registered(self._session)
        self._look_at_nested()
        if self.family.main.worker is not None:
            self.family.main.worker.say_registered(info)
        if self._draining and self._session is not None:
            self._session.drain("the node is stopping")

    def gateway_says(self, change: dict[str, Any]) -> None:
        """The gateway wants more or fewer replicas, or says what the node has earned."""
        self._reporter.ledger.told(change)
        changed = self._replicas.wish(change.get("replicas"))
        if changed and self._session is not None and not self._ending:
            self._session.update({"functions": [self._offer.told(name) for name in changed]})

    def gateway_refused(self, error: EasyRemoteError) -> None:
        """The node cannot serve: say why, once, and end."""
        _log.error("the gateway refused the node", node_id=self._node_id, reason=error)
        if self.family.main.worker is not None:
            self.family.main.worker.say_refused(error, detail_of(error))
        self.script_ended(EXIT_FAILED, "refused by the gateway")

    def gateway_calls(self, stream: Stream, payload: bytes, more: bool, end: bool) -> StreamHandler:
        """The gateway gives us a call."""
        message = decode(Dispatch, payload)
        if message.flags & FLAG_ATTACH:
            return self._orphans.attach(stream, message)
        entry = self._offer.functions.get(message.function)
        if self._draining or entry is None:
            return refuse(stream, message, unknown=entry is None)
        if self._orphans.was_given(message):
            return refuse_again(stream, message)
        pool = self._replicas.pool_of(message.function)
        call = DispatchedCall(
            pool, self._timers, self._buffers, message, payload, stream, more, end,
            idempotent=bool(entry.get("idempotent")),
        )  # fmt: skip
        call.orphans = self._orphans
        self._running[message.call_id] = call
        self._replicas.equip(call)
        pool.submit(call)
        return call

    def gateway_credit(self) -> None:
        """The gateway takes more nested calls."""
        self._look_at_nested()

    def _look_at_nested(self) -> None:
        if self._session is not None:
            self._nested.look_again(self._session)

    def call_gone(self, call: DispatchedCall) -> None:
        """The work of a call is gone."""
        self._orphans.over(call)
        entry = self._offer.functions.get(call.function)
        self._reporter.gone(call, None if entry is None else entry.get("timeout_s"))
        if self._running.get(call.call_id) is call:
            del self._running[call.call_id]
        if not self._running:
            self._idle.set()

    # ---- the end ---------------------------------------------------------------------------------

    def stop_signal(self, reason: str, *, at_once: bool = False) -> None:
        """A signal told the node to stop: the first one drains, a later one ends it at once.

        One stop may come as several signals: to the script and to the agent, and in two ways from
        the script. So what comes close behind the first one counts as that one.
        """
        now = trio.current_time()
        if self._stop_at is None:
            self._stop_at = now
        elif now - self._stop_at > SAME_STOP_S:
            at_once = True
        if at_once and not self._hurry.is_set():
            _log.info("node stops at once", node_id=self._node_id, reason=reason)
            self._hurry.set()
        self.drain(reason)

    def drain(self, reason: str) -> None:
        """Take no new calls, let the running ones finish, and end; again means the same."""
        if self._draining:
            return
        self._draining = True
        _log.info(
            "node stops", node_id=self._node_id, reason=reason, calls_running=len(self._running)
        )
        if self._session is not None:
            self._session.drain(reason)
        self.start_task(self._drain)

    async def _drain(self) -> None:
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                await self._hurry.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(hurry)
            with trio.move_on_after(self._drain_s):
                while self._running:
                    self._idle = trio.Event()
                    await self._idle.wait()
            nursery.cancel_scope.cancel()
        self.script_ended(0, "stopped with calls running" if self._running else "drained")

    def script_ended(self, exit_code: int, reason: str) -> None:
        """Settle what still runs, say goodbye to everybody, and end."""
        if self._ending:
            return
        self._ending = self._draining = True
        self.exit_code = exit_code
        unfinished = list(self._running.values())
        for call in unfinished:
            call.stop_now(ErrorCode.NODE_LOST, f"the node ended before the call did: {reason}")
        _log.info(
            "node ended", node_id=self._node_id, reason=reason, calls_unfinished=len(unfinished)
        )
        self.start_task(self._say_goodbye)

    async def _say_goodbye(self) -> None:
        # The outcomes above leave before the goodbye that would overtake them.
        await trio.lowlevel.checkpoint()
        self.outbox.flush()
        if self._session is not None:
            self._session.close()
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                await self._hurry.wait()
                await self.family.end(at_once=True)

            nursery.start_soon(hurry)
            await self.family.end(at_once=self._hurry.is_set())
            nursery.cancel_scope.cancel()
        if self._session is not None:
            with trio.move_on_after(GOODBYE_S):
                await self._session.ended.wait()
        self._over.set()


def _stop_signals() -> list[signal.Signals]:
    """Return the signals that stop the node; the end of the terminal, unless that is ignored."""
    stops = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        stops.append(signal.SIGHUP)
    return stops


async def _dial(address: Address, pin: bytes | None) -> ByteStream:
    return await dial(address, pin=pin)
