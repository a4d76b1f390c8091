"""Memory that a burst leaves behind goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from easyremote import tuning
from easyremote.tuning import CALM_S, SLACK_BYTES, Slack


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the size of the process, as a list of one that a test changes."""
    now = [100 * SLACK_BYTES]
    monkeypatch.setattr(tuning, "resident_bytes", lambda: now[0])
    return now


def test_nothing_is_tried_while_something_is_under_way(size: list[int]) -> None:
    """A busy process needs what it has; calm begins anew after each burst."""
    slack = Slack()
    size[0] += 2 * SLACK_BYTES
    assert not slack.look(0.0, calm=True)
    assert not slack.look(CALM_S - 0.1, calm=False)
    assert not slack.look(CALM_S + 0.1, calm=True)
    assert slack.look(2 * CALM_S + 0.2, calm=True)


def test_what_does_not_help_is_not_tried_again(size: list[int]) -> None:
    """The new size is what the process needs, until it has grown once more."""
    slack = Slack()
    size[0] += 2 * SLACK_BYTES
    slack.look(0.0, calm=True)
    assert slack.look(CALM_S, calm=True)
    assert not slack.look(CALM_S + 1, calm=True)
    size[0] += SLACK_BYTES
    assert slack.look(CALM_S + 2, calm=True)


def test_memory_really_goes_back() -> None:
    """In a process that was tuned for relaying, after a burst of frames and of cycles."""
    code = """
from easyremote.tuning import Slack, resident_bytes, tune_for_relaying
tune_for_relaying()
slack = Slack()
before = resident_bytes()
held = [bytearray(100_000) for _ in range(2000)]
pins = []
for number in range(20_000):
    cycle = [bytes(1000)]
    cycle.append(cycle)
    if number % 1000 == 0:
        pins.append(bytes(50_000))
peak = resident_bytes()
del held, cycle
assert not slack.look(0.0, calm=True)
assert slack.look(10.0, calm=True)
after = resident_bytes()
print(peak - before, after - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    grown, left = map(int, done.stdout.split())
    assert grown > 150_000_000
    assert left < 20_000_000
