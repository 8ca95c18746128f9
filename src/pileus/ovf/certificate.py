"""Checks who signed a package: the ``.cert`` file's signature over the manifest, and its certificate's chain."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import ExtensionOID

from pileus.ovf.digests import ALGORITHMS
from pileus.ovf.faults import Faults, refusal, shown
from pileus.ovf.manifest import Manifest, digest_line
from pileus.ovf.signature import Signature, Trust

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_CERTIFICATES_MAX = 16
_KEY_BITS_MAX = 8192
_CHAIN_MAX = 8
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "SHA1": hashes.SHA1(),  # noqa: S303 - what others signed with; it is warned of
    "SHA256": hashes.SHA256(),
    "SHA512": hashes.SHA512(),
}


def read_roots(pem: bytes, file: str = "") -> tuple[x509.Certificate, ...]:
    """Return the certificates of a trust store. Raises: OvfFault, when there is none, or a damaged one."""
    found = _certificates(pem)
    if not found:
        raise refusal("bad-trust", "there is no readable PEM certificate in it", file=file)
    return tuple(found)


def check_signature(name: str, raw: bytes, manifest: Manifest, trust: Trust | None, faults: Faults) -> Signature:
    """Return what the certificate file ``raw`` proves of ``manifest``; what is wrong with it is in ``faults``.

    Without ``trust`` nobody is known, and the period of validity is not looked at. Source: DSP0243 6.2.
    """
    checked = _Check(name, faults)
    line = next((parsed for text in _lines(raw) if (parsed := digest_line(text)) is not None), None)
    certificates = _certificates(raw)
    if line is None or not certificates:
        what = "line ALGORITHM(manifest)= signature" if line is None else "readable PEM certificate"
        return checked.refuse("bad-certificate", f"the certificate file has no {what}")
    algorithm, signed, digits = line
    if algorithm not in ALGORITHMS:
        return checked.refuse("unknown-digest", f"{shown(algorithm)} is none of {', '.join(ALGORITHMS)}")
    if signed != manifest.name:
        return checked.refuse("wrong-manifest", f"it signs {shown(signed)}, but the manifest is {shown(manifest.name)}")
    signer = certificates[0]
    if not _verifies(signer, digits, manifest.raw, algorithm):
        return checked.refuse(
            "bad-signature", "the signature is not this manifest's by this certificate's key; it was changed"
        )
    state = _judge(certificates, trust, checked)
    if algorithm == "SHA1":
        checked.warn("sha1", "the signature is over a SHA-1 digest, which no longer proves who made it")
    return Signature(
        state=state,
        subject=signer.subject.rfc4514_string(),
        issuer=signer.issuer.rfc4514_string(),
        not_before=signer.not_valid_before_utc.isoformat(),
        not_after=signer.not_valid_after_utc.isoformat(),
        sha256=signer.fingerprint(hashes.SHA256()).hex(),
        algorithm=algorithm,
    )


class _Check:
    def __init__(self, name: str, faults: Faults) -> None:
        self._name = name
        self._faults = faults

    def refuse(self, code: str, message: str) -> Signature:
        self._faults.error(code, message, file=self._name)
        return Signature(state="invalid")

    def warn(self, code: str, message: str) -> None:
        self._faults.warn(code, message, file=self._name)


def _lines(raw: bytes) -> list[str]:
    head = raw.partition(b"-----BEGIN")[0]
    return head.decode("utf-8-sig", errors="replace").replace("\r", "\n").split("\n")


def _certificates(raw: bytes) -> list[x509.Certificate]:
    """Return the readable certificates of a PEM text, in its order."""
    found: list[x509.Certificate] = []
    for match in _PEM.finditer(raw):
        if len(found) == _CERTIFICATES_MAX:
            break
        try:
            found.append(x509.load_der_x509_certificate(base64.b64decode(match[1])))
            # Parsed late; a damaged name or date is found here and not in the middle of a check.
            found[-1].subject.rfc4514_string(), found[-1].issuer.rfc4514_string()
            found[-1].not_valid_before_utc, found[-1].not_valid_after_utc, found[-1].extensions
        except (ValueError, binascii.Error, UnsupportedAlgorithm, x509.DuplicateExtension):
            return []
    return found


def _verifies(signer: x509.Certificate, digits: str, manifest: bytes, algorithm: str) -> bool:
    try:
        key = signer.public_key()
        signature = bytes.fromhex(digits)
    except (ValueError, UnsupportedAlgorithm):
        return False
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size > _KEY_BITS_MAX:
        return False
    try:
        key.verify(signature, manifest, padding.PKCS1v15(), _HASHES[algorithm])
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True


def _judge(
    certificates: Sequence[x509.Certificate], trust: Trust | None, checked: _Check
) -> Literal["trusted", "unknown-signer", "invalid"]:
    """Return whether the chain of the first certificate ends in one that is trusted."""
    signer = certificates[0]
    if trust is None:
        return _unknown(signer, checked)
    if not _valid_at(signer, trust.at):
        period = f"{signer.not_valid_before_utc:%Y-%m-%d} to {signer.not_valid_after_utc:%Y-%m-%d}"
        checked.refuse("certificate-expired", f"the signer's certificate is valid from {period} only")
        return "invalid"
    trusted = {_der(root) for root in trust.roots}
    current = signer
    for _ in range(_CHAIN_MAX):
        if _der(current) in trusted:
            return "trusted"
        above = [*trust.roots, *certificates[1:]]
        issuer = next((one for one in above if _may_sign(one, trust.at) and _issued(current, one)), None)
        if issuer is None or _der(issuer) == _der(current):
            break
        current = issuer
    return _unknown(signer, checked)


def _unknown(signer: x509.Certificate, checked: _Check) -> Literal["unknown-signer"]:
    own = signer.subject == signer.issuer
    by = "itself (self-signed)" if own else shown(signer.issuer.rfc4514_string())
    checked.warn("unknown-signer", f"signed by unknown: {shown(signer.subject.rfc4514_string())}, issued by {by}")
    return "unknown-signer"


def _valid_at(certificate: x509.Certificate, at: datetime) -> bool:
    return certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc


def _may_sign(certificate: x509.Certificate, at: datetime) -> bool:
    """Tell whether a certificate may issue others. Source: RFC 5280 4.2.1.3, 4.2.1.9; 6.1.4."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca:
            return False
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as missing:
        return missing.oid == ExtensionOID.KEY_USAGE and _valid_at(certificate, at)
    return usage.key_cert_sign and _valid_at(certificate, at)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
