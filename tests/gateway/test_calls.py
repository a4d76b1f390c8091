"""The state table of calls: complete, and with exactly one outcome."""

from __future__ import annotations

import itertools

import pytest

from easyremote.gateway.calls import (
    MAY_HAVE_RUN,
    STATE_NAMES,
    TRANSITIONS,
    CallInput,
    CallState,
    GatewayCall,
)

S, In = CallState, CallInput

OUTCOME_TABLE = [
    # The rows of the outcome table: state, what happens, what the caller is told.
    (S.QUEUED, In.CANCEL, "settled", False),
    (S.QUEUED, In.EXPIRE, "settled", False),
    (S.DISPATCHED, In.CANCEL, "cancelling", True),
    (S.DISPATCHED, In.LOSE, "settled", True),
    (S.DISPATCHED, In.EXPIRE, "settled", True),
    (S.STARTED, In.CANCEL, "cancelling", True),
    (S.STARTED, In.LOSE, "settled", True),
    (S.STARTED, In.EXPIRE, "settled", True),
]


class _Machine(GatewayCall):
    """A call of which only the state is used."""

    def __init__(self, state: CallState) -> None:
        self.state = state


@pytest.mark.parametrize(("state", "what"), list(itertools.product(CallState, CallInput)))
def test_every_pair_either_moves_or_is_a_bug(state: CallState, what: CallInput) -> None:
    """A pair in the table moves the call; every other pair is refused and changes nothing."""
    machine = _Machine(state)
    target = TRANSITIONS.get((state, what))
    if target is None:
        assert not machine.can(what)
        with pytest.raises(AssertionError):
            machine.step(what)

        assert machine.state is state
    else:
        assert machine.can(what)

        assert machine.step(what) is state
        assert machine.state is target


def test_settled_has_no_way_out() -> None:
    """An outcome never changes."""
    assert not [pair for pair in TRANSITIONS if pair[0] is S.SETTLED]


def test_every_state_reaches_an_outcome_whatever_happens() -> None:
    """From every state a loss, a rejection or a deadline settles the call."""
    for state in CallState:
        if state is not S.SETTLED:
            enders = [w for (s, w), t in TRANSITIONS.items() if s is state and t is S.SETTLED]

            assert In.EXPIRE in enders


@pytest.mark.parametrize(("state", "what", "then", "may_have_run"), OUTCOME_TABLE)
def test_outcome_table(state: CallState, what: CallInput, then: str, may_have_run: bool) -> None:
    """Each row of the outcome table of the promises stands in the machine."""
    assert TRANSITIONS[state, what].name.lower() == then
    assert MAY_HAVE_RUN[state] is may_have_run


def test_may_have_run_turns_true_with_the_dispatch_and_stays() -> None:
    """False is never wrong: it is said only of states in which no node has the call."""
    assert {state for state, may in MAY_HAVE_RUN.items() if not may} == {S.SUBMITTED, S.QUEUED}
    assert set(MAY_HAVE_RUN) == set(CallState) - {S.SETTLED}


def test_every_state_has_a_name_for_callers() -> None:
    """Callers see one of the words of the API."""
    assert set(STATE_NAMES) == set(CallState)
    assert set(STATE_NAMES.values()) <= {"submitted", "queued", "running", "done"}
