"""Addresses and the home folder."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from easyremote import config
from easyremote.config import Address, parse_address
from easyremote.errors import NotConnectedError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("vps.example.org:9000", "vps.example.org", 9000),
        ("VPS.example.org", "vps.example.org", 8080),
        ("localhost", "localhost", 8080),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:8080", "::1", 8080),
        ("[::1]", "::1", 8080),
        ("[2001:DB8:0::1]:65535", "2001:db8::1", 65535),
        ("https://vps:8443", "vps", 8443),
        ("https://vps/", "vps", 8080),
        ("ER://[::1]:9/", "::1", 9),
        ("my_host-1", "my_host-1", 8080),
    ],
)
def test_address_is_read_in_every_spelling(text: str, host: str, port: int) -> None:
    """Each spelling that is promised gives host and port, and its text is read back the same."""
    address = parse_address(text)

    assert address == Address(host, port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ":8080",
        "vps:",
        "vps:0",
        "vps:65536",
        "vps:-1",
        "vps:８０",
        "vps:80a",
        "vps:080808",
        "::1",
        "::1:8080",
        "[::1",
        "[::1]8080",
        "[127.0.0.1]:80",
        "[fe80::1%eth0]:80",
        "[vps]:80",
        "http://vps:80",
        "ftp://vps",
        "https://vps/path",
        "https://user@vps",
        "user:password@vps:80",
        "a b:80",
        "vps\n:80",
        "vps:80\n",
        "-vps",
        "a..b",
        "x" * 254,
        "bücher.example",
    ],
)
def test_anything_else_is_refused_at_once(text: str) -> None:
    """What is no address is a ValueError whose sentence shows how to write one."""
    with pytest.raises(ValueError, match=r"host:port|TLS|between 1 and 65535"):
        parse_address(text)


def test_join_string_as_address_names_the_right_keyword() -> None:
    """Who passes a join string as the address is told where it goes, without repeating it."""
    with pytest.raises(ValueError, match="join=") as caught:
        parse_address("er1_7hGk2Qz0secret")

    assert "7hGk2Qz0secret" not in str(caught.value)


def test_loopback_means_this_machine_only() -> None:
    """Only names that cannot mean another machine count as loopback."""
    assert all(config.is_loopback(host) for host in ("localhost", "LOCALHOST.", "127.8.9.1", "::1"))
    assert not any(
        config.is_loopback(host) for host in ("localhost.example.org", "0.0.0.0", "10.0.0.1", "vps")
    )


def test_home_is_private_and_read_at_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home folder follows the environment at each call and is made for this user alone."""
    for name in ("one", "two"):
        monkeypatch.setenv("EASYREMOTE_HOME", str(tmp_path / "deep" / name))
        folder = config.home()

        assert folder == tmp_path / "deep" / name
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_home_defaults_to_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without EASYREMOTE_HOME it is ~/.easyremote."""
    monkeypatch.delenv("EASYREMOTE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert config.home() == tmp_path / ".easyremote"


def test_environment_gateway_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """EASYREMOTE_GATEWAY counts from the moment that it is set; a wrong one names itself."""
    assert config.environment_gateway() is None

    monkeypatch.setenv("EASYREMOTE_GATEWAY", " vps:9000 ")
    assert config.environment_gateway() == Address("vps", 9000)

    monkeypatch.setenv("EASYREMOTE_GATEWAY", "vps:port")
    with pytest.raises(ValueError, match="EASYREMOTE_GATEWAY"):
        config.environment_gateway()


def test_config_file_names_the_gateway() -> None:
    """`gateway` of config.toml is read; a file that is no TOML is said to be so."""
    path = config.home() / "config.toml"
    assert config.file_gateway() is None

    path.write_text('gateway = "vps:7000"\n')
    assert config.file_gateway() == Address("vps", 7000)

    path.write_text("gateway = 7\n")
    with pytest.raises(ValueError, match=r"config\.toml"):
        config.file_gateway()

    path.write_text("gateway = \n")
    with pytest.raises(NotConnectedError, match=r"config\.toml"):
        config.file_gateway()


def test_importing_config_and_identity_is_cheap() -> None:
    """Clients resolve a gateway without loading trio, numpy, sqlite3 or a cryptography library."""
    program = (
        "import sys; import easyremote.config, easyremote.log, easyremote.identity.credential; "
        "heavy = {'trio', 'numpy', 'cryptography', 'sqlite3', 'cbor2', 'psutil'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=root,
    )

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_a_folder_of_ours_that_others_may_read_is_closed_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders whose names we chose become 0700; one that the user named is left as it is."""
    home = tmp_path / "shared"
    home.mkdir()
    home.chmod(0o755)
    (home / "nodes").mkdir()
    (home / "nodes").chmod(0o777)
    monkeypatch.setenv("EASYREMOTE_HOME", str(home))

    folder = config.private_folder(config.home() / "nodes")

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
