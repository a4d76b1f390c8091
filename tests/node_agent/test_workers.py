"""One worker process from its start to its end, as the agent sees it."""

from __future__ import annotations

import os
import socket
import sys
import textwrap
from pathlib import Path
from typing import Any

import trio

from easyremote.handlers import StreamHandler
from easyremote.node.agent_config import Announcement
from easyremote.node.process import ExitStatus, start_child
from easyremote.node.workers import WorkerEnd, WorkerProcess, WorkerState
from easyremote.outbox import Outbox
from easyremote.stream import Stream

WAIT_S = 20.0

HEAD = """
import os, socket, sys, time, trio
from easyremote.handlers import LinkHandler
from easyremote.link import Link
from easyremote.node.agent_config import Announcement
from easyremote.node.spec import NodeSpec
from easyremote.node.worker_link import worker_link_settings
from easyremote.outbox import Outbox
from easyremote.transport import SocketStream
sock = socket.socket(fileno=int(sys.argv[1]))
line = socket.socket(fileno=int(sys.argv[2]))
def announce():
    Announcement(NodeSpec(None, "n-1"), 2).send(sock)
class Handler(LinkHandler):
    def on_welcome(self, link, info):
        welcomed(link)
async def greet():
    link = Link(SocketStream(sock, "agent"), Handler(), dialer=True, outbox=Outbox(),
                settings=worker_link_settings())
    link.hello("worker", {}, {})
    await link.run()
"""


class Owner:
    """An agent that only remembers what it was told."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.told: list[Any] = []
        self.ready = trio.Event()

    def worker_announced(self, worker: WorkerProcess, announcement: Announcement) -> None:
        self.told.append((announcement.spec.node_id, announcement.serve))

    def worker_ready(self, worker: WorkerProcess) -> None:
        self.told.append("ready")
        self.ready.set()

    def worker_offers(self, worker: WorkerProcess, offer: dict[str, Any], first: bool) -> None:
        self.told.append(offer)

    def worker_calls(
        self, worker: WorkerProcess, stream: Stream, payload: bytes, more: bool, end: bool
    ) -> StreamHandler:
        raise NotImplementedError

    def worker_asks(
        self, worker: WorkerProcess, stream: Stream, kind: int, payload: bytes
    ) -> StreamHandler:
        raise NotImplementedError

    def worker_credit(self, worker: WorkerProcess) -> None:
        raise NotImplementedError

    def worker_drains(self, worker: WorkerProcess, reason: str) -> None:
        self.told.append("drain")

    def stop_signal(self, reason: str, *, at_once: bool = False) -> None:
        self.told.append(("stop", reason, at_once))


def start(owner: Owner, program: str, root: Path) -> WorkerProcess:
    """Start a program as a worker; it finds its two sockets in its arguments."""
    ours, theirs = socket.socketpair()
    our_line, their_line = socket.socketpair()
    child = start_child(
        [
            sys.executable, "-c", HEAD + textwrap.dedent(program),
            str(theirs.fileno()), str(their_line.fileno()),
        ],
        env={**os.environ, "PYTHONPATH": str(root)}, cwd="/",
        pass_fds=(theirs.fileno(), their_line.fileno()),
    )  # fmt: skip
    theirs.close()
    their_line.close()
    return WorkerProcess(owner, child, ours, our_line)


async def end_of(worker: WorkerProcess, ready_s: float | None = None) -> WorkerEnd:
    with trio.fail_after(WAIT_S):
        end = await worker.run(ready_s)
        await worker.process.wait()
    assert worker.state is WorkerState.DEAD
    return end


async def test_script_that_ends_before_it_serves(root: Path) -> None:
    """A process that ends before its announcement has an exit code and was never ready."""
    owner = Owner()
    end = await end_of(start(owner, "sys.exit(3)", root))

    assert (end.goodbye, end.was_ready, end.status) == (False, False, ExitStatus(3, None))
    assert owner.told == []


async def test_script_that_never_serves_is_killed_in_time(root: Path) -> None:
    """A process that does not reach serve() within its time is killed, and that is said."""
    end = await end_of(start(Owner(), "time.sleep(60)", root), ready_s=0.5)

    assert not end.was_ready
    assert "did not reach its serve()" in end.why


async def test_script_that_says_something_else(root: Path) -> None:
    """A process whose first bytes are no announcement is ended."""
    end = await end_of(start(Owner(), "sock.sendall(b'x' * 100); time.sleep(60)", root))

    assert not end.was_ready
    assert end.status == ExitStatus(None, 9)


async def test_goodbye_is_no_crash(root: Path) -> None:
    """A worker that greets and says goodbye meant to end."""
    owner = Owner()
    program = """
        def welcomed(link):
            link.close()
        announce()
        trio.run(greet)
    """
    end = await end_of(start(owner, program, root), ready_s=WAIT_S)

    assert (end.goodbye, end.was_ready) == (True, True)
    assert owner.told == [("n-1", 2), "ready"]


async def test_crash_is_no_goodbye(root: Path) -> None:
    """A worker that ends without a word crashed, whatever its exit code is."""
    program = """
        def welcomed(link):
            os._exit(0)
        announce()
        trio.run(greet)
    """
    end = await end_of(start(Owner(), program, root))

    assert (end.goodbye, end.was_ready, end.status) == (False, True, ExitStatus(0, None))


async def test_worker_that_cuts_its_link_and_lives_on_is_ended(root: Path) -> None:
    """A process that can no longer be reached is of no use, and is killed."""
    program = """
        def welcomed(link):
            sock.shutdown(socket.SHUT_RDWR)
            time.sleep(60)
        announce()
        trio.run(greet)
    """
    end = await end_of(start(Owner(), program, root))

    assert (end.goodbye, end.status) == (False, ExitStatus(None, 9))


async def test_worker_that_is_told_to_end(root: Path) -> None:
    """A worker that hears our goodbye ends by itself and keeps its exit code."""
    owner = Owner()
    program = """
        def welcomed(link):
            pass
        announce()
        trio.run(greet)
        sys.exit(6)
    """
    worker = start(owner, program, root)
    ends: list[WorkerEnd] = []

    async def run() -> None:
        ends.append(await worker.run())

    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await owner.ready.wait()
            await worker.end(WAIT_S)

        assert ends[0].goodbye
        assert await worker.process.wait() == ExitStatus(6, None)


async def test_signal_line_is_heard(root: Path) -> None:
    """Signals and orders on the line reach the agent, other bytes mean nothing."""
    owner = Owner()
    program = """
        line.sendall(bytes([15, 2, 200, 201, 7]))
        time.sleep(60)
    """
    worker = start(owner, program, root)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            while len(owner.told) < 4:
                await trio.sleep(0.01)
            worker.kill("enough")

    assert [told if told == "drain" else told[::2] for told in owner.told] == [
        ("stop", False), ("stop", False), "drain", ("stop", True),
    ]  # fmt: skip
