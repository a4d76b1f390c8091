from __future__ import annotations

import pytest

from fuzz import engine


@pytest.fixture(autouse=True)
def own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have had gigabytes: only what comes on top counts."""
    peak, before = engine.memory_mib, engine.memory_mib()
    monkeypatch.setattr(engine, "memory_mib", lambda: peak() - before)
