"""`ComputeNode`: offer the functions of this script to everybody who may call them.

Theory. A provider writes functions and decorates them; `serve()` does the rest. It starts an agent
process that owns the network and turns the provider's own process into the first worker, so that
a model loaded at the top of the script is loaded once.

    node = ComputeNode("vps.example.org:8080", "gpu-01")

    @node.register
    def add(a: int, b: int) -> int:
        return a + b

    node.serve()

Rules of this file. 1) Constructing a node does no I/O: what is wrong with the arguments is said at
once, what is wrong with the world when serving begins. 2) `register` returns the function
unchanged. 3) Nothing is silently ignored: an unknown keyword is an error, and a keyword that
nothing enforces yet is named when serving begins.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import fields
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar, overload

from .. import config, rerun
from ..errors import EasyRemoteError
from ..log import Log
from ..metrics import ComputeNodeMetrics
from . import options as register_options
from .asking import METRICS_QUERY, ask
from .register import FunctionTable, build, declared_capabilities
from .serving import (
    READY_WAIT_S,
    ServeHandle,
    must_be_ready,
    serve_in_foreground,
    wait_until_ready,
)
from .spec import AcceptCode, NodeLimits, NodeSpec
from .worker import Worker

P = ParamSpec("P")
R = TypeVar("R")

NODE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}", re.ASCII)

SERVING_WAIT_S = 30.0
"""How long `serving()` waits for the gateway before it gives up."""

CLEAN_UP_S = 60.0
"""Bound of the clean-up of `serving()`; a stop takes less."""

_log = Log("node")


class ComputeNode:
    """One node. See the module for an example.

    Attributes:
        extra_keywords: Further keywords that `register` of a subclass takes; they become metadata
            of the function and capability tags such as `quantum_backend:ibm_q`.
    """

    extra_keywords: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, vps_address: str | None = None, node_id: str | None = None, *,
        capabilities: Mapping[str, Any] | None = None, token: str | None = None,
        max_concurrency: int | None = None, join: str | None = None,
        accept_code: bool | Literal["owner", "members"] | Sequence[str] = "owner",
        limits: NodeLimits | None = None, gateway_address: str | None = None,
        gateway: str | None = None,
    ) -> None:  # fmt: skip
        """Describe a node; nothing is connected.

        Args:
            vps_address: The gateway, as `host:port`; else the join string, the environment or the
                stored profile says.
            node_id: Unique per gateway; else `<hostname>-<4 hex digits>`, stable across restarts.
            capabilities: What this machine can do, a tree of plain data.
            token: Bearer token; else the join string, the environment or the profile has one.
            max_concurrency: Sync calls that run at once; one if not given.
            join: Join string: address, key pin and token in one.
            accept_code: Who may send this node pickles and code: nobody (False), the principal
                that enrolled it ("owner"), every member, or the principals named.
            limits: What the owner allows at most.
            gateway_address: Another name of `vps_address`.
            gateway: Another name of `vps_address`.

        Raises:
            ValueError: An address or a name cannot be one.
            TypeError: Something else has the wrong type.
        """
        self._gateway = _one_address(
            {"vps_address": vps_address, "gateway_address": gateway_address, "gateway": gateway}
        )
        if node_id is not None and NODE_ID.fullmatch(node_id) is None:
            raise ValueError(
                f"{node_id!r} cannot be a node id: 1 to 128 letters, digits and _ . : @ -, "
                "beginning with a letter, a digit or _"
            )
        self._node_id = node_id
        self._capabilities = declared_capabilities(capabilities)
        self._token = token
        self._join = join
        self._accept_code = _accept_code(accept_code)
        self._max_concurrency = register_options.count("max_concurrency", max_concurrency)
        if limits is not None and not isinstance(limits, NodeLimits):
            raise TypeError(f"limits is a NodeLimits, not {type(limits).__name__}")
        self._limits = limits or NodeLimits()
        self._limits.check()
        self._table = FunctionTable()
        self._worker: Worker | None = None
        self._handle: ServeHandle | None = None

    @property
    def node_id(self) -> str:
        """The id of this node; a default one is made when it is first asked for."""
        if self._node_id is None:
            from ..identity.node_secret import default_node_id

            main = sys.modules.get("__main__")
            self._node_id = default_node_id(str(getattr(main, "__file__", None) or ""))
        return self._node_id

    @property
    def functions(self) -> list[str]:
        """The names of the functions that are registered now."""
        return [entry["name"] for entry in self._table.entries()]

    # ---- functions -----------------------------------------------------------------------------

    @overload
    def register(self, fn: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def register(
        self, *, name: str | None = None, stream: bool | None = None,
        async_func: bool | None = None, resource_requirements: Mapping[str, Any] | None = None,
        auth_required: bool = False, access_level: str | None = None,
        quota_per_user: str | Mapping[str, Any] | None = None,
        scaling: Literal["auto"] | int | Mapping[str, Any] | None = None,
        billing: str | Mapping[str, Any] | None = None, timeout: float | None = None,
        timeout_seconds: float | None = None, max_concurrency: int | None = None,
        max_concurrent: int | None = None, priority: int = 0, idempotent: bool = False,
        cache: bool | float = False, split: str | None = None,
        combine: str | Callable[..., Any] | None = None, batch: Mapping[str, Any] | None = None,
        description: str | None = None, version: str | None = None, tags: Iterable[str] = (),
        isolation: Literal["thread", "process"] = "thread",
        quota_mode: Literal["soft", "hard"] = "soft", replace: bool = False,
        async_backend: Literal["asyncio", "trio"] = "asyncio",
        load_balancing: bool | str | Mapping[str, Any] | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...  # fmt: skip
    def register(self, fn: Any = None, **keywords: Any) -> Any:
        """Offer a function: `@node.register`, or `@node.register(timeout=60, ...)`.

        The function itself is returned unchanged, so it can be called and tested as before. Its
        name, signature and docstring are what callers see. Functions that are registered while
        the node serves are offered at once.

        With `isolation="process"` calls run in processes of their own, which load the script once
        each. Such a process ends alone: when a body does not stop within the grace of a cancel,
        or when it and its children use more memory than `resource_requirements={"memory": "2GB"}`
        says (`">=2GB"` bounds nothing). What a call leaves running ends with the process or script
        that it ran in. How often within a minute a script that dies is started again is
        `EASYREMOTE_RESTARTS_MAX` in the environment, else five.

        A function that requires GPUs sees the devices that are reserved for its call, and no other,
        in `CUDA_VISIBLE_DEVICES` and `context().gpu_ids`. On a machine with several GPUs it has one
        slot for each device that fits it, unless `max_concurrency` says otherwise, and runs in
        further runs of the script that are bound to their devices from the start.

        With `scaling=` the function runs in further runs of the script, one call at a time each, as
        many as its queue deserves: `"auto"`, a fixed number, or a dict with `min`, `max`,
        `target_queue` (waiting calls for each that are no reason for another) and `idle_s`.

        Raises:
            TypeError: A keyword is unknown or has the wrong type, or contradicts the function.
            ValueError: The name is taken, or cannot be one.
        """
        parsed = register_options.parse(keywords, self.extra_keywords)

        def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
            function = build(fn, parsed, self._max_concurrency or 1)
            self._table.add(function, replace=parsed.replace)
            if self._worker is not None:
                self._say_unenforced()
                self._worker.update()
            return fn

        return decorate if fn is None else decorate(fn)

    def unregister(self, name: str) -> None:
        """Take a function away; its running calls go on.

        Raises:
            LookupError: There is none of this name.
        """
        self._table.remove(name)
        if self._worker is not None:
            self._worker.update(removed=name)

    # ---- serving -------------------------------------------------------------------------------

    def serve(self, *, blocking: bool = True) -> ServeHandle | None:
        """Connect to the gateway and serve calls.

        Args:
            blocking: Serve on this thread until the node is stopped; sync functions run on it.
                False returns a handle at once, and sync functions run on a thread of their own.

        Returns:
            The handle with `blocking=False`, else None.

        Raises:
            EasyRemoteError: The gateway refused the node, or the node serves already.
            SystemExit: The agent process is gone (blocking only).
        """
        if rerun.is_spawn_child():
            return None if blocking else ServeHandle(self.node_id, None, None)
        handle = self._start(blocking)
        worker = self._worker
        if worker is None:
            return None if blocking else handle
        if not blocking:
            worker.run_in_background()
            wait_until_ready(handle, READY_WAIT_S)
            return handle
        try:
            serve_in_foreground(worker, handle)
        finally:
            self._worker = self._handle = None
        return None

    def _start(self, blocking: bool) -> ServeHandle:
        """Start the agent and the worker of this process."""
        from . import launch

        if self._handle is not None and self._handle.running:
            raise EasyRemoteError(f"node {self.node_id} serves already; stop it first")
        self._say_unenforced()
        spec = self._spec()
        entry = launch.enter(spec, blocking)
        if entry is None:  # A second run of the script, made for another node of it.
            return ServeHandle(self.node_id, None, None)
        self._worker = Worker(entry.socket, self._table, spec, group=entry.group)
        self._handle = ServeHandle(self.node_id, self._worker, entry.agent)
        self._worker.start()
        return self._handle

    def _spec(self) -> NodeSpec:
        limits = self._limits
        return NodeSpec(
            gateway=self._gateway, node_id=self.node_id, capabilities=self._capabilities,
            token=self._token, join=self._join, accept_code=self._accept_code,
            limits={name: getattr(limits, name) for name in limits.named()},
            max_concurrency=self._max_concurrency, functions=self._table.entries(),
        )  # fmt: skip

    def _say_unenforced(self) -> None:
        """Name, once per change, what was asked for and nothing enforces yet."""
        unenforced = [
            *self._table.unenforced(),
            *(f"limits.{n}" for n in self._limits.unenforced()),
        ]
        if unenforced and not rerun.is_rerun():
            _log.warning(
                "these settings are shown in discovery, but nothing enforces them yet",
                node_id=self.node_id, settings=", ".join(unenforced),
            )  # fmt: skip

    def serving(self) -> AbstractAsyncContextManager[ComputeNode]:
        """Serve as long as an `async with` block runs, under asyncio or trio.

        The block begins when the gateway has taken the node. Functions do not run on the event
        loop of the block: sync ones run on a thread, async ones on a loop of their own.
        """
        return self._serving()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[ComputeNode]:
        handle = await _in_thread(self._start, False)
        if self._worker is not None:
            self._worker.run_in_background()
        try:
            await _in_thread(must_be_ready, handle, SERVING_WAIT_S)
            yield self
        finally:
            await _in_thread_shielded(handle.stop)
            self._worker = self._handle = None

    # ---- the owner's hand ------------------------------------------------------------------------

    def pause(self) -> None:
        """Take no new calls until `resume`; running ones go on. The node stays visible.

        Raises:
            EasyRemoteError: The node does not serve.
        """
        self._serving_worker().update(paused=True)

    def resume(self) -> None:
        """Take calls again after `pause`.

        Raises:
            EasyRemoteError: The node does not serve.
        """
        self._serving_worker().update(paused=False)

    def drain(self, timeout: float | None = None) -> None:
        """Take no new calls and wait for those that run here.

        Raises:
            EasyRemoteError: The node does not serve.
            TimeoutError: Calls still run after `timeout` seconds; they go on.
        """
        worker = self._serving_worker()
        worker.update(draining=True)
        if not worker.wait_idle(timeout):
            raise TimeoutError(
                f"{worker.in_flight} calls still run on node {self.node_id} after {timeout:g} s"
            )

    def metrics(self) -> ComputeNodeMetrics:
        """Return what this node has measured of its machine and its calls, as of now.

        The numbers are those of the whole node: of the script and all of its replicas, whichever of
        them asks.

        Raises:
            EasyRemoteError: The node does not serve, or its agent does not answer.
        """
        plain = ask(self._serving_worker(), METRICS_QUERY)
        known = {one.name for one in fields(ComputeNodeMetrics)}
        return ComputeNodeMetrics(**{name: plain[name] for name in known & plain.keys()})

    def _serving_worker(self) -> Worker:
        worker = self._worker
        if worker is None or worker.ended:
            raise EasyRemoteError(f"node {self.node_id} does not serve; call serve() first")
        return worker

    def __repr__(self) -> str:
        where = self._gateway or "the default gateway"
        name = self._node_id or "(default id)"
        return f"<ComputeNode {name} at {where}, {len(self._table)} functions>"


def _one_address(given: Mapping[str, str | None]) -> str | None:
    """Return the one address among its spellings, checked.

    Raises:
        ValueError: It is no address, or two different ones are given.
    """
    addresses = {str(config.parse_address(text)) for text in given.values() if text is not None}
    if len(addresses) > 1:
        names = " and ".join(name for name, text in given.items() if text is not None)
        raise ValueError(f"{names} name different gateways; give one of them")
    return addresses.pop() if addresses else None


def _accept_code(value: Any) -> AcceptCode:
    if isinstance(value, bool) or value in ("owner", "members"):
        return bool(value) if isinstance(value, bool) else str(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(  # noqa: TRY004 - mostly a misspelt word
            f'accept_code is False, "owner", "members" or a list of principals, not {value!r}'
        )
    if not all(isinstance(name, str) for name in value):
        raise TypeError("accept_code is a list of the names of principals")
    return tuple(value)


def _under_asyncio() -> bool:
    """Return whether an asyncio loop runs in this thread; else it is trio."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _in_thread(fn: Callable[..., R], *args: Any) -> R:
    """Run a blocking function beside the running event loop."""
    if _under_asyncio():
        import asyncio

        return await asyncio.to_thread(fn, *args)
    import trio

    return await trio.to_thread.run_sync(fn, *args)


async def _in_thread_shielded(fn: Callable[[], None]) -> None:
    """Run a bounded clean-up beside the event loop, although its block is being cancelled."""
    if _under_asyncio():
        import asyncio

        await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(fn)))
        return
    import trio

    with trio.move_on_after(CLEAN_UP_S, shield=True):
        await trio.to_thread.run_sync(fn)
