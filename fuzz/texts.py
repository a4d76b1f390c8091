"""Targets of text that people copy: join strings and tokens."""

from __future__ import annotations

import random

from easyremote.identity import base62
from easyremote.identity.join import PREFIX, JoinString
from easyremote.identity.token import Token, TokenKind

from .mutate import mutate_bytes, mutate_text
from .target import Feature, Target, feature_of


def join_strings(data: bytes) -> Feature:
    """A join string, typed in by somebody; what is read is written back the same."""
    text = data.decode("utf-8", "replace")
    try:
        parsed = JoinString.parse(text)
    except ValueError as error:
        _tells_nothing(str(error), text)
        return feature_of(error)
    assert JoinString.parse(parsed.encode()) == parsed
    secret = base62.encode(parsed.token.secret, 43)
    assert secret not in repr(parsed) + str(parsed.describe())
    assert len(parsed.addresses) >= 1
    return len(parsed.hosts)


def tokens(data: bytes) -> Feature:
    """A token, typed in by somebody; a good one is what its text says."""
    text = data.decode("utf-8", "replace")
    try:
        parsed = Token.parse(text)
    except ValueError as error:
        _tells_nothing(str(error), text)
        return feature_of(error)
    assert parsed.text() == text.strip()
    assert parsed.text()[15:58] not in repr(parsed) + str(parsed)
    parsed.verifier()
    return parsed.kind


def _tells_nothing(said: str, text: str) -> None:
    """See that no part of a credential is in the error about it."""
    if len(text) >= 30:
        assert text[14:30] not in said, "an error repeats a part of the secret"


def _token(letter: str) -> Token:
    return Token.new(TokenKind(letter), lambda size: bytes(range(size)))


def _token_seeds() -> list[bytes]:
    return [_token(letter).text().encode() for letter in "acns"]


def _join_seeds() -> list[bytes]:
    hosts = (("gw.example.org",), ("127.0.0.1", "::1"), tuple(f"h{n}.example" for n in range(8)))
    return [
        JoinString(names, 8080, bytes(range(32)), _token(letter), expires).encode().encode()
        for names, letter, expires in zip(hosts, "cna", (None, 1, 2**40 - 1), strict=True)
    ]


def _mutate_token(rng: random.Random, data: bytes) -> bytes:
    """Change the text; half of the time its checksum is made right again."""
    out = mutate_text(rng, data)
    if rng.random() < 0.5 or len(out) <= base62.CHECKSUM_CHARS:
        return out
    body = out[: -base62.CHECKSUM_CHARS]
    return body + base62.checksum(body.decode("utf-8", "replace")).encode()


def _mutate_join(rng: random.Random, data: bytes) -> bytes:
    """Change the text, or the body below the base 62, with its checksum made right again."""
    if rng.random() < 0.4:
        return _mutate_token(rng, data)
    try:
        body = base62.decode(data[len(PREFIX) : -base62.CHECKSUM_CHARS].decode("ascii"))
    except ValueError:
        return _mutate_token(rng, data)
    text = PREFIX + base62.encode(mutate_bytes(rng, body)[:2048])
    return (text + base62.checksum(text)).encode()


JOIN_STRINGS = Target(join_strings, _join_seeds, _mutate_join)
TOKENS = Target(tokens, _token_seeds, _mutate_token)
