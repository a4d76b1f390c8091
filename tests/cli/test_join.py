"""`easyremote join` and `easyremote login`: no network, no secrets but where they are asked for."""

from __future__ import annotations

import pytest

from easyremote.identity.join import JoinString
from easyremote.identity.profile import Profile, default_profile, load_profile, save_profile
from easyremote.identity.token import Token, TokenKind

from .conftest import Run

TOKEN = Token.new(TokenKind.CLIENT)
STRING = JoinString(("gw.example.org", "203.0.113.7"), 9000, bytes(range(32)), TOKEN).encode()


def test_join_keeps_the_gateway_as_the_default(run: Run) -> None:
    """After `easyremote join STRING` programs of this user need no address and no token."""
    done = run("join", STRING)
    kept = default_profile()

    assert done.exit_code == 0
    assert kept is not None
    assert (kept.hosts, kept.port, kept.token) == (
        ("gw.example.org", "203.0.113.7"), 9000, TOKEN.text(),
    )  # fmt: skip
    assert "gw.example.org:9000 is the gateway of this user now" in done.stderr
    assert TOKEN.text() not in done.output


def test_a_join_string_may_come_from_standard_input(run: Run) -> None:
    """`-` keeps the secret out of the list of processes and of the shell's history."""
    done = run("join", "-", stdin=f"{STRING}\n")

    assert done.exit_code == 0
    assert default_profile() is not None


def test_join_show_never_shows_the_secret(run: Run) -> None:
    """Host, port, kind, expiry, pin and token id are shown, and no part of the secret."""
    done = run("join", "show", STRING)

    assert done.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if "token" not in line)
    assert lines == {
        "host": "gw.example.org, 203.0.113.7",
        "port": "9000",
        "kind": "client",
        "expires": "never",
        "pin": f"sha256:{bytes(range(32)).hex()}",
    }
    assert f"token id  {TOKEN.id}" in done.stdout
    secret = TOKEN.text().rpartition("_")[2]
    assert not any(secret[i : i + 8] in done.output for i in range(len(secret) - 8))
    assert default_profile() is None


def test_join_token_prints_the_bearer_token_as_its_last_line(run: Run) -> None:
    """`easyremote join token STRING | tail -1` is what auth_token= and REST take."""
    done = run("join", "token", STRING)

    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == TOKEN.text()


@pytest.mark.parametrize("command", [["join"], ["join", "show"], ["join", "token"]])
def test_a_damaged_string_is_refused_offline(run: Run, command: list[str]) -> None:
    """A lost character is found before anything is stored or sent."""
    done = run(*command, STRING[:-1])

    assert done.exit_code == 1
    assert "damaged" in done.stderr
    assert done.stdout == ""
    assert default_profile() is None


def test_what_is_no_join_string_is_told_so(run: Run) -> None:
    """A mistyped command of the group is taken for a string, and answered understandably."""
    done = run("join", "shwo")

    assert done.exit_code == 1
    assert "this is no join string: one starts with er1_" in done.stderr


def test_login_keeps_a_profile_under_its_name(run: Run) -> None:
    """auth="academic" then finds the gateway and the token, and the default stays as it was."""
    done = run("login", "academic", "--join", STRING)
    kept = load_profile("academic")

    assert done.exit_code == 0
    assert kept is not None
    assert (kept.origin, kept.port, kept.token) == ("login", 9000, TOKEN.text())
    assert default_profile() is None
    assert TOKEN.text() not in done.output


def test_login_asks_for_the_string_without_an_echo(run: Run) -> None:
    """Without --join the string is asked for, and is not shown while it is typed."""
    done = run("login", "academic", stdin=f"{STRING}\n")

    assert done.exit_code == 0
    assert load_profile("academic") is not None
    assert STRING not in done.output


def test_login_does_not_take_the_name_of_a_profile_of_ours(run: Run) -> None:
    """The profile that a gateway left for its owner is not overwritten by accident."""
    own = Profile.from_join("gateway-8080", JoinString.parse(STRING), "gateway")
    save_profile(own)

    done = run("login", "gateway-8080", "--join", STRING)

    assert done.exit_code == 1
    assert "is taken" in done.stderr
    assert load_profile("gateway-8080") == own


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 101])
def test_login_refuses_names_that_are_paths(run: Run, name: str) -> None:
    """A profile is a file in one folder, whatever its name is."""
    done = run("login", name, "--join", STRING)

    assert done.exit_code == 1
    assert "cannot name a profile" in done.stderr
