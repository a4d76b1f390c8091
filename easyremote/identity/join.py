"""Join strings: the one thing that somebody must copy to use a gateway.

Theory. A join string says where the gateway listens, by which key it is known, and who the bearer
is: `er1_` + base62(body) + six characters of checksum. Letters, digits and `_` only, so one
double-click selects it and no shell needs quotes. The body, all numbers big-endian:

    version (1) = 1 | port (2) | expires, epoch seconds, 0 = never (5) | pin (32)
    | kind letter (1) | token id (8) | token secret (32) | hosts (1) | { length (1) | UTF-8 }*

Rules of this file. 1) A lost or changed character is refused offline. 2) Any text gives a
`JoinString` or a `ValueError`, in bounded time, and the error repeats no part of the text.
3) The expiry is for people; the gateway alone decides whether a token is good.

Source. The secure tokens of k3s and the discovery hash of kubeadm, in one string.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from ..config import Address, parse_address
from . import base62
from .pin import PIN_BYTES, pin_text
from .token import ID_BYTES, ID_CHARS, SECRET_BYTES, Token, TokenKind

PREFIX = "er1_"
VERSION = 1
HOSTS_MAX = 8
CHARS_MAX = 3072
"""Eight hosts of the longest name fit; base 62 is quadratic, so the length is bounded first."""

_FIXED_BYTES = 1 + 2 + 5 + PIN_BYTES + 1 + ID_BYTES + SECRET_BYTES + 1
_EXPIRES_MAX = 2**40 - 1
_SHAPE = re.compile(r"er1_[0-9A-Za-z]{8,}", re.ASCII)
_DAMAGED = "this join string is damaged: copy all of it again, from er1_ to its last character"


@dataclass(frozen=True, slots=True)
class JoinString:
    """What a join string says.

    Attributes:
        hosts: Names or addresses under which the gateway may be reached, best first.
        port: Where it listens.
        pin: SHA-256 of its public key.
        token: The credential of the bearer; its repr is masked.
        expires_at: Epoch seconds, or None for never.
    """

    hosts: tuple[str, ...]
    port: int
    pin: bytes
    token: Token
    expires_at: int | None = None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses to try, in order."""
        return tuple(Address(host, self.port) for host in self.hosts)

    def encode(self) -> str:
        """Return the string. It holds the secret: do not log it.

        Raises:
            ValueError: A field does not fit (no host, too many, too long; a wrong port).
        """
        if not 1 <= len(self.hosts) <= HOSTS_MAX:
            raise ValueError(f"a join string names 1 to {HOSTS_MAX} hosts, not {len(self.hosts)}")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"a port lies between 1 and 65535, not {self.port}")
        expires = self.expires_at or 0
        if len(self.pin) != PIN_BYTES or not 0 <= expires <= _EXPIRES_MAX:
            raise ValueError("a pin has 32 bytes and an expiry is an epoch time in seconds")
        body = bytearray([VERSION])
        body += self.port.to_bytes(2, "big") + expires.to_bytes(5, "big") + self.pin
        body += self.token.kind.value.encode("ascii")
        body += base62.decode(self.token.id, ID_BYTES) + self.token.secret
        body.append(len(self.hosts))
        for host in self.hosts:
            raw = _checked_host(host).encode("ascii")
            body.append(len(raw))
            body += raw
        text = PREFIX + base62.encode(bytes(body))
        return text + base62.checksum(text)

    @classmethod
    def parse(cls, text: str) -> JoinString:
        """Read a join string.

        Raises:
            ValueError: It is none, or a character is lost or changed.
        """
        text = text.strip()
        if not text.startswith(PREFIX):
            raise ValueError(
                f"this is no join string: one starts with {PREFIX}; "
                "`easyremote token create` prints one"
            )
        if len(text) > CHARS_MAX or _SHAPE.fullmatch(text) is None:
            raise ValueError(_DAMAGED)
        payload, check = text[: -base62.CHECKSUM_CHARS], text[-base62.CHECKSUM_CHARS :]
        if base62.checksum(payload) != check:
            raise ValueError(_DAMAGED)
        return cls._from_body(base62.decode(payload[len(PREFIX) :]))

    @classmethod
    def _from_body(cls, body: bytes) -> JoinString:
        if not body or body[0] != VERSION:
            raise ValueError("this join string is of a newer EasyRemote: upgrade this one")
        if len(body) < _FIXED_BYTES:
            raise ValueError(_DAMAGED)
        port = int.from_bytes(body[1:3], "big")
        expires = int.from_bytes(body[3:8], "big")
        at = 8 + PIN_BYTES
        try:
            kind = TokenKind(chr(body[at]))
            public = base62.encode(body[at + 1 : at + 1 + ID_BYTES])
        except ValueError:
            raise ValueError(_DAMAGED) from None
        secret_at = at + 1 + ID_BYTES
        secret = body[secret_at : secret_at + SECRET_BYTES]
        hosts = _read_hosts(body, secret_at + SECRET_BYTES)
        if port == 0 or len(public) > ID_CHARS:
            raise ValueError(_DAMAGED)
        token = Token(kind, public.rjust(ID_CHARS, "0"), secret)
        return cls(hosts, port, body[8:at], token, expires or None)

    def describe(self) -> dict[str, str]:
        """Return what `easyremote join show` prints: everything but the secret."""
        kinds = {
            TokenKind.ADMIN: "operator or owner",
            TokenKind.CLIENT: "client",
            TokenKind.NODE: "node",
            TokenKind.SESSION: "session",
        }
        expires = "never"
        if self.expires_at is not None:
            expires = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.expires_at))
        return {
            "host": ", ".join(self.hosts),
            "port": str(self.port),
            "kind": kinds[self.token.kind],
            "expires": expires,
            "pin": pin_text(self.pin),
            "token id": self.token.id,
        }


def _checked_host(host: str) -> str:
    """Return `host` as it stands in a join string; it must be one that an address may have."""
    bracketed = f"[{host}]" if ":" in host else host
    if parse_address(bracketed).host != host:
        raise ValueError(f"{host!r} is not how a host is written in a join string")
    return host


def _read_hosts(body: bytes, at: int) -> tuple[str, ...]:
    """Return the hosts that `body` lists from `at` to its end."""
    count = body[at]
    at += 1
    hosts: list[str] = []
    if not 1 <= count <= HOSTS_MAX:
        raise ValueError(_DAMAGED)
    for _ in range(count):
        size = body[at] if at < len(body) else 0
        raw = body[at + 1 : at + 1 + size]
        at += 1 + size
        if not raw or len(raw) != size:
            raise ValueError(_DAMAGED)
        try:
            hosts.append(_checked_host(raw.decode("ascii")))
        except ValueError:
            raise ValueError(_DAMAGED) from None
    if at != len(body):
        raise ValueError(_DAMAGED)
    return tuple(hosts)


def is_join_text(text: str) -> bool:
    """Return whether `text` looks like a join string, damaged or not."""
    return text.strip().startswith(PREFIX)
