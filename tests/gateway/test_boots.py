"""What the disk says about the boots of nodes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from easyremote.gateway.boots import Boots, boot_of, mark_offline, read_boots, take_boot
from easyremote.gateway.database import SCHEMA_VERSION
from easyremote.gateway.store import Store

SECRET = b"s" * 32
FRESH_S = 120.0
MEMORY_S = 150.0


class Clock:
    """Wall time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """Return a store with one enrolled node."""
    made = Store(tmp_path / "gateway.db", clock=clock)
    made.enrol_node("gpu-01", SECRET, made.create_token("node", "alice").text())
    yield made
    made.close()


def test_epochs_only_grow(store: Store) -> None:
    """Another boot has a higher number, also after a restart; the same one keeps its number."""
    assert [take_boot(store, "gpu-01", boot) for boot in (b"a", b"b", b"b", b"")] == [1, 2, 2, 3]

    store.close()
    again = Store(store.path)
    assert take_boot(again, "gpu-01", b"") == 4, "a boot without a name is always another one"
    assert boot_of(again, "gpu-01") == b"" == boot_of(again, "gpu-02")
    with pytest.raises(LookupError, match="gpu-02"):
        take_boot(again, "gpu-02", b"a")
    again.close()


def test_first_boot_is_no_change(store: Store) -> None:
    """A node that was never here has no calls that could be lost."""
    take_boot(store, "gpu-01", b"a")

    known = {"gpu-01": boot_of(store, "gpu-01")}
    assert read_boots(store, FRESH_S, MEMORY_S) == Boots(frozenset(known), False, 0, known=known)


def test_another_boot_makes_unsure_for_a_while(store: Store, clock: Clock) -> None:
    """Calls of the boot before are lost as long as somebody may wait for them."""
    take_boot(store, "gpu-01", b"a")
    take_boot(store, "gpu-01", b"b")
    assert read_boots(store, FRESH_S, MEMORY_S).changed

    clock.now += FRESH_S + 1
    assert not read_boots(store, FRESH_S, MEMORY_S).changed
    clock.now = 0.0
    assert read_boots(store, FRESH_S, MEMORY_S).changed, "a clock that went back proves nothing"


def test_offline_nodes_are_not_asked(store: Store) -> None:
    """Whoever has been away for long is not waited for; what it may have had is written down."""
    take_boot(store, "gpu-01", b"a")
    mark_offline(store, ["gpu-01", "unknown"], lost_before=7)

    assert read_boots(store, FRESH_S, MEMORY_S) == Boots(frozenset(), False, 7)
    assert take_boot(store, "gpu-01", b"a") == 1
    assert read_boots(store, FRESH_S, MEMORY_S).online == {"gpu-01"}


def test_database_of_the_version_before_is_upgraded(tmp_path: Path, store: Store) -> None:
    """Tokens and enrolments survive; the new columns are there."""
    path = tmp_path / "older.db"
    store.close()
    with sqlite3.connect(store.path) as source, sqlite3.connect(path) as target:
        source.backup(target)
        for column in ("boot", "booted_at", "online"):
            target.execute(f"ALTER TABLE nodes DROP COLUMN {column}")
        for table in ("usage", "quota_use"):
            target.execute(f"DROP TABLE {table}")
        target.execute("PRAGMA user_version=1")
    source.close()
    target.close()

    upgraded = Store(path)
    assert [node.node_id for node in upgraded.list_nodes()] == ["gpu-01"]
    assert take_boot(upgraded, "gpu-01", b"a") == 1
    assert upgraded.rows("PRAGMA user_version")[0][0] == SCHEMA_VERSION
    upgraded.close()
