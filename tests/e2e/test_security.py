"""Who gets in, and whose pickles are opened: with real processes and real bytes."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import easyremote
from easyremote import AuthenticationError, SerializationError, connect, remote
from easyremote.errors import EasyRemoteError
from easyremote.identity.certificate import open_server_identity

from .conftest import Cluster

pytestmark = pytest.mark.slow

GATEWAY_WITH_HOOK = """
import json, sys
seen = []
def hook(event, args):
    if event == "pickle.find_class":
        seen.append(str(args))
        open("find_class.json", "w").write(json.dumps(seen))
sys.addaudithook(hook)
open("find_class.json", "w").write("[]")
from easyremote import Server
Server(port=int(sys.argv[1]), host="127.0.0.1").run()
"""

NODE = """
import json, sys
seen = []
def hook(event, args):
    if event == "pickle.find_class":
        seen.append(str(args))
sys.addaudithook(hook)

@node.register
def kind(x):
    return type(x).__name__

@node.register
async def opened():
    return len(seen)
"""


class Custom:
    """Something that only a pickle can carry."""


@pytest.fixture(scope="module")
def cluster(cluster_factory: Callable[[], Cluster]) -> Cluster:
    """A gateway with an audit hook, and a node with one."""
    made = cluster_factory()
    made.start_gateway(GATEWAY_WITH_HOOK)
    made.start_node("node-1", NODE)
    return made


def token(cluster: Cluster, *words: str) -> str:
    """Make a token by the command line and return its join string."""
    return cluster.cli("token", "create", *words).stdout.split()[-1]


def test_members_ship_pickles_and_the_gateway_opens_none(cluster: Cluster) -> None:
    """The owner's objects reach the node; the live gateway never looks for a class."""
    kind, opened = remote("node-1", "kind"), remote("node-1", "opened")

    assert kind(Custom()).result(timeout=10) == "Custom"
    assert opened().result(timeout=10) > 0
    assert json.loads((cluster.folder / "find_class.json").read_text()) == []


def test_a_guests_pickle_reaches_no_unpickler(cluster: Cluster) -> None:
    """A guest can send plain data; anything else stops at the guest's own side or the gateway."""
    opened = remote("node-1", "opened")
    before = opened().result(timeout=10)
    with connect(join=token(cluster, "--role", "guest", "--user", "eve")) as guest:
        assert guest.submit("kind", 5).result(timeout=10) == "int"
        with pytest.raises(SerializationError, match=r"args\[0\]"):
            guest.submit("kind", Custom()).result(timeout=10)
    connect(cluster.address)

    assert opened().result(timeout=10) == before
    assert json.loads((cluster.folder / "find_class.json").read_text()) == []


def test_no_wrong_expired_and_revoked_tokens_are_refused(cluster: Cluster) -> None:
    """Each of them is an AuthenticationError that says what to do."""
    good = token(cluster, "--role", "member", "--user", "alice")
    with connect(join=good) as alice:
        assert alice.execute("kind", 1) == "int"
    expired = token(cluster, "--role", "member", "--user", "bob", "--expires", "1s")
    revoked = token(cluster, "--role", "member", "--user", "carol")
    bearer = cluster.cli("join", "token", revoked).stdout.split()[-1]
    cluster.cli("token", "revoke", bearer.split("_")[1][:10])
    time.sleep(1.2)
    for bad in (expired, revoked):
        with pytest.raises(AuthenticationError):
            connect(join=bad).nodes()
    with pytest.raises((AuthenticationError, ValueError)):
        connect(join=good[:-1] + ("a" if good[-1] != "a" else "b")).nodes()


def test_a_live_link_ends_when_its_token_is_revoked(cluster: Cluster) -> None:
    """Revocation does not wait for the next connection."""
    join = token(cluster, "--role", "member", "--user", "dave")
    bearer = cluster.cli("join", "token", join).stdout.split()[-1]
    with connect(join=join) as dave:
        assert dave.execute("kind", 1) == "int"
        cluster.cli("token", "revoke", bearer.split("_")[1][:10])
        until = time.monotonic() + 6
        refused = False
        while not refused and time.monotonic() < until:
            try:
                dave.execute("kind", 1)
            except EasyRemoteError:
                refused = True
            time.sleep(0.1)
        assert refused


def test_without_any_credential_a_stranger_gets_nowhere(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another OS user (another home) has no profile: the error says how to get one."""
    easyremote.shutdown()
    monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path))
    with pytest.raises(EasyRemoteError):
        connect(cluster.address).nodes()
    monkeypatch.undo()


def test_a_wrong_pin_is_refused_before_one_byte_of_credential(
    cluster: Cluster, tmp_path: Path
) -> None:
    """An impostor with a key of its own records nothing of what we would have said."""
    join = token(cluster, "--role", "member", "--user", "frank")
    impostor = open_server_identity(tmp_path, ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(impostor.certificate_path, impostor.key_path)
    context.set_alpn_protocols(["easyremote/1"])
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            raw, _ = server.accept()
            try:
                with context.wrap_socket(raw, server_side=True) as tls:
                    tls.settimeout(5)
                    while data := tls.recv(4096):
                        received.append(data)
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(AuthenticationError):
            connect(f"127.0.0.1:{port}", join=join).nodes()
        thread.join(10)

    assert received == []
    connect(cluster.address)
