"""The gateway's database: settings, the audit chain, and what lies on the disk."""

from __future__ import annotations

import random
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from easyremote.errors import EasyRemoteError
from easyremote.gateway.database import StoreError
from easyremote.gateway.records import Refusal
from easyremote.gateway.store import Store
from easyremote.identity.role import Role
from easyremote.identity.token import Token
from easyremote.wire.errors import ErrorCode

SECRET = bytes(range(32))
OTHER_SECRET = bytes(32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Open a new store."""
    opened = Store(tmp_path / "gateway.db")
    yield opened
    opened.close()


def test_incarnations_are_never_given_twice(store: Store) -> None:
    """Two connections that count starts get different numbers, in order."""
    beside = Store(store.path)

    assert [store.next_incarnation(), beside.next_incarnation(), store.next_incarnation()] == [
        1,
        2,
        3,
    ]
    beside.close()


def test_audit_tells_who_did_what(store: Store) -> None:
    """Creating, revoking, enrolling and forgetting are all in the audit, in order."""
    token = store.create_token("node", "alice", created_by="root")
    store.enrol_node("gpu-01", SECRET, token.text())
    store.forget_node("gpu-01", by="root")
    store.revoke(token.id, by="root")

    assert [(row.event, row.actor) for row in store.audit_rows()] == [
        ("token_created", "root"),
        ("node_enrolled", "alice"),
        ("node_forgotten", "root"),
        ("token_revoked", "root"),
    ]
    assert [row.seq for row in store.audit_rows(after=2, limit=1)] == [3]
    check = store.verify_audit()
    assert check.good
    assert check.rows == 4


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        ("UPDATE audit SET detail = '{}' WHERE seq = 2", 2),
        ("UPDATE audit SET actor = 'x' WHERE seq = 3", 3),
        ("UPDATE audit SET at = at + 1 WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 2", 2),
        ("DELETE FROM audit WHERE seq = 4", 4),
        ("DELETE FROM audit", 1),
        ("INSERT INTO audit VALUES (5, 1.0, 'e', 'a', '{}', zeroblob(32))", 5),
    ],
)
def test_audit_chain_finds_every_change(store: Store, change: str, bad: int) -> None:
    """A row that is changed, removed, cut off or slipped in breaks the chain at that place."""
    for number in range(4):
        store.audit("event", "gateway", {"number": number})
    foreign = sqlite3.connect(store.path)
    foreign.execute("DROP TRIGGER audit_is_not_changed")
    foreign.execute("DROP TRIGGER audit_is_not_removed")
    foreign.execute(change)
    foreign.commit()
    foreign.close()

    assert store.verify_audit().first_bad == bad


def test_audit_cannot_be_rewritten_by_accident(store: Store) -> None:
    """The database itself refuses to change or remove rows of the audit."""
    store.audit("event", "gateway")
    for statement in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit"):
        with pytest.raises(StoreError, match="append-only"), store.transaction() as connection:
            connection.execute(statement)

    assert store.verify_audit().good


def test_audit_detail_is_bounded(store: Store) -> None:
    """A huge detail is cut, and the chain holds."""
    store.audit("event", "gateway", {"text": "x" * 100_000})

    assert len(store.audit_rows()[0].detail["cut"]) < 5000
    assert store.verify_audit().good


def test_no_secret_is_in_the_files(store: Store) -> None:
    """No secret that was issued stands in the database or its log, in any form that logs in."""
    tokens = [store.create_token(role, "alice") for role in Role]
    tokens.append(store.create_token("guest", "bob", expires_s=1))
    store.revoke(tokens[0].id)
    store.authenticate(tokens[1].text())
    store.enrol_node("gpu-01", SECRET, tokens[3].text())
    store.enrol_node("gpu-01", OTHER_SECRET, tokens[3].text())
    content = b"".join(path.read_bytes() for path in store.path.parent.iterdir() if path.is_file())

    assert tokens[0].id.encode() in content, "the write-ahead log was looked at, too"
    for secret in [token.secret for token in tokens] + [SECRET]:
        assert secret not in content
        assert secret.hex().encode() not in content
    for token in tokens:
        assert token.text()[15:58].encode() not in content


def test_verifier_is_no_login(store: Store) -> None:
    """Who has stolen the file cannot log in with what it holds."""
    token = store.create_token("owner", "alice")
    forged = Token(token.kind, token.id, token.verifier()).text()

    answer = store.authenticate(forged)
    assert isinstance(answer, Refusal)
    assert answer.code is ErrorCode.AUTH_INVALID


def test_files_are_private(store: Store) -> None:
    """The database and its side files are readable by this user alone."""
    store.create_token("guest", "u")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.path.parent.iterdir()}

    assert modes == dict.fromkeys(("gateway.db", "gateway.db-wal", "gateway.db-shm"), 0o600)


def test_commits_are_durable(store: Store) -> None:
    """The log is a write-ahead log that is synced at each commit."""
    assert store.rows("PRAGMA journal_mode")[0][0] == "wal"
    assert store.rows("PRAGMA synchronous")[0][0] == 2


@pytest.mark.parametrize("kind", ["newer", "garbage", "folder"])
def test_what_is_no_database_of_ours_is_said(tmp_path: Path, kind: str) -> None:
    """A newer schema, a file that is no database or a folder is one typed error with its name."""
    path = tmp_path / "gateway.db"
    if kind == "newer":
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version=99")
        connection.close()
    elif kind == "garbage":
        path.write_bytes(random.Random(3).randbytes(8192))
    else:
        path.mkdir()

    with pytest.raises(StoreError, match=r"gateway\.db") as caught:
        Store(path)
    assert isinstance(caught.value, EasyRemoteError)


def test_files_that_others_could_read_are_closed_to_them(tmp_path: Path) -> None:
    """A database that was copied with a wide mode is 0600 again, side files included."""
    path = tmp_path / "gateway.db"
    with closing(Store(path)) as first:
        first.create_token(Role.MEMBER, "alice")
        for name in ("gateway.db", "gateway.db-wal", "gateway.db-shm"):
            (tmp_path / name).chmod(0o666)
        with closing(Store(path)):
            modes = {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    assert modes == {0o600}
