"""The gateway's key, certificate and pin."""

from __future__ import annotations

import datetime
import hashlib
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from easyremote.errors import EasyRemoteError
from easyremote.identity import certificate
from easyremote.identity.certificate import identity_of_files, open_server_identity
from easyremote.identity.pin import pin_of, pin_text, same_pin

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 60)])


def self_signed(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *, days: int = 30) -> bytes:
    """Return a DER certificate of `key` with a long subject."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


CERTIFICATE = self_signed(ec.generate_private_key(ec.SECP256R1()))


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa", "ed25519"])
def test_pin_is_the_hash_of_the_public_key_info(kind: str) -> None:
    """For every kind of key the pin equals what a cryptography library computes."""
    if kind == "ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
        authority = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        der = (
            x509.CertificateBuilder(NAME, NAME, key.public_key(), 1)
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(authority, hashes.SHA256())
            .public_bytes(serialization.Encoding.DER)
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    else:
        made: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        if kind == "rsa":
            made = rsa.generate_private_key(65537, 2048)
        else:
            made = ec.generate_private_key(ec.SECP256R1() if kind == "p256" else ec.SECP384R1())
        der = self_signed(made)
        public = made.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    assert pin_of(der) == hashlib.sha256(public).digest()


def test_every_cut_of_a_certificate_is_a_value_error() -> None:
    """A certificate that is cut off anywhere before its key ends is refused, never misread."""
    whole = pin_of(CERTIFICATE)
    for at in range(len(CERTIFICATE)):
        with pytest.raises(ValueError, match=r"X\.509"):
            pin_of(CERTIFICATE[:at])

    assert pin_of(CERTIFICATE + b"trailing") == whole


@given(st.integers(0, len(CERTIFICATE) - 1), st.integers(1, 255))
def test_a_changed_byte_gives_a_pin_or_a_value_error(at: int, flip: int) -> None:
    """Any one changed byte gives some pin or a ValueError, and nothing else."""
    changed = bytearray(CERTIFICATE)
    changed[at] ^= flip
    try:
        pin = pin_of(bytes(changed))
    except ValueError:
        return
    assert len(pin) == 32


def test_pins_compare_in_whole() -> None:
    """Equal pins are the same; a shorter, longer or changed one is not, and nor is an empty one."""
    pin = pin_of(CERTIFICATE)

    assert same_pin(pin, bytes(pin))
    assert not same_pin(pin, pin[:-1] + bytes([pin[-1] ^ 1]))
    assert not same_pin(pin, pin[:16])
    assert not same_pin(b"", b"")
    assert pin_text(pin) == f"sha256:{pin.hex()}"


def test_first_start_makes_key_and_certificate(tmp_path: Path) -> None:
    """Key and certificate are made once, the key 0600, and serve TLS 1.3 with their names."""
    identity = open_server_identity(tmp_path, ["vps.example.org", "203.0.113.7"])

    assert stat.S_IMODE(identity.key_path.stat().st_mode) == 0o600
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate_path, identity.key_path)
    made = x509.load_pem_x509_certificate(identity.certificate_path.read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "vps.example.org"}
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {
        "127.0.0.1",
        "::1",
        "203.0.113.7",
    }
    public = made.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP256R1)
    assert made.not_valid_after_utc - made.not_valid_before_utc > datetime.timedelta(days=3650)


def test_later_starts_find_the_same_files(tmp_path: Path) -> None:
    """Opening again changes nothing on the disk."""
    first = open_server_identity(tmp_path, ["vps"])
    before = (first.key_path.read_bytes(), first.certificate_path.read_bytes())
    second = open_server_identity(tmp_path, ["vps"])

    assert second == first
    assert before == (second.key_path.read_bytes(), second.certificate_path.read_bytes())


def test_renewal_keeps_the_pin(tmp_path: Path) -> None:
    """A certificate with another name, or one that ends soon or is lost, keeps key and pin."""
    first = open_server_identity(tmp_path, ["old"])
    old = first.certificate_path.read_bytes()
    renamed = open_server_identity(tmp_path, ["new"])

    assert renamed.pin == first.pin
    assert renamed.certificate_path.read_bytes() != old

    key = serialization.load_pem_private_key(first.key_path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    ending = self_signed(key, days=1)
    first.certificate_path.write_text(ssl.DER_cert_to_PEM_cert(ending))
    assert open_server_identity(tmp_path).pin == first.pin
    assert first.certificate_path.read_text() != ssl.DER_cert_to_PEM_cert(ending)

    first.certificate_path.unlink()
    assert open_server_identity(tmp_path).pin == first.pin


def test_a_damaged_key_is_never_replaced(tmp_path: Path) -> None:
    """A key file that holds something else is an error: a new key would void all join strings."""
    key_path = tmp_path / certificate.KEY_NAME
    key_path.write_text("no key")

    with pytest.raises(EasyRemoteError, match="holds no private key"):
        open_server_identity(tmp_path)
    assert key_path.read_text() == "no key"


def test_certificate_of_an_authority_is_pinned_by_its_leaf(tmp_path: Path) -> None:
    """Of a chain that the operator brings, the first certificate gives the pin."""
    leaf = self_signed(ec.generate_private_key(ec.SECP256R1()))
    chain = tmp_path / "chain.pem"
    chain.write_text(ssl.DER_cert_to_PEM_cert(leaf) + ssl.DER_cert_to_PEM_cert(CERTIFICATE))

    assert identity_of_files(chain, tmp_path / "key.pem").pin == pin_of(leaf)

    chain.write_text("nothing")
    with pytest.raises(EasyRemoteError, match="PEM certificate"):
        identity_of_files(chain, tmp_path / "key.pem")
