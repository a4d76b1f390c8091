"""Calls on a link: sent as credit allows, settled once, honest about what may have run."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import threading
import time
from typing import Any

import numpy as np
import pytest
import trio

from easyremote import (
    FunctionNotFoundError,
    Future,
    GatewayUnreachableError,
    NotConnectedError,
    OverloadedError,
    RemoteExecutionError,
    SerializationError,
    TaskCancelledError,
    TaskTimeoutError,
    alive,
    gather,
    remote,
    values,
)
from easyremote.client import again as again_module
from easyremote.client import call as call_module
from easyremote.client import client as client_module
from easyremote.client import session as session_module
from easyremote.client.bodies import pack
from easyremote.client.client import Client
from easyremote.client.offload import offload
from easyremote.wire.errors import ErrorCode
from easyremote.wire.frame import HEADER_SIZE
from easyremote.wire.message import (
    FLAG_ATTACH,
    FLAG_DETACHED,
    FLAG_IDEMPOTENT,
    Kind,
    Result,
    encode,
)

from .scripted import WAIT_S, GivenCall, ScriptedGateway, scripted


@remote(node_id="node-1")
def add(a: int, b: int = 2) -> int:
    raise NotImplementedError


@remote(capability={"gpu": {"memory": ">=16GB"}}, priority=3, timeout=60, idempotent=True)
def train(model: Any) -> Any:
    raise NotImplementedError


class Custom:
    """Something that only a pickle can carry."""


def echo(given: GivenCall) -> None:
    """Answer with the arguments."""
    args, kwargs = given.arguments
    given.result([list(args), kwargs])


def test_a_call_carries_what_was_said_and_its_result_comes_back(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Name, node, options, time limit and arguments arrive; the value and its cost return."""
    future = train({"layers": 4})
    given = gateway.next_call()

    assert given.call.function == "train"
    assert given.call.node_ids is None
    assert given.call.options == {"capability": {"gpu": {"memory": ">=16GB"}}, "priority": 3}
    assert given.call.deadline_ms is not None
    assert 50_000 < given.call.deadline_ms <= 60_000
    assert given.call.flags == FLAG_IDEMPOTENT
    assert given.call.ticket == b""
    assert given.arguments == (({"layers": 4},), {})
    assert given.ended
    assert future.id == given.call.call_id.hex()
    given.result(0.5, seconds=1.25)
    assert future.result(WAIT_S) == 0.5
    assert future.usage is not None
    assert future.usage.seconds == 1.25
    assert state_of(future) == "done"


def test_defaults_of_a_stub_travel(gateway: ScriptedGateway, client: Client) -> None:
    """What the stub says about a missing argument is what the function gets."""
    add(1)
    assert gateway.next_call().arguments == ((1,), {"b": 2})
    add(1, 5)
    assert gateway.next_call().arguments == ((1, 5), {})


def test_await_works_in_asyncio_and_trio(gateway: ScriptedGateway, client: Client) -> None:
    """One future type serves both."""
    gateway.auto = lambda given: given.result(sum(given.arguments[0]))

    async def call() -> int:
        return await add(2, 3)

    assert asyncio.run(call()) == 5
    assert trio.run(call) == 5


def test_calls_beyond_the_credit_are_held_back_in_order() -> None:
    """Five thousand calls at once all succeed, though the gateway takes eight at a time."""
    with scripted(streams_credit=8) as gateway:
        client = gateway.client()
        client.connect()
        seen: list[int] = []

        def answer(given: GivenCall) -> None:
            seen.append(given.arguments[0][0])
            given.result(seen[-1])

        gateway.auto = answer
        calls = [client.submit("f", i) for i in range(5000)]

        assert gather(*calls).result(60) == list(range(5000))
        assert seen == list(range(5000))
        assert not client.session.unsettled


def test_large_values_travel_as_segments_both_ways(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Arrays and long texts arrive equal, and writable."""
    array = np.arange(300_000, dtype=np.float64).reshape(300, 1000)
    text = "x" * 100_000
    future = client.submit("mirror", array, text)
    given = gateway.next_call()

    (back, words), _ = given.arguments
    assert np.array_equal(back, array)
    assert words == text
    given.result([back, words])
    mine, mine_too = future.result(WAIT_S)
    assert np.array_equal(mine, array)
    assert mine.flags.writeable
    assert mine_too == text
    assert future.usage is not None
    assert future.usage.bytes_out >= array.nbytes


def test_a_value_that_is_too_large_is_refused_and_the_link_lives(
    gateway: ScriptedGateway, client: Client
) -> None:
    """No memory is made on the word of a peer; other calls go on."""
    client.session.object_bytes_max = 1000
    future = client.submit("f")
    gateway.next_call().result(np.zeros(10_000))

    with pytest.raises(SerializationError, match="larger than this side takes"):
        future.result(WAIT_S)
    gateway.auto = echo
    assert client.submit("g", 1).result(WAIT_S) == [[1], {}]


def test_a_remote_exception_arrives_as_its_own_type(
    gateway: ScriptedGateway, client: Client
) -> None:
    """`except KeyError` catches it, and so does `except RemoteExecutionError`."""
    future = client.submit("f")
    gateway.next_call().raise_(KeyError("missing"))

    with pytest.raises(KeyError) as caught:
        future.result(WAIT_S)
    assert isinstance(caught.value, RemoteExecutionError)
    assert caught.value.args == ("missing",)
    assert state_of(future) == "failed"


def test_failures_of_the_system_are_typed(gateway: ScriptedGateway, client: Client) -> None:
    """Code, honesty about what ran, and the time to wait arrive."""
    future = client.submit("f")
    gateway.next_call().fail(ErrorCode.OVERLOADED, "full", retry_after_s=3.0)
    error = future.exception(WAIT_S)
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 3.0
    assert error.may_have_run is False
    future = client.submit("f")
    gateway.next_call().fail(ErrorCode.NOT_FOUND, "no such function", maybe=False)

    assert isinstance(future.exception(WAIT_S), FunctionNotFoundError)


def test_state_follows_what_the_gateway_says(gateway: ScriptedGateway, client: Client) -> None:
    """submitted, queued, running, done; where it waits can be asked for."""
    future = client.submit("f")
    given = gateway.next_call()
    assert state_of(future) == "submitted"
    given.accept()
    until(lambda: state_of(future) == "queued")
    gateway.answers["call"] = {
        "state": "queued", "queue_position": 3, "eta_s": 7.5, "node_id": None, "attempt": 0,
    }  # fmt: skip

    assert future.queue_position == 4
    assert future.eta == 7.5
    assert future.placement is None
    given.started()
    until(lambda: state_of(future) == "running")
    assert future.running()
    given.result(1)
    assert future.result(WAIT_S) == 1


def test_progress_is_seen_in_order_and_before_the_result(
    gateway: ScriptedGateway, client: Client
) -> None:
    """A watcher sees every report; whoever only looks sees the last one."""
    future = client.submit("f")
    seen: list[Any] = []
    future.on_progress(seen.append)
    given = gateway.next_call()
    assert future.progress is None
    for percent in range(5):
        given.progress(percent)
    given.result("done")

    assert future.result(WAIT_S) == "done"
    assert seen == [0, 1, 2, 3, 4]
    assert future.progress == 4


# ---- cancelling ----------------------------------------------------------------------------------


def test_cancel_before_it_runs_is_immediate(gateway: ScriptedGateway, client: Client) -> None:
    """A call that is not known to run is cancelled at once, and the gateway is told."""
    future = client.submit("f")
    given = gateway.next_call()

    assert future.cancel(grace=2.0)
    assert future.cancelled()
    assert given.next("cancel") == (0, 2000)
    with pytest.raises(TaskCancelledError) as caught:
        future.result(0)
    assert caught.value.may_have_run is True, "it was sent"
    assert not future.cancel()
    given.fail(ErrorCode.CANCELLED)
    until(lambda: not client.session.unsettled)


def test_cancel_of_a_held_back_call_never_sends_it() -> None:
    """It provably did not run, and says so."""
    with scripted(streams_credit=1) as gateway:
        client = gateway.client()
        client.connect()
        first, second = client.submit("f", 1), client.submit("f", 2)
        given = gateway.next_call()
        assert second.cancel()
        error = second._exception
        assert isinstance(error, TaskCancelledError)
        assert error.may_have_run is False
        given.result(1)
        assert first.result(WAIT_S) == 1
        third = client.submit("f", 3)
        assert gateway.next_call().arguments[0] == (3,)
        third.cancel()


def test_cancel_while_it_runs_waits_for_the_node(gateway: ScriptedGateway, client: Client) -> None:
    """True means that the request is on its way; the node confirms, or the result wins."""
    stopped, finished = client.submit("f"), client.submit("g")
    one, two = gateway.next_call(), gateway.next_call()
    for given, future in ((one, stopped), (two, finished)):
        given.started()
        until(future.running)

    assert stopped.cancel(force=True, grace=1.0)
    assert finished.cancel()
    assert not stopped.done()
    assert one.next("cancel") == (1, 1000)
    one.fail(ErrorCode.CANCELLED, "stopped", maybe=True)
    two.result("fast")
    assert finished.result(WAIT_S) == "fast"
    cf.wait([stopped], timeout=WAIT_S)
    assert stopped.cancelled()
    assert stopped.state == "cancelled"


def test_a_call_that_somebody_else_cancelled_has_an_error(
    gateway: ScriptedGateway, client: Client
) -> None:
    """It is no cancelled future, so waiters of the standard library see an exception."""
    future = client.submit("f")
    gateway.next_call().fail(ErrorCode.CANCELLED, "the operator did it", maybe=True)

    assert isinstance(future.exception(WAIT_S), TaskCancelledError)
    assert not future.cancelled()
    assert state_of(future) == "cancelled"


# ---- deadlines -----------------------------------------------------------------------------------


def test_a_gateway_that_forgets_the_deadline_is_not_waited_for(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A little after the deadline the call fails here, and its stream is given up."""
    monkeypatch.setattr(call_module, "BACKSTOP_S", 0.05)
    slow = remote(function="f", timeout=0.05)(lambda: None)
    future = slow()
    given = gateway.next_call()

    error = future.exception(WAIT_S)
    assert isinstance(error, TaskTimeoutError)
    assert error.may_have_run is True
    assert given.next("reset")[0] == ErrorCode.DEADLINE


def test_a_deadline_that_passes_before_the_call_is_sent_is_provably_harmless() -> None:
    """It waited for room; nothing ran."""
    with scripted(streams_credit=1) as gateway:
        client = gateway.client()
        client.connect()
        client.submit("f")
        late = client.submit(remote("n", "g").options(timeout=0.02))
        error = late.exception(WAIT_S)

        assert isinstance(error, TaskTimeoutError)
        assert error.may_have_run is False
        gateway.next_call().result(1)
        assert gateway.calls.empty()


def test_timers_of_settled_calls_are_dropped(gateway: ScriptedGateway, client: Client) -> None:
    """Calls with a time limit leave nothing in the heap that grows."""
    gateway.auto = lambda given: given.result(1)
    slow = remote("n", "f").options(timeout=600)
    gather(*[slow() for _ in range(3000)]).result(60)

    until(lambda: len(client.session.timers) == 0)
    assert len(client.session.timers._heap) < 3000


# ---- losing the link -----------------------------------------------------------------------------


def test_a_call_that_was_not_accepted_goes_again_under_its_id(
    gateway: ScriptedGateway, client: Client
) -> None:
    """The caller does not notice the loss; the gateway can tell that it knows the call."""
    futures = [client.submit("f", i) for i in range(3)]
    before = [gateway.next_call() for _ in range(3)]
    gateway.cut()
    after = [gateway.next_call() for _ in range(3)]

    assert [g.call.call_id for g in after] == [g.call.call_id for g in before]
    assert [g.arguments for g in after] == [((i,), {}) for i in range(3)]
    for given in after:
        given.result(given.arguments[0][0])
    assert [future.result(WAIT_S) for future in futures] == [0, 1, 2]
    assert gateway.dials == 2


def test_a_call_that_was_accepted_is_submitted_again(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Under the same id, and with the incarnation to which it was first sent."""
    client.connect()
    client.session.incarnation = 7
    future = client.submit("f", 1)
    first = gateway.next_call()
    first.accept()
    until(lambda: state_of(future) == "queued")
    gateway.info["incarnation"] = 8
    gateway.cut()

    again = gateway.next_call()
    assert (first.call.since, again.call.since) == (0, 7)
    assert again.call._replace(since=0) == first.call
    again.result("there")
    assert future.result(WAIT_S) == "there"


def test_a_call_that_yields_is_not_submitted_again(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Its items were on the old link: an honest error is better than a gap."""
    with client.stream("f") as items:
        call = gateway.next_call()
        call.accept()
        call.yield_(1)
        assert next(items) == 1
        gateway.cut()
        with pytest.raises(GatewayUnreachableError) as caught:
            next(items)
    assert caught.value.may_have_run is True


def test_a_call_cancelled_without_a_link_is_stopped_on_the_next_one(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Its caller does not wait for that."""
    future = client.submit("f")
    first = gateway.next_call()
    first.accept()
    until(lambda: state_of(future) == "queued")
    gateway.unreachable = GatewayUnreachableError("nobody there")
    gateway.cut()
    first.next("lost")
    future.cancel()

    if not future.cancelled():
        error = future.exception(WAIT_S)
        assert isinstance(error, TaskCancelledError)
        assert error.may_have_run is True
    gateway.unreachable = None
    stop = gateway.next_call()
    assert stop.call.call_id == first.call.call_id
    assert stop.call.flags & FLAG_ATTACH
    stop.next("cancel")


def test_a_client_that_slept_submits_nothing_that_may_be_forgotten(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time began when the link was last known to be alive, and sleep counts; not for calls
    that were made afterwards, on a link that only looked alive."""
    old = client.submit("old")
    first = gateway.next_call()
    first.accept()
    until(lambda: state_of(old) == "queued")
    awake = alive.clock
    monkeypatch.setattr(alive, "clock", lambda: awake() + again_module.SENT_PATIENCE_S + 1.0)
    fresh = client.submit("fresh")
    gateway.next_call()
    gateway.cut()
    error = old.exception(WAIT_S)
    assert isinstance(error, GatewayUnreachableError)
    assert error.may_have_run is True

    second = gateway.next_call()
    assert second.call.function == "fresh"
    second.result("done")
    assert fresh.result(WAIT_S) == "done"
    assert gateway.calls.empty()


def test_an_outcome_that_came_is_not_asked_for_again(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is lost while the result is being decoded: the call is not submitted once more."""
    held: list[Any] = []
    monkeypatch.setattr(offload, "run", held.append)
    future = client.submit("f")
    call = gateway.next_call()
    value = list(range(20_000))

    def say_and_leave() -> None:
        assert gateway.peer is not None
        call.result(value)
        gateway.peer.link.outbox.flush()
        gateway.peer.link.close()

    gateway.do(say_and_leave)
    until(lambda: gateway.dials == 2 and bool(held))
    later = client.submit("later")
    assert gateway.next_call().call.function == "later"
    held[0]()
    assert future.result(WAIT_S) == value
    assert not later.done()


def test_half_a_result_is_forgotten_with_its_link(gateway: ScriptedGateway, client: Client) -> None:
    """The call is submitted again, and its value comes whole."""
    value = np.arange(1 << 18)
    future = client.submit("f")
    first = gateway.next_call()
    codec, body, segments, buffers = pack(values.encode(value, allow_pickle=False))

    def say_half() -> None:
        frame = memoryview(bytearray(HEADER_SIZE + 1000))
        message = Result(codec, 0.1, body, segments)
        first.stream.forward(Kind.RESULT, encode(message), True, False)
        first.stream.forward_data(frame, False, False)

    assert buffers[0].nbytes > 1000
    gateway.do(say_half)
    source = future._source
    assert isinstance(source, call_module.OutgoingCall)
    until(lambda: source._filling is not None)
    gateway.cut()
    second = gateway.next_call()
    assert second.call.call_id == first.call.call_id
    second.result(value)
    assert (future.result(WAIT_S) == value).all()


def test_a_call_is_found_by_its_id(gateway: ScriptedGateway, client: Client) -> None:
    """From another program, too: nothing is asked but its outcome."""
    future = client.session.attach(b"i" * 16)
    asked = gateway.next_call()

    assert (asked.call.call_id, asked.call.flags) == (b"i" * 16, FLAG_ATTACH)
    assert future.id == (b"i" * 16).hex()
    asked.result(5)
    assert future.result(WAIT_S) == 5


def test_a_goodbye_of_the_gateway_is_survived_too(gateway: ScriptedGateway, client: Client) -> None:
    """A gateway that is restarted on purpose gets the calls that it had not accepted."""
    future = client.submit("f", 7)
    gateway.next_call()
    gateway.goodbye()
    gateway.next_call().result("again")

    assert future.result(WAIT_S) == "again"


def test_a_link_that_does_not_come_back_fails_what_waits(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing hangs: after the patience is over, calls fail, and new ones fail at once."""
    monkeypatch.setattr(session_module, "PATIENCE_S", 0.05)
    monkeypatch.setattr(again_module, "SENT_PATIENCE_S", 0.1)
    future = client.submit("f")
    gateway.next_call()
    gateway.unreachable = GatewayUnreachableError("nobody there")
    gateway.cut()
    error = future.exception(WAIT_S)

    assert isinstance(error, GatewayUnreachableError)
    assert error.may_have_run is True, "it was written to a link"
    fresh = client.submit("f").exception(WAIT_S)
    assert isinstance(fresh, GatewayUnreachableError)
    assert fresh.may_have_run is False


def test_a_stream_that_the_gateway_gives_up_is_a_typed_error(
    gateway: ScriptedGateway, client: Client
) -> None:
    """A result that is cut off is an error, never a short value."""
    future = client.submit("f")
    gateway.next_call().reset(ErrorCode.NODE_LOST, "the node is gone")

    error = future.exception(WAIT_S)
    assert error is not None
    assert "the node is gone" in str(error)
    assert getattr(error, "may_have_run", None) is True


# ---- pickles -------------------------------------------------------------------------------------


def test_a_pickle_from_a_node_of_mine_is_opened(gateway: ScriptedGateway, client: Client) -> None:
    """The gateway says who owns the node that answered: it is mine."""
    gateway.answers["owners"] = ["alice"]
    future = client.submit("f")
    gateway.next_call().result(Custom(), pickled=True)

    assert type(future.result(WAIT_S)) is Custom


@pytest.mark.parametrize("answer", [["mallory"], [None], [], ["alice", "alice"], "alice"])
def test_a_pickle_from_somebody_elses_node_is_not(
    gateway: ScriptedGateway, client: Client, answer: Any
) -> None:
    """A foreign node is refused, and so is an answer that says nothing of this one call."""
    gateway.answers["owners"] = answer
    future = client.submit("f")
    gateway.next_call().result(Custom(), pickled=True)

    with pytest.raises(SerializationError, match="trust_nodes"):
        future.result(WAIT_S)


@pytest.mark.parametrize("trust", [True, False])
def test_trust_can_be_said_once_for_all(gateway: ScriptedGateway, trust: bool) -> None:
    """True opens every pickle, False none, and the gateway is not asked."""
    client = gateway.client(trust_nodes=trust)
    future = client.submit("f")
    gateway.next_call().result(Custom(), pickled=True)

    assert isinstance(future.exception(WAIT_S), SerializationError) is not trust
    assert gateway.asked == []


def test_a_guest_cannot_even_send_a_pickle(gateway: ScriptedGateway) -> None:
    """It is refused where it is made, and the error names the argument."""
    gateway.info = {"user": "eve", "role": "guest"}
    client = gateway.client()
    client.connect()

    with pytest.raises(SerializationError, match=r"args\[0\]"):
        client.submit("f", Custom())
    assert gateway.calls.empty()


# ---- questions, and the end ----------------------------------------------------------------------


def test_a_large_answer_and_a_refusal_of_a_question(
    gateway: ScriptedGateway, client: Client
) -> None:
    """Listings of any length arrive; refusals are typed."""
    gateway.answers["big"] = ["x" * 1000] * 100
    assert len(client.session.ask("big", {}).result(WAIT_S)) == 100
    gateway.answers["nodes"] = FunctionNotFoundError("not for you")

    with pytest.raises(FunctionNotFoundError, match="not for you"):
        client.nodes()


def test_close_settles_everything_and_says_goodbye(
    gateway: ScriptedGateway, client: Client
) -> None:
    """No future is left hanging; the gateway sees a goodbye, not a loss."""
    future = client.submit("f")
    given = gateway.next_call()
    given.accept()
    until(lambda: state_of(future) == "queued")
    peer = gateway.peer
    client.close()

    error = future.exception(0)
    assert isinstance(error, TaskCancelledError)
    assert error.may_have_run is True
    assert peer is not None
    assert peer.link.goodbye == (ErrorCode.NO_ERROR, "")
    with pytest.raises(NotConnectedError):
        client.submit("f")
    client.close()


def test_close_lets_detached_calls_reach_the_gateway_first(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is spawned in the last line of a program is not lost."""
    monkeypatch.setattr(client_module, "FLUSH_S", WAIT_S)
    remote("n", "f").spawn(1)
    given = gateway.next_call()
    assert given.call.flags & FLAG_DETACHED
    closer = threading.Thread(target=client.close)
    closer.start()
    given.accept()
    closer.join(WAIT_S)

    assert not closer.is_alive()


def test_a_client_that_nobody_holds_ends_with_its_last_call(gateway: ScriptedGateway) -> None:
    """A dropped client does not drop its calls, and leaves no thread behind."""
    client = gateway.client()
    future = client.submit("f")
    given = gateway.next_call()
    link = gateway.link_of(client)
    session = client.session
    gateway._clients.clear()
    del client
    assert not session._closed
    link.post(lambda: given.stream.send(_result(), end=True))

    assert future.result(WAIT_S) == 1
    until(lambda: not link._io.alive)


def _result() -> Any:
    from easyremote import values
    from easyremote.wire.message import Result

    return Result(0, 0.0, values.encode(1, allow_pickle=False).body, [])


def test_many_threads_share_one_client(gateway: ScriptedGateway, client: Client) -> None:
    """Every thread gets its own results."""
    gateway.auto = lambda given: given.result(given.arguments[0][0])
    results: dict[int, list[Any]] = {}

    def work(base: int) -> None:
        calls = [client.submit("f", base + i) for i in range(200)]
        results[base] = gather(*calls).result(30)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)

    assert results == {1000 * n: [1000 * n + i for i in range(200)] for n in range(6)}


def state_of(future: Future[Any]) -> str:
    """The state as plain text: checkers believe that it does not change by itself."""
    return future.state


def until(what: Any) -> None:
    """Wait until something is so; it is bounded, and polled because another thread does it."""
    limit = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < limit, "it did not become so in time"
        time.sleep(0.001)
