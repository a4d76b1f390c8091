"""`easyremote doctor`: each thing that can be wrong is found, and its fix is named."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from easyremote import __version__
from easyremote.cli import doctor
from easyremote.gateway.server import Server
from easyremote.identity.join import JoinString

from .conftest import Run


def other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, join: str = "") -> None:
    """Become another user on another machine, who has this join string."""
    monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path / "elsewhere"))
    if join:
        monkeypatch.setenv("EASYREMOTE_JOIN", join)


def create(run: Run, *words: str) -> JoinString:
    return JoinString.parse(run("token", "create", *words).stdout)


def test_all_is_well_beside_a_running_gateway(run: Run, gateway: Server) -> None:
    """Each step says what it saw; nothing is wrong and the exit code is 0."""
    done = run("doctor")

    assert done.exit_code == 0, done.output
    whats = [line.split()[1] for line in done.stdout.splitlines()[:-1]]
    assert whats == [
        "versions", "home", "settings", "address", "tcp", "tls", "token", "gateway", "clock",
        "nodes",
    ]  # fmt: skip
    assert "WRONG" not in done.stdout
    assert f"127.0.0.1:{gateway.port}" in done.stdout
    assert done.stdout.endswith("all is well\n")


def test_no_gateway_named_is_the_first_thing_to_mend(run: Run) -> None:
    """Without any setting the doctor says the three ways to name a gateway."""
    done = run("doctor")

    assert done.exit_code == 1
    assert "WRONG settings    No gateway was named" in done.stdout
    assert "1 thing to mend" in done.stderr


def test_a_closed_port_is_told_with_the_command_that_opens_it(run: Run, gateway: Server) -> None:
    """The gateway that has stopped is told apart from a machine that does not answer."""
    gateway.stop(grace=0.0)
    done = run("doctor")

    assert done.exit_code == 1
    assert "WRONG tcp" in done.stdout
    assert f"easyremote gateway run --port {gateway.port}" in done.stdout


def test_an_address_without_a_credential_is_still_tried(run: Run, gateway: Server) -> None:
    """Two things are missing, and the doctor finds both at once."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    closed = run("doctor", "--gateway", f"127.0.0.1:{port}")
    unknown = run("doctor", "--gateway", "nowhere.invalid:1")
    wrong = run("doctor", "--gateway", "a b")

    assert "WRONG settings" in closed.stdout
    assert f"WRONG tcp         port {port} does not answer" in closed.stdout
    assert "WRONG address     the name nowhere.invalid is not known here" in unknown.stdout
    assert "is not the address of a gateway" in wrong.stdout


def test_another_key_is_found_before_the_token_is_shown(
    run: Run, gateway: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A gateway with the wrong key is not talked to, and the message says what that may mean."""
    good = create(run, "--user", "alice")
    other(
        monkeypatch, tmp_path,
        JoinString(good.hosts, good.port, bytes(32), good.token).encode(),
    )  # fmt: skip
    done = run("doctor")

    assert done.exit_code == 1
    assert "WRONG tls" in done.stdout
    assert "Nothing was sent to it" in done.stdout
    assert "token       " not in done.stdout


def test_what_listens_and_is_no_gateway_is_told(
    run: Run, gateway: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A port that is open and does not speak TLS is not the gateway's."""
    good = create(run, "--user", "alice")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        other(monkeypatch, tmp_path, JoinString(good.hosts, port, good.pin, good.token).encode())
        monkeypatch.setattr("easyremote.transport.dial.__kwdefaults__", {
            "pin": None, "alpn": "easyremote/1", "timeout_s": 0.5,
        })  # fmt: skip
        done = run("doctor")

    assert done.exit_code == 1
    assert "ok    tcp" in done.stdout
    assert "WRONG tls" in done.stdout
    assert "did not finish a TLS handshake" in done.stdout


def test_a_revoked_token_is_told(
    run: Run, gateway: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Everything on the way is fine, and the token is what has to be replaced."""
    join = create(run, "--user", "alice")
    run("token", "revoke", join.token.id)
    other(monkeypatch, tmp_path, join.encode())
    done = run("doctor")

    assert done.exit_code == 1
    assert "ok    tls" in done.stdout
    assert "WRONG token       this token was revoked" in done.stdout


def test_the_token_of_a_node_is_recognised_and_not_used(
    run: Run, gateway: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A single-use token still enrols its node after the doctor looked at it."""
    join = create(run, "--role", "node", "--user", "ann", "--single-use")
    other(monkeypatch, tmp_path, join.encode())
    done = run("doctor")
    tokens = {token.id: token for token in gateway.tokens().list()}

    assert done.exit_code == 0
    assert "note  token       it lets a node enrol" in done.stdout
    assert tokens[join.token.id].uses_left == 1


def test_a_second_address_makes_the_first_a_note(
    run: Run, gateway: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A gateway with two names is well if one of them works."""
    join = create(run, "--user", "alice")
    two = JoinString(("nowhere.invalid", "127.0.0.1"), join.port, join.pin, join.token)
    other(monkeypatch, tmp_path, two.encode())
    done = run("doctor")

    assert done.exit_code == 0
    assert "note  address     the name nowhere.invalid is not known here" in done.stdout
    assert "you are alice (guest)" in done.stdout


def test_a_home_that_others_may_write_to_is_found(run: Run, own_home: Path) -> None:
    """Whoever can write there can change which gateway is trusted."""
    own_home.mkdir()
    own_home.chmod(0o777)
    done = run("doctor")

    assert f"run: chmod go-w {own_home}" in done.stdout
    assert stat.S_IMODE(own_home.stat().st_mode) == 0o777, "the doctor changes nothing"


def test_versions_that_fit_and_that_do_not() -> None:
    """Before 1.0 another minor version is another protocol of calls."""
    major, minor, _ = __version__.split(".")

    assert doctor.compare_versions(__version__).mood == "ok"
    assert doctor.compare_versions(f"{major}.{minor}.99").mood == "ok"
    for theirs in (f"{major}.{int(minor) + 1}.0", "", "9.9"):
        found = doctor.compare_versions(theirs)
        assert found.mood == "wrong"
        assert "pip install --upgrade easyremote" in found.said


@pytest.mark.parametrize(
    ("theirs", "took_s", "mood"),
    [
        (1000.0, 0.0, "ok"),
        (1029.0, 0.0, "ok"),
        (1031.0, 0.0, "wrong"),
        (969.0, 0.0, "wrong"),
        (1040.0, 30.0, "ok"),  # The answer took so long that the difference proves nothing.
    ],
)
def test_clocks_are_compared_as_far_as_the_answer_allows(
    theirs: float, took_s: float, mood: str
) -> None:
    """A skew counts only beyond what the round trip may explain."""
    found = doctor.compare_clocks(theirs, 1000.0, 1000.0 + took_s)

    assert found.mood == mood
    if mood == "wrong":
        assert ("behind" if theirs > 1000.0 else "ahead of") in found.said
        assert "NTP" in found.said
