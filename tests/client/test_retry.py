"""Calls that are made again: which, how often, and when no more."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from easyremote import Future
from easyremote.client import again as again_module
from easyremote.client.call import OutgoingCall
from easyremote.client.client import Client
from easyremote.client.options import Route, checked, route
from easyremote.client.retry import RetryPolicy, Throttle, pause_s
from easyremote.errors import (
    EasyRemoteError,
    InfeasibleError,
    NodeLostError,
    OverloadedError,
    RemoteExecutionError,
    TaskTimeoutError,
    WorkerCrashedError,
)
from easyremote.wire.errors import ErrorCode

from .scripted import WAIT_S, GivenCall, ScriptedGateway, scripted

IDEMPOTENT = RetryPolicy(5, idempotent=True)
CAREFUL = RetryPolicy(3)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedGateway]:
    """Return a scripted gateway; pauses between attempts are short."""
    monkeypatch.setattr(again_module, "pause_s", lambda *_: 0.001)
    with scripted() as made:
        yield made


@pytest.fixture
def client(gateway: ScriptedGateway) -> Client:
    """Return a client of it."""
    return gateway.client()


def submit(
    client: Client, retry: RetryPolicy | None, timeout_s: float | None = None
) -> Future[Any]:
    """Make a call with a retry policy."""
    return client.session.submit(Route("f", retry=retry, timeout_s=timeout_s), (1,), {})


def attempts(future: Future[Any]) -> int:
    """Return how often the call of a future was made."""
    source = future._source
    assert isinstance(source, OutgoingCall)
    return source.attempts


def test_an_idempotent_call_is_made_again(gateway: ScriptedGateway, client: Client) -> None:
    """Each attempt has an id of its own and the same arguments."""
    future = submit(client, IDEMPOTENT)
    first = gateway.next_call()
    first.fail(ErrorCode.NODE_LOST, maybe=True)
    second = gateway.next_call()
    second.fail(ErrorCode.WORKER_DIED, maybe=True)
    third = gateway.next_call()
    third.result("done")

    assert future.result(WAIT_S) == "done"
    assert len({one.call.call_id for one in (first, second, third)}) == 3
    assert first.arguments == third.arguments == ((1,), {})
    assert [one.call.options for one in (first, second, third)] == [
        {},
        {"attempt": 1},
        {"attempt": 2},
    ]


def test_what_may_have_run_is_not_made_again_by_itself(
    gateway: ScriptedGateway, client: Client
) -> None:
    """`retries` alone is for bodies that provably did not start."""
    future = submit(client, CAREFUL)
    gateway.next_call().fail(ErrorCode.OVERLOADED)
    gateway.next_call().fail(ErrorCode.NODE_LOST, "gone", maybe=True)

    error = future.exception(WAIT_S)
    assert isinstance(error, NodeLostError)
    assert error.may_have_run is True


def test_nothing_is_made_again_unless_somebody_said_so(
    gateway: ScriptedGateway, client: Client
) -> None:
    """The default is one attempt."""
    future = submit(client, None)
    gateway.next_call().fail(ErrorCode.OVERLOADED)

    assert isinstance(future.exception(WAIT_S), OverloadedError)
    assert gateway.calls.empty()


def test_a_function_may_be_registered_as_idempotent(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Then its callers need not say so."""
    future = submit(client, None)
    gateway.next_call().fail(ErrorCode.NODE_LOST, maybe=True, detail={"idempotent": True})
    gateway.next_call().result(3)

    assert future.result(WAIT_S) == 3


def test_an_earlier_attempt_that_may_have_run_is_not_forgotten(
    gateway: ScriptedGateway, client: Client
) -> None:
    """The last attempt did not begin, but the call may have run: its first attempt was lost."""
    future = submit(client, RetryPolicy(2, idempotent=True))
    gateway.next_call().fail(ErrorCode.NODE_LOST, maybe=True)
    gateway.next_call().fail(ErrorCode.NO_NODE)

    error = future.exception(WAIT_S)
    assert isinstance(error, EasyRemoteError)
    assert error.may_have_run is True


def test_attempts_that_never_began_leave_no_doubt(gateway: ScriptedGateway, client: Client) -> None:
    """Nobody has to fear that a call ran which was refused each time."""
    future = submit(client, CAREFUL)
    gateway.auto = lambda call: call.fail(ErrorCode.OVERLOADED)

    error = future.exception(WAIT_S)
    assert isinstance(error, OverloadedError)
    assert error.may_have_run is False


def test_a_client_that_closes_in_a_pause_does_not_deny_the_attempt_before(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two attempts nothing is sent, and the first one may have run."""
    monkeypatch.setattr(again_module, "pause_s", lambda *_: 60.0)
    future = submit(client, IDEMPOTENT)
    gateway.next_call().fail(ErrorCode.NODE_LOST, maybe=True)
    gateway.do(lambda: None)  # The failure has arrived.
    client.close()

    error = future.exception(WAIT_S)
    assert isinstance(error, EasyRemoteError)
    assert error.may_have_run is True


def test_attempts_are_bounded(gateway: ScriptedGateway, client: Client) -> None:
    """The last error is the outcome."""
    gateway.auto = lambda call: call.fail(ErrorCode.OVERLOADED)
    future = submit(client, CAREFUL)

    assert isinstance(future.exception(WAIT_S), OverloadedError)
    assert attempts(future) == 3


def test_a_service_that_always_fails_is_not_hammered(
    gateway: ScriptedGateway, client: Client
) -> None:
    """A hundred calls that all fail cost a handful of attempts more."""
    made: list[GivenCall] = []

    def fail(call: GivenCall) -> None:
        made.append(call)
        call.fail(ErrorCode.NODE_LOST, maybe=True)

    gateway.auto = fail
    futures = [submit(client, IDEMPOTENT) for _ in range(100)]

    assert all(isinstance(f.exception(WAIT_S), NodeLostError) for f in futures)
    assert len(made) <= 110


def test_exceptions_of_the_body_when_asked_for(gateway: ScriptedGateway, client: Client) -> None:
    """Only those that are named."""
    future = submit(client, RetryPolicy(3, exceptions=(KeyError,)))
    gateway.next_call().raise_(KeyError("x"))
    gateway.next_call().raise_(ValueError("y"))

    error = future.exception(WAIT_S)
    assert isinstance(error, ValueError)
    assert isinstance(error, RemoteExecutionError)


def test_the_deadline_spans_all_attempts(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attempt begins that could not end in time, and the error is the real one."""
    monkeypatch.setattr(again_module, "pause_s", lambda *_: 60.0)
    begin = time.monotonic()
    future = submit(client, IDEMPOTENT, timeout_s=30.0)
    gateway.next_call().fail(ErrorCode.NODE_LOST, maybe=True)

    assert isinstance(future.exception(WAIT_S), NodeLostError)
    assert time.monotonic() - begin < WAIT_S


def test_a_deadline_in_a_pause(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call whose time runs out while it waits for its next attempt may have run before."""
    monkeypatch.setattr(again_module, "pause_s", lambda *_: 0.4)
    future = submit(client, IDEMPOTENT, timeout_s=0.5)
    gateway.next_call().fail(ErrorCode.NODE_LOST, maybe=True)
    gateway.next_call()

    error = future.exception(WAIT_S)
    assert isinstance(error, TaskTimeoutError)
    assert error.may_have_run is True


def test_a_cancel_in_a_pause(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decided at once, and there is no other attempt."""
    monkeypatch.setattr(again_module, "pause_s", lambda *_: 0.2)
    future = submit(client, IDEMPOTENT)
    gateway.next_call().fail(ErrorCode.NODE_LOST, maybe=True)
    until = time.monotonic() + WAIT_S
    while attempts(future) == 1:
        assert time.monotonic() < until, "there was no second attempt"
        time.sleep(0.001)
    future.cancel()

    with pytest.raises(BaseException, match="cancel"):
        future.result(WAIT_S)
    gateway.auto = lambda call: call.result(call.call.function)
    assert client.submit("g").result(WAIT_S) == "g"
    time.sleep(0.3)
    assert gateway.calls.empty()


def test_options_say_what_is_made_again() -> None:
    """`idempotent` alone means four more attempts; `retries` means that many."""

    def policy(**options: Any) -> RetryPolicy | None:
        return route("f", checked(options)).retry

    assert policy() is None
    assert policy(idempotent=True) == RetryPolicy(5, idempotent=True)
    assert policy(retries=2) == RetryPolicy(3)
    assert policy(max_retries=0, idempotent=True) == RetryPolicy(1, idempotent=True)
    assert policy(retry_exceptions=True) == RetryPolicy(5, exceptions=(Exception,))


def test_what_is_worth_another_attempt() -> None:
    """Failures of the system that pass; nothing that will be the same the next time."""
    lost = NodeLostError("x")
    crashed = WorkerCrashedError("x")
    infeasible = InfeasibleError("x")
    infeasible.may_have_run = False

    assert IDEMPOTENT.allows(lost, 1)
    assert IDEMPOTENT.allows(crashed, 4)
    assert not IDEMPOTENT.allows(lost, 5)
    assert not CAREFUL.allows(lost, 1)
    assert CAREFUL.allows(lost, 1, idempotent=True)
    assert not IDEMPOTENT.allows(infeasible, 1)
    assert not IDEMPOTENT.allows(TaskTimeoutError("x"), 1)
    assert not IDEMPOTENT.allows(ValueError("x"), 1)


def test_a_throttle_opens_again() -> None:
    """A tenth of a token comes back with each success."""
    throttle = Throttle()
    assert [throttle.failed() for _ in range(6)] == [True] * 4 + [False] * 2
    for _ in range(30):
        throttle.succeeded()
    assert throttle.failed()


def test_pauses_honour_what_the_gateway_asks_for() -> None:
    """Never sooner than that, and spread."""
    error = OverloadedError("full")
    error.retry_after_s = 2.0
    pauses = {pause_s(error, 1, random.Random(seed)) for seed in range(50)}

    assert all(2.0 <= pause <= 2.1 for pause in pauses)
    assert len(pauses) == 50
    assert pause_s(NodeLostError("x"), 1, random.Random(1)) <= 0.1
