"""The small pure parts of the gateway: capabilities, grants, remembered ids, queues, routes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.flow import Buffers
from easyremote.gateway import callers as callers_module
from easyremote.gateway import routing
from easyremote.gateway.callers import Caller
from easyremote.gateway.grants import GRANT_BYTES, Grants
from easyremote.gateway.offer import BadOffer, node_id, plain

# ---- grants --------------------------------------------------------------------------------------


def test_grant_is_good_for_its_dispatch_alone() -> None:
    """Another call, node, boot, attempt, depth, token or key makes another grant."""
    ids = [b"a" * 16, b"b" * 16]
    grants = {
        Grants(key).for_node(node, epoch).make(call_id, attempt, depth, token)
        for key in (b"k" * 32, b"l" * 32)
        for node in ("n1", "n2")
        for epoch in (1, 2)
        for call_id in ids
        for attempt in (1, 2)
        for depth in (0, 31)
        for token in ("t1", "t2")
    }
    node = Grants(b"k" * 32).for_node("n1", 1)

    assert len(grants) == 128
    assert {len(grant) for grant in grants} == {GRANT_BYTES}
    assert node.good(node.make(ids[0], 1, 0, "t1"), ids[0], 1, 0, "t1")
    assert not node.good(node.make(ids[0], 1, 0, "t1"), ids[0], 2, 0, "t1")
    assert not node.good(node.make(ids[0], 1, 0, "t1"), ids[0], 1, 0, "t2")
    assert not node.good(b"", ids[0], 1, 0, "t1")


# ---- remembered ids ------------------------------------------------------------------------------


def test_ids_of_ended_calls_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last `REMEMBERED_MAX` ids are always known, and never more than twice as many."""
    monkeypatch.setattr(callers_module, "REMEMBERED_MAX", 10)
    caller = Caller("alice", Buffers(0))
    ids = [n.to_bytes(16, "big") for n in range(100)]
    for index, call_id in enumerate(ids):
        caller.over(call_id, "alice", float(index))

        assert all(caller.was_over(one) for one in ids[max(0, index - 9) : index + 1])
        assert sum(caller.was_over(one) for one in ids) <= 20
        forgotten = [at for at, one in enumerate(ids[: index + 1]) if not caller.was_over(one)]
        assert all(at <= caller.forgot_until for at in forgotten), "it knows what it forgot"


# ---- what nodes say ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["gpu-01", "lab.gpu:0", "alice@laptop", "_", "A" * 128])
def test_node_ids_that_people_use_are_taken(text: str) -> None:
    """Host names, paths with dots and addresses are node ids."""
    assert node_id(text) == text


@pytest.mark.parametrize("text", ["", ".x", "-x", "a b", "a/b", "ü", "A" * 129, "a\n", 7, None])
def test_other_node_ids_are_refused(text: Any) -> None:
    """A name that could break a path, a log line or a page is no node id."""
    with pytest.raises(BadOffer):
        node_id(text)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@given(json_like)
def test_plain_data_is_copied_as_it_is(value: Any) -> None:
    """What is plain and small comes through unchanged."""
    assert plain(value, "x") == value


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_no_json_becomes_text(value: float) -> None:
    """Whoever shows descriptions as JSON has none to stumble over."""
    assert plain({"a": [value]}, "x") == {"a": [str(value)]}


@given(st.binary() | st.complex_numbers() | st.dictionaries(st.integers(), st.none(), min_size=1))
def test_other_data_is_refused(value: Any) -> None:
    """What is not plain is refused, not converted."""
    with pytest.raises(BadOffer):
        plain(value, "x")


def test_suggestions_are_made_among_a_bounded_number_of_names() -> None:
    """A typo costs the gateway little, however many functions there are."""
    few, many = ["render"], [f"render{n}" for n in range(routing.SUGGEST_FROM_MAX + 1)]

    assert routing._similar("rendr", few) == few
    assert routing._similar("rendr", many) == []
