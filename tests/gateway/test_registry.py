"""The registry: places follow what nodes say, and memory follows what is there."""

from __future__ import annotations

from typing import Any, cast

from easyremote.gateway import registry as registry_module
from easyremote.gateway.grants import Grants
from easyremote.gateway.offer import read_offer
from easyremote.gateway.pool import NodeRecord
from easyremote.gateway.registry import Registry
from easyremote.identity.role import Principal, Role
from easyremote.link import Link

LINK = cast(Link, object())
GRANTS = Grants(b"k" * 32)
ALICE = Principal("alice", Role.MEMBER, "t1")


def join(
    registry: Registry, node_id: str, *functions: dict[str, Any], user: str = "alice", **more: Any
) -> NodeRecord:
    principal = Principal(user, Role.NODE, "t", node_id=node_id)
    record = registry.connect(node_id, principal, LINK, 1, GRANTS.for_node(node_id, 1))
    assert record is not None
    offer = read_offer({"functions": list(functions), **more})
    registry.announce(record, offer, whole=True)
    return record


def nodes_of(registry: Registry, name: str, principal: Principal = ALICE) -> set[str]:
    pool = registry.pool_by_name(name, principal)
    return set() if pool is None else {place.host.node_id for place in pool.places}


def test_a_pool_gains_and_loses_places() -> None:
    """A pool that exists learns of nodes that come, change and go."""
    registry = Registry()
    first = join(registry, "n1", {"name": "f"})
    assert nodes_of(registry, "f") == {"n1"}
    join(registry, "n2", {"name": "f"})
    assert nodes_of(registry, "f") == {"n1", "n2"}

    registry.disconnect(first, 5.0)
    assert nodes_of(registry, "f") == {"n2"}
    registry.announce(registry.nodes["n2"], read_offer({"removed": ["f"]}), whole=False)
    assert nodes_of(registry, "f") == set()
    join(registry, "n1", {"name": "f"})
    assert nodes_of(registry, "f") == {"n1"}


def test_function_that_moves_to_another_group_leaves_no_place_behind() -> None:
    """A function that is registered again with other slots has one place."""
    registry = Registry()
    record = join(registry, "n1", {"name": "f", "group": "main", "slots": 1})
    pool = registry.pool_by_name("f", ALICE)
    again = read_offer({"functions": [{"name": "f", "group": "own", "slots": 4}]})
    before = record.offers["f"].registered_at
    registry.announce(record, again, whole=False)

    assert pool is not None
    assert [(group.name, group.slots) for group in pool.places] == [("own", 4)]
    assert record.offers["f"].registered_at == before

    wider = read_offer({"functions": [{"name": "f", "group": "own", "slots": 9}]})
    registry.announce(record, wider, whole=False)

    assert [group.limit for group in pool.places] == [9]


def test_labels_name_groups_of_nodes() -> None:
    """A label stands for every node that carries it; an id goes before a label."""
    registry = Registry()
    for name in ("a", "b", "c"):
        join(registry, name, {"name": "f"}, labels=["lab"] if name != "c" else ["a"])

    assert {r.node_id for r in registry.named(["lab"], ALICE)} == {"a", "b"}
    assert {r.node_id for r in registry.named(["a"], ALICE)} == {"a"}
    assert registry.named(["nobody"], ALICE) == []


def test_owner_of_a_name_changes_only_when_it_is_given_up() -> None:
    """The first owner keeps a name while it offers it, then the next one has it."""
    registry = Registry()
    bob = Principal("bob", Role.MEMBER, "t2")
    first = join(registry, "n1", {"name": "f"}, user="alice")
    join(registry, "n2", {"name": "f"}, user="mallory")
    assert nodes_of(registry, "f", bob) == {"n1"}
    registry.disconnect(first, 0.0)
    assert nodes_of(registry, "f", bob) == set()

    registry.forget(first)

    assert nodes_of(registry, "f", bob) == {"n2"}


def test_nodes_that_stay_away_are_forgotten_with_all_that_they_offered() -> None:
    """After its time an offline node, its offers and unused pools are gone."""
    registry = Registry()
    record = join(registry, "n1", {"name": "f"})
    registry.pool_by_name("f", ALICE)
    registry.pool_of_nodes("f", frozenset({"n1"}))
    registry.disconnect(record, 100.0)
    registry.forget_old(100.0 + registry_module.OFFLINE_KEEP_S - 1)
    assert registry.nodes
    registry.forget_old(101.0 + registry_module.OFFLINE_KEEP_S)

    assert not registry.nodes
    assert registry.pool_by_name("f", ALICE) is None
    assert not registry._pools
    assert not registry._offers
    assert not registry._first_owner


def test_pools_of_named_nodes_are_bounded(monkeypatch: Any) -> None:
    """Calls that name ever new sets of nodes do not grow memory."""
    monkeypatch.setattr(registry_module, "PINNED_MAX", 10)
    registry = Registry()
    join(registry, "n0", {"name": "f"})
    for number in range(100):
        registry.pool_of_nodes("f", frozenset({"n0", f"n{number}"}))

    assert len(registry._special) <= 10


def test_every_change_that_matters_is_seen_by_routes() -> None:
    """The version grows with each change after which a call may have to go elsewhere."""
    registry = Registry()
    seen = [registry.version]

    def changed() -> bool:
        seen.append(registry.version)
        return seen[-1] > seen[-2]

    record = join(registry, "n1", {"name": "f"})
    assert changed()
    registry.announce(record, read_offer({"paused": True}), whole=False)
    assert changed()
    registry.disconnect(record, 0.0)
    assert changed()
    registry.forget(record)
    assert changed()


def test_node_that_changes_hands_starts_anew() -> None:
    """A node id that was forgotten and enrolled by another user keeps nothing of the old one."""
    registry = Registry()
    old = join(registry, "n1", {"name": "f"}, user="alice")
    registry.disconnect(old, 0.0)
    new = join(registry, "n1", {"name": "g"}, user="bob")

    assert new is not old
    assert registry.nodes == {"n1": new}
    assert nodes_of(registry, "f") == set()


def test_registry_is_bounded(monkeypatch: Any) -> None:
    """Beyond its bound a node is not taken in."""
    monkeypatch.setattr(registry_module, "NODES_MAX", 1)
    registry = Registry()
    join(registry, "n1")
    principal = Principal("alice", Role.NODE, "t", node_id="n2")

    assert registry.connect("n2", principal, LINK, 1, GRANTS.for_node("n2", 1)) is None
