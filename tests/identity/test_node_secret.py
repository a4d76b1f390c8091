"""Node secrets and default node ids."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from easyremote.errors import AuthenticationError
from easyremote.identity.node_secret import default_node_id, node_secret


def files_in(home: Path) -> list[Path]:
    """Return the files that hold node secrets."""
    return sorted((home / "nodes").iterdir())


def test_secret_is_made_once_and_kept_privately(own_home: Path) -> None:
    """A node id has one 256-bit secret at one gateway, in a 0600 file."""
    secret = node_secret("pin", "gpu-01")

    assert len(secret) == 32
    assert node_secret("pin", "gpu-01") == secret
    [path] = files_in(own_home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_secrets_differ_by_gateway_and_node(own_home: Path) -> None:
    """No two pairs of gateway and node share a secret, however odd the node ids."""
    ids = ["a", "A", "a b", "a/b", "../../x", "a\x00", "節点", "x" * 500, "a_b"]
    secrets = {node_secret(gateway, node_id) for gateway in ("p", "q") for node_id in ids}

    assert len(secrets) == len(files_in(own_home)) == 2 * len(ids)


@pytest.mark.parametrize("content", ["", "zz", "00" * 31, "00" * 33])
def test_damaged_secret_is_said_not_replaced(own_home: Path, content: str) -> None:
    """A damaged file is an error that names the way out; a new secret would lock the node out."""
    node_secret("pin", "gpu-01")
    [path] = files_in(own_home)
    path.write_text(content)

    with pytest.raises(AuthenticationError, match="node forget gpu-01"):
        node_secret("pin", "gpu-01")


def test_default_id_is_stable_and_differs_by_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id is host name and four digits, the same each time, another for another script."""
    first = default_node_id("/a.py")

    assert re.fullmatch(r"[A-Za-z0-9-]+-[0-9a-f]{4}", first)
    assert default_node_id("/a.py") == first
    assert len({default_node_id(f"/{number}.py") for number in range(20)}) > 15

    monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path / "elsewhere"))
    others = {default_node_id(f"/{number}.py") for number in range(20)}
    monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path / "third"))
    assert others != {default_node_id(f"/{number}.py") for number in range(20)}
