"""Connecting: what fails at once and how, what comes back by itself, what ends for good."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from easyremote import (
    AuthenticationError,
    EasyRemoteError,
    GatewayUnreachableError,
    NotConnectedError,
    connect,
    remote,
    shutdown,
)
from easyremote.client import dialer
from easyremote.client.client import Client, set_default_gateway
from easyremote.client.default import defaults
from easyremote.client.dialer import ClientLink
from easyremote.supervise import Backoff
from easyremote.wire.errors import ErrorCode

from .scripted import WAIT_S, ScriptedGateway
from .test_calls import until


def test_a_client_introduces_itself(gateway: ScriptedGateway) -> None:
    """Role, token and version, once the stream is there."""
    client = gateway.client()
    client.connect()
    hello = gateway.hellos[0]

    assert hello.role == "client"
    assert str(hello.credential["token"]).startswith("erc_")
    assert "version" in hello.info
    assert client.session.user == "alice"
    client.connect()
    assert gateway.dials == 1


def test_making_a_client_does_nothing(gateway: ScriptedGateway) -> None:
    """It connects with its first call."""
    client = gateway.client()
    assert gateway.dials == 0
    assert "Client" in repr(client)
    client.close()
    assert gateway.dials == 0
    with pytest.raises(ValueError, match="http"):
        Client("http://x")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.AUTH_INVALID, AuthenticationError),
        (ErrorCode.AUTH_REVOKED, AuthenticationError),
        (ErrorCode.SHUTTING_DOWN, EasyRemoteError),
    ],
)
def test_a_refusal_is_the_error_of_connect(
    gateway: ScriptedGateway, code: ErrorCode, expected: type[Exception]
) -> None:
    """Typed by its code, and nothing is left running."""
    gateway.refusal = (code, "not you")
    client = gateway.client()

    with pytest.raises(expected, match="not you"):
        client.connect()
    until(lambda: not gateway.link_of(client)._io.alive)
    assert client.closed


def test_nobody_there_is_the_error_of_connect_and_of_calls(gateway: ScriptedGateway) -> None:
    """The first attempt decides; nothing hangs."""
    gateway.unreachable = GatewayUnreachableError("nothing listens")
    with pytest.raises(GatewayUnreachableError, match="nothing listens"):
        gateway.client().connect()
    future = gateway.client().submit("f")
    error = future.exception(WAIT_S)

    assert isinstance(error, GatewayUnreachableError)
    assert error.may_have_run is False


def test_a_gateway_that_says_nothing_is_given_up(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that takes the connection and is silent cannot hold us."""
    monkeypatch.setattr(dialer, "GREET_S", 0.05)
    gateway.silent = True

    with pytest.raises(GatewayUnreachableError, match="greeting"):
        gateway.client().connect()


def test_a_lost_link_comes_back_by_itself(gateway: ScriptedGateway) -> None:
    """However often the gateway cannot be reached in between."""
    client = gateway.client()
    client.connect()
    link = gateway.link_of(client)
    link._backoff = Backoff(first_s=0.001, max_s=0.002)
    gateway.unreachable = GatewayUnreachableError("away")
    gateway.cut()
    until(lambda: gateway.dials >= 4)
    gateway.unreachable = None
    gateway.auto = lambda given: given.result("back")

    assert client.submit("f").result(WAIT_S) == "back"
    assert link._backoff.failures == 0


def test_a_token_that_was_revoked_ends_the_client(gateway: ScriptedGateway) -> None:
    """Coming back is refused for good: calls fail with the reason, no more attempts are made."""
    client = gateway.client()
    client.connect()
    gateway.refusal = (ErrorCode.AUTH_REVOKED, "revoked")
    gateway.cut()
    until(lambda: client.closed)
    dials = gateway.dials

    error = client.submit("f").exception(WAIT_S)
    assert error is not None
    assert "revoked" in str(error)
    assert gateway.dials == dials


def test_an_address_list_is_tried_in_order(gateway: ScriptedGateway) -> None:
    """The first that answers is taken."""
    from easyremote.config import Address
    from easyremote.identity.credential import Resolved

    tried: list[Address] = []
    there = gateway.dial

    async def dial(address: Address, *, pin: bytes | None, timeout_s: float = 1.0) -> Any:
        tried.append(address)
        if address.port == 1:
            raise GatewayUnreachableError("not here")
        return await there(address, pin=pin)

    gateway.dial = dial  # type: ignore[method-assign]
    addresses = (Address("a", 1), Address("b", 2))
    link = ClientLink(lambda: Resolved(addresses, None, "token", "test"), {}, network=gateway)
    link.start()
    link.wait_ready(WAIT_S)
    link.close()

    assert tried == list(addresses)


def test_a_peer_may_not_open_streams_here(gateway: ScriptedGateway) -> None:
    """A gateway that calls a client breaks the protocol; the client comes back elsewhere."""
    from easyremote.handlers import StreamHandler
    from easyremote.wire.message import Query

    client = gateway.client()
    client.connect()
    peer = gateway.peer
    assert peer is not None
    gateway.do(lambda: peer.link.open(Query("x", {}), handler=StreamHandler()))

    until(lambda: gateway.dials == 2)


# ---- which client --------------------------------------------------------------------------------


def test_without_any_gateway_a_call_says_how_to_name_one() -> None:
    """Three ways, in the sentence."""
    with pytest.raises(NotConnectedError, match="EASYREMOTE_GATEWAY"):
        remote("n", "f")(1)
    with pytest.raises(NotConnectedError):
        connect()
    with pytest.raises(EasyRemoteError, match="no profile"):
        connect("127.0.0.1:9")
    shutdown()


def test_the_order_in_which_a_gateway_is_found(
    gateway: ScriptedGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function's own, then that of connect(), then one that is made of the environment."""
    made: list[str | None] = []

    def fake(gateway_address: str | None = None, **more: Any) -> Client:
        made.append(gateway_address)
        return gateway.client()

    monkeypatch.setattr("easyremote.client.client.Client", fake)
    remote("n", "f")(1)
    assert gateway.next_call().call.function == "f"
    assert made == []
    own = remote("n", "f", gateway="vps.test:1", auth_token="env:X")
    own(1)
    own(2)
    gateway.next_call()
    gateway.next_call()
    assert made == ["vps.test:1"]
    defaults.set(client)
    client.close()
    remote("n", "f")(1)
    gateway.next_call()
    assert made == ["vps.test:1", None]
    set_default_gateway("other.test:1")
    remote("n", "f")(1)
    gateway.next_call()

    assert made == ["vps.test:1", None, "other.test:1"]
    with pytest.raises(ValueError, match="http"):
        set_default_gateway("http://x")
    shutdown()


def test_a_client_is_a_context_manager_of_both_kinds(gateway: ScriptedGateway) -> None:
    """Leaving it closes it."""

    async def main() -> Client:
        async with gateway.client() as client:
            gateway.auto = lambda given: given.result(1)
            assert await client.submit("f") == 1
        return client

    assert asyncio.run(main()).closed
    with gateway.client() as client:
        assert client.execute("f") == 1
    assert client.closed


def test_connect_in_a_second_run_of_the_script_waits_for_its_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker or a child of multiprocessing that imports the script does not connect for it."""
    monkeypatch.setattr("easyremote.rerun.inert", lambda: True)
    client = connect("127.0.0.1:9")

    assert client._made is None
    shutdown()


SCRIPT = """
import sys, threading
sys.path.insert(0, {root!r})
from tests.client.scripted import ScriptedGateway
from easyremote.client.default import defaults
from easyremote import remote

gateway = ScriptedGateway()
client = gateway.client()
client.connect()
defaults.set(client)
peer = gateway.peer
future = remote("n", "f")(1)
gateway.next_call().accept()

def tell():
    print("goodbye", peer.link.goodbye)

import atexit
atexit._run_exitfuncs, threading
import easyremote.client.client as c
end = c._live.end_all
def end_and_tell():
    end()
    tell()
atexit.unregister(c._live.end_all)
atexit.register(end_and_tell)
"""


def test_the_end_of_the_program_says_goodbye(tmp_path: Path) -> None:
    """Without shutdown(): no thread holds the program, and the gateway knows that we left."""
    root = str(Path(__file__).resolve().parents[2])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=root))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "EASYREMOTE_HOME": str(tmp_path)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout == "goodbye (0, '')\n"


# ---- pauses --------------------------------------------------------------------------------------


def test_pauses_grow_and_are_spread_and_bounded() -> None:
    """Full jitter below a limit that doubles; a success begins anew."""
    backoff = Backoff(first_s=1.0, max_s=8.0, rng=random.Random(7))
    limits = [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    for limit in limits:
        assert 0.0 <= backoff.next_s() <= limit
    backoff.reset()
    assert 0.0 <= backoff.next_s() <= 1.0
    late = Backoff(first_s=1.0, max_s=8.0, rng=random.Random(7), failures=10_000)
    spread = sorted(late.next_s() for _ in range(500))

    assert spread[0] < 1.0
    assert spread[-1] > 7.0


def test_two_threads_start_one_link(gateway: ScriptedGateway) -> None:
    """First calls that come together dial once."""
    client = gateway.client()
    gateway.auto = lambda given: given.result(1)
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(client.submit("f").result(WAIT_S)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert results == [1] * 8
    assert gateway.dials == 1
