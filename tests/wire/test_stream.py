"""The state table of a stream: every state, every input."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from easyremote.wire.stream import TRANSITIONS, StreamInput, StreamRecord, StreamState

README = Path(__file__).parents[2] / "wire" / "README.md"


@pytest.mark.parametrize(("state", "what"), list(itertools.product(StreamState, StreamInput)))
def test_step_follows_the_table_and_nothing_else(state: StreamState, what: StreamInput) -> None:
    """A pair that the table lacks changes nothing and is refused."""
    record = StreamRecord(1, 100)
    record.state = state

    moved = record.step(what)

    expected = TRANSITIONS.get((state, what))
    assert moved is (expected is not None)
    assert record.state is (state if expected is None else expected)


def test_closed_has_no_way_out() -> None:
    """Once closed, a stream stays closed."""
    assert not [pair for pair in TRANSITIONS if pair[0] is StreamState.CLOSED]


def test_every_state_can_reach_closed_by_either_reset() -> None:
    """Both sides can give up a stream at any time before it is over."""
    for state in set(StreamState) - {StreamState.CLOSED}:
        for what in (StreamInput.SEND_RESET, StreamInput.RECEIVE_RESET):
            assert TRANSITIONS[state, what] is StreamState.CLOSED


def test_the_specification_shows_this_table() -> None:
    """The table in wire/README.md is the one that runs."""
    rows = {}
    for line in README.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in StreamState.__members__ and len(cells) == 7:
            rows[StreamState[cells[0]]] = cells[1:]
    order = [
        StreamInput.SEND,
        StreamInput.SEND_END,
        StreamInput.SEND_RESET,
        StreamInput.RECEIVE,
        StreamInput.RECEIVE_END,
        StreamInput.RECEIVE_RESET,
    ]

    assert set(rows) == set(StreamState)
    for state, cells in rows.items():
        for what, cell in zip(order, cells, strict=True):
            target = TRANSITIONS.get((state, what))
            assert (target.name if target is not None else None) == (
                cell if cell in StreamState.__members__ else None
            )
