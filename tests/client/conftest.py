"""A scripted gateway for each test, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from easyremote.client import client as client_module
from easyremote.client.client import Client
from easyremote.client.default import defaults

from .scripted import ScriptedGateway, scripted


@pytest.fixture(autouse=True)
def short_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests end with calls that nobody accepts; closing a client need not wait for that."""
    monkeypatch.setattr(client_module, "FLUSH_S", 0.05)


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    """A gateway that does what the test says."""
    with scripted() as made:
        yield made


@pytest.fixture
def client(gateway: ScriptedGateway) -> Iterator[Client]:
    """A client of it, connected, and the default one."""
    made = gateway.client()
    made.connect()
    defaults.set(made)
    yield made
    defaults.forget()
