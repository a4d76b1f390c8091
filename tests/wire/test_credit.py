"""Flow-control arithmetic, both sides."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from easyremote.wire.credit import TOTAL_MAX, Budget, Inflow, Outflow, StreamCredit


def test_take_refuses_what_was_not_granted() -> None:
    """A receiver notices the first byte beyond its grant."""
    inflow = Inflow(10, 10, 0.0)

    assert inflow.take(10)
    assert not inflow.take(1)


def test_consume_grants_when_half_of_the_window_is_used() -> None:
    """A grant costs a frame, so it waits until it is worth one."""
    inflow = Inflow(100, 100, 0.0)

    assert not inflow.consume(49, 1.0, 0.0)
    assert inflow.consume(1, 1.0, 0.0)
    assert inflow.granted == 150


def test_window_doubles_while_it_is_emptied_faster_than_two_round_trips() -> None:
    """A long path is not throttled by the first window; the limit holds."""
    inflow = Inflow(100, 300, 0.0)

    inflow.consume(60, 0.1, 0.2)
    assert inflow.window == 200
    inflow.consume(150, 0.2, 0.2)
    assert inflow.window == 300
    inflow.consume(300, 0.3, 0.2)
    assert inflow.window == 300


def test_window_stays_when_the_sender_is_slow() -> None:
    """An idle stream does not come to hold much memory."""
    inflow = Inflow(100, 300, 0.0)

    inflow.consume(60, 1.0, 0.2)

    assert inflow.window == 100


def test_outflow_refuses_credit_taken_back_or_absurd() -> None:
    """Totals never go down and never pass 62 bits."""
    outflow = Outflow(10)

    assert outflow.grant(10)
    assert outflow.grant(20)
    assert not outflow.grant(19)
    assert not outflow.grant(TOTAL_MAX + 1)
    assert outflow.left == 20


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(100, 512))
def test_both_sides_agree_and_credit_is_never_negative(sizes: list[int], window: int) -> None:
    """What the sender may send is what the receiver lets in, whatever the sizes."""
    inflow, outflow = Inflow(window, window * 4, 0.0), Outflow(window)
    for step, size in enumerate(sizes):
        assert size <= outflow.left, "half a window is always left after a grant"
        outflow.sent += size

        assert inflow.take(size)
        if inflow.consume(size, step * 0.1, 0.0):
            assert outflow.grant(inflow.granted)
        assert outflow.left >= 0
        assert inflow.granted - inflow.consumed <= inflow.window


def test_stream_credit_returns_with_the_work_and_grows() -> None:
    """Opening more than was granted is noticed; finished work makes room, and more of it."""
    credit = StreamCredit(4, 8)
    assert all(credit.open() for _ in range(4))
    assert not credit.open()

    credit.opened -= 1
    grants = [credit.release() for _ in range(4)]

    assert any(grants)
    assert credit.window == 8
    assert credit.granted == 4 + 8


def test_budget_refills_to_its_burst() -> None:
    """Mischief is allowed now and then, not in bulk."""
    budget = Budget(3.0, 1.0, 0.0)
    assert [budget.charge(1.0, 0.0) for _ in range(4)] == [True, True, True, False]

    assert budget.charge(1.0, 100.0)
    assert budget.left == 2.0
