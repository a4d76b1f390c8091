"""Calls that a running function makes: over the link of its node, with its ticket and deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from easyremote import NotConnectedError, SerializationError, TaskTimeoutError, remote, seam
from easyremote.client.client import Client
from easyremote.client.default import defaults

from .scripted import WAIT_S, ScriptedGateway
from .test_calls import Custom, until

TICKET = b"t" * 16


@pytest.fixture
def inside(gateway: ScriptedGateway) -> Iterator[None]:
    """As if this test were the body of a call: the link of a node is injected."""
    owner = gateway.client()
    owner.connect()
    link = gateway.link_of(owner)
    seam.inject(link)
    token = seam.current_ticket.set(TICKET)
    yield
    seam.current_ticket.reset(token)
    seam.inject(None)
    defaults.forget()


@pytest.mark.usefixtures("inside")
def test_a_nested_call_carries_the_ticket(gateway: ScriptedGateway) -> None:
    """The gateway takes principal and rights from the call that it names."""
    future = remote("n", "f")(1)
    given = gateway.next_call()
    assert given.call.ticket == TICKET
    given.result(2)

    assert future.result(WAIT_S) == 2


@pytest.mark.usefixtures("inside")
def test_a_nested_call_ends_before_its_parent_does(gateway: ScriptedGateway) -> None:
    """The parent's deadline bounds it; its own, if that is nearer."""
    token = seam.current_deadline.set(time.monotonic() + 20)
    try:
        remote("n", "f")(1)
        remote("n", "f").options(timeout=60)(1)
        remote("n", "f").options(timeout=5)(1)
    finally:
        seam.current_deadline.reset(token)
    first, second, third = (gateway.next_call().call.deadline_ms for _ in range(3))

    assert first is not None and 15_000 < first <= 20_000
    assert second is not None and 15_000 < second <= 20_000
    assert third is not None and third <= 5_000


@pytest.mark.usefixtures("inside")
def test_after_the_parents_deadline_nothing_is_sent(gateway: ScriptedGateway) -> None:
    """A call that could not end in time provably never ran."""
    token = seam.current_deadline.set(time.monotonic() - 1)
    try:
        error = remote("n", "f")(1).exception(WAIT_S)
    finally:
        seam.current_deadline.reset(token)

    assert isinstance(error, TaskTimeoutError)
    assert error.may_have_run is False
    assert gateway.calls.empty()


@pytest.mark.usefixtures("inside")
def test_a_nested_call_that_loses_the_link_fails(gateway: ScriptedGateway) -> None:
    """The link to the agent never comes back; nothing waits for it."""
    future = remote("n", "f")(1)
    gateway.next_call()
    gateway.cut()

    assert isinstance(future.exception(WAIT_S), ConnectionError)


@pytest.mark.usefixtures("inside")
def test_a_running_function_asks_nothing_else() -> None:
    """Discovery is for clients; the sentence says so."""
    with pytest.raises(NotConnectedError, match="client of your own"):
        remote("n", "f").info()


@pytest.mark.usefixtures("inside")
def test_pickled_results_of_nested_calls_need_trust_that_was_said(
    gateway: ScriptedGateway,
) -> None:
    """Nobody tells a worker whose node answered, so only trust in all of them opens a pickle."""
    future = remote("n", "f")(1)
    gateway.next_call().result(Custom(), pickled=True)
    assert isinstance(future.exception(WAIT_S), SerializationError)
    link = seam.injected()
    defaults.forget()
    defaults.set(Client("gateway.test", trust_nodes=True))
    seam.inject(link)
    future = remote("n", "f")(1)
    gateway.next_call().result(Custom(), pickled=True)

    assert type(future.result(WAIT_S)) is Custom


def test_outside_of_a_call_the_injected_link_is_not_used(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Code of a script that runs beside its functions is an ordinary client."""
    seam.inject(gateway.link_of(client))
    try:
        remote("n", "f")(1)
        assert gateway.next_call().call.ticket == b""
    finally:
        seam.inject(None)
    until(lambda: client.session.unsettled)
