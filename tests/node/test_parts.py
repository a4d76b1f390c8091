"""Small parts of the node: who may send pickles, what its description tells."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from easyremote.node.spec import NodeLimits, NodeSpec, accepts_pickles


@pytest.mark.parametrize("roles", [["guest"], ["viewer"], []])
def test_narrow_token_never_ships(roles: Sequence[str]) -> None:
    """Whatever `accept_code` says, a token that may not ship code brings no pickle."""
    for accept in (True, "members", "owner", ("alice",)):
        assert not accepts_pickles(accept, "alice", roles, is_owner=True)


def test_secrets_of_a_spec_are_not_shown() -> None:
    """The repr of a node description holds neither its token nor its join string."""
    spec = NodeSpec(None, "n", token="secret-token", join="secret-join")

    assert "secret" not in repr(spec)


def test_limits_name_what_is_set() -> None:
    """Only limits that were given are named as not enforced."""
    assert NodeLimits(gpus=(0,), hours="20:00-07:00").named() == ["gpus", "hours"]
    assert NodeLimits().named() == []
