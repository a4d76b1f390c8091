"""`easyremote token`: good at once while the gateway runs, and void at once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from easyremote.gateway.server import Server
from easyremote.gateway.state import GatewayState
from easyremote.identity.join import JoinString
from easyremote.identity.token import TokenKind

from .conftest import Run

DAY_S = 86_400.0


@pytest.fixture
def made(run: Run) -> Run:
    """The command line, after a gateway was made that does not run."""
    assert run("gateway", "init", "--port", "9123", "--host", "gw.test").exit_code == 0
    return run


def create(run: Run, *words: str) -> JoinString:
    done = run("token", "create", *words)
    assert done.exit_code == 0, done.stderr
    return JoinString.parse(done.stdout.splitlines()[-1])


def listed(run: Run) -> dict[str, dict[str, object]]:
    done = run("token", "list", "--json")
    assert done.exit_code == 0, done.stderr
    return {one["id"]: one for one in json.loads(done.stdout)}


def test_the_join_string_is_all_that_goes_to_stdout(made: Run) -> None:
    """`JOIN=$(easyremote token create ...)` is the string and nothing else."""
    done = made("token", "create", "--role", "guest", "--user", "alice")

    assert done.stdout.count("\n") == 1
    join = JoinString.parse(done.stdout)
    assert (join.hosts, join.port, join.token.kind) == (("gw.test",), 9123, TokenKind.CLIENT)
    assert join.token.id in done.stderr
    assert join.token.text() not in done.stderr
    assert done.stdout.strip() not in done.stderr


def test_a_new_token_is_a_guest(made: Run) -> None:
    """Who does not say what somebody may do gives away as little as possible."""
    join = create(made, "--user", "alice")

    assert listed(made)[join.token.id]["role"] == "guest"


def test_options_of_create_arrive_in_the_token(made: Run) -> None:
    """Role, user, level, node, scopes and expiry are those of the command line."""
    client = create(
        made, "--role", "guest", "--user", "bob", "--level", "academic", "--level", "gold",
        "--functions", "train_*", "--nodes", "gpu-*", "--expires", "90d", "--note", "for a course",
    )  # fmt: skip
    node = create(made, "--role", "node", "--user", "ann", "--node", "gpu-01", "--single-use")
    tokens = listed(made)
    one, other = tokens[client.token.id], tokens[node.token.id]

    assert (one["user"], one["levels"], one["note"]) == (
        "bob",
        ["academic", "gold"],
        "for a course",
    )
    assert one["scopes"] == {"functions": ["train_*"], "nodes": ["gpu-*"]}
    assert isinstance(one["expires_at"], float)
    assert abs(one["expires_at"] - time.time() - 90 * DAY_S) < 60
    assert client.expires_at == int(one["expires_at"])
    assert (other["role"], other["node_id"], other["state"]) == ("node", "gpu-01", "good")
    assert node.token.kind is TokenKind.NODE
    assert isinstance(other["expires_at"], float)
    assert abs(other["expires_at"] - time.time() - DAY_S) < 60


def test_never_is_an_expiry(made: Run) -> None:
    """A node token that is to last for ever has to be asked for."""
    assert create(made, "--role", "node", "--user", "ann", "--expires", "never").expires_at is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--user", "x", "--expires", "24"], "is no duration"),
        (["--user", "x", "--role", "boss"], "boss"),
        (["--user", "x", "--expires", "0h"], "longer than zero"),
    ],
)
def test_wrong_options_are_usage_errors(made: Run, words: list[str], said: str) -> None:
    """What the command line cannot mean is refused before anything is written."""
    done = made("token", "create", *words)

    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--user", "x", "--node", "n"], "only a token of role node"),
        (["--user", " "], "printable characters"),
        (["--user", "x", "--expires", "5300w"], "less than 100 years"),
        (["--user", "x", "--address", "a b"], "is not the address"),
        (["--user", "x", "--port", "9999"], "no gateway of this user on port 9999"),
        (["--user", "x", "--port", "9123", "--gateway", "h:1"], "one or the other"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(made: Run, words: list[str], said: str) -> None:
    """The gateway's own rules are told as they are."""
    done = made("token", "create", *words)

    assert done.exit_code == 1
    assert done.stdout == ""
    assert said in done.stderr


def test_the_join_string_can_carry_another_address(made: Run) -> None:
    """Behind a router with another port the bearer gets the address that works from outside."""
    join = create(made, "--user", "x", "--address", "vps.test:443", "--address", "203.0.113.7:443")

    assert (join.hosts, join.port) == (("vps.test", "203.0.113.7"), 443)


def test_without_a_gateway_there_is_nothing_to_make_tokens_of(run: Run) -> None:
    """Whoever runs no gateway is told how to make one."""
    done = run("token", "create", "--user", "x")

    assert done.exit_code == 1
    assert "easyremote gateway init" in done.stderr


def test_a_token_is_good_at_once_while_the_gateway_runs_and_void_at_once(
    run: Run, gateway: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Created, used, revoked, refused: without a restart of anything."""
    made = run("token", "create", "--role", "guest", "--user", "alice")
    join = JoinString.parse(made.stdout)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("EASYREMOTE_HOME", str(tmp_path / "elsewhere"))
        elsewhere.setenv("EASYREMOTE_JOIN", made.stdout.strip())
        good = run("status")
    revoked = run("token", "revoke", join.token.id)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("EASYREMOTE_HOME", str(tmp_path / "elsewhere"))
        elsewhere.setenv("EASYREMOTE_JOIN", made.stdout.strip())
        refused = run("status")

    assert join.port == gateway.port
    assert good.exit_code == 0, good.stderr
    assert "you are alice (guest)" in good.stdout
    assert revoked.exit_code == 0
    assert refused.exit_code == 1
    assert "this token was revoked" in refused.stderr
    assert listed(run)[join.token.id]["state"] == "revoked"


def test_revoke_says_what_it_did_not_do(made: Run) -> None:
    """A token that was void already, or that nobody knows, is a failure: look again."""
    token_id = create(made, "--user", "x").token.id

    assert made("token", "revoke", token_id).exit_code == 0
    again, unknown = made("token", "revoke", token_id), made("token", "revoke", "nobody")
    assert (again.exit_code, unknown.exit_code) == (1, 1)
    assert "was revoked before" in again.stderr
    assert "no token has the id 'nobody'" in unknown.stderr


def test_list_shows_no_secret(made: Run) -> None:
    """The table has ids, roles and times; nothing that could be shown to a gateway."""
    join = create(made, "--user", "x", "--expires", "1h")
    for words in (["token", "list"], ["token", "list", "--json"]):
        shown = made(*words).stdout
        assert join.token.id in shown
        assert join.token.text().rpartition("_")[2][:20] not in shown
        assert "er1_" not in shown


def test_the_state_of_a_token_is_told(made: Run) -> None:
    """Expired and used-up tokens are told apart from good ones."""
    from easyremote.cli.token import state_of

    token = {"revoked_at": None, "expires_at": 10.0, "uses_left": 1}

    assert state_of(token, 9.0) == "good"
    assert state_of(token, 10.0) == "expired"
    assert state_of({**token, "uses_left": 0}, 9.0) == "used"
    assert state_of({**token, "revoked_at": 1.0}, 9.0) == "revoked"


def test_an_owner_administers_a_gateway_over_the_network(
    run: Run, gateway: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With an owner's token, --gateway does from anywhere what the state folder does here."""
    owner = create(run, "--role", "owner", "--user", "olga").encode()
    address = f"127.0.0.1:{gateway.port}"
    monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("EASYREMOTE_JOIN", owner)

    made = create(
        run, "--gateway", address, "--user", "eve", "--expires", "1h", "--address", "gw.test"
    )
    ever = create(run, "--gateway", address, "--user", "n", "--role", "node", "--expires", "never")
    shown = json.loads(run("token", "list", "--json", "--gateway", address).stdout)
    revoked = run("token", "revoke", made.token.id, "--gateway", address)
    checked = run("audit", "verify", "--gateway", address)
    freed = run("node", "forget", "gpu-01", "--gateway", address)

    assert made.hosts == ("gw.test",)
    assert ever.expires_at is None
    (eve,) = [one for one in shown if one["id"] == made.token.id]
    assert (eve["user"], eve["role"], eve["created_by"]) == ("eve", "guest", "olga")
    assert revoked.exit_code == 0
    assert "the audit is whole" in checked.stdout
    assert freed.exit_code == 1
    assert "no node has enrolled as 'gpu-01'" in freed.stderr


def test_a_guest_administers_nothing(
    run: Run, gateway: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The gateway refuses, and the refusal is one sentence."""
    guest = create(run, "--user", "alice").encode()
    monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("EASYREMOTE_JOIN", guest)
    address = f"127.0.0.1:{gateway.port}"

    for words in (["token", "list"], ["audit", "verify"], ["node", "forget", "x"]):
        done = run(*words, "--gateway", address)
        assert done.exit_code == 1
        assert "a guest may not ask for" in done.stderr


def test_forget_frees_the_id_of_a_node(made: Run) -> None:
    """After a machine was replaced, the new one may enrol under the old id."""
    token = create(made, "--role", "node", "--user", "ann").token.text()
    state = GatewayState.attach()
    try:
        state.store.enrol_node("gpu-01", b"s" * 32, token)
        freed, again = made("node", "forget", "gpu-01"), made("node", "forget", "gpu-01")
        assert state.store.list_nodes() == []
    finally:
        state.close()

    assert freed.exit_code == 0
    assert again.exit_code == 1


def test_audit_verify_finds_a_changed_entry(made: Run) -> None:
    """Whoever changes what the gateway wrote down is found out."""
    import sqlite3
    from contextlib import closing

    from easyremote.gateway.state import DATABASE_NAME, find_state_folder

    assert made("audit", "verify").exit_code == 0
    with closing(sqlite3.connect(find_state_folder() / DATABASE_NAME)) as database, database:
        for trigger in database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit'"
        ).fetchall():
            database.execute(f"DROP TRIGGER {trigger[0]}")
        database.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 2")
    done = made("audit", "verify")

    assert done.exit_code == 1
    assert "the audit is broken at entry 2" in done.stderr
