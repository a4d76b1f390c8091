"""The gateway's key and certificate.

Theory. The key is the identity: clients know the gateway by the SHA-256 of its public key (see
`pin`). The certificate around it only satisfies TLS, so it is self-signed and made anew with the
same key when it nears its end or when the gateway gets another name.

Rules of this file. 1) ECDSA on P-256, because every TLS 1.3 stack has it. 2) The key file is 0600
and is never rewritten. 3) `cryptography` is imported where it is used: only gateways need it.

Source. RFC 8446 section 9.1 (mandatory algorithms), RFC 5280 section 4.2 (extensions).
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import parse_ip
from ..errors import EasyRemoteError
from .pin import pin_of
from .private_file import create_private, read_private, write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

YEARS = 10
RENEW_BEFORE = datetime.timedelta(days=90)
_CLOCK_SKEW = datetime.timedelta(days=1)
"""A client whose clock is behind must not find a certificate from the future."""
KEY_NAME = "gateway.key"
CERTIFICATE_NAME = "gateway.crt"
_ALWAYS_NAMED = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The files that a TLS server needs, and the pin by which clients know it."""

    certificate_path: Path
    key_path: Path
    pin: bytes


def open_server_identity(folder: Path, names: Iterable[str] = ()) -> ServerIdentity:
    """Load the gateway's key and certificate from `folder`; make what is missing.

    Args:
        folder: The gateway's private folder.
        names: Host names and addresses to put into the certificate beside those of loopback.

    Returns:
        The identity; its pin is the same each time.

    Raises:
        EasyRemoteError: The key file holds something else.
    """
    key_path, certificate_path = folder / KEY_NAME, folder / CERTIFICATE_NAME
    key = _open_key(key_path)
    wanted = list(dict.fromkeys((*_ALWAYS_NAMED, *names)))
    certificate = _load_certificate(certificate_path)
    if certificate is None or not _is_good(certificate, key, wanted):
        certificate = _make_certificate(key, wanted)
        write_private(certificate_path, certificate)
    return ServerIdentity(
        certificate_path, key_path, pin_of(ssl.PEM_cert_to_DER_cert(certificate.decode("ascii")))
    )


def identity_of_files(certificate_path: Path, key_path: Path) -> ServerIdentity:
    """Return the identity of a certificate that the operator brings (from any authority).

    Raises:
        EasyRemoteError: The first certificate of the file cannot be read.
    """
    try:
        text = certificate_path.read_text(encoding="ascii", errors="replace")
        begin = text.index(ssl.PEM_HEADER)
        end = text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)
        pin = pin_of(ssl.PEM_cert_to_DER_cert(text[begin:end]))
    except (OSError, ValueError) as error:
        raise EasyRemoteError(
            f"{certificate_path} is no readable PEM certificate; name the file with the "
            f"gateway's own certificate first, then those of its authority"
        ) from error
    return ServerIdentity(certificate_path, key_path, pin)


def _open_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        raw = read_private(path)
    except FileNotFoundError:
        made = ec.generate_private_key(ec.SECP256R1())
        raw = create_private(
            path,
            made.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
    try:
        key = serialization.load_pem_private_key(raw, password=None)
    except (ValueError, TypeError) as error:
        raise EasyRemoteError(
            f"{path} holds no private key. Restore it from a backup; if you remove it, the "
            f"gateway gets a new identity and every join string becomes void."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EasyRemoteError(f"{path} holds a key of another kind than EasyRemote makes")
    return key


def _load_certificate(path: Path) -> bytes | None:
    try:
        return read_private(path)
    except FileNotFoundError:
        return None


def _is_good(pem: bytes, key: EllipticCurvePrivateKey, names: list[str]) -> bool:
    """Return whether the certificate is of this key, lasts, and has all the names."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        listed = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    now = datetime.datetime.now(datetime.UTC)
    return (
        certificate.public_key() == key.public_key()
        and now + RENEW_BEFORE < certificate.not_valid_after_utc
        and certificate.not_valid_before_utc <= now
        and all(name in listed for name in _general_names(names))
    )


def _general_names(names: list[str]) -> list[x509.GeneralName]:
    from cryptography import x509

    made: list[x509.GeneralName] = []
    for name in names:
        ip = parse_ip(name)
        made.append(x509.DNSName(name) if ip is None else x509.IPAddress(ip))
    return made


def _make_certificate(key: EllipticCurvePrivateKey, names: list[str]) -> bytes:
    """Return a self-signed PEM certificate for `key` that lasts ten years."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "EasyRemote gateway")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
