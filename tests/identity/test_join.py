"""Join strings: one string that carries address, pin and token."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.config import Address
from easyremote.identity import base62
from easyremote.identity.join import CHARS_MAX, HOSTS_MAX, PREFIX, JoinString
from easyremote.identity.token import Token, TokenKind

TOKEN = Token.new(TokenKind.CLIENT, random.Random(2).randbytes)
PIN = bytes(range(32))
JOIN = JoinString(
    ("vps.example.org", "203.0.113.7", "2001:db8::1"), 8443, PIN, TOKEN, 1_900_000_000
)

labels = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=3).map(".".join)
addresses = st.one_of(names, st.ip_addresses().map(str))


@given(
    st.lists(addresses, min_size=1, max_size=HOSTS_MAX),
    st.integers(1, 65535),
    st.binary(min_size=32, max_size=32),
    st.sampled_from(TokenKind),
    st.one_of(st.none(), st.integers(1, 2**40 - 1)),
)
def test_every_field_is_read_back(
    hosts: list[str], port: int, pin: bytes, kind: TokenKind, expires: int | None
) -> None:
    """What was put into a join string comes out of it, and it is letters, digits and _ only."""
    join = JoinString(tuple(hosts), port, pin, Token.new(kind), expires)
    text = join.encode()

    assert JoinString.parse(f"\t{text}\n") == join
    assert re.fullmatch(r"er1_[0-9A-Za-z]+", text)


def test_longest_string_fits_the_limit() -> None:
    """Eight hosts of the longest name still make a string that is accepted."""
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    join = JoinString((longest,) * HOSTS_MAX, 1, PIN, TOKEN)

    assert len(join.encode()) <= CHARS_MAX
    assert JoinString.parse(join.encode()) == join


def test_every_typo_is_found_offline() -> None:
    """One changed, lost, doubled or swapped character anywhere is refused without a network."""
    text = JOIN.encode()
    for at in range(len(text)):
        changed = "x" if text[at] != "x" else "y"
        wrongs = {
            text[:at] + changed + text[at + 1 :],
            text[:at] + text[at + 1 :],
            text[:at] + text[at] + text[at:],
            text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :],
        }
        for wrong in wrongs - {text}:
            with pytest.raises(ValueError, match="join string") as caught:
                JoinString.parse(wrong)
            assert text[20:60] not in str(caught.value)


def test_every_cut_is_found_offline() -> None:
    """A string that lost its end or its beginning is refused."""
    text = JOIN.encode()
    for at in range(len(text)):
        for part in (text[:at], text[at + 1 :]):
            with pytest.raises(ValueError, match="join string"):
                JoinString.parse(part)


@given(st.binary(max_size=300))
def test_any_body_gives_a_join_string_or_value_error(body: bytes) -> None:
    """A body with a right checksum but any bytes is decoded fully or refused, nothing else."""
    text = PREFIX + base62.encode(b"\x01" + body)
    try:
        join = JoinString.parse(text + base62.checksum(text))
    except ValueError:
        return
    assert join.encode() == text + base62.checksum(text)


def test_length_is_bounded_before_the_work() -> None:
    """A megabyte of letters is refused by its length."""
    with pytest.raises(ValueError, match="damaged"):
        JoinString.parse(PREFIX + "z" * 1_000_000)


def test_newer_version_says_so() -> None:
    """A string of a later format is told apart from a damaged one."""
    text = PREFIX + base62.encode(b"\x02" + bytes(90))

    with pytest.raises(ValueError, match="newer EasyRemote"):
        JoinString.parse(text + base62.checksum(text))


@pytest.mark.parametrize(
    "wrong",
    [
        JoinString((), 1, PIN, TOKEN),
        JoinString(("a",) * 9, 1, PIN, TOKEN),
        JoinString(("a",), 0, PIN, TOKEN),
        JoinString(("a",), 65536, PIN, TOKEN),
        JoinString(("a",), 1, PIN[:31], TOKEN),
        JoinString(("a",), 1, PIN, TOKEN, 2**40),
        JoinString(("a b",), 1, PIN, TOKEN),
        JoinString(("UPPER",), 1, PIN, TOKEN),
        JoinString(("a:1",), 1, PIN, TOKEN),
    ],
)
def test_what_does_not_fit_is_not_encoded(wrong: JoinString) -> None:
    """A field that could not be read back is refused when the string is made."""
    with pytest.raises(ValueError, match=r"join string|port|pin|address"):
        wrong.encode()


def test_show_has_everything_but_the_secret() -> None:
    """What `join show` prints names host, port, kind, expiry, pin and id, never the secret."""
    shown = JOIN.describe()

    assert shown == {
        "host": "vps.example.org, 203.0.113.7, 2001:db8::1",
        "port": "8443",
        "kind": "client",
        "expires": "2030-03-17 17:46:40 UTC",
        "pin": f"sha256:{PIN.hex()}",
        "token id": TOKEN.id,
    }
    text = f"{shown} {JOIN!r} {JOIN}"
    assert TOKEN.text()[15:58] not in text
    assert TOKEN.secret.hex() not in text
    assert JoinString(("a",), 1, PIN, TOKEN).describe()["expires"] == "never"


def test_addresses_are_in_order() -> None:
    """Each host becomes an address with the port, the best one first."""
    assert JOIN.addresses[0] == Address("vps.example.org", 8443)
    assert JOIN.addresses[2] == Address("2001:db8::1", 8443)
