"""The cluster's own certificate authority: one for all servers, the only root that agents and the CLI trust.

Its certificate and key lie in the store's settings, so that several servers on one database share them.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from pileus.kernel.clock import Clock
from pileus.kernel.errors import Invalid
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

CA_DAYS = 3650
SERVER_DAYS = 365
AGENT_DAYS = 90
RENEW_BEFORE_DAYS = 30
"""A server's certificate is replaced, and an agent should ask for a new one, this long before the end."""
SKEW_S = 300
"""Certificates begin this long ago, for machines whose clocks are behind."""
SPIFFE = "spiffe://pileus/host/"
CSR_BYTES_MAX = 8192

_CERTIFICATE, _KEY = "ca/certificate", "ca/key"


class Issued(Struct, frozen=True, kw_only=True):
    """A certificate of the cluster: PEM, SHA-256 of its DER form in hex, and the Unix second in which it ends."""

    pem: str
    sha256: str
    not_after: float


class Authority:
    """Signs certificates of servers and agents."""

    def __init__(self, certificate_pem: str, key_pem: str, clock: Clock) -> None:
        self._certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        key = serialization.load_pem_private_key(key_pem.encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._clock = clock
        self.pem = certificate_pem

    @property
    def sha256(self) -> str:
        """The fingerprint by which a join token names this authority: SHA-256 of the DER form, in hex."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def agent_certificate(self, host_id: str, csr_pem: str) -> Issued:
        """Return a client certificate for the key of ``csr_pem`` that says it is the agent of ``host_id``.

        Nothing but the public key is taken from the request. Raises: Invalid.
        """
        names = [x509.UniformResourceIdentifier(SPIFFE + host_id)]
        return _issued(
            self._sign(_public_key(csr_pem), f"host {host_id}", names, ExtendedKeyUsageOID.CLIENT_AUTH, AGENT_DAYS)
        )

    def server_certificate(self, key: ec.EllipticCurvePrivateKey, names: Iterable[str]) -> str:
        """Return the PEM of a server certificate for these host names and IP addresses."""
        alternatives = [_alternative(name) for name in dict.fromkeys(names)]
        certificate = self._sign(
            key.public_key(), "pileus server", alternatives, ExtendedKeyUsageOID.SERVER_AUTH, SERVER_DAYS
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey,
        common_name: str,
        names: list[x509.UniformResourceIdentifier] | list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        days: int,
    ) -> x509.Certificate:
        now = self._clock()
        ca_key_id = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            x509.CertificateBuilder()
            .subject_name(_name(common_name[:64]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(now - SKEW_S))
            .not_valid_after(_time(now + days * 86400))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_key_id), critical=False)
            .sign(self._key, hashes.SHA256())
        )


async def open_authority(store: Store) -> Authority:
    """Return the cluster's authority, made at the first start; servers starting at once agree on one."""
    fresh = _new_authority(store.clock())

    async def settle(tx: Transaction) -> tuple[str, str]:
        known = [await tx.statement(sql.SETTING, name=name) for name in (_CERTIFICATE, _KEY)]
        if all(known):
            return known[0][0][0], known[1][0][0]
        for name, value in zip((_CERTIFICATE, _KEY), fresh, strict=True):
            await tx.change(tx.insert.setting, name=name, value=value)
        return fresh

    certificate, key = await store.write(settle)
    return Authority(certificate, key, store.clock)


def write_server_files(authority: Authority, folder: Path, names: Iterable[str], now: float) -> bool:
    """Have ``ca.crt``, ``server.crt`` and ``server.key`` in ``folder`` that fit; return whether they are new.

    A certificate that ends soon, lacks a name or is another authority's is replaced. The key's mode is 0600.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = list(dict.fromkeys(names))
    (folder / "ca.crt").write_text(authority.pem)
    if _fits(authority, folder, wanted, now):
        return False
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # One file is replaced at once, so a crash cannot leave a key beside another key's certificate.
    write_private(folder / "server.pem", private + authority.server_certificate(key, wanted).encode())
    return True


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def host_of(uris: Iterable[str]) -> str | None:
    """Return the host id that the URIs of a certificate name; None unless there is exactly one, of our form."""
    ids = [uri.removeprefix(SPIFFE) for uri in uris if uri.startswith(SPIFFE)]
    return ids[0] if len(ids) == 1 else None


def _fits(authority: Authority, folder: Path, names: list[str], now: float) -> bool:
    path = folder / "server.pem"
    if not path.exists():
        return False
    text = path.read_bytes()
    try:
        certificate = x509.load_pem_x509_certificate(text)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pem.encode()))
        known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    has = {str(entry.value) for entry in known}
    ends = certificate.not_valid_after_utc.timestamp()
    return {str(_alternative(name).value) for name in names} <= has and ends - now > RENEW_BEFORE_DAYS * 86400


def _new_authority(now: float) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Pileus cluster {secrets.token_hex(4)}")
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now - SKEW_S))
        .not_valid_after(_time(now + CA_DAYS * 86400))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(key_id, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def _public_key(csr_pem: str) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey:
    if len(csr_pem) > CSR_BYTES_MAX:
        raise Invalid(f"the certificate request is longer than {CSR_BYTES_MAX} bytes", field="csr")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        proven = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise Invalid("the certificate request is not a PEM PKCS#10 request", field="csr") from error
    if not proven:
        raise Invalid("the certificate request is not signed by its own key", field="csr")
    if isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1")
    ):
        return key
    if isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 4096:
        return key
    raise Invalid("the certificate request's key must be EC P-256, P-384, Ed25519 or RSA 2048 to 4096", field="csr")


def _issued(certificate: x509.Certificate) -> Issued:
    return Issued(
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _time(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
