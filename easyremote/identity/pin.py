"""The pin: how a client knows the gateway before it shows any credential.

Theory. A pin is the SHA-256 of the *public key* in the gateway's certificate (its
SubjectPublicKeyInfo, all 256 bits). It does not depend on names, dates or authorities, and it
survives a renewal of the certificate with the same key. It is compared after the TLS handshake,
which proves that the other side holds the private key, and before the first byte of ours.

Rules of this file. 1) No dependency: a client need not load a cryptography library to compare
a pin. 2) The certificate comes from a peer that nobody trusts yet: every length is checked.

Source. RFC 7469 section 2.4 (what is hashed), RFC 5280 section 4.1 (where it stands), X.690
section 8.1 (tags and lengths).
"""

from __future__ import annotations

import hashlib
import hmac

PIN_BYTES = 32

_SEQUENCE = 0x30
_INTEGER = 0x02
_VERSION = 0xA0
_FIELDS_BEFORE_KEY = (_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE)
"""Serial number, signature algorithm, issuer, validity, subject."""


def pin_of(certificate: bytes) -> bytes:
    """Return the pin of a DER certificate, as `SSLSocket.getpeercert(True)` gives it.

    Raises:
        ValueError: The bytes are no X.509 certificate.
    """
    return hashlib.sha256(public_key_info(certificate)).digest()


def public_key_info(certificate: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of a DER certificate: tag, length and content."""
    start, _ = _enter(certificate, 0, len(certificate), _SEQUENCE)
    position, end = _enter(certificate, start, len(certificate), _SEQUENCE)
    if position < end and certificate[position] == _VERSION:
        _, position = _enter(certificate, position, end, _VERSION)
    for tag in _FIELDS_BEFORE_KEY:
        _, position = _enter(certificate, position, end, tag)
    _, after = _enter(certificate, position, end, _SEQUENCE)
    return certificate[position:after]


def _enter(data: bytes, position: int, end: int, tag: int) -> tuple[int, int]:
    """Return where the content of the element at `position` starts and ends."""
    if position + 2 > end or data[position] != tag:
        raise ValueError("not an X.509 certificate")
    length = data[position + 1]
    start = position + 2
    if length >= 0x80:
        count = length & 0x7F
        # Four bytes of length are more than any certificate; zero would be the indefinite form.
        if not 1 <= count <= 4 or start + count > end:
            raise ValueError("not an X.509 certificate: bad length")
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    if start + length > end:
        raise ValueError("not an X.509 certificate: cut off")
    return start, start + length


def same_pin(expected: bytes, actual: bytes) -> bool:
    """Return whether two pins are equal, in time that does not depend on where they differ."""
    return len(expected) == PIN_BYTES and hmac.compare_digest(expected, actual)


def pin_text(pin: bytes) -> str:
    """Return a pin as people read it: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{pin.hex()}"
