"""Starting, watching and ending processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
import trio

from easyremote.node import process
from easyremote.node.process import Child, ExitStatus, Stranger, end_process, start_child

from .conftest import in_thread, wait_until

WAIT_S = 20.0


def start(program: str, **options: object) -> Child:
    return start_child(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=dict(os.environ),
        cwd=str(Path.cwd()),
        **options,  # type: ignore[arg-type]
    )


def run_python(program: str) -> str:
    """Run a program in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run_beside(program: str) -> subprocess.Popen[bytes]:
    """Start a program as the user would: no child of the agent's kind."""
    return subprocess.Popen([sys.executable, "-c", program])


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (ExitStatus.of(0), "exited with code 0"),
        (ExitStatus.of(-9), "was killed by SIGKILL"),
        (ExitStatus(None, 200), "was killed by signal 200"),
        (process.UNKNOWN_END, "ended"),
    ],
)
def test_exit_status_is_said_in_words(status: ExitStatus, said: str) -> None:
    """The end of a process is one short phrase."""
    assert status.describe() == said


async def test_exit_code_and_signal_of_a_child_are_seen() -> None:
    """A child's exit code and its signal are told apart, by any number of waiters."""
    exits, killed = start("raise SystemExit(3)"), start("import time; time.sleep(60)")
    seen: list[ExitStatus] = []

    async def wait() -> None:
        seen.append(await exits.wait())

    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
        killed.kill()

        assert seen == [ExitStatus(3, None)] * 2
        assert await killed.wait() == ExitStatus(None, signal.SIGKILL)
        assert await killed.wait() == ExitStatus(None, signal.SIGKILL)


async def test_end_goes_from_waiting_to_asking_to_killing() -> None:
    """A process that ends in time is left alone, one that can be asked is asked, the rest die."""
    quick = start("pass")
    polite = start("import time; time.sleep(60)")
    stubborn = start("""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    """)
    with trio.fail_after(WAIT_S):
        assert await end_process(quick, WAIT_S) == ExitStatus(0, None)
        assert await end_process(polite, 0.0) == ExitStatus(None, signal.SIGTERM)
        await in_thread(wait_until, lambda: _ignores_sigterm(stubborn.pid))
        assert await end_process(stubborn, 0.0) == ExitStatus(None, signal.SIGKILL)


def _ignores_sigterm(pid: int) -> bool:
    text = Path(f"/proc/{pid}/status").read_text()
    (ignored,) = [line.split()[1] for line in text.splitlines() if line.startswith("SigIgn")]
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)


async def test_group_of_a_dead_child_is_killed() -> None:
    """What a child left in its process group does not outlive it."""
    ours, theirs = socket.socketpair()
    child = start(
        f"""
        import os, socket, subprocess
        grandchild = subprocess.Popen(["sleep", "300"])
        socket.socket(fileno={theirs.fileno()}).sendall(str(grandchild.pid).encode() + b";")
    """,
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    with trio.fail_after(WAIT_S), ours:
        said = await in_thread(ours.recv, 100)
        await child.wait()
    grandchild = int(said.rstrip(b";"))

    await in_thread(wait_until, lambda: not _runs(grandchild))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_stranger_is_seen_to_end() -> None:
    """The end of a process that somebody else started is seen, its exit status is not."""
    other = run_beside("import time; time.sleep(60)")
    stranger = Stranger(other.pid)
    assert stranger.alive
    stranger.terminate()
    with trio.fail_after(WAIT_S):
        assert await stranger.wait() == process.UNKNOWN_END
    stranger.close()

    assert other.wait() == -signal.SIGTERM


async def test_without_pidfd_waiting_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no pidfd, the end of a process is seen all the same."""
    monkeypatch.setattr(process, "POLL_S", 0.01)
    monkeypatch.setattr(process, "_open_pidfd", lambda _: None)
    child = start("raise SystemExit(4)")
    other = run_beside("pass")
    stranger = Stranger(other.pid)
    with trio.fail_after(WAIT_S):
        assert await child.wait() == ExitStatus(4, None)
        await in_thread(other.wait)
        assert await stranger.wait() == process.UNKNOWN_END


def test_child_dies_with_its_parent() -> None:
    """A child of a process that was killed is killed by the kernel."""
    said = run_python("""
        import os, signal, subprocess, sys, time
        program = '''
        import os, sys
        from easyremote.node.process import start_child
        child = start_child(["sleep", "300"], env=dict(os.environ), cwd="/")
        print(child.pid, flush=True)
        os.kill(os.getpid(), 9)
        '''
        import textwrap
        parent = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
        )
        print(parent.stdout.strip(), -parent.returncode)
    """)
    pid, number = map(int, said.split())
    assert number == signal.SIGKILL

    wait_until(lambda: not _runs(pid))


def test_orphans_are_inherited_and_killed() -> None:
    """A subreaper collects orphans that ended, and kills those that live, at any depth."""
    said = run_python("""
        import os, subprocess, sys, time
        from easyremote.node import process
        assert process.become_subreaper()
        # A session of its own: the group of the child does not reach it.
        program = (
            "import os, subprocess as s; a = s.Popen(['sleep', '300'], start_new_session=True); "
            "b = s.Popen(['true'], start_new_session=True); os._exit(0)"  # It waits for neither.
        )
        child = process.start_child(
            [sys.executable, "-W", "ignore", "-c", program], env=dict(os.environ), cwd="/"
        )
        import trio
        trio.run(child.wait)
        deadline = time.monotonic() + 20
        reaped = 0
        while not reaped and time.monotonic() < deadline:
            reaped += process.reap([child])
        killed = process.kill_descendants([child])
        import psutil
        print(reaped, killed, len(psutil.Process().children(recursive=True)))
    """)

    assert said == "1 1 0"


def test_forked_children_keep_no_socket_of_ours() -> None:
    """A child that is forked without exec finds the sockets closed that were registered."""
    ours, theirs = socket.socketpair()
    kept, _other = socket.socketpair()
    process.close_in_forked_children(ours)
    pid = os.fork()
    if not pid:
        os._exit(0 if ours.fileno() == -1 and kept.fileno() != -1 else 1)
    _, status = os.waitpid(pid, 0)
    for sock in (ours, theirs, kept, _other):
        sock.close()

    assert os.waitstatus_to_exitcode(status) == 0
