"""What the tests of the transport share."""

from __future__ import annotations

import pytest

from easyremote.identity.certificate import ServerIdentity, open_server_identity


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> ServerIdentity:
    """A throw-away key and certificate for loopback."""
    return open_server_identity(tmp_path_factory.mktemp("identity"))
