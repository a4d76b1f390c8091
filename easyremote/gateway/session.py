"""One peer of the gateway: who it is, and what it may do on its link.

Theory. A link begins with nobody. HELLO names a role and shows a credential; until that was found
good nothing else is looked at, and every refusal is one short constant answer. From then on the
session knows a principal. A client opens streams with calls and queries; a node opens one with
its registration, and others for calls that its functions make, which are calls of whoever called
the function.

    CONNECTED --hello--> GREETED --good--> OPEN --drain, loss--> ENDED
                            +-----refused------------------------->+

A node id has one live session. The same agent that comes back on a new link takes its old one
over at once; another boot of the same node is let in only when the old link has proved dead, so
that two copies of a node cannot push each other out in turns.

Rules of this file. 1) Handlers are synchronous; what waits (disk, throttle, the proof of death)
runs in the session's own nursery. 2) The principal is asked for again whenever tokens changed.
3) What a peer may not open ends its link.

Source. promises.md 4.2, T9, T12; features.md N3.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVarTuple

import trio

from ..errors import EasyRemoteError
from ..handlers import LinkHandler, StreamHandler
from ..identity.role import Operation, Principal
from ..link import Link
from ..log import Log
from ..transport.listener import place_of
from ..wire.errors import ErrorCode, RemoteProtocolError
from ..wire.event import HelloReceived
from ..wire.message import Kind
from . import events
from .boots import boot_of, take_boot
from .callers import Caller
from .offer import BadOffer, node_id
from .pool import NodeRecord
from .queries import QueryHandler
from .records import Refusal
from .registration import RegistrationHandler
from .routing import Routes
from .store import Store

if TYPE_CHECKING:
    from ..stream import Stream
    from ..transport import ByteStream
    from .core import Gateway

_log = Log("gateway")
Ts = TypeVarTuple("Ts")

BOOT_BYTES_MAX = 64
TASKS_MAX = 16
"""Queries of one session that wait for the disk at once."""
REPLIES_BYTES_MAX = 64 * 1024 * 1024
"""Bytes that wait for a client that asks for more."""


class Session(LinkHandler):
    """One peer. See the module.

    Attributes:
        principal: Who it is; set when it was let in.
        caller: What is kept about that user's calls.
        routes: Where its calls go.
        node: The node that it is, or None for a client.
        node_id: The id of the node that it is or was, empty for a client.
        welcomed: It was let in and is not over.
    """

    principal: Principal
    caller: Caller
    routes: Routes

    def __init__(
        self, gateway: Gateway, stream: ByteStream, authenticated: Callable[[], None]
    ) -> None:
        self.gateway = gateway
        self._authenticated = authenticated
        self.link = Link(
            stream, self, dialer=False, outbox=gateway.outbox, settings=gateway.limits.link
        )
        self.address = address_of(stream.peer)
        self._place = place_of(self.address)
        self._registration: RegistrationHandler | None = None
        self.node: NodeRecord | None = None
        self.node_id = ""
        self.welcomed = False
        self._hello: HelloReceived | None = None
        self._said_hello = trio.Event()
        self._lost = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._tasks = 0

    async def run(self) -> None:
        """Serve the peer until its link ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._greet)
            await self.link.run()
            nursery.cancel_scope.cancel()

    def start(self, async_fn: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """Run a task that ends with the session.

        Raises:
            RemoteProtocolError: The peer has too many of them.
        """
        assert self._nursery is not None
        if self._tasks >= TASKS_MAX:
            raise RemoteProtocolError(ErrorCode.ABUSE, "too many orders at once")
        self._tasks += 1

        async def task() -> None:
            try:
                await async_fn(*args)
            finally:
                self._tasks -= 1

        self._nursery.start_soon(task)

    def tell(self, change: dict[str, Any]) -> None:
        """Say something to a node; see `RegistrationHandler.tell`."""
        if self._registration is not None:
            self._registration.tell(change)

    # ---- who is it -----------------------------------------------------------------------------

    def on_hello(self, link: Link, event: HelloReceived) -> None:
        """A peer introduced itself: see in a task whether it may come in."""
        self._hello = event
        self._said_hello.set()

    async def _greet(self) -> None:
        await self._said_hello.wait()
        hello, self._hello = self._hello, None
        assert hello is not None
        gateway = self.gateway
        answer: Principal | Refusal
        if gateway.dispatcher.closing:
            answer = Refusal(ErrorCode.SHUTTING_DOWN, "the gateway is stopping", "stopping")
        elif hello.role == "client":
            answer = gateway.store.reader.authenticate(_text(hello.credential.get("token")))
            if isinstance(answer, Principal) and not answer.may(Operation.VIEW):
                answer = Refusal(
                    ErrorCode.FORBIDDEN,
                    f"a token of role {answer.role.value} is not for clients; ask for one of role "
                    "member or guest",
                    "role may not connect as a client",
                    answer.token_id,
                )
        elif hello.role == "node":
            answer = await self._authenticate_node(hello)
        else:
            answer = Refusal(ErrorCode.PROTOCOL, "a gateway takes clients and nodes", "role")
        await self._pause(answer)
        if isinstance(answer, Principal):
            answer = self._now(answer)
        if isinstance(answer, Refusal):
            await self._refuse(answer)
        elif hello.role == "node":
            await self._welcome_node(hello, answer)
        else:
            self._welcome(answer, {})

    async def _pause(self, answer: Principal | Refusal) -> None:
        """Let a place that keeps failing wait, whatever the answer is, and who keeps abusing us."""
        throttle, now = self.gateway.throttle, trio.current_time()
        delay_s = throttle.delay_s(self._place, now)
        if isinstance(answer, Principal):
            delay_s = max(delay_s, throttle.delay_s(_culprit(answer), now))
        if delay_s:
            await trio.sleep(delay_s)

    def _now(self, principal: Principal) -> Principal | Refusal:
        """Return what became of a principal while it waited: `recheck` spares strangers."""
        gateway, user = self.gateway, principal.user
        if principal.node_id is None:
            clients = sum(one.welcomed and one.principal.user == user for one in gateway.sessions)
            if clients >= gateway.limits.clients_user_max:
                return Refusal(
                    ErrorCode.OVERLOADED,
                    f"{clients} clients of {user} are connected already; close some",
                    "too many clients of one user",
                    principal.token_id,
                )
        return gateway.store.reader.standing(principal) or principal

    async def _refuse(self, refusal: Refusal) -> None:
        _log.warning(
            "refused", peer=self.address, cause=refusal.cause, token=refusal.token_id or "unknown"
        )
        self.link.close(refusal.code, refusal.reason)
        if refusal.code is ErrorCode.SHUTTING_DOWN:
            return
        gateway, now = self.gateway, trio.current_time()
        audited = not gateway.throttle.delay_s(self._place, now)
        gateway.throttle.failed(self._place, now)
        if audited:
            said = {"cause": refusal.cause, "peer": self.address}
            with trio.CancelScope(shield=True):
                await gateway.store.write(
                    Store.audit, "login_refused", refusal.token_id or "unknown", said
                )

    def _welcome(self, principal: Principal, info: dict[str, Any]) -> None:
        if not self._still_greeting():
            return
        gateway = self.gateway
        self.principal = principal
        self.caller = gateway.dispatcher.caller(principal.user)
        self.routes = Routes(gateway.registry, principal)
        self.welcomed = True
        gateway.admitted(self)
        self._authenticated()
        if not self.node_id:
            # A node works for others: it stands alone, and its calls go elsewhere at once.
            self.link.lane = self.caller.lane
            self.link.patient = True
            events.client_connected(self)
        self.link.welcome(
            {
                "gateway_id": gateway.state.gateway_id,
                "incarnation": gateway.state.incarnation,
                "version": gateway.version,
                "user": principal.user,
                "role": principal.role.value,
                "levels": sorted(principal.levels),
                **info,
            }
        )

    def _still_greeting(self) -> bool:
        return not self._lost.is_set()

    # ---- nodes ---------------------------------------------------------------------------------

    async def _authenticate_node(self, hello: HelloReceived) -> Principal | Refusal:
        credential = hello.credential
        try:
            claimed = node_id(credential.get("node_id"))
        except BadOffer as error:
            return Refusal(ErrorCode.BAD_ARGUMENT, str(error), "malformed node id")
        secret = credential.get("secret")
        if type(secret) is not bytes:
            return Refusal(
                ErrorCode.AUTH_REQUIRED, "a node shows its node secret", "no node secret"
            )
        token_text = _text(credential.get("token"))
        store = self.gateway.store
        answer = store.reader.check_node(claimed, secret, token_text)
        if isinstance(answer, Principal) and answer.enrolment is None:
            answer = await store.write(Store.enrol_node, claimed, secret, token_text)
            if isinstance(answer, Principal):
                _log.info("node enrolled", node_id=claimed, user=answer.user)
        return answer

    async def _welcome_node(self, hello: HelloReceived, principal: Principal) -> None:
        """Take a node in once its id has no other live session."""
        assert principal.node_id is not None
        boot = hello.info.get("boot", b"")
        boot = boot if type(boot) is bytes and len(boot) <= BOOT_BYTES_MAX else b""
        gateway, name = self.gateway, principal.node_id
        same_boot = bool(boot) and boot_of(gateway.store.reader, name) == boot
        gateway.arriving.append(name)
        try:
            # Only who has the id to itself is written down: an impostor's boot would void grants.
            while await self._alone_as(name, same_boot) and self._still_greeting():
                epoch = await gateway.store.write(take_boot, name, boot)
                if gateway.node_session(name) is None:
                    self._enter(principal, name, epoch, boot)
                    return
        finally:
            gateway.arriving.remove(name)

    async def _alone_as(self, name: str, same_boot: bool) -> bool:
        """See that no other link serves a node id; False if one does, and we were refused."""
        while (old := self.gateway.node_session(name)) is not None:
            if not same_boot and await old.proves_alive():
                await self._refuse(
                    Refusal(
                        ErrorCode.FORBIDDEN,
                        f"a node with the id {name!r} is connected; stop it, or choose another id",
                        "node id in use",
                    )
                )
                return False
            old.replaced()
            self.gateway.gone(old)  # A node's link is not patient: its calls know already.
        return True

    def _enter(self, principal: Principal, name: str, epoch: int, boot: bytes) -> None:
        """Take a node in: it has its id to itself, and the disk knows that it is here."""
        gateway = self.gateway
        if not self._still_greeting():
            return
        answer = self._now(principal)
        if isinstance(answer, Refusal):
            self.start(self._refuse, answer)
            return
        grants = gateway.grants.for_node(name, epoch)
        record = gateway.registry.connect(name, principal, self.link, epoch, grants)
        if record is None:
            self.link.close(ErrorCode.OVERLOADED, "the gateway knows too many nodes")
            return
        record.was_here = gateway.recovery.was_here(name, boot)
        self.node = record
        self.node_id = name
        self._welcome(principal, {"node_id": name, "epoch": epoch})
        _log.info("node connected", node_id=name, user=principal.user, peer=self.address)

    def replaced(self) -> None:
        """End this session at once: the same node has come back on another link."""
        self.link.close(ErrorCode.NODE_LOST, "the node came back on another connection")

    async def proves_alive(self) -> bool:
        """Return whether the peer says anything within one ping; False if the link ended."""
        connection = self.link.connection
        heard_at = connection.heard_at
        with trio.move_on_after(connection.settings.ping_every_s + 1.0):
            await self._lost.wait()
        return not self._lost.is_set() and connection.heard_at > heard_at

    # ---- what it opens -------------------------------------------------------------------------

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        """A call, a query or a registration."""
        if kind == Kind.CALL:
            return self.gateway.dispatcher.submit(self, stream, payload, more, end)
        if kind == Kind.QUERY and self.node is None:
            self._check_replies()
            return QueryHandler(self, stream, payload)
        if kind == Kind.REGISTER and self.node is not None:
            if self._registration is not None:
                self._registration.replaced()
            self._registration = RegistrationHandler(self.gateway, self.node, stream, payload, more)
            return self._registration
        raise RemoteProtocolError(ErrorCode.PROTOCOL, f"a stream of kind {kind} is not for you")

    def _check_replies(self) -> None:
        """Part with a peer that asks and does not take the answers."""
        waiting = sum(one.queued_bytes for one in self.link.connection.streams.values())
        if waiting > REPLIES_BYTES_MAX:
            raise RemoteProtocolError(ErrorCode.ABUSE, "asks for more than it takes")

    def on_stream_credit(self, link: Link) -> None:
        """The peer takes more streams: calls that wait for it may go."""
        if self.node is not None:
            self.gateway.dispatcher.placer.pump_node(self.node)

    def on_drain(self, link: Link, reason: str) -> None:
        """A node takes no new calls; what it has goes on."""
        if self.node is not None:
            self.node.draining = True
            self.gateway.registry.refresh(self.node)
            _log.info("node drains", node_id=self.node.node_id, reason=reason)

    # ---- its end -------------------------------------------------------------------------------

    def recheck(self) -> None:
        """Tokens have changed: end the session if its principal may not stay."""
        if not self.welcomed:
            return
        refusal = self.gateway.store.reader.standing(self.principal)
        if refusal is not None:
            _log.warning("session ended", user=self.principal.user, cause=refusal.cause)
            self.gateway.dispatcher.forsake(self)
            self.link.close(refusal.code, refusal.reason)

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        """The link is over; its streams were told before."""
        self._lost.set()
        if self.welcomed and self.node is None:
            events.client_gone(self, error)
        if self.welcomed and error is not None and error.code is ErrorCode.ABUSE:
            self.gateway.throttle.failed(_culprit(self.principal), trio.current_time())
        self.welcomed = False
        record, self.node = self.node, None
        if record is not None:
            if error is not None:
                record.host.failed(trio.current_time())
            self.gateway.registry.disconnect(record, trio.current_time())
            tell = _log.info if error is None else _log.warning
            tell("node gone", node_id=record.node_id, reason=error or "goodbye")
        self.gateway.gone(self)


def _culprit(principal: Principal) -> str:
    """Return under what name abuse is counted: no address is called so."""
    return f"user {principal.user}"


def address_of(peer: str) -> str:
    """Return the address in `host:port`, which is what limits go by."""
    host, colon, port = peer.rpartition(":")
    return host if colon and port.isdigit() else peer


def _text(value: Any) -> str:
    return value if type(value) is str else ""
