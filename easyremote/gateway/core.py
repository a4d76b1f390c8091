"""The gateway without sockets: what all sessions share, and the tasks that run beside them.

Theory. A gateway is a store, a registry, a dispatcher and a set of sessions, on one thread that
runs trio. Whoever has a byte stream to a peer gives it to `serve_peer`: the TLS listener in the
product, a stream in memory in tests and in the simulation.

Rules of this file. 1) No sockets, no TLS, no signals. 2) Everything that runs beside the sessions
is a task of `run`. 3) Draining ends nobody's call before its time.

Source. runtime.md, "Three roles, four kinds of process".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from .. import __version__
from ..log import Log
from ..outbox import Outbox
from ..scheduler.policy import DEFAULT, Policy
from ..transport import ByteStream
from ..wire.errors import ErrorCode
from .accounts import Accounts
from .async_store import AsyncStore, watch_store
from .audited import Audited
from .boots import mark_offline, read_boots
from .database import StoreError
from .dispatcher import Dispatcher
from .grants import Grants
from .housekeeping import keep_house
from .limits import GatewayLimits
from .recovery import ASKED_S, Recovery
from .registry import Cluster, Registry
from .session import Session
from .state import GatewayState
from .store import Store
from .throttle import AuthThrottle
from .watch import Watch

_log = Log("gateway")

HOUSEKEEPING_S = 1.0
GOODBYE_S = 1.0
"""Time that all goodbyes together have to leave."""
ASKED_FOR_S = 240.0
"""How long callers may ask for calls of a node that is away: what nodes remember (wire/README)."""
DRAIN_LOOK_S = 0.05
USED_EVERY_S = 60.0
"""How often the last use of tokens is written down."""


class Gateway:
    """A running gateway. See the module.

    Attributes:
        state: Identity, store and folder.
        store: Group commit over the store.
        registry: Nodes and pools.
        recovery: What is known of calls from before this start.
        accounts: Quotas and bills.
        audited: What the audit says about calls.
        dispatcher: Calls.
        watch: How nodes are.
        grants: The right to answer calls.
        sessions: Everybody who is connected, let in or not.
        arriving: Ids of nodes that are being written down as online.
        throttle: Slows down who keeps failing to log in.
    """

    def __init__(
        self, state: GatewayState, limits: GatewayLimits | None = None, *, inline: bool = False,
        policy: Policy = DEFAULT,
    ) -> None:  # fmt: skip
        """Make a gateway around an open state folder.

        Args:
            state: Closed by whoever opened it.
            limits: Other limits than the usual ones.
            inline: Write to the store on this thread: for the simulation.
            policy: By which nodes are compared; `strategies.read_scheduler` makes them.
        """
        self.state = state
        self.limits = limits or GatewayLimits()
        self.version = __version__
        self.outbox = Outbox()
        self.store = AsyncStore(state.store, inline=inline)
        self.registry = Registry(Cluster(policy, queued_max=self.limits.queued_max))
        boots = read_boots(state.store, ASKED_FOR_S, ASKED_S)
        self.recovery = Recovery(state.incarnation, boots, trio.current_time())
        self.store.batch = self._batch
        self.accounts = Accounts(self.store, state.incarnation, trio.current_time())
        self.audited = Audited(self.store)
        self.dispatcher = Dispatcher(
            self.registry, self.limits, self.recovery, state.store.principal, self.accounts
        )
        self.watch = Watch(self.registry, self.dispatcher.placer, self._tell)
        self.grants = Grants(state.grant_key)
        self.throttle = AuthThrottle()
        self.sessions: set[Session] = set()
        self.arriving: list[str] = []
        self._nodes: dict[str, Session] = {}
        self._empty = trio.Event()
        self._started_at = trio.current_time()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the gateway going until cancelled."""
        async with self.store, trio.open_nursery() as nursery:
            nursery.start_soon(self.dispatcher.timers.run, self._batch)
            nursery.start_soon(watch_store, self.state.store, self._recheck)
            nursery.start_soon(self._keep_house)
            task_status.started()

    def _batch(self, fn: Callable[[], None]) -> None:
        self.outbox.begin()
        try:
            fn()
        finally:
            self.outbox.end()

    async def _keep_house(self) -> None:
        used_at = trio.current_time()
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            now = trio.current_time()
            self._batch(lambda: keep_house(self.dispatcher, trio.current_time()))
            await self._forget_absent(now)
            self._expire_sessions()
            self._batch(self._tell_revenue)
            self._batch(lambda: self.watch.tick(trio.current_time()))
            if now - used_at >= USED_EVERY_S:
                used_at = now
                await self._note_used()

    def _tell(self, node_id: str, change: dict[str, Any]) -> None:
        session = self._nodes.get(node_id)
        if session is not None:
            session.tell(change)

    def _tell_revenue(self) -> None:
        """Tell the nodes that have earned something what that makes in all."""
        for node_id in self.accounts.take_changed():
            session = self._nodes.get(node_id)
            if session is not None:  # Else it is told when it is back.
                session.tell({"revenue": self.accounts.earned(node_id)})

    async def _note_used(self) -> None:
        try:
            await self.store.write(Store.mark_used, self.state.store.take_used())
        except StoreError as error:
            _log.warning("cannot write down when tokens were used", reason=error)

    async def _forget_absent(self, now: float) -> None:
        """Nodes that are away for long: nobody waits for the calls that they may still have."""
        missing = self.recovery.overdue(now)
        if missing:
            _log.warning("nodes did not come back after the restart", nodes=", ".join(missing[:20]))
            self._batch(self.dispatcher.returning.judge_held)
            await self._mark_offline(missing, self.recovery.incarnation)
        away = self.registry.away_since(now - ASKED_FOR_S)
        if away and await self._mark_offline([record.node_id for record in away]):
            for record in away:
                record.online = record.link is not None
        self.registry.forget_old(now)

    async def _mark_offline(self, node_ids: list[str], lost_before: int = 0) -> bool:
        # One that is just coming in has been written down as online, and must stay so.
        absent = [one for one in node_ids if one not in self.arriving]
        try:
            await self.store.write(mark_offline, absent, lost_before)
        except StoreError as error:
            # Left as online, they are waited for after the next start: that costs time alone.
            _log.warning("cannot write down which nodes are away", reason=error)
            return False
        return True

    # ---- peers ---------------------------------------------------------------------------------

    async def serve_peer(
        self, stream: ByteStream, authenticated: Callable[[], None] = lambda: None
    ) -> None:
        """Serve one peer until its link ends.

        Args:
            stream: The connection to it.
            authenticated: Called when it is known who the peer is.
        """
        session = Session(self, stream, authenticated)
        self.sessions.add(session)
        try:
            await session.run()
        finally:
            self.gone(session)

    def admitted(self, session: Session) -> None:
        """A session was let in."""
        if session.node_id:
            self._nodes[session.node_id] = session

    def gone(self, session: Session) -> None:
        """A session is over; twice does no harm."""
        self.sessions.discard(session)
        if self.dispatcher.closing and not self.sessions:
            self._empty.set()
        if self._nodes.get(session.node_id) is session:
            del self._nodes[session.node_id]

    def node_session(self, node_id: str) -> Session | None:
        """Return the live session of a node."""
        return self._nodes.get(node_id)

    def _recheck(self) -> None:
        """Tokens or nodes have changed: end the sessions of those who may not stay."""

        def recheck_all() -> None:
            for session in list(self.sessions):
                session.recheck()

        self._batch(recheck_all)

    def _expire_sessions(self) -> None:
        now = self.state.store.clock()
        for session in list(self.sessions):
            if session.welcomed:
                expires_at = session.principal.expires_at
                if expires_at is not None and expires_at <= now:
                    session.recheck()

    # ---- the end -------------------------------------------------------------------------------

    async def drain(self, grace_s: float) -> None:
        """Take no new calls, let the running ones end for `grace_s`, then say goodbye to all."""
        dispatcher = self.dispatcher
        dispatcher.closing = True
        for session in list(self.sessions):
            session.link.drain("the gateway is stopping")
        with trio.move_on_after(grace_s):
            # Calls whose callers are away are found again after the next start.
            while dispatcher.awaited:  # noqa: ASYNC110 - asked in the last seconds only
                await trio.sleep(DRAIN_LOOK_S)
        left = dispatcher.pending
        if left:
            _log.warning("stopping with calls that have no outcome", calls=left)
        self._batch(self._say_goodbye)
        if self.sessions:
            with trio.move_on_after(GOODBYE_S):
                await self._empty.wait()

    def _say_goodbye(self) -> None:
        for session in list(self.sessions):
            session.link.close(ErrorCode.SHUTTING_DOWN, "the gateway is stopping")

    # ---- what it looks like --------------------------------------------------------------------

    def uptime_s(self, now: float) -> float:
        """Return for how long this gateway has run."""
        return now - self._started_at

    def status(self) -> dict[str, Any]:
        """Return the gauges of this gateway."""
        welcomed = [session for session in self.sessions if session.welcomed]
        nodes = [session for session in welcomed if session.node is not None]
        dispatcher, statistics = self.dispatcher, trio.lowlevel.current_statistics()
        return {
            "gateway_id": self.state.gateway_id,
            "version": self.version,
            "uptime_s": self.uptime_s(trio.current_time()),
            "port": self.state.port,
            "connections": len(self.sessions),
            "connected_clients": len(welcomed) - len(nodes),
            "connected_nodes": len(nodes),
            "functions": self.registry.offer_count(),
            "streams": sum(session.link.streams_open for session in self.sessions),
            "calls_pending": dispatcher.pending,
            "calls_queued": dispatcher.placer.queued,
            "calls_running": sum(len(r.running) for r in self.registry.nodes.values()),
            "calls_total": dispatcher.calls_total,
            "calls_failed_here": dispatcher.failures_total,
            "bytes_buffered": dispatcher.bytes_buffered(),
            "trio_tasks": statistics.tasks_living,
            "draining": dispatcher.closing,
        }
