"""Choosing the candidate with the fewest calls in flight."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from easyremote.scheduler.place import choose


@dataclass
class Place:
    busy: int
    limit: int
    slots: int = 1
    used: int = 0


places = st.builds(
    Place, st.integers(0, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 100)
)


def test_the_least_busy_is_chosen() -> None:
    """Calls are counted per slot: two of four is less than one of one."""
    small, large = Place(1, 4, slots=1), Place(2, 8, slots=4)

    assert choose([small, large]) is large


def test_ties_go_to_the_least_recently_used() -> None:
    """Equal candidates take turns."""
    old, new = Place(0, 1, used=3), Place(0, 1, used=7)

    assert choose([new, old]) is old


def test_nobody_is_chosen_when_all_are_full() -> None:
    """No room is an answer, not an error."""
    assert choose([Place(2, 2), Place(9, 1)]) is None
    assert choose([]) is None


@given(st.lists(places, max_size=8))
def test_a_choice_has_room_and_nobody_with_room_has_less(candidates: list[Place]) -> None:
    """A chosen candidate may take one more; none that may is less loaded; order is no reason."""
    chosen = choose(candidates)
    free = [one for one in candidates if one.busy < one.limit]
    if chosen is None:
        assert not free
    else:
        assert chosen in free
        assert min(one.busy / one.slots for one in free) == chosen.busy / chosen.slots
        other = choose(list(reversed(candidates)))
        assert other is not None
        assert (other.busy / other.slots, other.used) == (chosen.busy / chosen.slots, chosen.used)
