"""The lease of a link: the one setting of the protocol that the environment may change."""

from __future__ import annotations

import pytest

from easyremote.config import LEASE_VARIABLE, with_lease
from easyremote.gateway.limits import GatewayLimits
from easyremote.node.worker_link import gateway_link_settings, worker_link_settings
from easyremote.wire.settings import Settings


def test_the_environment_shortens_the_lease_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateway and node follow it, with three pings a lease; the link to a worker has none."""
    monkeypatch.setenv(LEASE_VARIABLE, "1.5")

    for settings in (GatewayLimits().link, gateway_link_settings(), with_lease(Settings())):
        assert (settings.lease_s, settings.ping_every_s) == (1.5, 0.5)
    assert worker_link_settings().lease_s > 1e6


@pytest.mark.parametrize("wrong", ["soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_wrong_lease_is_reported_and_ignored(
    wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A node with a wrong value serves as if there were none, and says so."""
    monkeypatch.setenv(LEASE_VARIABLE, wrong)
    settings = Settings()

    assert with_lease(settings) is settings
    assert LEASE_VARIABLE in caplog.text


def test_without_the_variable_nothing_changes() -> None:
    """The usual lease is 15 seconds."""
    settings = Settings()

    assert with_lease(settings) is settings
    assert settings.lease_s == 15.0
