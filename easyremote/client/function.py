"""A remote function as users hold it: called like a local one, it returns a future.

Rules of this file. 1) Everything about where and how is in the `Route`, made once. 2) Which client
a call goes through is decided at each call (`default.py`). 3) A remote function is immutable:
`options()` returns another one.

Source. api.md, `RemoteFunction`; features.md C1 to C11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack

from ..errors import FunctionNotFoundError
from ..facts import FunctionInfo
from ..wire.message import FLAG_DETACHED, FLAG_STREAM
from .default import session_for
from .future import Future
from .mapping import MapResult
from .options import CallOptions, Route, checked, route
from .stream import RemoteStream, StreamCall
from .stub import Checker, checker_of

if TYPE_CHECKING:
    from .session import Session

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")

ASK_TIMEOUT_S = 15.0
"""Time in which a gateway answers what a user asks."""


class _Named:
    """What remote functions and remote streams share: a route, and perhaps a stub."""

    def __init__(
        self, route: Route, options: Mapping[str, Any], fn: Callable[..., Any] | None = None,
        checker: Checker | None = None,
    ) -> None:  # fmt: skip
        self._route = route
        self._options = options
        self._checker = checker
        self._fn = fn
        self.__name__ = getattr(fn, "__name__", route.function)
        self.__qualname__ = getattr(fn, "__qualname__", self.__name__)
        self.__module__ = getattr(fn, "__module__", __name__)
        self.__doc__ = getattr(fn, "__doc__", None) or f"The remote function {self._shown}."
        if fn is not None:
            self.__wrapped__ = fn

    @property
    def _shown(self) -> str:
        nodes = self._route.node_ids
        return f"{','.join(nodes)}.{self._route.function}" if nodes else self._route.function

    @property
    def _session(self) -> Session:
        return session_for(self._route)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Check arguments against the stub; return the keyword arguments with its defaults.

        Raises:
            TypeError: A local function with these parameters would not take them.
        """
        if self._checker is None:
            return kwargs
        defaults = self._checker(*args, **kwargs)
        return kwargs if defaults is None else {**kwargs, **defaults}

    def info(self) -> FunctionInfo:
        """Ask the gateway for signature, documentation and terms of the function; blocks.

        Raises:
            FunctionNotFoundError: No node offers it, or you may not see it.
        """
        asked = {"function": self._route.function, "node_ids": self._route.node_ids}
        found = self._session.ask_blocking("resolve", asked, ASK_TIMEOUT_S)
        return FunctionInfo.from_plain(found)

    def __getstate__(self) -> dict[str, Any]:
        """A remote function that is sent elsewhere takes no credential along."""
        state = dict(self.__dict__)
        options = {k: v for k, v in self._options.items() if k not in {"auth", "auth_token"}}
        state.update(_options=options, _route=route(self._route.function, options), _checker=None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._checker = None if self._fn is None else checker_of(self._fn)

    def _with(self, options: Mapping[str, Any]) -> tuple[Route, dict[str, Any]]:
        merged = {**self._options, **checked(options)}
        return route(self._route.function, merged), merged

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._shown}>"


class RemoteFunction(_Named, Generic[P, R]):
    """A function on a node. Made by `remote`.

    Calling it sends the call and returns a `Future` at once. Arrays and large buffers of more than
    1 MiB among the arguments are not copied: leave them alone until the future has its outcome.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call it; `await` the future, or ask for its `result()`."""
        given: dict[str, Any] = kwargs
        if self._checker is not None:
            defaults = self._checker(*args, **kwargs)
            if defaults is not None:
                given = {**kwargs, **defaults}
        return session_for(self._route).submit(self._route, args, given)

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call it: the same as calling the object itself."""
        return self(*args, **kwargs)

    def sync(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it and block until there is a result."""
        return self(*args, **kwargs).result()

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the decorated function itself, here.

        Raises:
            TypeError: There is none: this remote function was made from a name.
        """
        if self._fn is None:
            raise TypeError(f"{self._shown} was made from a name and has no body to run here")
        result: R = self._fn(*args, **kwargs)
        return result

    def spawn(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call it so that it goes on when this program ends."""
        detached = self._route._replace(flags=self._route.flags | FLAG_DETACHED)
        return self._session.submit(detached, args, self._arguments(args, kwargs))

    def options(self, **o: Unpack[CallOptions]) -> RemoteFunction[P, R]:
        """Return the same function with other options; see `CallOptions`.

        Raises:
            TypeError: An option is unknown or has the wrong type.
        """
        made, merged = self._with(o)
        return RemoteFunction(made, merged, self._fn, self._checker)

    def map(
        self, *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1,
        ordered: bool = True, return_exceptions: bool = False,
    ) -> MapResult[R]:  # fmt: skip
        """Call it with the next item of every iterable, again and again.

        Args:
            iterables: One for each argument; the shortest one ends it. They are taken as results
                are, so they may be endless.
            timeout: Seconds from now after which waiting for a result raises `TimeoutError`.
            chunksize: Arguments are taken from the iterables so many at a time.
            ordered: Give results in the order of the arguments; False, as they come.
            return_exceptions: Give errors as results; by default the first one ends the map.

        Returns:
            The results, for `for` and `async for`.
        """
        return self.starmap(
            zip(*iterables, strict=False), timeout=timeout, chunksize=chunksize, ordered=ordered,
            return_exceptions=return_exceptions,
        )  # fmt: skip

    def starmap(
        self, args: Iterable[tuple[Any, ...]], *, timeout: float | None = None,
        chunksize: int = 1, ordered: bool = True, return_exceptions: bool = False,
    ) -> MapResult[R]:  # fmt: skip
        """Call it with each tuple of arguments; otherwise as `map`."""
        call: Callable[..., Future[Any]] = self
        return MapResult(
            call, args, timeout_s=timeout, chunksize=chunksize, ordered=ordered,
            return_exceptions=return_exceptions,
        )  # fmt: skip

    def broadcast(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Future[R]]:
        """Call it on every node that offers it; blocks for one round trip to find them.

        Returns:
            A future for each node, by node id.

        Raises:
            FunctionNotFoundError: No node offers it.
        """
        given = self._arguments(args, kwargs)
        session = self._session
        nodes = providers(session, self._route)
        if not nodes:
            raise FunctionNotFoundError(f"no node offers {self._shown}; look at Client.functions()")
        return {
            node: session.submit(self._route._replace(node_ids=[node]), args, given)
            for node in nodes
        }


class RemoteStreamFunction(_Named, Generic[P, Y]):
    """A function on a node that yields items. Made by `remote`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> RemoteStream[Y]:
        """Call it; iterate over what it returns with `for` or `async for`."""
        return open_stream(self._session, self._route, args, self._arguments(args, kwargs))

    def options(self, **o: Unpack[CallOptions]) -> RemoteStreamFunction[P, Y]:
        """Return the same function with other options; see `CallOptions`.

        Raises:
            TypeError: An option is unknown or has the wrong type.
        """
        made, merged = self._with(o)
        return RemoteStreamFunction(made, merged, self._fn, self._checker)


def open_stream(
    session: Session, route: Route, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> RemoteStream[Any]:
    """Make a call that yields, and return its items."""
    call: StreamCall = session.prepare(StreamCall, route, args, kwargs, FLAG_STREAM)
    future: Future[Any] = Future(call)
    call.future = future
    session.send(call)
    return RemoteStream(call, future)


def providers(session: Session, route: Route) -> list[str]:
    """Return the ids of the nodes on which calls of a route may run."""
    name, named = route.function, route.node_ids
    if named is None and "." in name:
        node_id, _, name = name.rpartition(".")
        named = [node_id]
    found = session.ask_blocking("nodes", {}, ASK_TIMEOUT_S)
    return [
        node["node_id"]
        for node in found
        if name in node.get("functions", ())
        and (
            named is None
            or node["node_id"] in named
            or any(label in named for label in node.get("labels", ()))
        )
    ]
