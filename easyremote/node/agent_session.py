"""The agent's link to the gateway: dialled, registered, and dialled again for as long as it takes.

Theory. A node is reached through one link that the node itself opens. When that link ends, for
whatever reason, the node comes back by itself: gateways are restarted, routes change, laptops
sleep. Attempts are spread by full jitter, so that the nodes of a gateway that was restarted do not
return in one wave. Only the very first attempt may fail for good: a wrong token is found by the
person who is still watching, while an hour later it may be a gateway that lost its disk.

    dial -> pin -> HELLO -> WELCOME -> REGISTER -> REGISTERED ... loss -> pause -> dial

Rules of this file. 1) No credential leaves before the pin was compared (`transport.dial`). 2) The
node secret exists on the disk before it is first sent. 3) What the agent makes of calls is the
agent's business.

Source. `supervise` (back-off); promises.md 4.2.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import trio

from .. import values
from ..config import Address
from ..errors import (
    AuthenticationError,
    EasyRemoteError,
    GatewayUnreachableError,
    LinkLostError,
    NotConnectedError,
    SerializationError,
    from_wire,
)
from ..handlers import LinkHandler, StreamHandler
from ..identity.credential import Resolved, resolve_credential
from ..identity.node_secret import node_secret
from ..link import Link
from ..log import Log
from ..outbox import Outbox
from ..supervise import Backoff
from ..transport import ByteStream
from ..wire.errors import ErrorCode, RemoteProtocolError
from ..wire.message import (
    INLINE_MAX,
    Failure,
    Kind,
    Register,
    Registered,
    Telemetry,
    Update,
    decode,
)
from .spec import NodeSpec
from .telemetry import transferred_bytes
from .worker_link import gateway_link_settings

if TYPE_CHECKING:
    from ..stream import Stream

_log = Log("node")

BOOT_BYTES = 16
PASSING = frozenset(
    {
        ErrorCode.GATEWAY_LOST, ErrorCode.NODE_LOST, ErrorCode.OVERLOADED, ErrorCode.STALLED,
        ErrorCode.SHUTTING_DOWN, ErrorCode.HANDSHAKE_TIMEOUT, ErrorCode.INTERNAL,
    }
)  # fmt: skip
"""Codes after which trying again makes sense; any other one ends a first attempt for good."""

Dial = Callable[[Address, bytes | None], Awaitable[ByteStream]]


class SessionOwner(Protocol):
    """Who is told about the link to the gateway: the agent. Everything is synchronous."""

    def offer(self) -> dict[str, Any]:
        """Return all that the node offers, as it is registered."""
        ...

    def gateway_welcomed(self, *, restarted: bool) -> None:
        """The gateway let the node in; `restarted`: it has forgotten the calls that it gave us."""

    def gateway_lost(self) -> None:
        """The link to the gateway is gone; its streams were told before."""

    def gateway_registered(self, info: dict[str, Any]) -> None:
        """The gateway has taken the node, for the first time or again."""

    def gateway_calls(self, stream: Stream, payload: bytes, more: bool, end: bool) -> StreamHandler:
        """The gateway gives us a call."""
        ...

    def gateway_credit(self) -> None:
        """The gateway takes more nested calls than before."""

    def gateway_says(self, change: dict[str, Any]) -> None:
        """The gateway says what it wants of the node, or knows of it."""

    def gateway_refused(self, error: EasyRemoteError) -> None:
        """The node cannot serve, and no further attempt is made."""


class GatewaySession(LinkHandler):
    """The link of one node to its gateway.

    Attributes:
        link: The link, None while there is none that can be used.
        registered: The gateway has taken the node, on this link.
        ended: No further attempt is made, and the last goodbye was said.
        boot: Names this run of the agent at the gateway.
    """

    def __init__(
        self, owner: SessionOwner, spec: NodeSpec, outbox: Outbox, dial: Dial,
        rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.link: Link | None = None
        self.registered = False
        self.boot = secrets.token_bytes(BOOT_BYTES)
        self._owner = owner
        self._spec = spec
        self._outbox = outbox
        self._dial = dial
        self._backoff = Backoff(rng=rng or random.Random())
        self._ever_registered = False
        self._start: tuple[Any, Any] = (None, None)
        self._closing = False
        self._error: EasyRemoteError | None = None
        self._registration: Stream | None = None
        self._scope = trio.CancelScope()
        self.ended = trio.Event()

    # ---- its life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect and stay connected until `close`, or until the first attempt failed for good."""
        try:
            with self._scope:
                await self._stay_connected()
        finally:
            self.ended.set()

    async def _stay_connected(self) -> None:
        while True:
            error = await self._attempt()
            if self._closing:
                return
            if not self._ever_registered and error is not None and _is_final(error):
                self._owner.gateway_refused(error)
                return
            pause_s = self._backoff.next_s()
            _log.warning(
                "no link to the gateway, trying again", node_id=self._spec.node_id,
                reason=error or "it said goodbye", pause_s=round(pause_s, 2),
            )  # fmt: skip
            await trio.sleep(pause_s)

    async def _attempt(self) -> EasyRemoteError | None:
        """Connect once and stay as long as it lasts; return why it ended."""
        spec = self._spec
        try:
            resolved = resolve_credential(
                spec.gateway, join=spec.join, token=spec.token, role="node"
            )
            secret = node_secret(resolved.gateway_key, spec.node_id)
            stream = await self._dial_any(resolved)
        except EasyRemoteError as error:
            return error
        except ValueError as error:
            return NotConnectedError(str(error))
        except OSError as error:
            return NotConnectedError(f"the files of EasyRemote cannot be used: {error}")
        self._error = None
        link = Link(
            stream, self, dialer=True, outbox=self._outbox, settings=gateway_link_settings()
        )
        link.hello(
            "node",
            {"node_id": spec.node_id, "secret": secret, "token": resolved.token},
            {"boot": self.boot},
        )
        await link.run()
        return self._error

    async def _dial_any(self, resolved: Resolved) -> ByteStream:
        """Return a stream to the first address that answers."""
        failed: EasyRemoteError | None = None
        for address in resolved.addresses:
            try:
                return await self._dial(address, resolved.pin)
            except GatewayUnreachableError as error:
                failed = failed or error
        assert failed is not None
        raise failed

    def close(self) -> None:
        """Say goodbye; no further attempt is made."""
        self._closing = True
        if self.link is not None:
            self.link.close()
        else:
            self._scope.cancel()

    def drain(self, reason: str) -> None:
        """Tell the gateway that no new calls are taken; running ones go on."""
        if self.link is not None:
            self.link.drain(reason)

    @property
    def incarnation(self) -> int:
        """Number of the start of the gateway that let us in last; 0 for none."""
        number = self._start[1]
        return number if type(number) is int else 0

    # ---- what the node says --------------------------------------------------------------------

    def register(self) -> None:
        """Say all that the node offers, replacing what was said before."""
        link = self.link
        if link is None or link.streams_available <= 0:
            return
        body, segments, buffers = _in_one_piece(self._owner.offer())
        self._registration = link.open(
            Register(body, segments), buffers, handler=_Registration(self)
        )

    def update(self, change: dict[str, Any]) -> None:
        """Say what has changed; without a registration, all is said anew."""
        stream = self._registration
        if stream is None or not stream.is_open:
            self.register()
            return
        body, segments, buffers = _in_one_piece(change)
        stream.send(Update(body, segments), buffers)

    def report(self, sample: dict[str, Any]) -> None:
        """Say how busy the node is, if anybody listens."""
        stream = self._registration
        if self.registered and stream is not None and stream.is_open:
            stream.send(Telemetry(sample))

    def transferred_bytes(self) -> int | None:
        """Return the bytes that have passed on the link, both ways; None if that is not known."""
        fileno = None if self.link is None else getattr(self.link.stream, "fileno", None)
        return None if fileno is None else transferred_bytes(fileno())

    # ---- what the gateway says -------------------------------------------------------------------

    def on_welcome(self, link: Link, info: dict[str, Any]) -> None:
        """The gateway let us in: register."""
        self.link = link
        start = info.get("gateway_id"), info.get("incarnation")
        restarted, self._start = start != self._start, start
        self._owner.gateway_welcomed(restarted=restarted)
        self.register()

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        """A call."""
        if kind != Kind.DISPATCH:
            raise RemoteProtocolError(ErrorCode.PROTOCOL, "a node takes calls only")
        return self._owner.gateway_calls(stream, payload, more, end)

    def on_stream_credit(self, link: Link) -> None:
        """The gateway takes more nested calls."""
        self._owner.gateway_credit()

    def on_drain(self, link: Link, reason: str) -> None:
        """The gateway is stopping: it will end the link, and we come back to its successor."""
        _log.info("the gateway drains", node_id=self._spec.node_id, reason=reason)

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        """The link is over; its streams were told before."""
        self.link = None
        self.registered = False
        self._registration = None
        self._error = self._error or error
        self._owner.gateway_lost()

    def taken(self, info: dict[str, Any]) -> None:
        """The gateway took the registration."""
        self._backoff.reset()
        again, self._ever_registered = self._ever_registered, True
        self.registered = True
        _log.info(
            "node is back at the gateway" if again else "node serves", node_id=self._spec.node_id,
            gateway=self.link.peer if self.link is not None else "?",
        )  # fmt: skip
        self._owner.gateway_registered(info)

    def says(self, body: bytes | None) -> None:
        """The gateway says something of the node; what is no map is not for this version."""
        try:
            change = None if body is None else values.decode(body, [], allow_pickle=False)
        except SerializationError:
            return
        if type(change) is dict:
            self._owner.gateway_says(change)

    def refused(self, stream: Stream, error: EasyRemoteError) -> None:
        """The gateway refused a registration as a whole, or a change of one."""
        if stream is self._registration:
            self._registration = None
        if self._ever_registered:
            _log.error(
                "the gateway refused what the node offers", node_id=self._spec.node_id,
                reason=error,
            )  # fmt: skip
            return
        self._error = error
        if self.link is not None:
            self.link.close()


def _in_one_piece(value: dict[str, Any]) -> tuple[bytes | None, list[int], list[memoryview]]:
    """Return a plain value as a body and its segments; a gateway takes one of either.

    So a long text or `bytes` in it must not become a segment of its own, as in the values of users.
    """
    body = values.plain.encode(value)
    if len(body) <= INLINE_MAX:
        return body, [], []
    return None, [len(body)], [memoryview(body)]


class _Registration(StreamHandler):
    """The stream on which the node is registered."""

    def __init__(self, session: GatewaySession) -> None:
        self._session = session

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        if kind == Kind.REGISTERED:
            self._session.taken(decode(Registered, payload).info)
        elif kind == Kind.UPDATE:
            self._session.says(decode(Update, payload).info)
        elif kind == Kind.FAILURE:
            code, reason, _, retry_after_s, detail = decode(Failure, payload)
            error = from_wire(code, reason, retry_after_s=retry_after_s, detail=detail)
            self._session.refused(stream, error)

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        if code != ErrorCode.NO_ERROR:  # Else a newer registration has taken its place.
            self._session.refused(stream, from_wire(code, reason))


def _is_final(error: EasyRemoteError) -> bool:
    """Return whether a first attempt that ended so should be the last one."""
    if isinstance(error, GatewayUnreachableError | LinkLostError):
        return False
    if isinstance(error, AuthenticationError | NotConnectedError):
        return True
    return error.code not in PASSING
