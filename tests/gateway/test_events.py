"""The log of the gateway: one line an event, with id, principal and node, and without payload."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from easyremote.gateway.events import OUTCOMES_PER_S, Faucet
from easyremote.log import JsonFormatter, LineFormatter
from easyremote.wire.errors import ErrorCode
from easyremote.wire.message import Failure

from .peers import World, function, new_id


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    """Return the fields of all lines of one event; each of them is one line."""
    found = [one for one in caplog.records if getattr(one, "easyremote_event", "") == name]
    for record in found:
        for formatter in (LineFormatter(), JsonFormatter()):
            assert len(formatter.format(record).splitlines()) == 1
    return [one.easyremote_fields for one in found]  # type: ignore[attr-defined]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "easyremote")
    return caplog


@pytest.mark.trio
async def test_a_call_that_goes_well_leaves_two_lines_at_debug(
    world: World, autojump_clock: MockClock, log: pytest.LogCaptureFixture
) -> None:
    """Accepted, given to a node; both can be found by the id that its future shows."""
    node = await world.node("n1", function("f"))
    node.auto = lambda given: given.answer()
    client = await world.client(user="ann")
    call_id = new_id()
    await client.call("f", call_id=call_id).outcome()

    (accepted,), (given,) = events(log, "call accepted"), events(log, "call given to a node")
    assert accepted == {
        "call_id": call_id.hex(), "function": "f", "principal": "ann", "node_id": "n1",
        "waits": False,
    }  # fmt: skip
    assert (given["call_id"], given["node_id"], given["attempt"]) == (call_id.hex(), "n1", 1)
    assert not [one for one in log.records if one.levelno > logging.INFO]
    assert all(
        one.levelno == logging.DEBUG for one in log.records if one.name.endswith("gateway.calls")
    )


@pytest.mark.trio
async def test_what_does_not_end_well_is_one_line(
    world: World, autojump_clock: MockClock, log: pytest.LogCaptureFixture
) -> None:
    """The function's own error, a deadline, a lost node, a refusal: who, where, which code."""
    node = await world.node("n1", function("f", slots=8))
    client = await world.client(user="ann")
    secret = "the text of an exception is not for the log"
    raised = client.call("f")
    given = await node.wait_given(1)
    given.say(
        Failure(int(ErrorCode.REMOTE_ERROR), secret, True, None, {"type": "KeyError"}), end=True
    )
    given.release()
    await raised.outcome()
    late = client.call("f", deadline_ms=1000)
    await late.outcome()
    refused = client.call("nothing")
    await refused.outcome()
    lost = client.call("f")
    await node.wait_given(3)
    await node.cut()
    await lost.outcome()

    by_code = {one["code"]: one for one in events(log, "call failed") + events(log, "call lost")}
    assert by_code["REMOTE_ERROR"]["error"] == "KeyError"
    assert by_code["REMOTE_ERROR"]["node_id"] == "n1"
    assert by_code["DEADLINE"]["may_have_run"] is True
    assert by_code["NODE_LOST"]["principal"] == "ann"
    (one,) = events(log, "call refused")
    assert (one["code"], one["function"], one["principal"]) == ("NOT_FOUND", "nothing", "ann")
    assert len(events(log, "call failed")) == 2
    assert len(events(log, "call lost")) == 1
    assert secret not in log.text
    levels = {one.getMessage().split(" call_id")[0]: one.levelname for one in log.records}
    assert levels["call lost"] == "WARNING"
    assert levels["call failed"] == "INFO"


@pytest.mark.trio
async def test_clients_come_and_go_in_the_log(
    world: World, autojump_clock: MockClock, log: pytest.LogCaptureFixture
) -> None:
    """Principal, role and address, never the token; nodes have lines of their own."""
    await world.node("n1", function("f"))
    token = world.token("guest", "gus")
    client = await world.client(token=token)
    await client.goodbye()
    await trio.testing.wait_all_tasks_blocked()

    (came,), (went,) = events(log, "client connected"), events(log, "client gone")
    assert (came["principal"], came["role"], came["peer"]) == ("gus", "guest", "192.0.2.7")
    assert (went["principal"], went["reason"]) == ("gus", "goodbye")
    assert token not in log.text
    assert len(events(log, "node connected")) == 1


@pytest.mark.trio
async def test_orders_of_operators_are_logged(
    world: World, autojump_clock: MockClock, log: pytest.LogCaptureFixture
) -> None:
    """Who made or revoked a token, and which; its secret is nowhere."""
    owner = await world.client("owner", "root")
    made = await owner.ask("token.create", role="guest", user="gus")
    await owner.ask("token.revoke", id=made["id"])

    (created,), (revoked,) = events(log, "token created"), events(log, "token revoked")
    assert (created["token"], created["principal"]) == (made["id"], "root")
    assert (revoked["token"], revoked["principal"]) == (made["id"], "root")
    assert made["token"] not in log.text
    assert made["join"] not in log.text


def test_a_flood_of_outcomes_is_counted_not_written(log: pytest.LogCaptureFixture) -> None:
    """So many lines a second; what was left out is a number in the next one."""
    faucet = Faucet(OUTCOMES_PER_S)
    passed = sum(faucet.passes(10.0 + n / 1e6) for n in range(500))

    assert passed == OUTCOMES_PER_S
    assert faucet.left_out == 450
    assert faucet.passes(11.0)
    (line,) = events(log, "outcomes were not logged, there are too many")
    assert line["count"] == 450
