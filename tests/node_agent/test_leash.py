"""Labels: what a worker started is found wherever it went, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from easyremote.config import environment_join, join_withheld
from easyremote.node import leash

from .conftest import wait_until


@pytest.fixture
def name() -> Iterator[str]:
    """A leash; whatever still wears it is ended after the test."""
    made = leash.new_leash()
    yield made
    leash.sweep(made)


def _sleeper(*, start_new_session: bool = False) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "300"], start_new_session=start_new_session)


def test_programs_and_forks_are_found_and_others_are_not(name: str) -> None:
    """Programs, sessions of their own and forks inherit the label; what ran before does not."""
    before = _sleeper()
    with leash.worn(leash.label(name, 7)):
        programs = [_sleeper(), _sleeper(start_new_session=True)]
        fork = os.fork()
        if not fork:
            try:
                os.setsid()
                psutil.Process(before.pid).wait()
            finally:
                os._exit(0)
    after = _sleeper()
    try:
        assert leash.sweep(leash.label(name, 77)) == 0
        assert leash.sweep(leash.label(name, 7)) == 3
        assert [program.wait(20) for program in programs] == [-9, -9]
        assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == -9
        assert (before.poll(), after.poll()) == (None, None)
    finally:
        for process in (before, after):
            process.kill()
            process.wait()


def test_a_whole_node_is_swept_at_once(name: str) -> None:
    """The leash alone means every worker of the node; spared processes stay."""
    made = []
    for number in (0, 1, 12):
        with leash.worn(leash.label(name, number)):
            made.append(_sleeper())
    spared = made[1].pid

    assert leash.sweep(name, {spared}) == 2
    assert made[1].poll() is None
    assert leash.sweep(name) == 1
    assert [process.wait(20) for process in made] == [-9] * 3


def test_the_tracker_of_multiprocessing_is_spared(name: str) -> None:
    """It ends by itself when those that it cleans up after are gone, and not before."""
    program = "import sys; sys.stdin.read()  # multiprocessing.resource_tracker"
    with leash.worn(leash.label(name, 0)):
        tracker = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    wait_until(lambda: "-c" in psutil.Process(tracker.pid).cmdline())

    assert leash.sweep(name) == 0
    tracker.communicate()
    assert tracker.returncode == 0


def test_a_label_is_taken_off_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside the block the environment is what it was, also where labels were worn before."""
    monkeypatch.delenv(leash.LABEL_VARIABLE, raising=False)
    with leash.worn(""):
        assert leash.LABEL_VARIABLE not in os.environ
    with leash.worn(leash.label(name, 1)):
        with leash.worn(leash.label(name, 2)):
            assert os.environ[leash.LABEL_VARIABLE] == f"{name}.2."
        assert os.environ[leash.LABEL_VARIABLE] == f"{name}.1."

    assert leash.LABEL_VARIABLE not in os.environ
    assert leash.sweep("") == 0


def test_the_secret_is_withheld_from_programs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections of this process find EASYREMOTE_JOIN; what it starts does not."""
    monkeypatch.setenv("EASYREMOTE_JOIN", "er1_secret")
    with join_withheld():
        said = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
        assert "er1_secret" not in said
        assert environment_join() == "er1_secret"
        monkeypatch.setenv("EASYREMOTE_JOIN", "er1_other")
        assert environment_join() == "er1_other"
    assert environment_join() == "er1_other"
    monkeypatch.delenv("EASYREMOTE_JOIN")

    assert environment_join() is None
