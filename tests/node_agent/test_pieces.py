"""The small parts of the agent: plans, markers, restarts, offers, capabilities."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from easyremote.errors import EasyRemoteError
from easyremote.node import probe, rerun_plan, telemetry, workers
from easyremote.node.agent_config import AgentConfig, Announcement, receive_announcement
from easyremote.node.offer import NodeOffer
from easyremote.node.rerun_plan import Marker, RerunPlan
from easyremote.node.restart import RestartIntensity, Restarts
from easyremote.node.signal_line import SAY_DRAIN, SignalLine
from easyremote.node.spec import NodeSpec
from easyremote.node.workers import WorkerInput, WorkerState

SPEC = NodeSpec(
    "[::1]:9000", "n-1", {"gpu": {"memory": "24GB"}}, token="secret", accept_code=("ann", "bob"),
    limits={"gpus": (0, 1)}, max_concurrency=3,
)  # fmt: skip


# ---- restarts ------------------------------------------------------------------------------------


def test_restarts_are_limited_within_the_period() -> None:
    """So many restarts in a period and no more; the pauses grow; old ones are forgotten."""
    restarts = Restarts(RestartIntensity(restarts_max=3, period_s=10.0, pause_s=0.5))

    assert [restarts.next_pause_s(float(now)) for now in range(4)] == [0.0, 0.5, 1.0, None]
    assert restarts.next_pause_s(10.0) == 1.0
    assert restarts.next_pause_s(10.5) is None
    assert restarts.next_pause_s(100.0) == 0.0


def test_pauses_between_restarts_are_bounded() -> None:
    """However high the limit was raised, the next start is never more than moments away."""
    restarts = Restarts(RestartIntensity(restarts_max=5000, period_s=1e9))
    pauses = [restarts.next_pause_s(float(now)) for now in range(5000)]

    assert pauses[:4] == [0.0, 0.2, 0.4, 0.8]
    assert set(pauses[5:]) == {RestartIntensity().pause_max_s}


@pytest.mark.parametrize(
    ("text", "restarts_max"), [("1000", 1000), ("0", 0), (" 7 ", 7), ("", 5), ("many", 5)]
)
def test_environment_raises_the_restart_limit(
    monkeypatch: pytest.MonkeyPatch, text: str, restarts_max: int
) -> None:
    """EASYREMOTE_RESTARTS_MAX is the limit of a node; what is no number changes nothing."""
    monkeypatch.setenv("EASYREMOTE_RESTARTS_MAX", text)

    assert RestartIntensity.from_environment().restarts_max == restarts_max


# ---- running the script again --------------------------------------------------------------------


def test_marker_counts_for_the_child_of_its_agent_alone() -> None:
    """A marker survives the way, and means nothing to a process with another parent."""
    mine = Marker(5, 6, os.getppid(), "n-1", 2, "fn:f")
    foreign = Marker(5, 6, os.getppid() + 1, "n-1", 2, "fn:f")

    assert Marker.decode(mine.encode()) == mine
    assert Marker.decode(foreign.encode()) is None


@pytest.mark.parametrize(
    "text", [None, "", "x", "[1, 2]", "{}", "[1,2,3,4,5,6,7]", json.dumps([0] * 6) + "x" * 5000]
)
def test_other_texts_are_no_marker(text: str | None) -> None:
    """Whatever else the variable holds is no marker and raises nothing."""
    assert Marker.decode(text) is None


def test_no_rerun_inside_a_test_run() -> None:
    """A test runner is not a script that could be run again."""
    assert rerun_plan.plan_rerun(blocking=True) == "it is a test run"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("file", "True"),
        ("module", "True"),
        ("command", "it was not started from a file"),
        ("background", "its serve() does not block"),
        ("thread", "its serve() is not on the main thread"),
    ],
)
def test_what_can_be_run_again(tmp_path: Path, root: Path, how: str, expected: str) -> None:
    """A file or module with a blocking serve() on the main thread, and nothing else."""
    program = f"""
import sys, threading
from easyremote.node.rerun_plan import RerunPlan, plan_rerun
found = []
def plan():
    found.append(plan_rerun(blocking={how != "background"}))
if {how == "thread"}:
    thread = threading.Thread(target=plan); thread.start(); thread.join()
else:
    plan()
plan = found[0]
if isinstance(plan, RerunPlan):
    print(plan.argv[0] == sys.executable and plan.argv[-1] == "argument")
else:
    print(plan)
"""
    (tmp_path / "script.py").write_text(program)
    arguments = {"module": ["-m", "script"], "command": ["-c", program]}.get(how, ["script.py"])
    env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}
    said = subprocess.run(
        [sys.executable, *arguments, "argument"], cwd=tmp_path, env=env, text=True,
        capture_output=True, check=True, timeout=20,
    )  # fmt: skip

    assert said.stdout.strip() == expected


# ---- what agent and script tell each other -------------------------------------------------------


def test_configuration_arrives_as_it_was() -> None:
    """Everything that an agent is told survives the pipe; functions are not part of it."""
    plan = RerunPlan(("python", "a b.py"), "/x", {"K": "v\udcff", "N": "1"})
    config = AgentConfig(SPEC, 5, 6, 77, 2, plan, "", restarts=True)
    decoded = AgentConfig.decode(config.encode())

    assert decoded.rerun == plan
    assert (decoded.fd, decoded.signal_fd, decoded.script_pid, decoded.serve) == (5, 6, 77, 2)
    assert decoded.restarts
    assert (decoded.spec.token, decoded.spec.node_id) == ("secret", "n-1")
    assert list(decoded.spec.accept_code) == ["ann", "bob"]  # type: ignore[arg-type]
    config = AgentConfig(SPEC, 5, 6, 7, 1, None, "why", restarts=False)
    assert AgentConfig.decode(config.encode()).rerun is None


async def _announced(data: bytes) -> Announcement | None:
    left = [data]

    async def receive(size_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        got, left[0] = left[0][:1], left[0][1:]  # A byte at a time.
        return got[:size_bytes]

    return await receive_announcement(receive)


async def test_announcement_arrives_in_pieces_or_not_at_all() -> None:
    """An announcement survives any cut of the stream; one that is cut short is none."""
    ours, theirs = socket.socketpair()
    Announcement(SPEC, 3, "no file").send(ours)
    data = theirs.recv(100_000)
    ours.close()
    theirs.close()
    whole = await _announced(data)

    assert whole is not None
    assert (whole.serve, whole.rerun_obstacle, whole.spec.node_id) == (3, "no file", "n-1")
    for size in (0, 3, 4, len(data) - 1):
        assert await _announced(data[:size]) is None


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\1x", b"\0\0\0\2{}"])
async def test_other_bytes_are_no_announcement(data: bytes) -> None:
    """What is no announcement is refused before anything large is received."""
    with pytest.raises(EasyRemoteError):
        await _announced(data)


# ---- the signal line -----------------------------------------------------------------------------


def test_signals_are_said_on_the_line_while_it_is_tied() -> None:
    """A signal with a Python handler is on the line at once; before and after it is not."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    line = SignalLine(ours)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with line.tied():
            signal.raise_signal(signal.SIGTERM)
            said = theirs.recv(10)
        signal.raise_signal(signal.SIGTERM)
        line.say(SAY_DRAIN)

        assert said == bytes([signal.SIGTERM])
        assert theirs.recv(10) == bytes([SAY_DRAIN])
    finally:
        signal.signal(signal.SIGTERM, before)
        line.close()
        theirs.close()


def test_forked_child_does_not_speak_for_the_node() -> None:
    """In a forked child a signal ends the child as usual, and nothing is said on the line."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    line = SignalLine(ours)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with line.tied():
            pid = os.fork()
            if not pid:
                signal.raise_signal(signal.SIGTERM)
                os._exit(1)
            _, status = os.waitpid(pid, 0)

        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        with pytest.raises(BlockingIOError):
            theirs.recv(10)
    finally:
        signal.signal(signal.SIGTERM, before)
        line.close()
        theirs.close()


def test_line_is_not_tied_off_the_main_thread() -> None:
    """Off the main thread the line stays loose and nothing is raised."""
    ours, theirs = socket.socketpair()
    line = SignalLine(ours)
    entered: list[bool] = []

    def tie() -> None:
        with line.tied():
            entered.append(True)

    thread = threading.Thread(target=tie)
    thread.start()
    thread.join()
    line.close()
    theirs.close()
    line.say(SAY_DRAIN)

    assert entered == [True]


# ---- the life of a worker ------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "what"), list(itertools.product(WorkerState, WorkerInput)))
def test_worker_table(state: WorkerState, what: WorkerInput) -> None:
    """Nothing leads out of DEAD, GONE leads there from everywhere else, READY is left once."""
    after = workers.TRANSITIONS.get((state, what))
    if state is WorkerState.DEAD:
        assert after is None
    elif what is WorkerInput.GONE:
        assert after is WorkerState.DEAD
    elif what is WorkerInput.GREETED:
        expected = {WorkerState.STARTING: WorkerState.READY, WorkerState.ENDING: WorkerState.ENDING}
        assert after is expected.get(state)
    else:
        assert after is WorkerState.ENDING


# ---- what the node offers ------------------------------------------------------------------------


def test_offer_replaces_adds_and_removes() -> None:
    """A whole offer replaces everything; a change adds, replaces and removes by name."""
    offer = NodeOffer()
    offer.take({"functions": [{"name": "a", "v": 1}, {"name": "b"}]}, whole=True)
    offer.take(
        {"functions": [{"name": "a", "v": 2}], "removed": ["b"], "paused": True}, whole=False
    )
    plain = offer.to_plain(SPEC, ["b"])

    assert plain["functions"] == [{"name": "a", "v": 2}]
    assert (plain["removed"], plain["paused"], plain["draining"]) == (["b"], True, False)
    assert plain["accept_code"] == ["ann", "bob"]
    offer.take({"functions": [{"name": "c"}]}, whole=True)
    assert list(offer.functions) == ["c"]


def test_declared_capabilities_lie_over_detected_ones() -> None:
    """What the owner says wins; what exceeds the machine is kept and flagged."""
    detected = {
        "cpu": {"cores": 4, "threads": 8},
        "memory": {"total": "16GiB"},
        "gpu": {"memory": "24GiB"},
    }
    declared = {
        "cpu": {"cores": 64},
        "memory": {"total": "8GB"},
        "gpu": {"memory": "24GB", "model": "X"},
        "specialization": ["vision"],
    }
    merged = probe.merge(detected, declared)

    assert merged["cpu"] == {"cores": 64, "threads": 8}
    assert merged["gpu"] == {"memory": "24GB", "model": "X"}
    assert merged["specialization"] == ["vision"]
    assert merged["declared_exceeds_detected"] == ["cpu.cores"]
    assert detected["cpu"] == {"cores": 4, "threads": 8}


def test_a_gpu_that_only_its_owner_sees_counts_and_is_flagged() -> None:
    """A declared GPU is kept on a machine without one."""
    merged = probe.merge({"cpu": {"cores": 2}}, {"gpu": {"memory": "80GB"}})

    assert merged["gpu"] == {"memory": "80GB"}
    assert merged["declared_exceeds_detected"] == ["gpu"]


def test_this_machine_is_described_without_gpu_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores and memory are detected; a missing NVML means no GPU and no error."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = probe.detect()

    assert found["cpu"]["cores"] >= 1
    assert found["memory"]["total"].endswith("GiB")
    assert "gpu" not in found
    sample = telemetry.Sampler().sample()
    assert sample["memory_available_bytes"] > 0
    assert 0.0 <= sample["cpu_percent"] <= 100.0
