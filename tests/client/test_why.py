"""What a call waits for, as the client tells it: from its own knowledge or from the gateway's."""

from __future__ import annotations

import pytest

from easyremote.client.client import Client
from easyremote.errors import AccessDeniedError, FunctionNotFoundError
from easyremote.wire.errors import ErrorCode

from .scripted import WAIT_S, ScriptedGateway, scripted
from .test_calls import until

TOLD = {
    "phase": "queued", "state": "queued", "queue_position": 3, "node_id": None,
    "sentences": ["It waits for a node.", "n1 is busy: 4 calls for 4 slots."],
    "places": [{"node_id": "n1", "state": "busy", "busy": 4, "slots": 4}],
}  # fmt: skip


def test_the_gateway_explains_what_it_has(gateway: ScriptedGateway, client: Client) -> None:
    """Its sentences are the text, its data the data; the id alone will do, too."""
    future = client.submit("f")
    gateway.next_call().accept()
    until(lambda: future.state == "queued")
    gateway.answers["explain"] = TOLD
    why = client.why_waiting(future)

    assert why == "It waits for a node. n1 is busy: 4 calls for 4 slots."
    assert why.data["places"][0]["busy"] == 4
    assert client.why_waiting(future.id).data["queue_position"] == 3


def test_what_has_an_outcome_does_not_wait(gateway: ScriptedGateway, client: Client) -> None:
    """Nobody is asked about it."""
    future = client.submit("f")
    gateway.next_call().result(1)
    future.result(WAIT_S)

    assert client.why_waiting(future) == "It does not wait: it is done."
    assert client.why_waiting(future).data == {
        "phase": "done", "state": "done", "sentences": ["It does not wait: it is done."],
    }  # fmt: skip


def test_a_call_without_room_waits_here() -> None:
    """What the gateway has not been sent is explained without it: the place in our own line."""
    with scripted(streams_credit=2) as gateway:
        client = gateway.client()
        futures = [client.submit("f", n) for n in range(5)]
        gateway.next_call()
        why = client.why_waiting(futures[-1])

        assert why.data["phase"] == "no room"
        assert why.data["queue_position"] == 2
        assert "allows no more open calls" in why


def test_an_unknown_call_is_said_to_be_unknown(gateway: ScriptedGateway, client: Client) -> None:
    """A call of another user and one that never was have the same answer; others are errors."""
    unknown = FunctionNotFoundError("no call of yours has this id")
    unknown.code = ErrorCode.NOT_FOUND
    gateway.answers["explain"] = unknown
    why = client.why_waiting("00" * 16)
    assert why.data["phase"] == "unknown"
    assert "knows no call of yours" in why

    forbidden = AccessDeniedError("a viewer may not ask")
    forbidden.code = ErrorCode.FORBIDDEN
    gateway.answers["explain"] = forbidden
    with pytest.raises(AccessDeniedError):
        client.why_waiting("00" * 16)


@pytest.mark.parametrize("text", ["", "zz" * 16, "00" * 15, "train"])
def test_what_is_no_id_is_refused_here(client: Client, text: str) -> None:
    """A typo is told at once."""
    with pytest.raises(ValueError, match="32 hex digits"):
        client.why_waiting(text)


def test_a_derived_future_points_to_its_parents(gateway: ScriptedGateway, client: Client) -> None:
    """A future that is no call has no place at the gateway."""
    future = client.submit("f")
    derived = future.then(str)

    assert client.why_waiting(derived).data["phase"] == "unknown"
    gateway.next_call().result(1)
    assert derived.result(WAIT_S) == "1"
