"""What a user's function may do to its process, and what becomes of its call, the others, the node.

Every fault runs twice where that makes a difference: in the script's own process, and in a process
of an isolated function. The functions of the second node stand for calls of other processes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import easyremote
from easyremote import (
    Future,
    RemoteExecutionError,
    TaskCancelledError,
    WorkerCrashedError,
    remote,
)

from .conftest import Cluster

pytestmark = pytest.mark.slow

SLEEP = "54321.5"
"""What the programs that functions leave behind are called, beside `sleep`."""
WAIT_S = 20.0

NODE = f"""
import ctypes, multiprocessing, os, signal, subprocess, sys, threading, time

def exits(code):
    os._exit(code)
def segfaults():
    ctypes.string_at(0)
def aborts():
    os.abort()
def ends_like_a_program(kind):
    class Odd(BaseException):
        pass
    raise {{"exit": SystemExit(4), "interrupt": KeyboardInterrupt(), "odd": Odd("so")}}[kind]
def recurses():
    def deeper(n):
        return deeper(n + 1)
    return deeper(0)
def asks_for_a_pebibyte():
    return bytearray(1 << 50)
def closes_descriptors():
    os.closerange(3, 4096)
def moves():
    os.chdir("/")
    os.environ.clear()
    return os.getpid()
def holds_lock(seconds):
    time.sleep(0.2)  # Its beginning is said.
    ctypes.PyDLL(None).sleep(seconds)  # A C call that keeps the interpreter's lock.
    return os.getpid()
def prints(mib):
    line = "x" * 1023 + chr(10)
    for _ in range(mib * 1024):
        sys.stdout.write(line)
    sys.stdout.flush()
    return mib
def leaves(programs, sessions, forks):
    for i in range(programs + sessions):
        subprocess.Popen(["sleep", "{SLEEP}"], start_new_session=i >= programs)
    for i in range(forks):
        if not os.fork():
            if i % 2:
                os.setsid()
            time.sleep({SLEEP})
    return os.getpid()
def leaves_and_exits(programs, sessions, forks):
    leaves(programs, sessions, forks)
    os._exit(5)
def forks_and_returns():
    child = os.fork()
    if not child:
        sys.exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def blocks_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    open("blocked", "w").close()
    while True:
        try:
            time.sleep(0.05)
        except BaseException:
            pass
def interrupts_itself():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep({SLEEP})
def terminates_itself():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({SLEEP})
def sleeps(seconds):
    time.sleep(seconds)
    return seconds
def environment():
    return subprocess.run(["env"], capture_output=True, text=True).stdout
def pid():
    return os.getpid()

for name, body in list(globals().items()):
    if getattr(body, "__module__", "") == "__main__" and callable(body):
        node.register(body)
        node.register(name=f"own_{{name}}", isolation="process", max_concurrency=2)(body)

@node.register(isolation="process", resource_requirements={{"memory": "192MiB"}})
def hungry(mib, children=0):
    for _ in range(children):
        if not os.fork():
            break
    block = [b"x" * (1 << 20) for _ in range(mib)]
    if children:
        time.sleep({SLEEP})
    return len(block)
"""


@pytest.fixture(scope="module")
def cluster(cluster_factory: Callable[[], Cluster]) -> Iterator[Cluster]:
    """A gateway, the node that suffers, and one whose calls must not notice."""
    made = cluster_factory()
    made.settings["EASYREMOTE_RESTARTS_MAX"] = "1000"
    made.start_gateway()
    made.start_node("n1", NODE)
    made.start_node("n2", NODE)
    yield made
    made.end_nodes()

    assert made.members() == []  # Whatever the tests below have left.
    assert _left() == []


def _call(name: str, *args: Any, node: str = "n1", **options: Any) -> Future[Any]:
    future: Future[Any] = remote(node, name, **options)(*args)
    return future


def _left() -> list[psutil.Process]:
    """Return the programs that functions left behind."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if SLEEP in (process.info["cmdline"] or ())
    ]


def _until(condition: Callable[[], bool], limit_s: float = WAIT_S) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def _serves_again(limit_s: float = WAIT_S) -> None:
    """Wait until the script of the first node takes calls."""

    def answers() -> bool:
        try:
            return bool(_call("pid").result(limit_s))
        except easyremote.EasyRemoteError:
            return False

    _until(answers, limit_s)


@pytest.mark.parametrize(
    ("own", "body", "args", "exit_code", "number"),
    [
        *(
            (own, *fault)
            for own in ("", "own_")
            for fault in (
                ("exits", (3,), 3, None),
                ("segfaults", (), None, signal.SIGSEGV),
                ("aborts", (), None, signal.SIGABRT),
                ("closes_descriptors", (), 1, None),
            )
        ),
        # To the script itself, SIGTERM says that the node should stop.
        ("own_", "terminates_itself", (), None, signal.SIGTERM),
    ],
)
def test_death_of_a_process_is_typed_and_hurts_nobody_else(
    cluster: Cluster, own: str, body: str, args: tuple[int, ...], exit_code: int, number: int
) -> None:
    """The caller learns the exit code or the signal; calls in other processes have their results.

    A script that the user started has a parent of its own, so its first end is seen, not how.
    """
    others = [_call("sleeps", 0.3, node="n2"), _call("own_sleeps", 0.3)]
    with pytest.raises(WorkerCrashedError) as caught:
        _call(own + body, *args).result(WAIT_S)

    assert caught.value.may_have_run
    end = caught.value.exit_code, caught.value.signal
    assert end == (exit_code, number) or (not own and end == (None, None))
    assert [other.result(WAIT_S) for other in others] == [0.3, 0.3]
    _serves_again()


@pytest.mark.parametrize("own", ["", "own_"])
def test_bodies_that_end_like_programs_end_their_call_alone(cluster: Cluster, own: str) -> None:
    """SystemExit, KeyboardInterrupt and the like are outcomes of the call; the process stays."""
    before = _call(own + "pid").result(WAIT_S)
    for kind, said in (
        ("exit", "SystemExit: 4"),
        ("interrupt", "KeyboardInterrupt"),
        ("odd", "so"),
    ):
        with pytest.raises(RemoteExecutionError, match=said):
            _call(own + "ends_like_a_program", kind).result(WAIT_S)
    with pytest.raises(RecursionError):
        _call(own + "recurses").result(WAIT_S)
    with pytest.raises(MemoryError):
        _call(own + "asks_for_a_pebibyte").result(WAIT_S)

    assert _call(own + "pid").result(WAIT_S) == before


def test_signal_to_an_isolated_process_is_none_to_the_node(cluster: Cluster) -> None:
    """Ctrl-C that a body sends to its own process is its KeyboardInterrupt; the node serves on."""
    with pytest.raises(RemoteExecutionError, match="KeyboardInterrupt"):
        _call("own_interrupts_itself").result(WAIT_S)

    assert _call("pid").result(WAIT_S) == _call("pid").result(WAIT_S)
    assert "node stops" not in cluster.log("n1")


@pytest.mark.parametrize("own", ["", "own_"])
def test_held_interpreter_lock_delays_its_own_process_alone(cluster: Cluster, own: str) -> None:
    """While a body keeps the interpreter's lock, other processes answer and no lease is lost."""
    held = _call(own + "holds_lock", 3)
    _until(held.running)
    others = [_call("pid", node="n2").result(2), _call("own_pid").result(2)]

    assert not held.done()
    assert held.result(WAIT_S) not in others


def test_lock_that_is_held_for_ever_costs_one_process(cluster: Cluster) -> None:
    """A cancelled body that silences the script is settled in time and the script started again."""
    held = _call("holds_lock", 60)
    _until(held.running)
    began = time.monotonic()
    held.cancel(grace=0.1)
    with pytest.raises(TaskCancelledError):
        held.result(WAIT_S)

    assert time.monotonic() - began < 0.1 + 2.0
    _serves_again(15)


def test_calls_behind_a_stuck_body_do_not_die_with_it(cluster: Cluster) -> None:
    """A call that waits behind a stuck body runs when the script is back, or provably has not."""
    stuck = _call("sleeps", 60)
    _until(stuck.running)
    behind = _call("pid")
    stuck.cancel(force=True, grace=0.1)
    with pytest.raises(TaskCancelledError):
        stuck.result(WAIT_S)
    failure = behind.exception(WAIT_S)

    assert failure is None or isinstance(failure, easyremote.OverloadedError)
    assert failure is None or (failure.may_have_run, failure.retry_after_s) == (False, 1.0)
    _serves_again()


def test_much_output_is_no_fault(cluster: Cluster) -> None:
    """256 MiB of prints pass; the node and the call live on."""
    assert _call("own_prints", 256).result(60) == 256
    os.truncate(cluster.folder / "n1.log", 0)
    assert _call("pid").result(WAIT_S)


@pytest.mark.parametrize("children", [0, 3])
def test_memory_beyond_the_limit_ends_one_process(cluster: Cluster, children: int) -> None:
    """An isolated function that uses more than it requires is killed, and is told the limit."""
    assert _call("hungry", 40).result(WAIT_S) == 40
    other = _call("own_sleeps", 0.5)
    with pytest.raises(WorkerCrashedError, match="more than its limit of 192 MiB") as caught:
        _call("hungry", 100 if children else 4000, children).result(WAIT_S)

    assert (caught.value.exit_code, caught.value.signal) == (None, signal.SIGKILL)
    assert caught.value.may_have_run
    assert other.result(WAIT_S) == 0.5
    assert _call("hungry", 40).result(WAIT_S) == 40


@pytest.mark.parametrize("own", ["", "own_"])
def test_what_a_dead_process_left_is_ended(cluster: Cluster, own: str) -> None:
    """Children, those of sessions of their own, and forks end with the process that made them."""
    members = len(cluster.members())
    with pytest.raises(WorkerCrashedError):
        _call(own + "leaves_and_exits", 100, 50, 50).result(WAIT_S)
    _until(lambda: not _left())
    _serves_again()
    # A replica may be there now that was not before, or the other way round.
    _until(lambda: len(cluster.members()) <= members + 1)


def test_what_a_living_process_left_ends_with_the_node(cluster: Cluster) -> None:
    """Children of functions that returned live as long as the node, and no longer."""
    cluster.start_node("n3", NODE)
    assert _call("leaves", 50, 10, 10, node="n3").result(WAIT_S)
    assert _call("own_leaves", 50, 10, 10, node="n3").result(WAIT_S)
    assert len(_left()) == 120
    before = len(cluster.members())
    cluster.nodes["n3"].terminate()

    assert cluster.nodes["n3"].wait(WAIT_S) == 0
    _until(lambda: not _left())
    _until(lambda: len(cluster.members()) <= before - 2 - 120)


def test_what_functions_left_ends_after_a_kill_of_the_agent(cluster: Cluster) -> None:
    """A script whose agent was killed ends what the workers of the node left."""
    others = {agent.pid for agent in cluster.agents()}
    cluster.start_node("n4", NODE)
    (agent,) = [agent for agent in cluster.agents() if agent.pid not in others]
    assert _call("leaves", 20, 10, 10, node="n4").result(WAIT_S)
    assert _call("own_leaves", 20, 10, 10, node="n4").result(WAIT_S)
    agent.kill()

    assert cluster.nodes["n4"].wait(WAIT_S) != 0
    _until(lambda: not _left())


@pytest.mark.parametrize("own", ["", "own_"])
def test_forked_child_that_returns_ends(cluster: Cluster, own: str) -> None:
    """A child that a body forked ends where the body ends, with its own exit code."""
    assert _call(own + "forks_and_returns").result(WAIT_S) == 3


@pytest.mark.parametrize("own", ["", "own_"])
def test_body_that_moves_and_clears_its_environment(cluster: Cluster, own: str) -> None:
    """The next calls run; a process that is started later has the script's own folder again."""
    moved = _call(own + "moves").result(WAIT_S)

    assert _call(own + "pid").result(WAIT_S) == moved or own
    with pytest.raises(WorkerCrashedError):
        _call("exits", 1).result(WAIT_S)
    _serves_again()


def test_body_that_blocks_every_signal_is_killed(cluster: Cluster) -> None:
    """An isolated body that hears no signal and swallows interrupts ends after the grace."""
    call = _call("own_blocks_signals")
    _until((cluster.folder / "blocked").exists)
    began = time.monotonic()
    call.cancel(grace=0.2)
    with pytest.raises(TaskCancelledError):
        call.result(WAIT_S)

    assert time.monotonic() - began < 0.2 + 2.0
    assert _call("own_pid").result(WAIT_S)


def test_programs_of_functions_do_not_inherit_the_secret(cluster: Cluster) -> None:
    """EASYREMOTE_JOIN lets the node in, and is not in the environment of what functions start."""
    made = cluster.cli("token", "create", "--role", "node", "--user", "someone")
    join = made.stdout.split()[-1]
    assert join.startswith("er1_")
    cluster.settings["EASYREMOTE_JOIN"] = join
    try:
        cluster.start_node("n5", NODE)
    finally:
        del cluster.settings["EASYREMOTE_JOIN"]
    for body in ("environment", "own_environment"):
        said = _call(body, node="n5").result(WAIT_S)

        assert "EASYREMOTE_HOME=" in said
        assert join not in said
