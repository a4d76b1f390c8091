"""Tokens: the credential of a person, program or node.

Theory. A token is text that one double-click selects, that secret scanners find, and whose typos
are found without asking anyone: `er` + kind + `_` + ten characters of public id + `_` + a 256-bit
random secret in base 62 + a CRC-32. The gateway keeps no secret: it stores a verifier from which
neither the token nor a proof of it can be made. The verifier is SHA-256(HMAC-SHA256(secret,
"Client Key")), the StoredKey of SCRAM; a fast hash is enough, for nobody can guess 256 bits.

Rules of this file. 1) The secret appears in `text()` alone; repr and str mask it. 2) Verifiers
are compared in constant time. 3) Randomness is an argument.

Source. RFC 5802 section 3 (StoredKey). GitHub's token format (prefix and checksum).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from . import base62

ID_CHARS = 10
ID_BYTES = 8
"""62**10 < 2**64: an id fits eight bytes."""
SECRET_BYTES = 32
SECRET_CHARS = 43
"""62**43 > 2**256."""
TOKEN_CHARS = 4 + ID_CHARS + 1 + SECRET_CHARS + base62.CHECKSUM_CHARS

_SHAPE = re.compile(r"er([acns])_([0-9A-Za-z]{10})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})", re.ASCII)
_PREFIX = re.compile(r"er[acns]_", re.ASCII)


class TokenKind(StrEnum):
    """What a token is for; the letter is part of its text."""

    ADMIN = "a"
    """Operators and owners."""
    CLIENT = "c"
    """Viewers, guests and members."""
    NODE = "n"
    """Lets a node enrol."""
    SESSION = "s"
    """A short session of the dashboard."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token, secret included.

    Attributes:
        kind: What it is for.
        id: Ten characters that may be shown and logged.
        secret: 32 random bytes.
    """

    kind: TokenKind
    id: str
    secret: bytes = field(repr=False)

    @classmethod
    def new(
        cls, kind: TokenKind, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> Token:
        """Make a token from 32 random bytes and a random id."""
        number = int.from_bytes(random_bytes(16), "big") % 62**ID_CHARS
        public = base62.encode(number.to_bytes(ID_BYTES, "big"), ID_CHARS)
        return cls(kind, public, random_bytes(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read a token; a typo is found here, before anything is sent.

        Raises:
            ValueError: It is no token, or a character is wrong. The message holds no part of it.
        """
        text = text.strip()
        found = _SHAPE.fullmatch(text)
        if found is None:
            if _PREFIX.match(text) is None:
                raise ValueError("this is no EasyRemote token: one starts with era_, erc_ or ern_")
            raise ValueError(
                f"this token is damaged: it has {len(text)} characters and a token has "
                f"{TOKEN_CHARS}; copy all of it, and nothing else"
            )
        if base62.checksum(text[: -base62.CHECKSUM_CHARS]) != found[4]:
            raise ValueError("this token is damaged: a character is wrong; copy it again")
        try:
            secret = base62.decode(found[3], SECRET_BYTES)
        except ValueError:
            raise ValueError("this token is damaged: copy it again") from None
        return cls(TokenKind(found[1]), found[2], secret)

    def text(self) -> str:
        """Return the token as it is shown and sent. This is the secret itself: do not log it."""
        body = f"er{self.kind.value}_{self.id}_{base62.encode(self.secret, SECRET_CHARS)}"
        return body + base62.checksum(body)

    def verifier(self) -> bytes:
        """Return what the gateway stores: a one-way function of the secret."""
        return verifier_of(self.secret)

    def __str__(self) -> str:
        """Return the kind and the public id; the secret is masked."""
        return f"er{self.kind.value}_{self.id}_***"


def verifier_of(secret: bytes) -> bytes:
    """Return SHA-256(HMAC-SHA256(secret, "Client Key")), the one-way form of a secret."""
    return hashlib.sha256(hmac.digest(secret, b"Client Key", "sha256")).digest()


def same_verifier(expected: bytes, actual: bytes) -> bool:
    """Return whether two verifiers are equal, in time that does not depend on their content."""
    return hmac.compare_digest(expected, actual)


def is_token_text(text: str) -> bool:
    """Return whether `text` looks like a token, damaged or not."""
    return _PREFIX.match(text.strip()) is not None
