"""The table of roles and operations, and what narrows it."""

from __future__ import annotations

import pytest

from easyremote.identity.role import ALLOWED, KIND_OF_ROLE, Operation, Principal, Role, Scopes

TABLE = """
            view call ship serve operate administer
viewer      yes  no   no   no    no      no
guest       yes  yes  no   no    no      no
member      yes  yes  yes  no    no      no
node        no   no   no   yes   no      no
operator    yes  yes  yes  yes   yes     no
owner       yes  yes  yes  yes   yes     yes
"""


def test_the_table_is_the_promise() -> None:
    """Every role may do what the table says and nothing else; no cell is missing."""
    head, *rows = [line.split() for line in TABLE.strip().splitlines()]
    wanted = {
        (Role(row[0]), Operation(operation)): answer == "yes"
        for row in rows
        for operation, answer in zip(head, row[1:], strict=True)
    }

    assert {(role, operation) for role in Role for operation in Operation} == set(wanted)
    for (role, operation), allowed in wanted.items():
        assert Principal("u", role, "t").may(operation) is allowed
    assert set(KIND_OF_ROLE) == set(ALLOWED) == set(Role)


@pytest.mark.parametrize(
    ("scopes", "function", "node_id", "allowed"),
    [
        (Scopes(), "anything", "n", True),
        (Scopes(functions=("train_*",)), "train_x", "n", True),
        (Scopes(functions=("train_*",)), "Train_x", "n", False),
        (Scopes(functions=("train_*",)), "pay", "n", False),
        (Scopes(functions=("gpu-*.train",)), "train", "gpu-01", True),
        (Scopes(functions=("gpu-*.train",)), "train", "cpu-01", False),
        (Scopes(functions=("gpu-*.train",)), "train", "", False),
        (Scopes(nodes=("gpu-*",)), "f", "gpu-01", True),
        (Scopes(nodes=("gpu-*",)), "f", "cpu-01", False),
        (Scopes(nodes=("gpu-*",), functions=("g",)), "f", "gpu-01", False),
    ],
)
def test_scopes_only_narrow(scopes: Scopes, function: str, node_id: str, allowed: bool) -> None:
    """A pattern must match the name or NODE.NAME; no pattern narrows nothing."""
    assert scopes.allow(function, node_id) is allowed
    assert Principal("u", Role.GUEST, "t", scopes=scopes).may_call(function, node_id) is allowed
    assert not Principal("u", Role.VIEWER, "t", scopes=scopes).may_call(function, node_id)
    assert Scopes.from_plain(scopes.to_plain()) == scopes


def test_node_registers_its_own_names_only() -> None:
    """A node token with patterns and a node id registers matching names on that node alone."""
    node = Principal("u", Role.NODE, "t", scopes=Scopes(("train_*",)), node_id="gpu-01")

    assert node.may_register("train_x", "gpu-01")
    assert not node.may_register("process_payment", "gpu-01")
    assert not node.may_register("train_x", "gpu-02")
    assert not Principal("u", Role.MEMBER, "t").may_register("f", "n")
    assert Principal("u", Role.OWNER, "t").may_register("f", "n")


def test_levels() -> None:
    """A function without a level is open; a level must be held, by anyone but the owner."""
    guest = Principal("u", Role.GUEST, "t", levels=frozenset({"academic_verified"}))

    assert guest.has_level(None)
    assert guest.has_level("academic_verified")
    assert not guest.has_level("staff")
    assert Principal("u", Role.OWNER, "t").has_level("staff")


@pytest.mark.parametrize("patterns", [("a",) * 65, ("x" * 257,), ("",)])
def test_patterns_are_bounded(patterns: tuple[str, ...]) -> None:
    """Lists that would make each check slow are refused."""
    with pytest.raises(ValueError, match="pattern"):
        Scopes(functions=patterns)
