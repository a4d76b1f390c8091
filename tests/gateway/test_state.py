"""The state of a gateway between its starts."""

from __future__ import annotations

import getpass
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from easyremote.errors import EasyRemoteError, NotConnectedError
from easyremote.gateway import state as state_module
from easyremote.gateway.hosts import local_hosts
from easyremote.gateway.records import DAY_S, Refusal
from easyremote.gateway.state import GatewayState, find_state_folder
from easyremote.identity.credential import resolve_credential
from easyremote.identity.join import JoinString
from easyremote.identity.profile import load_profile, profiles_folder
from easyremote.identity.role import Principal, Role

ROOT = Path(__file__).parents[2]


@pytest.fixture
def state() -> Iterator[GatewayState]:
    """Open the state of a new gateway on port 9001."""
    opened = GatewayState.open(hosts=["vps.example.org"], port=9001)
    yield opened
    opened.close()


def principal(found: Principal | Refusal) -> Principal:
    """Return the principal; a refusal fails the test."""
    assert isinstance(found, Principal), found
    return found


def test_first_start_lets_the_same_user_in(state: GatewayState) -> None:
    """After the first start, a client of this OS user finds pin and owner token by itself."""
    found = resolve_credential("localhost:9001")
    who = principal(state.store.authenticate(found.token))

    assert found.pin == state.pin
    assert (who.role, who.user) == (Role.OWNER, state.owner)
    assert state.incarnation == 1


def test_everything_is_private(state: GatewayState, own_home: Path) -> None:
    """Every file that a gateway leaves is for its user alone, every folder too."""
    state.node_join()
    state.client_join()
    for path in [own_home, *own_home.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_later_start_finds_everything_again(state: GatewayState) -> None:
    """A restart keeps pin, id, grant key, tokens, profile and printed lines; it counts itself."""
    before = (state.pin, state.gateway_id, state.grant_key, state.node_join(), state.client_join())
    profile = load_profile("gateway-9001")
    state.close()
    again = GatewayState.open(hosts=["vps.example.org"], port=9001)
    after = (again.pin, again.gateway_id, again.grant_key, again.node_join(), again.client_join())

    assert before == after
    assert load_profile("gateway-9001") == profile
    assert again.incarnation == 2
    again.close()


def test_lost_or_revoked_owner_profile_is_made_again(state: GatewayState) -> None:
    """Whoever owns the state folder owns the gateway: a start mends the owner's profile."""
    first = load_profile("gateway-9001")
    assert first is not None
    (profiles_folder() / "gateway-9001.json").unlink()
    state.close()
    again = GatewayState.open(port=9001)
    second = load_profile("gateway-9001")
    assert second is not None
    who = principal(again.store.authenticate(second.token))
    assert second.token != first.token

    again.store.revoke(who.token_id)
    again.close()
    third = GatewayState.open(port=9001)
    mended = load_profile("gateway-9001")
    assert mended is not None
    principal(third.store.authenticate(mended.token))
    third.close()


def test_printed_lines_carry_address_pin_and_role(state: GatewayState) -> None:
    """The node line enrols nodes of the owner for a day; the client line is a member's."""
    node, client = JoinString.parse(state.node_join()), JoinString.parse(state.client_join())
    now = state.store.clock()

    for join, role, lasts_s in ((node, Role.NODE, DAY_S), (client, Role.MEMBER, 90 * DAY_S)):
        assert (join.hosts, join.port, join.pin) == (("vps.example.org",), 9001, state.pin)
        who = principal(state.store.authenticate(join.token.text()))
        assert (who.role, who.user) == (role, state.owner)
        assert join.expires_at is not None
        assert now + lasts_s - 60 < join.expires_at <= now + lasts_s


@pytest.mark.parametrize("cause", ["revoked", "expiring", "damaged", "odd"])
def test_printed_line_is_made_again_when_it_is_no_longer_good(
    state: GatewayState, cause: str
) -> None:
    """A start never prints a line that is void, about to end or damaged."""
    old = JoinString.parse(state.node_join())
    if cause == "revoked":
        state.store.revoke(old.token.id)
    elif cause == "expiring":
        now = state.store.clock()
        state.store.clock = lambda: now + DAY_S - 60
    else:
        content = "no json" if cause == "damaged" else "[]"
        (state.folder / state_module.JOINS_NAME).write_text(content)
    new = JoinString.parse(state.node_join())

    assert new.token != old.token
    principal(state.store.authenticate(new.token.text()))


def test_join_string_of_a_new_token(state: GatewayState) -> None:
    """A created token becomes a join string with its expiry, for the gateway's hosts or others."""
    state.store.clock = lambda: 1_800_000_000.5
    token = state.store.create_token("guest", "bob", expires_s=60)
    join = JoinString.parse(state.join_string(token))
    other = JoinString.parse(state.join_string(token, hosts=["203.0.113.7"]))

    assert join.token == token
    assert join.expires_at == 1_800_000_060
    assert (join.hosts, other.hosts) == (("vps.example.org",), ("203.0.113.7",))


def test_two_gateways_of_one_home_are_two_gateways(state: GatewayState) -> None:
    """Another port has its own key, tokens and profile; neither lets the other's tokens in."""
    other = GatewayState.open(port=9002)
    first, second = resolve_credential("localhost:9001"), resolve_credential("localhost:9002")

    assert (first.pin, second.pin) == (state.pin, other.pin)
    assert state.pin != other.pin
    assert isinstance(state.store.authenticate(second.token), Refusal)
    assert isinstance(other.store.authenticate(first.token), Refusal)
    other.close()


def test_named_folder_moves_with_the_gateway(tmp_path: Path) -> None:
    """A gateway that moves to another port with its folder keeps its pin and tokens."""
    folder = tmp_path / "state"
    first = GatewayState.open(folder, port=9001)
    token = first.store.create_token("guest", "bob")
    pin = first.pin
    first.close()
    moved = GatewayState.open(folder, port=9002)

    assert moved.pin == pin
    principal(moved.store.authenticate(token.text()))
    assert resolve_credential("localhost:9002").pin == pin
    moved.close()


def test_one_folder_serves_one_gateway_at_a_time(state: GatewayState) -> None:
    """A second gateway on an open folder is refused; once it is closed, the folder is free."""
    with pytest.raises(EasyRemoteError, match="another gateway is running"):
        GatewayState.open(port=9001)

    state.close()
    state.close()
    GatewayState.open(port=9001).close()


def test_killed_gateway_leaves_its_folder_free() -> None:
    """After kill -9 the next start opens the folder at once, with every acknowledged token."""
    program = (
        "import sys, time; from easyremote.gateway.state import GatewayState; "
        "state = GatewayState.open(port=9003); "
        "print(state.store.create_token('guest', 'bob').text(), flush=True); "
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as gateway:
        watchdog = threading.Timer(60, gateway.kill)
        watchdog.start()
        assert gateway.stdout is not None
        text = gateway.stdout.readline().strip()
        gateway.send_signal(signal.SIGKILL)
        gateway.wait(60)
        watchdog.cancel()
    again = GatewayState.open(port=9003)

    principal(again.store.authenticate(text))
    assert again.incarnation == 2
    again.close()


def test_command_line_attaches_while_the_gateway_runs(state: GatewayState) -> None:
    """A token made beside a running gateway is good there at once; the start is not counted."""
    beside = GatewayState.attach()
    token = beside.store.create_token("guest", "bob")
    join = JoinString.parse(beside.join_string(token))

    assert principal(state.store.authenticate(token.text())).user == "bob"
    assert (join.pin, join.port, join.hosts) == (state.pin, 9001, ("vps.example.org",))
    assert (beside.gateway_id, beside.grant_key) == (state.gateway_id, state.grant_key)
    assert beside.incarnation == 0
    beside.close()
    assert state.store.get_meta("incarnation") == "1"


@pytest.mark.usefixtures("state")
def test_which_gateway_the_command_line_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By port, by EASYREMOTE_GATEWAY, the only one, or the default port; else an error."""
    other = GatewayState.open(port=9002)

    assert find_state_folder(9002) == other.folder
    with pytest.raises(NotConnectedError, match="known ports: 9001, 9002"):
        find_state_folder()
    with pytest.raises(NotConnectedError, match="port 7777"):
        find_state_folder(7777)

    monkeypatch.setenv("EASYREMOTE_GATEWAY", "127.0.0.1:9002")
    assert find_state_folder() == other.folder
    monkeypatch.delenv("EASYREMOTE_GATEWAY")

    usual = GatewayState.open(port=8080)
    assert find_state_folder() == usual.folder
    other.close()
    usual.close()


def test_attach_to_nothing_says_how_to_begin(tmp_path: Path) -> None:
    """Without a gateway there is nothing to attach to, and nothing is made."""
    with pytest.raises(NotConnectedError, match="gateway init"):
        GatewayState.attach()
    with pytest.raises(NotConnectedError, match="gateway init"):
        GatewayState.attach(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_certificate_of_the_operator(state: GatewayState, tmp_path: Path) -> None:
    """A certificate that the operator brings is what join strings pin, beside and later, too."""
    brought = GatewayState.open(
        tmp_path / "state",
        port=9005,
        certificate_path=state.identity.certificate_path,
        key_path=state.identity.key_path,
    )
    beside = GatewayState.attach(tmp_path / "state")

    assert brought.pin == beside.pin == state.pin
    assert not (tmp_path / "state" / "gateway.key").exists()
    beside.close()
    brought.close()


def test_secrets_stand_only_in_private_files_of_their_own(state: GatewayState) -> None:
    """Neither the database nor its log holds the owner's, the node's or the client's secret."""
    texts = [state.node_join(), state.client_join()]
    tokens = [JoinString.parse(text).token for text in texts]
    owner = load_profile("gateway-9001")
    assert owner is not None
    content = b"".join(
        path.read_bytes() for path in state.folder.iterdir() if path.name.startswith("gateway.db")
    )

    assert tokens[0].id.encode() in content
    assert owner.token.encode() not in content
    assert owner.token[15:58].encode() not in content
    assert state.grant_key not in content
    for token in tokens:
        assert token.secret not in content
        assert token.text()[15:58].encode() not in content
    assert state.grant_key.hex() not in repr(state)
    assert repr(state.grant_key) not in repr(state)


def test_hosts_are_written_as_join_strings_need_them() -> None:
    """Wildcards name nobody, capitals and long spellings are normal, and there are at most 8."""
    hosts = ["0.0.0.0", "::", "", "VPS.example.org", "2001:DB8:0:0::1", "vps.example.org"]
    many = [f"h{number}" for number in range(20)]
    state = GatewayState.open(hosts=[*hosts, *many], port=9006)

    assert state.hosts[:2] == ("vps.example.org", "2001:db8::1")
    assert len(state.hosts) == 8
    assert JoinString.parse(state.node_join()).hosts == state.hosts
    state.close()


def test_local_hosts_can_stand_in_a_join_string() -> None:
    """The guess is never empty, and never "all interfaces"."""
    hosts = local_hosts()

    assert hosts
    assert not {"0.0.0.0", "::", ""} & set(hosts)


def test_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose uid has no name, the owner is named by the uid."""

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    state = GatewayState.open(port=9007)

    assert state.owner == f"uid-{os.getuid()}"
    state.close()
