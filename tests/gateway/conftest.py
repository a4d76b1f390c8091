from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .peers import World, open_world


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("EASYREMOTE_HOME", str(folder))
    return folder


@pytest.fixture
async def world(home: Path, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path / "state") as opened:
        yield opened
