"""Tokens: their text, their typos, their verifiers."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyremote.identity import base62
from easyremote.identity.token import (
    TOKEN_CHARS,
    Token,
    TokenKind,
    is_token_text,
    same_verifier,
    verifier_of,
)

TOKEN = Token.new(TokenKind.NODE, random.Random(1).randbytes)


@given(
    st.sampled_from(TokenKind),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
)
def test_text_is_read_back(kind: TokenKind, public: bytes, secret: bytes) -> None:
    """Every token has one text of fixed shape, and the text gives the token."""
    token = Token.new(kind, lambda size: public if size == 16 else secret)
    text = token.text()

    assert len(text) == TOKEN_CHARS
    assert re.fullmatch(r"er[acns]_[0-9A-Za-z]{10}_[0-9A-Za-z]{49}", text)
    assert Token.parse(f" {text}\n") == token


def test_every_typo_is_found_offline() -> None:
    """One changed, lost or doubled character anywhere is refused, and the message shows none."""
    text = TOKEN.text()
    for at in range(len(text)):
        swapped = "x" if text[at] != "x" else "y"
        for wrong in (
            text[:at] + swapped + text[at + 1 :],
            text[:at] + text[at + 1 :],
            text[:at] + text[at] + text[at:],
        ):
            with pytest.raises(ValueError, match="token") as caught:
                Token.parse(wrong)
            assert text[16:40] not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "team_token", "er1_abc", "erx_0123456789_", "ern_" + "é" * 60]
)
def test_other_text_is_no_token(text: str) -> None:
    """Anything that is not a token is a ValueError."""
    with pytest.raises(ValueError, match="token"):
        Token.parse(text)


def test_secret_above_256_bits_is_refused() -> None:
    """43 digits can spell more than 256 bits; such a text is damaged even if its checksum fits."""
    body = f"erc_0123456789_{'z' * 43}"

    with pytest.raises(ValueError, match="damaged"):
        Token.parse(body + base62.checksum(body))


def test_repr_and_str_mask_the_secret() -> None:
    """No text form but `text()` holds the secret."""
    shown = f"{TOKEN!r} {TOKEN} {[TOKEN]}"

    assert TOKEN.id in shown
    assert TOKEN.text()[15:58] not in shown
    assert repr(TOKEN.secret) not in shown


def test_new_tokens_differ() -> None:
    """Ids and secrets are random: of a thousand tokens no two share one."""
    made = [Token.new(TokenKind.CLIENT) for _ in range(1000)]

    assert len({token.id for token in made}) == len({token.secret for token in made}) == 1000


def test_verifier_is_the_stored_key_of_scram() -> None:
    """The verifier is SHA-256(HMAC-SHA256(secret, "Client Key")) and compares in whole."""
    client_key = hmac.new(TOKEN.secret, b"Client Key", hashlib.sha256).digest()

    assert TOKEN.verifier() == hashlib.sha256(client_key).digest()
    assert same_verifier(TOKEN.verifier(), verifier_of(TOKEN.secret))
    assert not same_verifier(TOKEN.verifier(), verifier_of(bytes(32)))


def test_looks_are_told_apart_from_join_strings() -> None:
    """A damaged token still looks like one, a join string does not."""
    assert is_token_text(" ern_damaged")
    assert not is_token_text("er1_7hGk")
    assert not is_token_text("team_token")


@given(st.binary(max_size=80))
def test_base62_keeps_every_byte(data: bytes) -> None:
    """With the width known, base 62 gives back each byte, leading zeros too."""
    assert base62.decode(base62.encode(data), len(data)) == data


def test_token_survives_copying_between_processes() -> None:
    """A token is a plain value: a copy is equal."""
    assert pickle.loads(pickle.dumps(TOKEN)) == TOKEN
