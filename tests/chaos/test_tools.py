"""The tools of a campaign: who is found, who is hit, what is drawn, and what the command says."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import Fault

from . import __main__ as command
from .campaign import Campaign, Settings
from .links import Links
from .shots import FAULTS, Killer, Point
from .stage import until
from .watch import Tail
from .world import Proc, Role, World

WAITS = ["-c", "import time; time.sleep(600)"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world without anybody."""
    made = World(tmp_path, 1.0)
    yield made
    made.end()


def test_processes_are_found_by_what_they_inherit(world: World) -> None:
    """A child of a child is found; who is left at the end is told, and gone."""
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
    world.start("node-1", ["-c", grandchild, *WAITS])
    until(lambda: len(world.scan()) == 2)

    assert {proc.member for proc in world.scan()} == {"node-1"}
    assert World(world.folder, 1.0).scan() == []
    assert len(world.end()) == 2
    assert world.scan() == []


def test_a_signal_hits_the_very_process_or_nobody(world: World) -> None:
    """A pid that is somebody else by now is left alone; one that was killed is waited for."""
    world.start("node-1", WAITS)
    (proc,) = world.scan()

    assert not world.hit(Proc(proc.pid, Role.GATEWAY, "gateway"), signal.SIGKILL)
    assert world.scan() == [proc]
    assert world.hit(proc, signal.SIGKILL)
    assert world.wait_gone("node-1", 10.0) == []
    assert not world.hit(proc, signal.SIGKILL)


def test_one_seed_draws_one_campaign() -> None:
    """Shots and faults of links depend on the seed alone, and every kind is drawn."""
    first, again, other = (
        Killer(seed, tuple(Role), lease_s=3.0, gap_s=(0.1, 1.0)) for seed in (7, 7, 8)
    )
    shots = [first.shot() for _ in range(500)]
    steps = [first.step(["node-1", "client-1"]) for _ in range(500)]

    assert shots == [again.shot() for _ in range(500)]
    assert steps == [again.step(["node-1", "client-1"]) for _ in range(500)]
    assert shots != [other.shot() for _ in range(500)]
    assert {shot.role for shot in shots} == set(Role)
    assert {shot.point for shot in shots} == set(Point)
    assert {step.fault for _, step in steps} == set(FAULTS) == set(Fault)


def test_only_whole_new_lines_are_followed(tmp_path: Path) -> None:
    """What was there is skipped, a half line waits for its rest."""
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.lines() == ""
    path.write_text("old\n")
    tail.skip()
    with path.open("a") as file:
        file.write("new\nha")
        file.flush()
        assert tail.lines() == "new\n"
        file.write("lf\n")
        file.flush()
        assert tail.lines() == "half\n"
    assert tail.lines() == ""


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_says_what_was_broken_and_how_to_try_again(
    broken: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The exit code is 1 beside a violation, which is printed with the command and its seed."""

    def run(folder: Path, settings: Settings, progress: object) -> Campaign:
        campaign = Campaign(settings, World(tmp_path, 1.0), Links([], 1, 0))
        campaign.violations += ["left behind: worker of node-1 (pid 7)"] * broken
        return campaign

    monkeypatch.setattr(command, "run_campaign", run)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    assert command.main(["--minutes", "1", "--target", "agent"]) == int(broken)
    said = capsys.readouterr().out
    assert f"violations          {int(broken)}" in said
    assert ("again: python -m tests.chaos --minutes 1 --target agent --seed" in said) is broken
    assert ("left behind: worker of node-1" in said) is broken
