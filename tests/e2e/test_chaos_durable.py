"""What the gateway acknowledged is still true after kill -9."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from easyremote import AuthenticationError, Client
from easyremote.identity.join import JoinString
from tests.chaos.campaign import make_join
from tests.chaos.stage import LIMIT_S, Stage, on_stage
from tests.chaos.world import Role

pytestmark = pytest.mark.slow

ROUNDS = 3


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A gateway without nodes."""
    with on_stage(tmp_path_factory.mktemp("durable")) as made:
        yield made


def test_tokens_and_revocations_survive_a_kill(stage: Stage) -> None:
    """Each is acknowledged, then the gateway is killed at once: all of them still hold."""
    good: list[str] = []
    revoked: list[str] = []
    for _ in range(ROUNDS):
        revoked.append(make_join(stage.world, "member"))
        good.append(make_join(stage.world, "member"))
        stage.command("token", "revoke", JoinString.parse(revoked[-1]).token.id)
        stage.hit(Role.GATEWAY, "gateway", signal.SIGKILL)
        assert stage.world.wait_gone("gateway", LIMIT_S) == []
        stage.start_gateway()
        for join in good:
            with Client(join=join) as client:
                assert client.nodes() == []
        for join in revoked:
            with Client(join=join) as client, pytest.raises(AuthenticationError):
                client.connect(LIMIT_S)
    assert "whole" in stage.command("audit", "verify", "--port", str(stage.world.port))
