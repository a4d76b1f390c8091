"""A worker: the process that runs the provider's code, and its link to the node's agent.

Theory. The agent owns the network; the worker owns the code. They speak the same protocol over a
socketpair as everybody else: the worker dials, registers what it offers, and gets calls on
streams that the agent opens. Calls that its functions make to other functions go the same way, in
the other direction.

        agent  --DISPATCH-->  io thread (trio)  -->  main thread, pool threads, event loops
               <--REGISTER--                    <--  outcomes, items, nested calls

Rules of this file. 1) The io thread never runs the provider's code. 2) A worker whose agent is
gone ends: nobody could reach it. 3) A forked child of the provider's code keeps nothing of the
link: `launch` closes its descriptor there, and calls made there find no link.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from .. import seam, values
from ..bridge import IoThread
from ..errors import EasyRemoteError, LinkLostError, from_wire
from ..handlers import LinkHandler, StreamHandler
from ..link import Link
from ..log import Log
from ..stream import Stream
from ..timers import Timers
from ..transport.byte_stream import ByteStream
from ..transport.socket_stream import SocketStream
from ..wire.errors import ErrorCode
from ..wire.message import Failure, Kind, Register, Registered, Update, decode
from . import outcome as outcomes
from .context import current_task
from .executor import Executor
from .register import MAIN_GROUP, FunctionTable
from .spec import NodeSpec
from .worker_link import worker_link_settings

_log = Log("node")

EXIT_AGENT_LOST = 69
"""Exit code (EX_UNAVAILABLE of sysexits.h) of a worker whose agent is gone."""

LOST_GRACE_S = 5.0
"""Time that running bodies have to end after the agent is gone."""


class WorkerCalls:
    """The seam over which the provider's code calls other functions: the link to the agent."""

    def __init__(self, io: IoThread) -> None:
        self._io = io
        self._link: Link | None = None
        self._listeners: list[seam.CallLinkListener] = []

    def post(self, fn: Callable[[], object]) -> None:
        """Run `fn` on the io thread soon; safe against an interrupt of the body that posts."""
        task = current_task.get()
        if task is None:
            self._io.post(fn)
        else:
            task.undisturbed(lambda: self._io.post(fn))

    def listen(self, listener: seam.CallLinkListener) -> None:
        """Tell `listener` of the link from now on. Io thread only."""
        self._listeners.append(listener)
        if self._link is not None:
            listener.link_up(self._link)

    def on_io_thread(self) -> bool:
        """Whether the caller runs on the io thread."""
        return self._io.on_io_thread()

    def up(self, link: Link) -> None:
        """Calls can be made."""
        self._link = link
        for listener in self._listeners:
            listener.link_up(link)

    def down(self, error: EasyRemoteError | None) -> None:
        """Calls can no longer be made."""
        self._link = None
        for listener in self._listeners:
            listener.link_down(error)

    def credit(self) -> None:
        """Calls that were held back may go."""
        for listener in self._listeners:
            listener.link_credit()


class Worker(LinkHandler):
    """The worker side of one node in this process.

    Attributes:
        error: Why the link ended, None while it is up and after a goodbye.
    """

    def __init__(
        self, sock: socket.socket | ByteStream, table: FunctionTable, spec: NodeSpec, *,
        group: str | None = None, io: IoThread | None = None,
    ) -> None:  # fmt: skip
        """Prepare a worker; `start` begins.

        Args:
            sock: Connected to the agent; this object owns it from now on. Simulations give a
                stream in memory.
            table: What is offered, also after later changes.
            spec: What the node says about itself.
            group: The slot group of a replica that serves one function only; None of worker 0.
            io: Where the link runs; a thread of its own by default.
        """
        self.error: EasyRemoteError | None = None
        self._sock = sock
        self._table = table
        self._spec = spec
        self._group = group
        self._io = io or IoThread("easyremote-worker")
        self._timers = Timers(time.monotonic)
        self._link: Link | None = None
        self._registration: Stream | None = None
        self._removed: list[str] = []
        self._update_posted = False
        self._paused = False
        self._draining = False
        self._stuck = False
        self._registered = threading.Event()
        self._ended = threading.Event()
        self._idle = threading.Event()
        is_main = group is None
        self._executor = Executor(
            io=self._io, table=table, timers=self._timers, node_id=spec.node_id,
            accept_code=spec.accept_code,
            main_group=MAIN_GROUP if group is None else group,
            main_slots=(spec.max_concurrency or 1) if is_main else 1,
            object_bytes_max=values.object_bytes_max(), serves_one=not is_main,
        )  # fmt: skip
        self._executor.on_idle = self._idle.set
        self._executor.on_stuck = self._on_stuck
        self._main_seat = self._executor.main_seat()
        self.calls = WorkerCalls(self._io)

    # ---- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the link and register. Calls come from now on."""
        self._io.start()
        _forget_in_children(self)
        self._io.spawn(self._timers.run)
        self._io.spawn(self._run_link)
        seam.inject(self.calls)

    async def _run_link(self) -> None:
        try:
            sock = self._sock
            stream = SocketStream(sock, "agent") if isinstance(sock, socket.socket) else sock
            self._link = link = Link(
                stream, self, dialer=True, outbox=self._io.outbox, settings=worker_link_settings()
            )
            link.hello("worker", {}, {"pid": os.getpid(), "group": self._group or MAIN_GROUP})
            await link.run()
        finally:
            if not self._ended.is_set():  # A bug of ours must not leave anybody waiting.
                self._end(LinkLostError("the link to the agent broke in this process"))

    def run_main(self) -> None:
        """Run sync calls on this thread until the link ends."""
        self._main_seat.run()

    def run_in_background(self) -> None:
        """Run sync calls on a thread of ours: the main thread is the program's own."""
        threading.Thread(target=self.run_main, name="easyremote-main", daemon=True).start()

    def wait_registered(self, timeout_s: float | None) -> bool:
        """Wait until the gateway has taken the registration, or the link has ended."""
        return self._registered.wait(timeout_s)

    def wait_ended(self, timeout_s: float | None) -> bool:
        """Wait until the link has ended."""
        return self._ended.wait(timeout_s)

    @property
    def link(self) -> Link | None:
        """The link to the agent, None before there is one."""
        return self._link

    @property
    def ended(self) -> bool:
        """Whether the link has ended."""
        return self._ended.is_set()

    @property
    def is_replica(self) -> bool:
        """Whether this process serves one isolated function, and is not the script itself."""
        return self._group is not None

    @property
    def body_open(self) -> bool:
        """Whether the main thread is inside a body right now."""
        return self._main_seat.open

    @property
    def in_flight(self) -> int:
        """Calls that are here and whose bodies are not gone."""
        return self._executor.in_flight

    def wait_idle(self, timeout_s: float | None) -> bool:
        """Wait until no call is here; False if the time was too short."""
        self._idle.clear()
        if not self._executor.in_flight:
            return True
        return self._idle.wait(timeout_s)

    def close(self) -> None:
        """Say goodbye to the agent and end the io thread. Not from the io thread."""
        self._io.post(self._say_goodbye)
        self._ended.wait(1.0)
        self._io.stop()
        if seam.injected() is self.calls:
            seam.inject(None)

    def _say_goodbye(self) -> None:
        if self._link is not None:
            self._link.close()

    # ---- what the node says later ----------------------------------------------------------------

    def update(
        self, *, removed: str | None = None, paused: bool | None = None,
        draining: bool | None = None,
    ) -> None:  # fmt: skip
        """Tell the agent, soon, what changed; the functions are read from the table."""
        self._io.post(lambda: self._note_update(removed, paused, draining))

    def _note_update(self, removed: str | None, paused: bool | None, draining: bool | None) -> None:
        if removed is not None:
            self._removed.append(removed)
        self._paused = self._paused if paused is None else paused
        self._draining = self._draining if draining is None else draining
        if not self._update_posted:
            self._update_posted = True
            self._io.post(self._send_update)

    def _send_update(self) -> None:
        self._update_posted = False
        stream = self._registration
        if stream is None or not stream.is_open:
            return
        packed = outcomes.pack(values.encode(self._offer(), allow_pickle=False))
        self._removed.clear()
        stream.send(Update(packed.body, packed.segments), packed.buffers)

    def _offer(self) -> dict[str, Any]:
        names = {entry["name"] for entry in self._table.entries()}
        return {
            "node_id": self._spec.node_id,
            "capabilities": dict(self._spec.capabilities),
            "max_concurrency": self._spec.max_concurrency,
            "functions": self._table.entries(),
            "removed": [name for name in self._removed if name not in names],
            "paused": self._paused,
            "draining": self._draining,
            "stuck": self._stuck,
        }

    def _on_stuck(self, functions: list[str]) -> None:
        """No sync call can run here any more: the agent may start this process again."""
        _log.error(
            "every slot is held by a function that does not stop; give such functions "
            'isolation="process", which can be ended alone',
            node_id=self._spec.node_id, functions=", ".join(functions),
        )  # fmt: skip
        self._stuck = True
        self._send_update()

    # ---- the link (io thread) --------------------------------------------------------------------

    def on_welcome(self, link: Link, info: dict[str, Any]) -> None:
        """The agent took us in: say what is offered."""
        packed = outcomes.pack(values.encode(self._offer(), allow_pickle=False))
        self._removed.clear()
        message = Register(packed.body, packed.segments)
        self._registration = link.open(message, packed.buffers, handler=_Registration(self))
        self.calls.up(link)

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        """The agent gives us a call."""
        if kind == Kind.DISPATCH:
            return self._executor.open(stream, payload, more, end)
        stream.reset(ErrorCode.PROTOCOL, "a worker takes calls only")
        stream.release()
        return StreamHandler()

    def on_stream_credit(self, link: Link) -> None:
        """The agent takes more calls of ours."""
        self.calls.credit()

    def on_drain(self, link: Link, reason: str) -> None:
        """The agent is about to end this process: what has not begun can still run elsewhere."""
        self._executor.hand_back(reason)

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        """The agent is gone, or said goodbye."""
        self._end(error)

    def _end(self, error: EasyRemoteError | None) -> None:
        self.error = self.error or error
        self.calls.down(error)
        self._executor.close()
        self._registered.set()
        self._ended.set()

    def on_registered(self) -> None:
        """The gateway took the registration, for the first time or again."""
        self._registered.set()

    def on_refused(self, error: EasyRemoteError) -> None:
        """The gateway or the agent refused the registration for good."""
        self.error = error
        self._registered.set()
        self._say_goodbye()


class _Registration(StreamHandler):
    """The stream on which a worker registered."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def on_message(self, stream: Stream, kind: int, payload: bytes, more: bool, end: bool) -> None:
        if kind == Kind.REGISTERED:
            decode(Registered, payload)
            self._worker.on_registered()
        elif kind == Kind.FAILURE:
            code, reason, _, retry_after_s, detail = decode(Failure, payload)
            error = from_wire(code, reason, retry_after_s=retry_after_s, detail=detail)
            self._worker.on_refused(error)

    def on_reset(self, stream: Stream, code: int, reason: str) -> None:
        self._worker.on_refused(from_wire(code, reason))


def end_process_if_stuck(worker: Worker, sentence: str, grace_s: float = LOST_GRACE_S) -> None:
    """Give running bodies a moment after serving has ended, then end this process.

    A body that does not look holds its thread; when that is the main thread, nothing but the end
    of the process ends it.
    """

    def end() -> None:
        if not worker.wait_idle(grace_s):
            sys.stderr.write(sentence + "\n")
            sys.stderr.flush()
            os._exit(EXIT_AGENT_LOST)

    threading.Thread(target=end, name="easyremote-end", daemon=True).start()


def _forget_in_children(worker: Worker) -> None:
    """Let calls that a forked child makes find no link: the thread that drives it is not there."""
    reference = weakref.ref(worker.calls)

    def in_child() -> None:
        calls = reference()
        if calls is not None and seam.injected() is calls:
            seam.inject(None)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=in_child)
