"""What dies, stops or falls silent in the middle of a call: what its caller is told, and how soon.

The limits are those of promises.md; what is measured on an idle machine is a tenth of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from easyremote import Client, GatewayUnreachableError, NodeLostError, WorkerCrashedError
from tests.chaos.campaign import make_join
from tests.chaos.links import Links
from tests.chaos.stage import Stage, failed, on_stage, until
from tests.chaos.world import Role
from tests.faults import Fault, Step

pytestmark = pytest.mark.slow

LEASE_S = 2.0
AGENT_LOST_S = 2.0
CRASHED_S = 1.0
BACK_S = 5.0
SILENT_S = LEASE_S + 5.0
FOREVER_S = 60.0


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A gateway and two nodes: `by-command` under `easyremote node`, `by-script` by itself."""
    with on_stage(tmp_path_factory.mktemp("loss"), LEASE_S) as made:
        made.start_node("by-command", by_command=True)
        made.start_node("by-script", by_command=False)
        yield made


BOTH = pytest.mark.parametrize("node_id", ["by-command", "by-script"])


@BOTH
def test_kill_of_the_agent_is_a_lost_node_within_two_seconds(stage: Stage, node_id: str) -> None:
    """NodeLostError, which may have run; the node's other processes end, too."""
    future = stage.client.submit(f"{node_id}.nap", f"agent-{node_id}", FOREVER_S)
    stage.wait_begun(f"agent-{node_id}")
    shot = stage.hit(Role.AGENT, node_id, signal.SIGKILL)
    error, told = failed(future)

    assert type(error) is NodeLostError and error.may_have_run
    assert told - shot < AGENT_LOST_S
    assert stage.world.wait_gone(node_id, BACK_S) == []
    stage.start_node(node_id, by_command=stage.nodes[node_id])
    assert stage.client.submit(f"{node_id}.nap", "next", 0.0).result(BACK_S) == "next"


@BOTH
def test_kill_of_the_script_is_a_crash_within_a_second(stage: Stage, node_id: str) -> None:
    """WorkerCrashedError, which may have run; the agent starts the script again by itself."""
    for function in ("nap", "work"):
        key = f"script-{node_id}-{function}"
        future = stage.client.submit(f"{node_id}.{function}", key, FOREVER_S)
        mark = stage.wait_begun(key)
        shot = stage.hit(Role.WORKER, node_id, signal.SIGKILL)
        error, told = failed(future)

        assert type(error) is WorkerCrashedError and error.may_have_run
        assert told - shot < CRASHED_S
        again = stage.client.submit(f"{node_id}.pid").result(BACK_S)
        assert again != mark.pid
        assert time.monotonic() - shot < BACK_S


def test_kill_of_an_isolated_process_hurts_its_own_call_alone(stage: Stage) -> None:
    """A call beside it in the script goes on; the next isolated call gets a new process."""
    beside = stage.client.submit("by-command.nap", "beside", 1.0)
    future = stage.client.submit("by-command.alone", "alone-1", FOREVER_S)
    mark = stage.wait_begun("alone-1")
    assert mark.pid == stage.proc(Role.REPLICA, "by-command").pid
    shot = stage.hit(Role.REPLICA, "by-command", signal.SIGKILL)
    error, told = failed(future)

    assert type(error) is WorkerCrashedError and error.signal == signal.SIGKILL
    assert told - shot < CRASHED_S
    assert beside.result(BACK_S) == "beside"
    assert stage.client.submit("by-command.alone", "alone-2", 0.0).result(BACK_S) == "alone-2"


def test_a_stopped_agent_is_lost_and_its_late_result_changes_nothing(stage: Stage) -> None:
    """A node that stood still past its lease is told so: it serves again, nothing runs twice."""
    future = stage.client.submit("by-command.nap", "frozen", LEASE_S / 2)
    stage.wait_begun("frozen")
    shot = stage.hit(Role.AGENT, "by-command", signal.SIGSTOP)
    error, told = failed(future)

    assert type(error) is NodeLostError and error.may_have_run
    assert told - shot < SILENT_S
    until(lambda: stage.marks("frozen", ended=True), what="the end of the body")
    stage.hit(Role.AGENT, "by-command", signal.SIGCONT)
    stage.wait_healthy("by-command")
    assert stage.client.submit("by-command.nap", "thawed", 0.0).result(BACK_S) == "thawed"
    assert future.exception() is error
    assert len(stage.marks("frozen")) == 1


def test_a_node_in_a_black_hole_is_noticed_by_both_sides(stage: Stage) -> None:
    """No byte passes and nobody is told: caller and node know it within lease + 5 s."""
    join = make_join(stage.world, "node", "--node", "far")
    with Links(["far"], stage.world.port, seed=1) as links:
        port = links.ports["far"]
        stage.start_node("far", port=port, env={"EASYREMOTE_JOIN": join})
        future = stage.client.submit("far.nap", "hole", FOREVER_S)
        stage.wait_begun("hole")
        began = time.monotonic()
        links.apply(Step(0.0, "far", Fault.BLACK_HOLE, duration_s=3 * SILENT_S))
        error, told = failed(future)

        assert type(error) is NodeLostError and error.may_have_run
        assert told - began < SILENT_S
        until(lambda: "no link to the gateway" in stage.log("far"), SILENT_S, "the node's notice")
        assert time.monotonic() - began < SILENT_S
        assert "node gone node_id=far" in stage.log("gateway")
        links.heal()
        links.apply(Step(0.0, "far", Fault.CUT))  # What was said into the hole is not repeated.
        stage.wait_healthy("far")
        assert stage.client.submit("far.nap", "seen", 0.0).result(BACK_S) == "seen"
        stage.hit(Role.AGENT, "far", signal.SIGTERM)
        assert stage.world.wait_gone("far", BACK_S) == []


def test_a_client_in_a_black_hole_is_noticed_by_both_sides(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """The client dials anew and the gateway lets its link go, within lease + 5 s."""
    join = make_join(stage.world, "member")
    with Links(["away"], stage.world.port, seed=2) as links:
        address = f"127.0.0.1:{links.ports['away']}"
        with Client(address, join=join) as client:
            client.connect(BACK_S)
            before = stage.status()["connections"]
            began = time.monotonic()
            links.apply(Step(0.0, "away", Fault.BLACK_HOLE, duration_s=3 * SILENT_S))
            until(lambda: "no link to the gateway" in caplog.text, SILENT_S, "the client's notice")
            until(lambda: stage.status()["connections"] < before, SILENT_S, "the gateway's notice")

            assert time.monotonic() - began < SILENT_S
            links.heal()
            links.apply(Step(0.0, "away", Fault.CUT))
            until(lambda: _answers(client), what="the client's return")


def _answers(client: Client) -> bool:
    try:
        return bool(client.nodes())
    except GatewayUnreachableError:
        return False
