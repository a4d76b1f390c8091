"""One worker of a node, as its agent sees it: a process, a link, and the calls that run there.

Theory. A worker comes to life in steps: the process starts, runs the user's script up to
`serve()`, announces itself, and greets. It ends in one of two ways. With a goodbye on its link it
meant to end. Without one it died, and then *how* it died is worth a moment's wait, because the
callers of what ran there are told the signal or the exit code.

    STARTING --GREETED--> READY --TOLD--> ENDING --GONE--> DEAD
        |                   |                ^
        |                   +----GOODBYE-----+
        +------------------- LOST, GONE ----------------> DEAD

Rules of this file. 1) `state` moves in `_step` alone, along the table. 2) The end of the process
is what counts: a link may be held open by a child of the user's code, and a process may close its
link and live on. 3) A worker is never declared dead for silence: a body that holds the
interpreter's lock silences it for as long as it likes.

Source. decisions.md, "Processes of a node" 1 and 3; promises.md T38.
"""

from __future__ import annotations

import signal
import socket
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import trio

from ..errors import EasyRemoteError
from ..handlers import LinkHandler, StreamHandler
from ..link import Link
from ..log import Log
from ..outbox import Outbox
from ..transport import SocketStream
from ..wire.errors import ErrorCode, RemoteProtocolError
from ..wire.event import HelloReceived
from ..wire.message import Failure, Kind, Registered
from .agent_config import Announcement, receive_announcement
from .offer import OfferReader
from .process import UNKNOWN_END, Child, ExitStatus, Process, end_process
from .replica_plan import Devices
from .signal_line import SAY_DRAIN, SAY_END, STOP_SIGNALS
from .worker_link import worker_link_settings

if TYPE_CHECKING:
    from ..stream import Stream
    from .agent_calls import DispatchedCall

_log = Log("node")

LAST_BYTES_S = 0.3
"""Time in which the link of a dead process gives what the kernel still holds of it."""
HAND_BACK_S = 0.25
"""Time in which a worker that will be replaced hands back the calls that it has not begun."""
EXIT_WAIT_S = 2.0
"""Time in which a process that cut its link is expected to end."""
STRANGER_EXIT_WAIT_S = 10.0
"""The same for one that we cannot kill, because the user started it."""


class WorkerState(IntEnum):
    """Where a worker is."""

    STARTING = 0
    READY = 1
    ENDING = 2
    DEAD = 3


class WorkerInput(IntEnum):
    """What may happen to a worker."""

    GREETED = 0
    TOLD = 1
    """We said goodbye, or are killing it."""
    GOODBYE = 2
    """It said goodbye."""
    GONE = 3
    """Its link and its process are over."""


_S, _I = WorkerState, WorkerInput
TRANSITIONS: dict[tuple[WorkerState, WorkerInput], WorkerState] = {
    (_S.STARTING, _I.GREETED): _S.READY,
    (_S.STARTING, _I.TOLD): _S.ENDING,
    (_S.STARTING, _I.GOODBYE): _S.ENDING,
    (_S.STARTING, _I.GONE): _S.DEAD,
    (_S.READY, _I.TOLD): _S.ENDING,
    (_S.READY, _I.GOODBYE): _S.ENDING,
    (_S.READY, _I.GONE): _S.DEAD,
    (_S.ENDING, _I.GREETED): _S.ENDING,
    (_S.ENDING, _I.TOLD): _S.ENDING,
    (_S.ENDING, _I.GOODBYE): _S.ENDING,
    (_S.ENDING, _I.GONE): _S.DEAD,
}
"""The whole life of a worker. DEAD has no way out."""


class WorkerEnd(NamedTuple):
    """How a worker ended."""

    goodbye: bool
    """It meant to."""
    was_ready: bool
    """It had reached `serve()`."""
    status: ExitStatus | None
    """None: the process lives on."""
    why: str
    """The end as people say it."""
    told: bool = False
    """It was told to end, or killed, by us."""


class WorkerOwner(Protocol):
    """Who is told about a worker: the agent. Everything is synchronous."""

    outbox: Outbox

    def worker_announced(self, worker: WorkerProcess, announcement: Announcement) -> None:
        """The script reached `serve()`."""

    def worker_ready(self, worker: WorkerProcess) -> None:
        """It takes calls."""

    def worker_offers(self, worker: WorkerProcess, offer: dict[str, Any], first: bool) -> None:
        """It says what it offers, whole, for the first time or again."""

    def worker_calls(
        self, worker: WorkerProcess, stream: Stream, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        """A function that runs there calls another one."""
        ...

    def worker_asks(
        self, worker: WorkerProcess, stream: Stream, kind: int, payload: bytes
    ) -> StreamHandler:
        """It opened a stream for something else than a call."""
        ...

    def worker_credit(self, worker: WorkerProcess) -> None:
        """It takes more calls than before."""

    def worker_drains(self, worker: WorkerProcess, reason: str) -> None:
        """The owner of the node wants it drained; again means the same."""

    def stop_signal(self, reason: str, *, at_once: bool = False) -> None:
        """The process was told to stop by a signal; a second one means at once."""


class WorkerProcess(LinkHandler):
    """One worker. See the module.

    Attributes:
        group: The slot group of a replica; None of the worker that serves everything.
        number: Which worker of the node it is; 0 is the first.
        devices: Indexes of the GPUs that it is pinned to; empty if it is not.
        link: Its link, None before it announced itself.
        calls: The calls that were written to it and are not gone, by call id.
        orphans: Calls of a lost link that wait for the exit status.
    """

    def __init__(
        self, owner: WorkerOwner, process: Process, sock: socket.socket,
        signal_line: socket.socket, *, group: str | None = None, announces: bool = True,
        number: int = 0, devices: Devices = (),
    ) -> None:  # fmt: skip
        """Take over a process and our end of its socket; `run` begins.

        Args:
            owner: Who is told.
            process: The process.
            sock: Connected to it.
            signal_line: Our end of its signal line.
            group: The group of a replica.
            announces: It was started by us, so it says first which node it serves.
            number: Which worker of the node it is, for its label; 0 is the first.
            devices: The GPUs that it is pinned to.
        """
        self.group = group
        self.devices = devices
        self.number = number
        self.process = process
        self.link: Link | None = None
        self.state = WorkerState.STARTING
        self.calls: dict[bytes, DispatchedCall] = {}
        self.orphans: list[DispatchedCall] = []
        self._owner = owner
        self._sock = sock
        self._line = signal_line
        self._announces = announces
        self._registration: Stream | None = None
        self._goodbye = False
        self._was_ready = False
        self._broken: str | None = None
        self._killed_why = ""
        self._replaced = ""
        self._to_replace = trio.Event()
        self._dead = trio.Event()
        self._scope = trio.CancelScope()

    def _step(self, what: WorkerInput) -> None:
        state = TRANSITIONS.get((self.state, what))
        assert state is not None, f"a worker that is {self.state!r} cannot take {what!r}"
        self.state = state

    @property
    def ready(self) -> bool:
        """Whether calls can be given to it."""
        return self.state is WorkerState.READY

    @property
    def name(self) -> str:
        """What it is called in logs."""
        return f"pid {self.process.pid}"

    # ---- its life ------------------------------------------------------------------------------

    async def run(self, ready_s: float | None = None) -> WorkerEnd:
        """See the worker through its life.

        Args:
            ready_s: Time in which it must have greeted; None waits for ever.

        Returns:
            How it ended. Its link and its process are gone; a process that we did not start
            and that said goodbye may live on, and is none of our business any more.
        """
        late: list[str] = []
        status: list[ExitStatus] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_process, status)
            nursery.start_soon(self._watch_signals)
            nursery.start_soon(self._kill_replaced)
            if ready_s is not None:
                nursery.start_soon(self._watch_start, ready_s, late)
            await self._run_link()
            if not status and not self._goodbye:
                await self._await_exit()
            nursery.cancel_scope.cancel()
        end = self._end(status, late)
        self._step(WorkerInput.GONE)
        self._settle_orphans(end)
        return end

    async def _watch_process(self, status: list[ExitStatus]) -> None:
        """When the process ends, its link has a moment to give what is still on its way."""
        ended = await self.process.wait()
        status.append(ended._replace(why=self._killed_why))
        self._dead.set()
        await trio.sleep(LAST_BYTES_S)
        if self.link is not None:
            self.link.close()
        self._scope.cancel()

    async def _watch_signals(self) -> None:
        """Listen on the signal line: the process itself may be unable to say anything."""
        self._line.setblocking(False)
        with self._line:
            while True:
                await trio.lowlevel.wait_readable(self._line)
                try:
                    said = self._line.recv(64)
                except OSError:
                    return
                if not said:
                    return
                for number in said:
                    if number in STOP_SIGNALS:
                        self._owner.stop_signal(signal.Signals(number).name)
                    elif number == SAY_DRAIN:
                        self._owner.worker_drains(self, "the script asked for it")
                    elif number == SAY_END:
                        self._owner.stop_signal("the script is over or insists", at_once=True)

    async def _await_exit(self) -> None:
        """The link was cut: the process should end, or is ended if it is ours."""
        with trio.move_on_after(EXIT_WAIT_S):
            await self._dead.wait()
            return
        if isinstance(self.process, Child):
            self.process.kill()
        with trio.move_on_after(STRANGER_EXIT_WAIT_S):
            await self._dead.wait()

    async def _watch_start(self, ready_s: float, late: list[str]) -> None:
        await trio.sleep(ready_s)
        if self.state is WorkerState.STARTING:
            late.append(f"did not reach its serve() within {ready_s:g} s")
            self.process.kill()

    async def _run_link(self) -> None:
        """Receive the announcement, if there is one, then run the link to its end."""
        self._sock.setblocking(False)
        with self._scope:
            announcement = await self._announcement() if self._announces else None
            if self._announces and announcement is None:
                self._sock.close()
                return
            self.link = Link(
                SocketStream(self._sock, self.name), self, dialer=False,
                outbox=self._owner.outbox, settings=worker_link_settings(),
            )  # fmt: skip
            if announcement is not None:
                self._owner.worker_announced(self, announcement)
            await self.link.run()
        self._sock.close()

    async def _announcement(self) -> Announcement | None:
        async def receive(size_bytes: int) -> bytes:
            while True:
                try:
                    return self._sock.recv(size_bytes)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._sock)
                except OSError:
                    return b""

        try:
            return await receive_announcement(receive)
        except EasyRemoteError as error:
            self._broken = str(error)
            return None

    def _end(self, status: list[ExitStatus], late: list[str]) -> WorkerEnd:
        if late:
            why = late[0]
        elif status:
            why = status[0].describe()
        else:
            why = f"cut its link: {self._broken}"
        told = self.state is WorkerState.ENDING
        return WorkerEnd(self._goodbye, self._was_ready, status[0] if status else None, why, told)

    def _settle_orphans(self, end: WorkerEnd) -> None:
        """Tell the callers of what ran there how the process ended."""
        orphans, self.orphans = self.orphans, []
        self._owner.outbox.begin()
        try:
            for call in orphans:
                call.crashed(end.status or UNKNOWN_END)
        finally:
            self._owner.outbox.end()

    # ---- what the agent does -------------------------------------------------------------------

    def kill(self, reason: str, *, why: str = "") -> None:
        """End the process at once; its calls are settled when it is gone.

        Args:
            reason: For the log.
            why: What the callers are told instead of the signal, after "the process that ran f".
        """
        if self.state is not WorkerState.DEAD:
            self._killed_why = self._killed_why or why
            _log.info("worker killed", pid=self.process.pid, reason=reason)
            self._step(WorkerInput.TOLD)
            self.process.kill()

    def replace(self, reason: str) -> None:
        """Let it hand back what has not begun, for a moment, and end the process."""
        if self.state is WorkerState.READY:
            self._step(WorkerInput.TOLD)
            if self.link is not None:
                self.link.drain(f"{reason}; the process that would have run this is started again")
            self._replaced = reason
            self._to_replace.set()

    async def _kill_replaced(self) -> None:
        await self._to_replace.wait()
        await trio.sleep(HAND_BACK_S)
        self.kill(self._replaced)

    def retire(self) -> None:
        """Give it nothing more: it is about to be ended, unless it has just ended by itself."""
        if self.state is not WorkerState.DEAD:
            self._step(WorkerInput.TOLD)

    async def end(self, grace_s: float) -> None:
        """Say goodbye and see the process to its end, if it is a child of ours."""
        if self.state is not WorkerState.DEAD:
            self._step(WorkerInput.TOLD)
            self._goodbye = True
        if self.link is not None:
            self.link.close()
        if isinstance(self.process, Child):
            # A script that is still on its way to `serve()` hears no goodbye.
            await end_process(self.process, 0.0 if self.link is None else grace_s)

    def say_registered(self, info: dict[str, Any]) -> None:
        """Tell the worker that the gateway has taken the node."""
        if self._registration is not None and self._registration.is_open:
            self._registration.send(Registered(info))

    def say_refused(self, error: EasyRemoteError, detail: dict[str, Any]) -> None:
        """Tell the worker why the node cannot serve."""
        stream, self._registration = self._registration, None
        if stream is not None and stream.is_open:
            stream.send(Failure(int(error.code), str(error), False, None, detail), end=True)
            stream.release()

    # ---- the link ------------------------------------------------------------------------------

    def on_hello(self, link: Link, event: HelloReceived) -> None:
        """The worker introduced itself."""
        if event.role != "worker":
            raise RemoteProtocolError(ErrorCode.PROTOCOL, "an agent takes workers only")
        link.welcome({})
        self._step(WorkerInput.GREETED)
        if self.ready:
            self._was_ready = True
            self._owner.worker_ready(self)

    def on_open(
        self, link: Link, stream: Stream, kind: int, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        """Its registration, or a call that one of its functions makes."""
        if kind == Kind.REGISTER:
            self._registration = stream
            return OfferReader(self.offered, stream, payload, more)
        if kind == Kind.CALL:
            return self._owner.worker_calls(self, stream, payload, more, end)
        return self._owner.worker_asks(self, stream, kind, payload)

    def on_stream_credit(self, link: Link) -> None:
        """The worker takes more calls."""
        self._owner.worker_credit(self)

    def on_drain(self, link: Link, reason: str) -> None:
        """The owner of the node wants it drained."""
        self._owner.worker_drains(self, reason)

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        """The link is over."""
        if error is None:
            if not self._goodbye and self.state is not WorkerState.ENDING:
                self._goodbye = link.goodbye is not None
        else:
            self._broken = str(error)
        if self._goodbye:
            self._step(WorkerInput.GOODBYE)

    def offered(self, offer: dict[str, Any], first: bool) -> None:
        """The worker said what it offers."""
        self._owner.worker_offers(self, offer, first)
