"""What every test has: a home folder of its own, and nothing else that could name a gateway."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine, not about the code.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point EASYREMOTE_HOME at a folder of this test and clear every other setting of ours."""
    for name in list(os.environ):
        if name.startswith("EASYREMOTE_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    monkeypatch.setenv("EASYREMOTE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that the project lies in."""
    return ROOT
