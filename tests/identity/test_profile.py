"""Profiles, and the private files that hold them."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from easyremote.config import Address
from easyremote.errors import AuthenticationError
from easyremote.identity.join import JoinString
from easyremote.identity.private_file import create_private, read_private, write_private
from easyremote.identity.profile import (
    Profile,
    default_profile,
    gateway_profile_name,
    list_profiles,
    load_profile,
    profiles_folder,
    remember_join,
    remove_profile,
    save_profile,
)
from easyremote.identity.token import Token, TokenKind

TOKEN = Token.new(TokenKind.CLIENT)
JOIN = JoinString(("vps.example.org", "203.0.113.7"), 8443, bytes(32), TOKEN)


def gateway_profile(port: int) -> Profile:
    """Return a profile as the gateway on `port` writes it."""
    return Profile(
        gateway_profile_name(port),
        ("127.0.0.1", "203.0.113.9"),
        port,
        bytes(32),
        TOKEN.text(),
        "owner",
        "alice",
        "gateway",
        "/state",
    )


def mode_of(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_profile_is_kept_privately_and_read_back() -> None:
    """A profile comes back as it was saved, from a 0600 file in a 0700 folder."""
    profile = gateway_profile(8080)
    path = save_profile(profile)

    assert load_profile(profile.name) == profile
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == mode_of(path.parent.parent) == 0o700
    assert TOKEN.text() not in repr(profile)
    assert profile.join().token == TOKEN


def test_profile_readable_by_others_is_closed_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A file that others could read is closed to them and the user is told."""
    path = save_profile(gateway_profile(8080))
    path.chmod(0o644)

    assert load_profile("gateway-8080") is not None
    assert mode_of(path) == 0o600
    assert "readable by others" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1, "pin": "zz"}'])
def test_damaged_profile_is_named_and_does_not_hide_others(content: str) -> None:
    """A damaged file is a typed error that says what to do; the list leaves it out."""
    save_profile(gateway_profile(8080))
    (profiles_folder() / "broken.json").write_text(content)

    with pytest.raises(AuthenticationError, match="damaged"):
        load_profile("broken")
    assert [profile.name for profile in list_profiles()] == ["gateway-8080"]


@pytest.mark.parametrize("field", ["hosts", "port", "pin", "token", "origin"])
def test_profile_with_a_wrong_field_is_damaged(field: str) -> None:
    """Each field that matters is checked when a profile is read."""
    path = save_profile(gateway_profile(8080))
    content = json.loads(path.read_text())
    content[field] = [] if field == "hosts" else "00"
    path.write_text(json.dumps(content))

    with pytest.raises(AuthenticationError, match="damaged"):
        load_profile("gateway-8080")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a\n", "a" * 101, "ä"])
def test_names_cannot_leave_the_folder(name: str) -> None:
    """A name that could be a path is refused before any file is touched."""
    with pytest.raises(ValueError, match="cannot name a profile"):
        load_profile(name)


def test_loopback_names_mean_the_gateway_of_this_machine() -> None:
    """localhost, 127.0.0.1 and ::1 match a gateway's profile of that port, other ports do not."""
    profile = gateway_profile(8080)

    for host in ("localhost", "127.0.0.1", "::1", "203.0.113.9"):
        assert profile.matches(Address(host, 8080))
        assert not profile.matches(Address(host, 8081))
    assert not profile.matches(Address("vps", 8080))


def test_loopback_does_not_match_a_gateway_elsewhere() -> None:
    """A profile of a remote gateway is not used for localhost."""
    profile = Profile.from_join("work", JOIN)

    assert profile.matches(Address("vps.example.org", 8443))
    assert not profile.matches(Address("localhost", 8443))


def test_join_keeps_each_gateway_and_makes_the_last_the_default() -> None:
    """`easyremote join` of two gateways keeps both; without an address the last one is meant."""
    other = JoinString(("::1",), 9, bytes(32), TOKEN)
    first, second = remember_join(JOIN.encode()), remember_join(other.encode())

    assert [profile.name for profile in list_profiles()] == sorted([first.name, second.name])
    assert default_profile() == second
    assert default_profile() != first


def test_default_of_nobody_is_none() -> None:
    """Without a default, or with one that was removed or damaged, there is none."""
    assert default_profile() is None

    profile = remember_join(JOIN.encode())
    assert remove_profile(profile.name)
    assert not remove_profile(profile.name)
    assert default_profile() is None

    (profiles_folder() / "default").write_text("../../etc/passwd")
    assert default_profile() is None


def test_private_write_replaces_as_a_whole(tmp_path: Path) -> None:
    """Writing again replaces the content, keeps 0600 and leaves nothing beside the file."""
    path = tmp_path / "secret"
    write_private(path, b"one")
    write_private(path, b"two")

    assert read_private(path) == b"two"
    assert mode_of(path) == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["secret"]


def _create(path: str, number: int, found: multiprocessing.queues.Queue[bytes]) -> None:
    found.put(create_private(Path(path), bytes([number]) * 32))


def test_create_in_several_processes_gives_one_content(tmp_path: Path) -> None:
    """Processes that make one file at the same time all get the same bytes."""
    spawn = multiprocessing.get_context("spawn")
    found: multiprocessing.queues.Queue[bytes] = spawn.Queue()
    path = str(tmp_path / "secret")
    workers = [spawn.Process(target=_create, args=(path, number, found)) for number in range(4)]
    for worker in workers:
        worker.start()
    contents = {found.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(60)

    assert len(contents) == 1
    assert contents == {read_private(Path(path))}


def test_what_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    """Something huge, or no regular file, is not read."""
    huge = tmp_path / "huge"
    huge.write_bytes(bytes(100_000))

    with pytest.raises(AuthenticationError, match="not a file that EasyRemote wrote"):
        read_private(huge)


def test_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that somebody else planted is not trusted."""
    planted = tmp_path / "planted"
    write_private(planted, b"x")
    if os.getuid() == 0:
        os.chown(planted, 12345, 12345)
    else:
        # Only root can give a file away; anyone else becomes another user instead.
        monkeypatch.setattr(os, "getuid", lambda: 12345)

    with pytest.raises(AuthenticationError, match="belongs to another user"):
        read_private(planted)
