"""From `serve()` to the end of serving: what holds the worker and the agent of one node.

Rules of this file. 1) Whoever serves learns why it ended: a goodbye is silent, a refusal is the
exception that the gateway meant, a vanished agent is one sentence and a non-zero exit. 2) A child
that `multiprocessing` spawned never serves: the script was written for its parent.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import Protocol, Self

from ..errors import EasyRemoteError, GatewayUnreachableError, LinkLostError
from ..log import Log
from .worker import LOST_GRACE_S, Worker, end_process_if_stuck

_log = Log("node")

READY_WAIT_S = 10.0
"""How long `serve(blocking=False)` waits for the gateway before it goes on without it."""
INSISTED_GRACE_S = 0.5
"""Time that running calls have after the node was told to stop for the second time."""
STOP_S = 35.0
"""How long a stop waits for running calls: the drain of 30 s and what surrounds it."""


class Agent(Protocol):
    """The network process beside the worker."""

    pid: int

    def stop(self) -> None:
        """Ask it to drain and end, a second time to end at once; returns at once."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; False if the time was too short."""
        ...

    def signals(self) -> AbstractContextManager[None]:
        """Let SIGINT and SIGTERM reach it at once while a block runs."""
        ...

    def household(self) -> AbstractContextManager[None]:
        """Let what this process starts while a block runs belong to the node."""
        ...

    def end_family(self) -> None:
        """End what the workers left, if it can do so no more itself."""


class ServeHandle:
    """A node that serves in the background. As a context manager it stops at the end.

    >>> with node.serve(blocking=False) as handle:  # doctest: +SKIP
    ...     handle.wait_ready()
    """

    def __init__(self, node_id: str, worker: Worker | None, agent: Agent | None) -> None:
        self._node_id = node_id
        self._worker = worker
        self._agent = agent
        self._stopped = threading.Lock()
        self.insisted = False

    @property
    def node_id(self) -> str:
        """The id under which the node serves."""
        return self._node_id

    @property
    def running(self) -> bool:
        """Whether calls are served now."""
        return self._worker is not None and not self._worker.ended

    @property
    def in_flight(self) -> int:
        """Calls that run or wait in this process."""
        return 0 if self._worker is None else self._worker.in_flight

    @property
    def error(self) -> EasyRemoteError | None:
        """Why serving ended, None while it goes on and after a stop."""
        return None if self._worker is None else self._worker.error

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the gateway has taken the registration.

        Returns:
            False if that did not happen within `timeout` seconds.

        Raises:
            EasyRemoteError: Serving ended instead; the error says why.
        """
        if self._worker is None:
            return True
        ready = self._worker.wait_registered(timeout)
        if self.error is not None:
            raise self.error
        return ready and self.running

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of serving; False if it still goes on after `timeout` seconds."""
        return self._worker is None or self._worker.wait_ended(timeout)

    def stop(self, timeout: float = STOP_S) -> None:
        """Take no new calls, let the running ones finish, and end. A second call does nothing."""
        if self._worker is None or not self._stopped.acquire(blocking=False):
            return
        if self._agent is not None and not self._worker.ended:
            self._agent.stop()
        self._worker.wait_ended(timeout)
        self._worker.close()
        if self._agent is not None:
            self._agent.wait(5.0)

    def signals(self) -> AbstractContextManager[None]:
        """Let signals reach the agent at once, whatever this process is doing."""
        return nullcontext() if self._agent is None else self._agent.signals()

    def household(self) -> AbstractContextManager[None]:
        """Let what this process starts while a block runs belong to the node."""
        return nullcontext() if self._agent is None else self._agent.household()

    def end_family(self) -> None:
        """The agent is gone: end what the workers of the node left."""
        if self._agent is not None:
            self._agent.end_family()

    def stop_at_once(self) -> None:
        """End without waiting for running calls."""
        self.insisted = True
        if self._agent is not None:
            self._agent.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "serving" if self.running else "ended"
        return f"<ServeHandle {self._node_id} {state} in_flight={self.in_flight}>"


def serve_in_foreground(worker: Worker, handle: ServeHandle) -> None:
    """Run sync calls on this thread until serving ends.

    The first SIGINT or SIGTERM drains the node, the second one ends it at once.

    Raises:
        EasyRemoteError: The gateway or the agent refused the node.
        SystemExit: The agent is gone: this process has no purpose any more.
    """
    watch = threading.Thread(
        target=_watch, args=(worker, handle), name="easyremote-watch", daemon=True
    )
    watch.start()
    signals = _replica_signals(worker) if worker.is_replica else _signals(handle)
    with handle.household(), signals:
        worker.run_main()
    worker.wait_ended(5.0)
    error = worker.error
    handle.stop()
    if isinstance(error, LinkLostError):
        handle.end_family()
        raise SystemExit(_lost_sentence(handle.node_id, error))
    if error is not None:
        raise error


@contextmanager
def _signals(handle: ServeHandle) -> Iterator[None]:
    """Let SIGINT and SIGTERM drain the node while the block runs, where handlers can be set."""
    if threading.current_thread() is not threading.main_thread():
        _log.info("serving outside the main thread: stop it with its handle, not by a signal")
        yield
        return
    seen: list[int] = []
    pid = os.getpid()

    def on_signal(number: int, _: FrameType | None) -> None:
        if os.getpid() != pid:  # A child that a function forked, such as a worker of a Pool.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        seen.append(number)
        # The drain runs beside us: this thread may have calls to finish, and may hold any lock.
        threading.Thread(
            target=handle.stop if len(seen) == 1 else handle.stop_at_once,
            name="easyremote-stop", daemon=True,
        ).start()  # fmt: skip
        if len(seen) > 2:
            raise KeyboardInterrupt

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with handle.signals():
            yield
    finally:
        for number, handler in before.items():
            # None: it was not set from Python, and cannot be set back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _replica_signals(worker: Worker) -> Iterator[None]:
    """Let signals mean this process alone: it is not the script, whose signals stop the node.

    SIGTERM ends it. SIGINT, which only a body sends here, is the KeyboardInterrupt of that body.
    """

    def on_interrupt(_: int, __: FrameType | None) -> None:
        if worker.body_open:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _watch(worker: Worker, handle: ServeHandle) -> None:
    """Make sure that the process ends after serving has ended, whatever its bodies do."""
    worker.wait_ended(None)
    if isinstance(worker.error, LinkLostError):
        handle.end_family()
        end_process_if_stuck(worker, _lost_sentence(handle.node_id, worker.error))
    else:
        grace_s = INSISTED_GRACE_S if handle.insisted else LOST_GRACE_S
        sentence = (
            f"easyremote: node {handle.node_id} has ended and a function is still running; "
            "this process ends with it"
        )
        end_process_if_stuck(worker, sentence, grace_s)


def _lost_sentence(node_id: str, error: EasyRemoteError) -> str:
    return f"easyremote: the agent of node {node_id} is gone ({error}); this process ends with it"


def wait_until_ready(handle: ServeHandle, timeout_s: float) -> None:
    """Wait for the gateway, and say so if it takes long: the node keeps trying by itself.

    Raises:
        EasyRemoteError: The gateway refused the node.
    """
    if not handle.wait_ready(timeout_s):
        _log.warning(
            "the gateway has not answered yet; the node goes on trying",
            node_id=handle.node_id, waited_s=timeout_s,
        )  # fmt: skip


def must_be_ready(handle: ServeHandle, timeout_s: float) -> None:
    """Wait for the gateway.

    Raises:
        GatewayUnreachableError: It did not answer in time.
        EasyRemoteError: It refused the node.
    """
    if not handle.wait_ready(timeout_s):
        raise GatewayUnreachableError(
            f"the gateway did not take node {handle.node_id} within {timeout_s:g} s; "
            "easyremote doctor says what is wrong"
        )
