"""The client: a connection to one gateway, and what can be done with it.

Most programs need no object: `connect()` makes the default client, and remote functions use it.
`Client` is for what one does explicitly: calls by name, discovery, several gateways at once.

Rules of this file. 1) Making a `Client` does no I/O; `connect()` returns when the gateway has taken
us in. 2) Errors of connecting are typed and say what to do. 3) A client that nobody holds any more
ends when its last call has its outcome; all end, with a goodbye, when the program does.

Source. api.md, "sessions"; features.md C7.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from .. import __version__, rerun
from ..config import Address, parse_address
from ..facts import FunctionInfo, NodeInfo, QuotaState, Usage
from ..identity.credential import Credential, Resolved, resolve_credential
from ..metrics import ClientMetrics
from . import account
from .call import OutgoingCall
from .dialer import ClientLink
from .function import ASK_TIMEOUT_S, RemoteFunction, RemoteStreamFunction, open_stream
from .future import Future
from .gather import gather as gather_futures
from .mapping import MapResult
from .options import Route, route
from .requirements import read_capability
from .session import Session
from .stream import RemoteStream
from .stub import rule_of
from .trust import TrustNodes
from .why import Explanation, why_waiting

if TYPE_CHECKING:
    from ..transport import Network

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

CONNECT_TIMEOUT_S = 30.0
"""For the name, TCP, TLS and the greeting together; each has a shorter limit of its own."""
FLUSH_S = 1.0
"""Time that calls have to reach the gateway when a client is closed: detached ones go on. A program
that was interrupted, or drops its client, is over within two seconds, however many there are."""


class Client:
    """A connection to one gateway. See also `connect`."""

    def __init__(
        self, gateway: str | None = None, *, join: str | None = None, token: str | None = None,
        auth: str | Credential | None = None, trust_nodes: TrustNodes = "owner",
        network: Network | None = None,
    ) -> None:  # fmt: skip
        """Prepare a client; it connects with its first call.

        Args:
            gateway: `host:port`. By default EASYREMOTE_GATEWAY, EASYREMOTE_JOIN, what
                `easyremote join` has stored, or the gateway of this machine.
            join: A join string, or `env:NAME` or `file:PATH` of one.
            token: A token, or `env:NAME` or `file:PATH` of one.
            auth: The name of a stored profile, or a credential.
            trust_nodes: From whose nodes a pickled result is opened: "owner" is nodes that you
                enrolled yourself. Plain data and arrays are always accepted.
            network: For simulations.

        Raises:
            ValueError: `gateway` is no address.
        """
        self._address: Address | None = None if gateway is None else parse_address(gateway)
        self._join = join
        self._token = token
        self._auth = auth
        self.trust_nodes: TrustNodes = trust_nodes
        self._network = network
        self._making = threading.Lock()
        self._made: tuple[Session, ClientLink] | None = None
        self._closed = False

    # ---- its life ------------------------------------------------------------------------------

    def _resolve(self) -> Resolved:
        return resolve_credential(
            self._address, join=self._join, token=self._token, auth=self._auth
        )

    @property
    def session(self) -> Session:
        """The calls of this client; made, and connected in the background, when first used.

        Raises:
            NotConnectedError: Nothing says which gateway.
            AuthenticationError: There is no credential for it.
        """
        made = self._made
        if made is None:
            with self._making:
                made = self._made
                if made is None:
                    made = self._made = self._make()
        return made[0]

    def _make(self) -> tuple[Session, ClientLink]:
        # Here, so that a missing address or credential is an error of the call that needs it.
        self._resolve()
        address, join, token, auth = self._address, self._join, self._token, self._auth

        def resolve() -> Resolved:  # Must not hold this client, which ends when nobody holds it.
            return resolve_credential(address, join=join, token=token, auth=auth)

        link = ClientLink(resolve, {"version": __version__}, network=self._network)
        session = Session(link, trust_nodes=self.trust_nodes)

        def taken_in(info: dict[str, object]) -> None:
            session.user, session.role = str(info.get("user")), str(info.get("role"))
            start = info.get("incarnation")
            session.incarnation = start if type(start) is int else 0

        link.tell(taken_in, session.link_refused)
        session.start()
        weakref.finalize(self, _retire, session, link).atexit = False
        _live.add(session, link)
        return session, link

    def connect(self, timeout: float = CONNECT_TIMEOUT_S) -> None:
        """Block until the gateway has taken us in; without effect if it has.

        Raises:
            GatewayUnreachableError: Nobody answers.
            AuthenticationError: The gateway is another one, or does not take us in.
            NotConnectedError: Nothing says which gateway.
        """
        session = self.session
        assert self._made is not None
        try:
            self._made[1].wait_ready(timeout)
        except BaseException:
            session.close("the client could not connect")
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether it was closed, or the gateway has refused it for good."""
        return self._closed or (self._made is not None and self._made[1].closed)

    def close(self) -> None:
        """Say goodbye. Calls without an outcome are cancelled, unless they are detached."""
        if self._closed:
            return
        self._closed = True
        if self._made is not None:
            _end(*self._made)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    # ---- calls ---------------------------------------------------------------------------------

    @overload
    def submit(
        self, fn: RemoteFunction[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]: ...
    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...
    @overload
    def submit(self, fn: str, /, *args: Any, **kwargs: Any) -> Future[Any]: ...
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function and return its future.

        Args:
            fn: Its name, as `function` or `node.function`; a remote function; or a stub of one.
            args: Its arguments.
            kwargs: Its arguments by name.

        Raises:
            SerializationError: An argument cannot travel.
        """
        return self.session.submit(_route_of(fn), args, kwargs)

    def map(
        self, fn: Callable[..., R] | RemoteFunction[..., R] | str, *iterables: Iterable[Any],
        timeout: float | None = None, chunksize: int = 1, ordered: bool = True,
        return_exceptions: bool = False,
    ) -> MapResult[R]:  # fmt: skip
        """Call a function over the items of iterables; see `RemoteFunction.map`."""
        to, session = _route_of(fn), self.session
        return MapResult(
            lambda *args: session.submit(to, args, {}), zip(*iterables, strict=False),
            timeout_s=timeout, chunksize=chunksize, ordered=ordered,
            return_exceptions=return_exceptions,
        )  # fmt: skip

    def execute(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function by its name and block until there is a result."""
        return self.submit(function, *args, **kwargs).result()

    def stream(
        self, fn: Callable[..., Any] | RemoteStreamFunction[..., Any] | str, /, *args: Any,
        **kwargs: Any,
    ) -> RemoteStream[Any]:  # fmt: skip
        """Call a function that yields, and return its items."""
        return open_stream(self.session, _route_of(fn), args, kwargs)

    def gather(self, fs: Iterable[Future[T]], return_exceptions: bool = False) -> list[T]:
        """Block until all futures have outcomes; return the results in order."""
        results: list[T] = gather_futures(*fs, return_exceptions=return_exceptions).result()
        return results

    # ---- questions -----------------------------------------------------------------------------

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes that you may see; blocks for a round trip."""
        self.session.tally.used.add("discovery")
        found = self.session.ask_blocking("nodes", {}, ASK_TIMEOUT_S)
        return [NodeInfo.from_plain(one) for one in found]

    def functions(self, node_id: str | None = None) -> list[FunctionInfo]:
        """Return the functions that you may see, of one node or all; blocks for a round trip."""
        self.session.tally.used.add("discovery")
        asked = {} if node_id is None else {"node_id": node_id}
        found = self.session.ask_blocking("functions", asked, ASK_TIMEOUT_S)
        return [FunctionInfo.from_plain(one) for one in found]

    def find_nodes(
        self, capability: Any = None, function: str | None = None, fresh: bool = False
    ) -> list[NodeInfo]:
        """Return the nodes that have a capability, a function, or both; blocks for a round trip.

        The gateway chooses them from what it knows now. Those that would serve soonest come first:
        healthy before others, then by load, then by round trip. `facts` of a node has its live
        load (`load`, `busy`, `slots`, `sample`), what it charges (`prices`), and which of its
        functions you may call (`callable`).

        Args:
            capability: As in `remote(capability=...)`; constraints may compare: `">=16GB"`.
            function: The name of a function that they must offer.
            fresh: Only nodes that are connected now. Nodes report by themselves, once a second,
                what has changed; the gateway has nothing to ask them beyond that.

        Raises:
            TypeError: `capability` has the wrong type.
            ValueError: Nothing can be so; the message says how to write it.
        """
        asked: dict[str, Any] = {"fresh": True} if fresh else {}
        if capability is not None:
            asked["capability"] = read_capability(capability)
        if function is not None:
            asked["function"] = function
        self.session.tally.used.add("discovery")
        found = self.session.ask_blocking("nodes", asked, ASK_TIMEOUT_S)
        return [NodeInfo.from_plain(one) for one in found]

    def quota(self) -> list[QuotaState]:
        """Return what is left of each quota that holds for you; blocks for a round trip."""
        self.session.tally.used.add("accounts")
        return account.quota(self.session)

    def usage(self, since: str | None = None) -> list[Usage]:
        """Return a record of each of your calls that was billed, the oldest first; blocks.

        Args:
            since: How long ago, as `24h` or `7d`, or a date; None for all.

        Raises:
            ValueError: `since` is no time.
        """
        self.session.tally.used.add("accounts")
        return account.usage(self.session, since)

    def why_waiting(self, f: Future[Any] | str) -> Explanation:
        """Explain what a call waits for: text, and the same as data in its `data`.

        Args:
            f: The future of a call, or the id of one of yours.

        Raises:
            ValueError: It is no id of a call.
            EasyRemoteError: The gateway cannot be asked.
        """
        self.session.tally.used.add("why_waiting")
        return why_waiting(self.session, f)

    def metrics(self) -> ClientMetrics:
        """Return what this client has measured of its calls; see `ClientMetrics`.

        The nodes that served calls, and the cost of those, are asked for: about the calls that have
        ended since the last time, the latest thousand of them. That takes two round trips; in an
        event loop half a second each at most. What is not answered in time comes the next time.
        """
        session = self.session
        under_way = (one for one in list(session.unsettled) if isinstance(one, OutgoingCall))
        return session.tally.metrics(session, under_way)

    def __repr__(self) -> str:
        address = "the default gateway" if self._address is None else str(self._address)
        return f"<Client of {address}{' (closed)' if self.closed else ''}>"


def _route_of(fn: Any) -> Route:
    """Return the route of whatever names a function."""
    if isinstance(fn, str):
        if not fn:
            raise TypeError("the name of a function is not empty")
        return Route(fn)
    if isinstance(fn, RemoteFunction | RemoteStreamFunction):
        return fn._route
    if callable(fn):
        rule_of(fn, {})
        return route(fn.__name__, {})
    raise TypeError(f"a function is named by text or by a stub, not by {type(fn).__name__}")


class _Live:
    """Sessions that must say goodbye when the program ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: dict[Session, ClientLink] = {}

    def add(self, session: Session, link: ClientLink) -> None:
        with self._lock:
            self._all[session] = link

    def remove(self, session: Session) -> None:
        with self._lock:
            self._all.pop(session, None)

    def end_all(self) -> None:
        with self._lock:
            ending, self._all = self._all, {}
        until = time.monotonic() + FLUSH_S
        for session, link in ending.items():
            _end(session, link, max(0.0, until - time.monotonic()))


_live = _Live()
atexit.register(_live.end_all)


def _end(session: Session, link: ClientLink, flush_s: float | None = None) -> None:
    """Let calls reach the gateway, say goodbye, settle what is left."""
    _live.remove(session)
    if session.unsettled and not link.closed:
        session.wait_accepted(FLUSH_S if flush_s is None else flush_s)
    session.close("the client was closed before the call had an outcome")
    link.close()


def _retire(session: Session, link: ClientLink) -> None:
    """Nobody holds the client any more: end it with its last call."""
    session.when_idle(lambda: _end(session, link))


def connect(
    gateway: str | None = None, *, join: str | None = None, token: str | None = None,
    auth: str | Credential | None = None, trust_nodes: TrustNodes = "owner",
) -> Client:  # fmt: skip
    """Connect to a gateway and make that the default of this program; see `Client`.

    Returns:
        The client. Use it in a `with` block, or end it with `shutdown()`; the end of the program
        ends it, too.

    Raises:
        GatewayUnreachableError: Nobody answers.
        AuthenticationError: The gateway is another one, or does not take us in.
        NotConnectedError: Nothing says which gateway.
    """
    from .default import defaults

    client = Client(gateway, join=join, token=token, auth=auth, trust_nodes=trust_nodes)
    # In a second run of the script, as a worker or as a child of multiprocessing, the client
    # connects if it is used.
    if not rerun.inert():
        client.connect()
    defaults.set(client)
    return client


def shutdown() -> None:
    """Close the default client, and those that functions with a gateway of their own made."""
    from .default import defaults

    defaults.shutdown()


def set_default_gateway(address: str) -> None:
    """Say which gateway calls go to when `connect()` was not used.

    Raises:
        ValueError: It is no address.
    """
    from .default import defaults

    defaults.set_gateway(address)
