"""`easyremote demo`: something to look at, and nothing left behind but the picture."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import psutil
import pytest

from easyremote.demo import show

from .conftest import Run


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.slow
def test_the_demo_draws_across_two_nodes_and_ends_everything(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture, each node's share and speed; no process, setting or folder stays."""
    monkeypatch.setattr(show, "ARRAY_BYTES", 8_000_000)
    picture = tmp_path / "picture.png"
    home, before = os.environ["EASYREMOTE_HOME"], children()

    done = run("demo", "--output", str(picture))

    assert done.exit_code == 0, done.output
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture.read_bytes()[16:24]) == (1200, 800)
    for node in show.NODES:
        assert node in done.stdout
    assert "GB/s" in done.stdout
    assert str(picture) in done.stdout
    assert children() == before
    assert os.environ["EASYREMOTE_HOME"] == home
    assert not Path(home).exists(), "the demo has a home of its own"


@pytest.mark.slow
def test_a_demo_that_cannot_start_says_so_and_ends_everything(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nodes do not come up, one sentence quotes their logs, and no process stays."""
    monkeypatch.setattr(show, "START_LIMIT_S", 0.0)
    before = children()

    done = run("demo", "--output", str(tmp_path / "picture.png"))

    assert done.exit_code == 1
    assert done.stderr.startswith("Error: gateway and nodes were not ready within 0 s")
    assert done.stderr.count("\n") == 1
    assert children() == before
    assert not (tmp_path / "picture.png").exists()
