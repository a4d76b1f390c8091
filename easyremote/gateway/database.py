"""The gateway's database: one SQLite file, transactions, settings, and the audit chain.

Theory. What the gateway acknowledges must survive `kill -9` and a power cut: the write-ahead log
with `synchronous=FULL` syncs at each commit. Several processes share the file (the gateway, and
the command line that creates a token while it runs), so everything that reads before it writes
does so inside `BEGIN IMMEDIATE`. The audit is append-only and chained: each row carries SHA-256
over the hash of the row before it and its own content, so a changed, removed or inserted row shows.

Rules of this file. 1) The file is 0600 and holds no secret, only one-way verifiers. 2) A
`Database` is used by one thread at a time. 3) Wall time is an injected clock. 4) `sqlite3` errors
leave as `StoreError`.

Source. https://www.sqlite.org/wal.html and pragma.html (synchronous, data_version). Haber and
Stornetta, How to time-stamp a digital document (1991), for the chain.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import EasyRemoteError
from ..identity.private_file import PRIVATE_MODE, close_to_others

SCHEMA_VERSION = 3
BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for the writer of another process; commits take milliseconds."""
AUDIT_DETAIL_CHARS_MAX = 4096

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, verifier BLOB NOT NULL, kind TEXT NOT NULL, role TEXT NOT NULL,
    user TEXT NOT NULL, node_id TEXT, scopes TEXT NOT NULL, levels TEXT NOT NULL,
    shared INTEGER NOT NULL, created_at REAL NOT NULL, expires_at REAL, revoked_at REAL,
    last_used_at REAL, uses_left INTEGER, created_by TEXT NOT NULL, note TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE nodes (
    enrolment INTEGER PRIMARY KEY AUTOINCREMENT, node_id TEXT NOT NULL UNIQUE,
    verifier BLOB NOT NULL, user TEXT NOT NULL, token_id TEXT NOT NULL,
    enrolled_at REAL NOT NULL, boot_epoch INTEGER NOT NULL,
    boot BLOB NOT NULL DEFAULT x'', booted_at REAL NOT NULL DEFAULT 0,
    online INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, event TEXT NOT NULL, actor TEXT NOT NULL,
    detail TEXT NOT NULL, hash BLOB NOT NULL
);
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_is_not_removed BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
"""

_USAGE = """
CREATE TABLE usage (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, call_id BLOB NOT NULL, user TEXT NOT NULL,
    sub TEXT NOT NULL, function TEXT NOT NULL, accepted_at REAL NOT NULL,
    incarnation INTEGER NOT NULL, node_id TEXT NOT NULL DEFAULT '',
    node_owner TEXT NOT NULL DEFAULT '', started_at REAL, ended_at REAL,
    seconds REAL NOT NULL DEFAULT 0, node_seconds REAL, gpu_seconds REAL NOT NULL DEFAULT 0,
    bytes_in INTEGER NOT NULL DEFAULT 0, bytes_out INTEGER NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL DEFAULT 'open',
    paid INTEGER NOT NULL DEFAULT 0, price_nano INTEGER NOT NULL DEFAULT 0,
    currency TEXT NOT NULL DEFAULT '', rule TEXT, flagged INTEGER NOT NULL DEFAULT 0,
    UNIQUE (user, call_id)
);
CREATE INDEX usage_open ON usage (seq) WHERE outcome = 'open';
CREATE TRIGGER usage_is_not_changed BEFORE UPDATE ON usage WHEN OLD.outcome <> 'open'
BEGIN SELECT RAISE(ABORT, 'a usage record that is closed does not change'); END;
CREATE TRIGGER usage_is_not_removed BEFORE DELETE ON usage WHEN OLD.paid
BEGIN SELECT RAISE(ABORT, 'a paid usage record stays'); END;
CREATE TABLE quota_use (
    user TEXT NOT NULL, sub TEXT NOT NULL, owner TEXT NOT NULL, function TEXT NOT NULL,
    bucket INTEGER NOT NULL, seconds REAL NOT NULL, calls REAL NOT NULL, bytes REAL NOT NULL,
    PRIMARY KEY (user, sub, owner, function, bucket)
) WITHOUT ROWID;
"""
"""Quotas and bills (`usage_store.py`); new with schema 3."""

_UPGRADES: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE nodes ADD COLUMN boot BLOB NOT NULL DEFAULT x'';",
        "ALTER TABLE nodes ADD COLUMN booted_at REAL NOT NULL DEFAULT 0;",
        "ALTER TABLE nodes ADD COLUMN online INTEGER NOT NULL DEFAULT 0;",
    ),
    2: (_USAGE,),
}
"""What leads from each older schema to the next one, as scripts."""

_FIRST_HASH = bytes(32)


class StoreError(EasyRemoteError):
    """The gateway's database cannot be read or written."""


class AuditRow(NamedTuple):
    """One entry of the audit."""

    seq: int
    at: float
    event: str
    actor: str
    detail: dict[str, Any]


class AuditCheck(NamedTuple):
    """What a walk over the audit chain found."""

    rows: int
    """Rows that are as they were written."""
    first_bad: int | None
    """Sequence number at which the chain breaks, or None: the whole chain holds."""

    @property
    def good(self) -> bool:
        """Whether no row was changed, removed or inserted."""
        return self.first_bad is None


class Database:
    """A connection to the gateway's database."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the database, and make it if it is missing.

        Args:
            path: The file; made 0600.
            clock: Seconds since the epoch.

        Raises:
            StoreError: The file is no database of ours, or of a newer version.
        """
        self.path = path
        self.clock = clock
        self._depth = 0
        with self._door():
            # Made by us first: SQLite would use the umask, and gives its side files our mode.
            path.touch(mode=PRIVATE_MODE, exist_ok=True)
            for end in ("", "-wal", "-shm"):
                close_to_others(path.with_name(path.name + end))
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("PRAGMA foreign_keys=ON")
        self._connection.execute("PRAGMA trusted_schema=OFF")
        with self.transaction():
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == SCHEMA_VERSION:
                return
            if version in _UPGRADES:
                for older in range(version, SCHEMA_VERSION):
                    for script in _UPGRADES[older]:
                        self._run(script)
                self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                return
            if version != 0:
                raise StoreError(
                    f"{self.path} was written by another version of EasyRemote (schema {version}, "
                    f"this one knows {SCHEMA_VERSION}); run the gateway with that version"
                )
            self._run(_SCHEMA + _USAGE)
            self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _run(self, script: str) -> None:
        for statement in _statements(script):
            self._connection.execute(statement)

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._connection.close()

    @contextmanager
    def _door(self) -> Generator[None]:
        """Turn what `sqlite3` raises into a `StoreError` that names the file."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the gateway's database {self.path} failed: {error}. Check the disk, its space "
                f"and the file's owner."
            ) from error

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """Do everything in the block or nothing; durable when the outermost block ends.

        Blocks nest: an inner one that fails undoes its own part only.
        """
        depth = self._depth
        begin = "BEGIN IMMEDIATE" if depth == 0 else f"SAVEPOINT level{depth}"
        commit = "COMMIT" if depth == 0 else f"RELEASE level{depth}"
        with self._door():
            self._connection.execute(begin)
            self._depth += 1
            try:
                yield self._connection
                self._depth = depth
                self._connection.execute(commit)
            except BaseException:
                self._depth = depth
                self._rolled_back()
                # SQLite has ended the transaction by itself after a full disk.
                if self._connection.in_transaction:
                    self._connection.execute(
                        "ROLLBACK" if depth == 0 else f"ROLLBACK TO level{depth}"
                    )
                    if depth:
                        self._connection.execute(commit)
                raise

    def _rolled_back(self) -> None:
        """Forget what was remembered of a transaction that did not happen."""

    def rows(self, sql: str, *values: object) -> list[Any]:
        """Return all rows of a query."""
        with self._door():
            return self._connection.execute(sql, values).fetchall()

    def data_version(self) -> int:
        """Return a number that changes when another connection has committed. Microseconds."""
        return int(self.rows("PRAGMA data_version")[0][0])

    # ---- settings ------------------------------------------------------------------------

    def get_meta(self, key: str) -> str | None:
        """Return a stored setting, or None."""
        found = self.rows("SELECT value FROM meta WHERE key = ?", key)
        return str(found[0][0]) if found else None

    def set_meta(self, key: str, value: str) -> None:
        """Store a setting."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO meta VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )

    def count_up(self, key: str) -> int:
        """Add one to a stored counter and return it; no number is given twice, ever."""
        with self.transaction():
            value = int(self.get_meta(key) or 0) + 1
            self.set_meta(key, str(value))
        return value

    def next_incarnation(self) -> int:
        """Return the number of this start of the gateway: 1, 2, 3 and so on."""
        return self.count_up("incarnation")

    # ---- audit ---------------------------------------------------------------------------

    def audit(self, event: str, actor: str, detail: Mapping[str, Any] | None = None) -> int:
        """Append an entry to the audit; return its sequence number.

        Args:
            event: What happened, a short constant such as `token_created`.
            actor: The principal that did it, or `gateway`.
            detail: Plain data without secrets.
        """
        text = json.dumps(dict(detail or {}), sort_keys=True, separators=(",", ":"))
        if len(text) > AUDIT_DETAIL_CHARS_MAX:
            text = json.dumps({"cut": text[:AUDIT_DETAIL_CHARS_MAX]})
        with self.transaction() as connection:
            last = self.rows("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
            seq, before = (last[0][0] + 1, last[0][1]) if last else (1, _FIRST_HASH)
            at = self.clock()
            digest = _chain(before, seq, at, event, actor, text)
            connection.execute(
                "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?)",
                (seq, at, event, actor, text, digest),
            )
            # The end of the chain, so that rows cut off at the end show as well.
            self.set_meta("audit_head", f"{seq}:{digest.hex()}")
        return int(seq)

    def audit_rows(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """Return audit entries in order, from the one after sequence number `after`."""
        return [
            AuditRow(seq, at, event, actor, json.loads(detail))
            for seq, at, event, actor, detail in self.rows(
                "SELECT seq, at, event, actor, detail FROM audit WHERE seq > ? "
                "ORDER BY seq LIMIT ?",
                after,
                limit,
            )
        ]

    def verify_audit(self) -> AuditCheck:
        """Walk the chain and say where it breaks, if it does."""
        before, count = _FIRST_HASH, 0
        with self._door():
            # One snapshot: an entry that is appended meanwhile must not look like a break.
            self._connection.execute("BEGIN")
            try:
                head = self.get_meta("audit_head")
                for seq, at, event, actor, detail, digest in self._connection.execute(
                    "SELECT seq, at, event, actor, detail, hash FROM audit ORDER BY seq"
                ):
                    wanted = _chain(before, count + 1, at, event, actor, detail)
                    if seq != count + 1 or digest != wanted:
                        return AuditCheck(count, count + 1)
                    before, count = digest, seq
            finally:
                self._connection.execute("ROLLBACK")
        if head != (f"{count}:{before.hex()}" if count else None):
            return AuditCheck(count, count + 1)
        return AuditCheck(count, None)


def _chain(before: bytes, seq: int, at: float, event: str, actor: str, detail: str) -> bytes:
    """Return the hash of a row: over the row before it and all that it says."""
    content = json.dumps([seq, at, event, actor, detail], separators=(",", ":"))
    return hashlib.sha256(before + content.encode("utf-8")).digest()


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script, so that all of them run in one transaction."""
    pending = ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
