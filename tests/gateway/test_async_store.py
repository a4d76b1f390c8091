"""Group commit: what an awaited write promises."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from easyremote.gateway.async_store import AsyncStore, watch_store
from easyremote.gateway.database import StoreError
from easyremote.gateway.store import Store
from easyremote.identity.role import Principal
from easyremote.identity.token import Token

BOTH = pytest.mark.parametrize("inline", [False, True])
PATIENCE_S = 30.0


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Store]:
    """Open a new store for this thread."""
    store = Store(tmp_path / "gateway.db")
    yield store
    store.close()


@BOTH
@pytest.mark.trio
async def test_write_is_durable_and_seen_by_the_reader(reader: Store, inline: bool) -> None:
    """When `write` returns, another connection and the reader both have the change."""
    async with AsyncStore(reader, inline=inline) as store:
        with trio.fail_after(PATIENCE_S):
            token = await store.write(Store.create_token, "guest", "alice", levels=["x"])

        assert isinstance(reader.authenticate(token.text()), Principal)
        beside = Store(reader.path)
        assert isinstance(beside.authenticate(token.text()), Principal)
        beside.close()


@BOTH
@pytest.mark.trio
async def test_writes_keep_their_order_and_share_commits(reader: Store, inline: bool) -> None:
    """Hundreds of writes at once all happen, each with its own answer."""
    counts: list[int] = []
    async with AsyncStore(reader, inline=inline) as store:

        async def count() -> None:
            counts.append(await store.write(Store.count_up, "number"))

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(300):
                    nursery.start_soon(count)

    assert sorted(counts) == list(range(1, 301))
    assert reader.get_meta("number") == "300"


@pytest.mark.trio
async def test_many_writes_share_few_commits(reader: Store) -> None:
    """Writes that queue up while the disk is busy are committed together."""
    entered, go = threading.Event(), threading.Event()

    def block(_store: Store) -> None:
        entered.set()
        go.wait(PATIENCE_S)

    version = reader.data_version()
    seen: set[int] = set()
    async with AsyncStore(reader) as store, trio.open_nursery() as nursery:

        async def count() -> None:
            await store.write(Store.count_up, "number")
            seen.add(reader.data_version())

        with trio.fail_after(PATIENCE_S):
            nursery.start_soon(store.write, block)
            await trio.to_thread.run_sync(entered.wait, PATIENCE_S)
            for _ in range(100):
                nursery.start_soon(count)
            await trio.testing.wait_all_tasks_blocked()
            go.set()

    assert reader.get_meta("number") == "100"
    assert len(seen - {version}) == 1


@BOTH
@pytest.mark.trio
async def test_a_write_that_fails_fails_alone(reader: Store, inline: bool) -> None:
    """An operation that raises gives its own caller the error and undoes its own part only."""

    def half(store: Store) -> None:
        store.set_meta("half", "done")
        raise LookupError("no such thing")

    async with AsyncStore(reader, inline=inline) as store:
        caught: list[BaseException] = []

        async def fail() -> None:
            try:
                await store.write(half)
            except LookupError as error:
                caught.append(error)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(store.write, Store.set_meta, f"key{number}", "value")
                    nursery.start_soon(fail)

    assert len(caught) == 20
    assert reader.get_meta("half") is None
    assert all(reader.get_meta(f"key{number}") == "value" for number in range(20))


@BOTH
@pytest.mark.trio
async def test_closed_store_refuses(reader: Store, inline: bool) -> None:
    """After the block, a write is a typed error instead of a wait for ever."""
    async with AsyncStore(reader, inline=inline) as store:
        pass

    with trio.fail_after(PATIENCE_S), pytest.raises(StoreError, match="closed"):
        await store.write(Store.set_meta, "key", "value")


@pytest.mark.trio
async def test_leaving_finishes_what_was_handed_over(reader: Store) -> None:
    """A write whose caller was cancelled has happened once the store is closed."""
    entered, go = threading.Event(), threading.Event()

    def slow(store: Store) -> None:
        entered.set()
        go.wait(PATIENCE_S)
        store.set_meta("slow", "done")

    with trio.fail_after(PATIENCE_S):
        async with AsyncStore(reader) as store, trio.open_nursery() as nursery:
            nursery.start_soon(store.write, slow)
            await trio.to_thread.run_sync(entered.wait, PATIENCE_S)
            nursery.cancel_scope.cancel()
            go.set()

    assert reader.get_meta("slow") == "done"
    assert "easyremote-store" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.trio
async def test_disk_failure_reaches_every_waiter(reader: Store) -> None:
    """When the database cannot be opened for writing, each write is a typed error."""
    store = AsyncStore(reader)
    async with store:
        reader.path = reader.path.parent / "missing" / "gateway.db"
        with trio.fail_after(PATIENCE_S):
            for _ in range(2):
                with pytest.raises(StoreError, match="missing"):
                    await store.write(Store.set_meta, "key", "value")


@pytest.mark.trio
async def test_watcher_sees_changes_of_others_even_after_a_login(reader: Store) -> None:
    """A revocation by another process is reported, also when a login noticed it first."""
    beside = Store(reader.path)
    token: Token = beside.create_token("guest", "bob")
    who = reader.authenticate(token.text())
    assert isinstance(who, Principal)
    changes = trio.Event()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_store, reader, changes.set, 0.01)
            await trio.testing.wait_all_tasks_blocked()
            beside.revoke(token.id)
            reader.authenticate(token.text())
            await changes.wait()
            nursery.cancel_scope.cancel()

    assert reader.standing(who) is not None
    beside.close()
