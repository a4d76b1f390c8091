"""The gateway's store: tokens, nodes, settings and audit, in one process and in several."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from easyremote.gateway.records import Refusal
from easyremote.gateway.store import Store
from easyremote.identity.role import Principal, Role, Scopes
from easyremote.identity.token import Token, TokenKind
from easyremote.wire.errors import ErrorCode

SECRET = bytes(range(32))
OTHER_SECRET = bytes(32)


class Clock:
    """A wall clock that the test moves."""

    def __init__(self) -> None:
        """Start at some epoch second."""
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """Open a new store."""
    opened = Store(tmp_path / "gateway.db", clock=clock)
    yield opened
    opened.close()


def let_in(found: Principal | Refusal) -> Principal:
    """Return the principal; a refusal fails the test."""
    assert isinstance(found, Principal), found
    return found


def refused(found: Principal | Refusal | None) -> Refusal:
    """Return the refusal; anything else fails the test."""
    assert isinstance(found, Refusal), found
    return found


def create_and_fail(store: Store, made: list[Token]) -> None:
    """Create a token that is good inside its transaction, then make the transaction fail."""
    with store.transaction():
        made.append(store.create_token("guest", "u"))
        let_in(store.authenticate(made[-1].text()))
        raise RuntimeError("stop")


# ---- tokens ------------------------------------------------------------------------------


def test_token_gives_its_principal(store: Store) -> None:
    """A token authenticates as exactly what it was created for."""
    scopes = Scopes(("train_*",), ("gpu-*",))
    token = store.create_token(
        "guest", "alice", levels=["staff", "academic"], scopes=scopes, shared=True, expires_s=60
    )
    who = let_in(store.authenticate(token.text()))

    assert (who.user, who.role, who.token_id) == ("alice", Role.GUEST, token.id)
    assert (sorted(who.levels), who.scopes, who.shared) == (["academic", "staff"], scopes, True)
    assert who.expires_at == store.clock() + 60


@pytest.mark.parametrize("role", list(Role))
def test_kind_of_token_follows_the_role(store: Store, role: Role) -> None:
    """Each role can be created, and its kind shows in the text: admin, client or node."""
    token = store.create_token(role, "u")
    letter = {Role.NODE: "n", Role.OPERATOR: "a", Role.OWNER: "a"}.get(role, "c")

    assert token.text().startswith(f"er{letter}_")
    assert let_in(store.authenticate(token.text())).role is role


def test_unknown_and_wrong_secret_are_one_answer(store: Store) -> None:
    """A peer cannot tell an unknown id from a wrong secret, a wrong kind or no token at all."""
    token = store.create_token("member", "alice")
    forged = [
        Token(token.kind, token.id, OTHER_SECRET).text(),
        Token(TokenKind.ADMIN, token.id, token.secret).text(),
        Token.new(TokenKind.CLIENT).text(),
        "team_token",
        token.text()[:-1],
    ]
    answers = {refused(store.authenticate(text))[:2] for text in forged}

    assert answers == {(ErrorCode.AUTH_INVALID, "this token is not valid here")}
    assert refused(store.authenticate("")).code is ErrorCode.AUTH_REQUIRED


def test_wrong_secret_learns_nothing_of_revocation_or_expiry(store: Store, clock: Clock) -> None:
    """Only who shows the right secret is told that it expired or was revoked."""
    expired = store.create_token("guest", "u", expires_s=10)
    revoked = store.create_token("guest", "u")
    store.revoke(revoked.id)
    clock.now += 10

    assert refused(store.authenticate(expired.text())).code is ErrorCode.AUTH_EXPIRED
    assert refused(store.authenticate(revoked.text())).code is ErrorCode.AUTH_REVOKED
    for token in (expired, revoked):
        forged = Token(token.kind, token.id, OTHER_SECRET).text()
        assert refused(store.authenticate(forged)).code is ErrorCode.AUTH_INVALID


def test_expiry_is_exact(store: Store, clock: Clock) -> None:
    """A token is good until its last second and void at its expiry, also for live links."""
    token = store.create_token("guest", "u", expires_s=10)
    who = let_in(store.authenticate(token.text()))
    clock.now += 9.999
    assert store.standing(who) is None

    clock.now += 0.001
    assert refused(store.standing(who)).code is ErrorCode.AUTH_EXPIRED


def test_revocation_is_final_and_said_once(store: Store) -> None:
    """Revoking works once, for one token, and ends who is in already."""
    token, other = store.create_token("guest", "u"), store.create_token("guest", "u")
    who = let_in(store.authenticate(token.text()))

    assert store.revoke(token.id, by="alice")
    assert not store.revoke(token.id)
    assert not store.revoke("0000000000")
    assert refused(store.standing(who)).code is ErrorCode.AUTH_REVOKED
    let_in(store.authenticate(other.text()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "king"},
        {"user": ""},
        {"user": " u"},
        {"user": "a\nb"},
        {"user": "u" * 129},
        {"levels": [""]},
        {"levels": [f"l{number}" for number in range(33)]},
        {"expires_s": 0},
        {"expires_s": -1},
        {"expires_s": 1e12},
        {"expires_s": float("nan")},
        {"node_id": "n"},
        {"single_use": True},
        {"note": "n" * 501},
        {"role": "node", "node_id": ""},
    ],
)
def test_what_makes_no_sense_is_not_created(store: Store, wrong: dict[str, object]) -> None:
    """A token with a field that is wrong is a ValueError, and nothing is stored."""
    arguments: dict[str, object] = {"role": "guest", "user": "u", **wrong}

    with pytest.raises(ValueError, match=r"."):
        store.create_token(**arguments)  # type: ignore[arg-type]
    assert store.list_tokens() == []
    assert store.audit_rows() == []


def test_tokens_survive_a_restart(store: Store) -> None:
    """What was acknowledged is there after the store is opened again."""
    token, void = store.create_token("member", "alice"), store.create_token("member", "bob")
    store.revoke(void.id)
    store.close()
    again = Store(store.path, clock=store.clock)

    assert let_in(again.authenticate(token.text())).user == "alice"
    assert refused(again.authenticate(void.text())).code is ErrorCode.AUTH_REVOKED
    assert {info.id for info in again.list_tokens()} == {token.id, void.id}
    again.close()


def test_last_use_is_noted_without_a_write_per_login(store: Store, clock: Clock) -> None:
    """Logging in writes nothing; the times are collected and stored later, never backwards."""
    token = store.create_token("guest", "u")
    store.authenticate(token.text())
    generation, version = store.generation, store.data_version()
    clock.now += 5
    store.authenticate(token.text())
    used = store.take_used()

    assert used == {token.id: clock.now}
    assert store.take_used() == {}
    store.mark_used(used)
    store.mark_used({token.id: clock.now - 100})
    store.mark_used({})
    assert not store.refresh()
    assert (store.generation, store.data_version()) == (generation, version)
    again = Store(store.path)
    info = again.token(token.id)
    again.close()
    assert info is not None
    assert info.last_used_at == clock.now


def test_plain_form_has_no_verifier(store: Store) -> None:
    """What lists show of a token is plain data without anything secret."""
    token = store.create_token("node", "u", node_id="gpu-01", single_use=True, note="lab")
    info = store.token(token.id)
    assert info is not None
    plain = info.to_plain()

    assert (plain["role"], plain["node_id"], plain["uses_left"]) == ("node", "gpu-01", 1)
    assert token.verifier().hex() not in repr(plain)
    assert not any(isinstance(value, bytes) for value in plain.values())


# ---- several processes ---------------------------------------------------------------------


def test_other_connection_is_noticed_at_the_next_login(store: Store) -> None:
    """A token that another connection creates is good at once, and void at once when revoked."""
    beside = Store(store.path)
    token = beside.create_token("guest", "bob")
    who = let_in(store.authenticate(token.text()))

    beside.revoke(token.id)
    assert refused(store.standing(who)).code is ErrorCode.AUTH_REVOKED
    assert refused(store.authenticate(token.text())).code is ErrorCode.AUTH_REVOKED
    beside.close()


def test_token_of_another_process_is_good_at_once(store: Store) -> None:
    """The command line, a process of its own, creates a token while the store is open."""
    program = (
        "import sys, pathlib; from easyremote.gateway.store import Store; "
        "store = Store(pathlib.Path(sys.argv[1])); "
        "print(store.create_token('guest', 'bob').text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(store.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[2],
    )

    assert let_in(store.authenticate(done.stdout.strip())).user == "bob"


def test_index_is_read_again_only_when_tokens_or_nodes_change(store: Store) -> None:
    """Commits that concern something else do not make the gateway read all tokens again."""
    beside = Store(store.path)
    beside.audit("something", "gateway")
    beside.set_meta("key", "value")
    generation = store.generation

    assert not store.refresh()
    beside.create_token("guest", "u")
    assert store.refresh()
    assert store.generation == generation + 1
    assert not store.refresh()
    beside.close()


def test_a_rolled_back_token_is_no_token(store: Store) -> None:
    """What a failed transaction created is forgotten in memory as on the disk."""
    made: list[Token] = []
    with pytest.raises(RuntimeError, match="stop"):
        create_and_fail(store, made)

    assert refused(store.authenticate(made[0].text())).code is ErrorCode.AUTH_INVALID
    assert store.audit_rows() == []


def test_inner_transaction_undoes_its_own_part_only(store: Store) -> None:
    """Nested blocks fail alone."""
    with store.transaction():
        kept, lost = store.create_token("guest", "u"), list[Token]()
        with pytest.raises(RuntimeError, match="stop"):
            create_and_fail(store, lost)

    let_in(store.authenticate(kept.text()))
    refused(store.authenticate(lost[0].text()))
    assert store.verify_audit().good


# ---- nodes -------------------------------------------------------------------------------


def test_enrolment_binds_the_id_to_the_secret(store: Store) -> None:
    """After enrolment the secret alone lets the node in, and keeps everybody else out."""
    token = store.create_token("node", "alice", expires_s=60).text()
    first = let_in(store.check_node("gpu-01", SECRET, token))
    assert first.enrolment is None

    enrolled = let_in(store.enrol_node("gpu-01", SECRET, token))
    assert (enrolled.user, enrolled.role, enrolled.node_id) == ("alice", Role.NODE, "gpu-01")
    assert let_in(store.check_node("gpu-01", SECRET)) == enrolled
    assert let_in(store.enrol_node("gpu-01", SECRET, "")) == enrolled

    taken = refused(store.check_node("gpu-01", OTHER_SECRET, token))
    assert taken.code is ErrorCode.FORBIDDEN
    assert "node forget gpu-01" in taken.reason
    assert refused(store.enrol_node("gpu-01", OTHER_SECRET, token)).code is ErrorCode.FORBIDDEN
    assert store.standing(enrolled) is None


def test_takeover_attempt_is_audited(store: Store) -> None:
    """A refused enrolment under somebody's id leaves a line in the audit."""
    token = store.create_token("node", "alice")
    store.enrol_node("gpu-01", SECRET, token.text())
    store.enrol_node("gpu-01", OTHER_SECRET, token.text())
    last = store.audit_rows()[-1]

    assert last.event == "enrolment_refused"
    assert last.detail == {"node_id": "gpu-01", "cause": "wrong node secret", "token": token.id}


def test_stranger_cannot_learn_which_node_ids_exist(store: Store) -> None:
    """Without a token a taken node id and a free one are refused alike."""
    store.enrol_node("gpu-01", SECRET, store.create_token("node", "alice").text())
    forged = Token.new(TokenKind.NODE).text()

    for text in ("", forged, "nonsense"):
        taken = refused(store.check_node("gpu-01", OTHER_SECRET, text))
        free = refused(store.check_node("gpu-02", OTHER_SECRET, text))
        assert taken[:2] == free[:2]


def test_enrolment_outlives_expiry_and_use_of_its_token(store: Store, clock: Clock) -> None:
    """A single-use token enrols one node; that one comes back after the token has expired."""
    token = store.create_token("node", "alice", expires_s=60, single_use=True).text()
    let_in(store.enrol_node("gpu-01", SECRET, token))

    used = refused(store.enrol_node("gpu-02", SECRET, token))
    assert used.code is ErrorCode.AUTH_EXPIRED
    assert "single-use" in used.reason
    clock.now += 120
    who = let_in(store.check_node("gpu-01", SECRET, token))
    assert store.standing(who) is None


def test_revoking_the_token_ends_its_nodes(store: Store) -> None:
    """A node whose enrolment token was revoked is out, until the same user gives it another."""
    token = store.create_token("node", "alice")
    who = let_in(store.enrol_node("gpu-01", SECRET, token.text()))
    store.revoke(token.id)

    assert refused(store.standing(who)).code is ErrorCode.AUTH_REVOKED
    assert refused(store.check_node("gpu-01", SECRET)).code is ErrorCode.AUTH_REVOKED
    stranger = store.create_token("node", "bob").text()
    assert refused(store.enrol_node("gpu-01", SECRET, stranger)).code is ErrorCode.FORBIDDEN

    fresh = store.create_token("node", "alice").text()
    again = let_in(store.enrol_node("gpu-01", SECRET, fresh))
    assert again.enrolment == who.enrolment
    assert store.standing(let_in(store.check_node("gpu-01", SECRET))) is None


def test_forgotten_node_is_out_and_its_id_free(store: Store) -> None:
    """Forgetting ends the live node, frees the id, and a new enrolment is another one."""
    token = store.create_token("node", "alice").text()
    old = let_in(store.enrol_node("gpu-01", SECRET, token))

    assert store.forget_node("gpu-01", by="alice")
    assert not store.forget_node("gpu-01")
    assert refused(store.standing(old)).code is ErrorCode.FORBIDDEN

    new = let_in(store.enrol_node("gpu-01", OTHER_SECRET, token))
    assert new.enrolment != old.enrolment
    assert refused(store.standing(old)).code is ErrorCode.FORBIDDEN
    assert refused(store.check_node("gpu-01", SECRET, token)).code is ErrorCode.FORBIDDEN
    assert [node.node_id for node in store.list_nodes()] == ["gpu-01"]


@pytest.mark.parametrize("role", ["viewer", "guest", "member"])
def test_clients_cannot_enrol_nodes(store: Store, role: str) -> None:
    """A token of a client role enrols nothing and is told what it needs."""
    token = store.create_token(role, "alice").text()
    answer = refused(store.enrol_node("gpu-01", SECRET, token))

    assert answer.code is ErrorCode.FORBIDDEN
    assert "token create --role node" in answer.reason
    assert store.list_nodes() == []


def test_owner_may_enrol_and_the_node_is_only_a_node(store: Store) -> None:
    """A node of the owner's token is the owner's, and has the rights of a node alone."""
    token = store.create_token("owner", "alice").text()
    who = let_in(store.enrol_node("gpu-01", SECRET, token))

    assert (who.user, who.role) == ("alice", Role.NODE)


def test_token_of_one_node_id_enrols_no_other(store: Store) -> None:
    """`--node ID` binds a node token to that id; its patterns stay with the node."""
    token = store.create_token("node", "a", node_id="gpu-01", scopes=Scopes(("train_*",))).text()

    assert refused(store.enrol_node("gpu-02", SECRET, token)).code is ErrorCode.FORBIDDEN
    who = let_in(store.enrol_node("gpu-01", SECRET, token))
    assert who.may_register("train_x", "gpu-01")
    assert not who.may_register("process_payment", "gpu-01")


@pytest.mark.parametrize(
    ("node_id", "secret"), [("", SECRET), ("a\n", SECRET), ("n", b""), ("n", bytes(31))]
)
def test_malformed_node_is_refused(store: Store, node_id: str, secret: bytes) -> None:
    """A bad id or a secret of another length is a refusal, not an exception."""
    token = store.create_token("node", "alice").text()

    refused(store.check_node(node_id, secret, token))
    refused(store.enrol_node(node_id, secret, token))
    assert store.list_nodes() == []
