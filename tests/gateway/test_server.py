"""The gateway as a program: its port, its life, its banner, on real sockets."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from easyremote.config import Address
from easyremote.errors import AuthenticationError, EasyRemoteError
from easyremote.facts import TLSConfig
from easyremote.gateway.banner import HTTP_HINT, has_http, print_banner
from easyremote.gateway.core import Gateway
from easyremote.gateway.running import Options, Running
from easyremote.gateway.server import Server
from easyremote.gateway.state import GatewayState
from easyremote.handlers import LinkHandler
from easyremote.identity.profile import gateway_profile_name, load_profile
from easyremote.link import Link
from easyremote.log import mask
from easyremote.outbox import Outbox
from easyremote.transport import dial
from easyremote.wire.message import Query, Reply

from .peers import Probe, World

PATIENCE_S = 30.0


@pytest.fixture
def server(home: Path, tmp_path: Path) -> Iterator[Server]:
    made = Server(port=0, host="127.0.0.1", state_dir=tmp_path / "state")
    made.start(blocking=False)
    yield made
    made.stop(grace=0.0)


class _Greeter(LinkHandler):
    def __init__(self) -> None:
        self.done = trio.Event()
        self.info: dict[str, Any] | None = None
        self.error: EasyRemoteError | None = None

    def on_welcome(self, link: Link, info: dict[str, Any]) -> None:
        self.info = info
        self.done.set()

    def on_lost(self, link: Link, error: EasyRemoteError | None) -> None:
        self.error = error
        self.done.set()


async def ask_status(port: int, pin: bytes, token: str) -> Any:
    """Connect as a client and ask for the status; the error if we are not let in."""
    stream = await dial(Address("127.0.0.1", port), pin=pin)
    greeter = _Greeter()
    link = Link(stream, greeter, dialer=True, outbox=Outbox())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        link.hello("client", {"token": token}, {})
        with trio.fail_after(PATIENCE_S):
            await greeter.done.wait()
            if greeter.info is None:
                return greeter.error
            probe = Probe()
            probe.stream = link.open(Query("status", {}), handler=probe, end=True)
            outcome = await probe.outcome()
        link.close()
    return outcome


def owner(server: Server) -> tuple[bytes, str]:
    """Return pin and token that a client of this user finds on this machine."""
    profile = load_profile(gateway_profile_name(server.port))
    assert profile is not None
    return profile.pin, profile.token


# ---- life --------------------------------------------------------------------------------------


def test_construction_does_nothing(home: Path) -> None:
    """A server that is not started opens no port and makes no file."""
    Server(port=8080)

    assert not home.exists()


def test_start_opens_a_port_and_leaves_a_profile(server: Server) -> None:
    """Port 0 becomes the real port, and a client of the same user is let in over TLS."""
    assert server.port > 0
    outcome = trio.run(ask_status, server.port, *owner(server))

    assert isinstance(outcome, Reply)


def test_default_state_lies_in_the_home_folder_by_port(home: Path) -> None:
    """Without a folder the state is under `gateway/PORT` of `EASYREMOTE_HOME`."""
    server = Server(port=0, host="127.0.0.1").start(blocking=False)
    try:
        assert (home / "gateway" / str(server.port) / "gateway.db").exists()
    finally:
        server.stop(grace=0.0)


def test_stop_frees_the_port_and_a_restart_finds_its_state(home: Path, tmp_path: Path) -> None:
    """A second start on the same folder is the same gateway: key and tokens stay good."""
    first = Server(port=0, host="127.0.0.1", state_dir=tmp_path / "state").start_background()
    pin, token = owner(first)
    first.stop(grace=0.0)
    first.stop(grace=0.0)
    second = Server(port=first.port, host="127.0.0.1", state_dir=tmp_path / "state")
    second.start(blocking=False)
    try:
        outcome = trio.run(ask_status, second.port, pin, token)
    finally:
        second.stop(grace=0.0)

    assert isinstance(outcome, Reply)


def test_taken_port_is_one_clear_error(server: Server, home: Path, tmp_path: Path) -> None:
    """A port that is in use is said so at once, and nothing keeps running."""
    other = Server(port=server.port, host="127.0.0.1", state_dir=tmp_path / "other")
    with pytest.raises(EasyRemoteError, match="cannot listen on port"):
        other.start(blocking=False)
    with pytest.raises(RuntimeError, match="not running"):
        other.nodes()


def test_one_folder_is_one_gateway(server: Server, tmp_path: Path) -> None:
    """A second gateway on the same folder is refused, and its port is free again."""
    other = Server(port=0, host="127.0.0.1", state_dir=tmp_path / "state")
    with pytest.raises(EasyRemoteError, match="another gateway"):
        other.start(blocking=False)


def test_server_cannot_be_started_twice(server: Server) -> None:
    """One object is one run at a time."""
    with pytest.raises(RuntimeError, match="running already"):
        server.start(blocking=False)


def test_async_with_under_trio_and_asyncio(home: Path, tmp_path: Path) -> None:
    """`async with Server()` runs a gateway under both libraries."""

    async def use() -> int:
        async with Server(port=0, host="127.0.0.1", state_dir=tmp_path / "state") as server:
            assert server.status()["draining"] is False
            return server.port

    assert trio.run(use) > 0
    assert asyncio.run(use()) > 0


def test_run_blocks_until_another_thread_stops_it(home: Path, tmp_path: Path) -> None:
    """`run` returns after `stop`, and does so off the main thread, too."""
    server = Server(port=0, host="127.0.0.1", state_dir=tmp_path / "state")
    thread = threading.Thread(target=server.run)
    thread.start()
    limit = threading.Event()
    while server.port == 0 and not limit.wait(0.01):
        assert thread.is_alive()
    while True:
        try:
            server.status()
            break
        except RuntimeError:
            assert thread.is_alive()
            limit.wait(0.01)
    server.stop(grace=0.0)
    thread.join(PATIENCE_S)

    assert not thread.is_alive()


def test_rerun_of_a_script_starts_no_second_gateway(home: Path, tmp_path: Path) -> None:
    """In a worker run of the script, `run` and `start` return at once and do nothing."""
    code = (
        "import os; from easyremote.gateway.server import Server\n"
        "assert 'EASYREMOTE_WORKER' not in os.environ\n"
        "Server(port=0).run(); Server(port=0).start(blocking=False); print('done')\n"
    )
    env = {**os.environ, "EASYREMOTE_WORKER": "1", "EASYREMOTE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip

    assert done.stdout == "done\n"
    assert not home.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_drain_and_stop(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C end a gateway cleanly, with exit code 0 and the port free."""
    code = (
        "from easyremote.gateway.server import Server\n"
        f"s = Server(port=0, host='127.0.0.1', state_dir={str(tmp_path / 'state')!r})\n"
        "s.run()\nprint('stopped', s.port, flush=True)\n"
    )
    env = {**os.environ, "EASYREMOTE_HOME": str(home)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "gateway listens" in line:
                break
        process.send_signal(number)
        out, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 0
    port = int(out.split()[1])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


# ---- the door ----------------------------------------------------------------------------------


def test_wrong_pin_is_refused_before_anything_is_sent(server: Server) -> None:
    """A client with another pin sends nothing; the gateway sees no HELLO."""
    with pytest.raises(AuthenticationError, match="Nothing was sent"):
        trio.run(ask_status, server.port, bytes(32), "secret")

    until = time.monotonic() + PATIENCE_S
    while server.status()["connections"]:  # It has to hear of the end first.
        assert time.monotonic() < until
        time.sleep(0.01)
    assert server.status()["connected_clients"] == 0


def test_wrong_token_is_refused_over_tls(server: Server) -> None:
    """A token of nobody gives the constant answer."""
    pin, _ = owner(server)
    error = trio.run(ask_status, server.port, pin, "nonsense")

    assert isinstance(error, AuthenticationError)


@pytest.mark.parametrize("alpn", [["http/1.1"], []])
def test_http_gets_one_plain_answer(server: Server, alpn: list[str]) -> None:
    """A browser learns how to get REST, and the connection ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    with context.wrap_socket(raw, server_hostname="localhost") as tls:
        tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while part := tls.recv(4096):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 501 ")
    assert b"Connection: close" in head
    assert b"easyremote[http]" in body
    assert f"Content-Length: {len(body)}".encode() in head


def test_own_certificate_is_shown(home: Path, tmp_path: Path) -> None:
    """`tls=TLSConfig(...)` serves the certificate that the operator brings."""
    from easyremote.identity.certificate import open_server_identity

    (tmp_path / "own").mkdir()
    own = open_server_identity(tmp_path / "own", ["gateway.example"])
    server = Server(
        port=0, host="127.0.0.1", state_dir=tmp_path / "state",
        tls=TLSConfig(own.certificate_path, own.key_path),
    ).start(blocking=False)  # fmt: skip
    try:
        outcome = trio.run(ask_status, server.port, own.pin, owner(server)[1])
    finally:
        server.stop(grace=0.0)

    assert isinstance(outcome, Reply)


# ---- administration ----------------------------------------------------------------------------


def test_tokens_are_made_listed_and_revoked(server: Server) -> None:
    """A token of `tokens()` is good at once; revoked, it is refused at once."""
    pin, _ = owner(server)
    made = server.tokens().create("zoe", "member")

    assert isinstance(trio.run(ask_status, server.port, pin, made.text), Reply)
    assert made.id in {one.id for one in server.tokens().list()}
    assert made.text not in repr(made)

    assert server.tokens().revoke(made.id)
    assert isinstance(trio.run(ask_status, server.port, pin, made.text), AuthenticationError)


def test_empty_gateway_lists_nothing(server: Server) -> None:
    """Discovery of a gateway without nodes is two empty lists."""
    assert server.nodes() == []
    assert server.functions() == []


def test_a_task_beside_the_gateway_ends_with_it(home: Path, tmp_path: Path) -> None:
    """Its result is had in any thread; when the gateway stops, whoever waits is told."""
    server = Server(port=0, host="127.0.0.1", state_dir=tmp_path / "state").start_background()
    begun = threading.Event()

    async def name(gateway: Gateway) -> str:
        return gateway.state.gateway_id

    async def for_ever(gateway: Gateway) -> None:
        begun.set()
        await trio.sleep_forever()

    async def wrong(gateway: Gateway) -> None:
        raise KeyError("wrong")

    assert server.begin(name).result(PATIENCE_S) == server.status()["gateway_id"]
    with pytest.raises(KeyError):
        server.begin(wrong).result(PATIENCE_S)
    waiting = server.begin(for_ever)
    assert begun.wait(PATIENCE_S)
    server.stop(grace=0.0)
    with pytest.raises(RuntimeError, match="stopped"):
        waiting.result(PATIENCE_S)
    with pytest.raises(RuntimeError, match="not running"):
        server.begin(name)
    assert not server.is_running


async def test_a_gateway_on_its_way_out_begins_nothing(world: World) -> None:
    """Between its last task and its end, who asks for another one is told, and nothing breaks."""
    options = Options("127.0.0.1", 0, None, None, wants_http=False, limits=None, addresses=())
    running = Running(options, lambda _: None)
    async with trio.open_nursery() as nursery:
        running._nursery = nursery
    running._gateway, running._token = world.gateway, trio.lowlevel.current_trio_token()

    async def nothing(gateway: Gateway) -> None:
        raise AssertionError(gateway)

    answer = running.begin(nothing)
    await trio.testing.wait_all_tasks_blocked()
    assert isinstance(answer.exception(0), RuntimeError)


@pytest.mark.parametrize("options", [{"app": object()}, {"auth": object()}])
def test_options_without_effect_are_refused(options: dict[str, Any]) -> None:
    """What this version cannot do is refused where it is asked for."""
    with pytest.raises(NotImplementedError):
        Server(**options)


@pytest.mark.parametrize("port", [-1, 65536, "8080", None, True])
def test_port_must_be_a_port(port: Any) -> None:
    """A port that cannot be is refused at once."""
    with pytest.raises(ValueError, match="a port lies between"):
        Server(port=port)


# ---- the banner --------------------------------------------------------------------------------


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_banner_shows_join_lines_to_a_person_only(home: Path, tmp_path: Path) -> None:
    """Join strings go to a terminal; a file or a pipe gets how to make them."""
    state = GatewayState.open(tmp_path / "state", ["gateway.test"], 8080)
    try:
        terminal, pipe = _Terminal(), io.StringIO()
        print_banner(state, first=True, http=True, to=terminal)
        print_banner(state, first=True, http=True, to=pipe)
    finally:
        state.close()
    shown = [line for line in terminal.getvalue().splitlines() if "er1_" in line]

    assert len(shown) == 2
    assert "gateway.test:8080" in terminal.getvalue()
    assert "er1_" not in pipe.getvalue()
    assert pipe.getvalue() == mask(pipe.getvalue())
    assert (HTTP_HINT in pipe.getvalue()) is not has_http()


def test_nothing_that_a_gateway_writes_holds_a_secret(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    """Logs and banner of a start, a refusal and a stop hold no token."""
    pin, token = owner(server)
    trio.run(ask_status, server.port, pin, token)
    trio.run(ask_status, server.port, pin, token[:-1] + "x")
    server.stop(grace=0.0)
    out, err = capfd.readouterr()

    assert token.split("_")[2] not in out + err
