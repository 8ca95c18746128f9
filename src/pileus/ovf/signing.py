"""Signs a package: an RSA signature of its manifest, beside the certificate of whoever vouches for it.

Source: DSP0243 6.1 (the certificate file); the signature is PKCS #1 v1.5 over SHA-256, as VMware's and others' tools
make and read it.
"""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from pileus.ovf.faults import OvfFault, refusal

KEY_BITS_MIN = 2048


class Signer:
    """A key and its certificates, the key's own first, that fit together."""

    def __init__(self, key: RSAPrivateKey, certificates: list[x509.Certificate]) -> None:
        self._key = key
        self._certificates = certificates

    @property
    def subject(self) -> str:
        """Who the key's certificate says that signs."""
        return self._certificates[0].subject.rfc4514_string()

    def sign(self, name: str, manifest: bytes) -> bytes:
        """Return the certificate file for the manifest of this name."""
        signature = self._key.sign(manifest, padding.PKCS1v15(), hashes.SHA256())
        pems = [certificate.public_bytes(Encoding.PEM) for certificate in self._certificates]
        return f"SHA256({name})= {signature.hex()}\n".encode() + b"".join(pems)


def load_signer(key_pem: bytes, certificate_pem: bytes, now: datetime, password: bytes | None = None) -> Signer:
    """Return who signs. ``now`` has a time zone.

    Raises: OvfFault (sign-bad-key, sign-bad-certificate, sign-wrong-certificate, sign-expired).
    """
    key = _key(key_pem, password)
    try:
        certificates = x509.load_pem_x509_certificates(certificate_pem)
    except ValueError as exc:
        raise refusal("sign-bad-certificate", "the certificate is not an X.509 certificate in PEM") from exc
    own = certificates[0]
    if own.public_key() != key.public_key():
        message = f"the first certificate ({own.subject.rfc4514_string()}) is not that of the key"
        raise refusal("sign-wrong-certificate", message)
    if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
        message = f"the certificate is valid from {own.not_valid_before_utc} to {own.not_valid_after_utc}, not now"
        raise refusal("sign-expired", message)
    return Signer(key, certificates)


def _key(pem: bytes, password: bytes | None) -> RSAPrivateKey:
    """Raises: OvfFault (sign-bad-key)."""
    try:
        key = load_pem_private_key(pem, password)
    except TypeError as exc:  # a password is missing, or one too many
        raise _bad_key("is encrypted; give its passphrase" if password is None else "is not encrypted") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise _bad_key("cannot be read as PEM with that passphrase" if password else "cannot be read as PEM") from exc
    if not isinstance(key, RSAPrivateKey):
        raise _bad_key("is not an RSA key, the only kind that packages are signed with")
    if key.key_size < KEY_BITS_MIN:
        raise _bad_key(f"has {key.key_size} bits; {KEY_BITS_MIN} are the least that is safe")
    return key


def _bad_key(what: str) -> OvfFault:
    return refusal("sign-bad-key", f"the key {what}")
