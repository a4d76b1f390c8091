"""Peers of bad will at the gateway: what each of them may cost it, and others."""

from __future__ import annotations

from easyremote.gateway.calls import CallInput, CallState
from easyremote.gateway.timers import SWEEP_FROM, Timers


def test_timers_of_settled_calls_do_not_pile_up() -> None:
    """Whoever cancels with an hour of grace keeps nothing in memory once the call is over."""

    class Some:
        state = CallState.SETTLED

    told: list[object] = []
    timers = Timers(lambda call, what: told.append((call, what)))
    running = Some()
    running.state = CallState.STARTED
    timers.at(9.0, running, CallInput.EXPIRE)  # type: ignore[arg-type]
    for _ in range(100_000):
        timers.at(3600.0, Some(), CallInput.GIVE_UP)  # type: ignore[arg-type]

    assert len(timers) <= 2 * SWEEP_FROM
    timers.fire(9.0)
    assert told == [(running, CallInput.EXPIRE)]
