"""Who an agent is: its key, made here and never sent, its certificate, and the authority it trusts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import json
import os
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Struct

from pileus.kernel.clock import system_clock
from pileus.kernel.errors import Rejected, Transient, Unauthenticated

log = structlog.get_logger()

TIMEOUT_S = 20.0
RENEWAL_CHECK_S = 86_400.0
RENEWAL_RETRY_S = 600.0


class Identity(Struct, frozen=True, kw_only=True):
    """An agent's certificate on disk; ``server`` is where it joined, ``host`` the id of its host."""

    server: str
    host: str

    @staticmethod
    def load(folder: Path) -> Identity | None:
        """Return the identity kept in ``folder``, if an agent joined from there."""
        try:
            return msgspec.json.decode((folder / "identity.json").read_bytes(), type=Identity)
        except (FileNotFoundError, msgspec.DecodeError):
            return None


def client_context(folder: Path) -> ssl.SSLContext:
    """Return TLS that trusts the cluster's authority only and shows the agent's certificate."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / "agent.pem")
    return context


async def join(server: str, token: str, folder: Path) -> Identity:
    """Use a join token and keep what it gives in ``folder``.

    The server is believed only if it has the authority whose digest the token holds.
    Raises: Unauthenticated, Transient.
    """
    return await asyncio.to_thread(_join, server, token, folder)


async def renew_in_time(identity: Identity, folder: Path, context: ssl.SSLContext) -> None:
    """Renew the certificate once two thirds of its life are over, for ever; new connections then show the new one."""
    while True:
        left_s = renewal_due(folder) - system_clock()
        await asyncio.sleep(min(max(left_s, 0.0), RENEWAL_CHECK_S))
        if renewal_due(folder) > system_clock():
            continue
        try:
            await asyncio.to_thread(_renew, identity, folder, context)
            context.load_cert_chain(folder / "agent.pem")
            log.info("the agent's certificate was renewed")
        except (Transient, Rejected) as error:
            log.warning("the agent's certificate could not be renewed", error=error.message)
            await asyncio.sleep(RENEWAL_RETRY_S)


def renewal_due(folder: Path) -> float:
    """Return when (Unix seconds) two thirds of the certificate's life are over."""
    certificate = x509.load_pem_x509_certificate((folder / "agent.pem").read_bytes())
    began, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return began + (ends - began) * 2 / 3


def _renew(identity: Identity, folder: Path, context: ssl.SSLContext) -> None:
    key, csr = _new_key()
    answer = _request(identity.server, "POST", "/agent/v1/renew", json.dumps({"csr": csr}).encode(), context)
    _keep(folder, key, json.loads(answer))


def _new_key() -> tuple[bytes, str]:
    """Return a fresh private key and a signing request for it, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pileus agent")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, csr.public_bytes(serialization.Encoding.PEM).decode()


def _keep(folder: Path, key: bytes, joined: dict[str, str]) -> None:
    """Write what the agent shows and what it trusts."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(folder / "ca.pem", joined["ca"].encode())
    _write(folder / "agent.pem", key + joined["certificate"].encode())  # one file: never a key without its certificate


def _join(server: str, token: str, folder: Path) -> Identity:
    expected = _fingerprint(token)
    ca = _request(server, "GET", "/agent/v1/ca", None, _unverified()).decode()
    der = ssl.PEM_cert_to_DER_cert(ca)
    if hashlib.sha256(der).hexdigest() != expected:
        raise Unauthenticated(f"{server} is not the server that the token is for; check the address")
    key, csr = _new_key()
    body = {"token": token, "csr": csr}
    pinned = ssl.create_default_context(cadata=ca)
    joined = json.loads(_request(server, "POST", "/agent/v1/join", json.dumps(body).encode(), pinned))
    _keep(folder, key, joined)
    identity = Identity(server=server, host=joined["host"])
    _write(folder / "identity.json", msgspec.json.encode(identity))
    return identity


def _fingerprint(token: str) -> str:
    try:
        return str(json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))["ca_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unauthenticated("this is not a join token; make one with `pileus join-token HOST`") from error


def _unverified() -> ssl.SSLContext:
    """Return TLS that believes anybody: only to fetch the authority, which the token then confirms."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _request(server: str, method: str, path: str, body: bytes | None, context: ssl.SSLContext) -> bytes:
    address = urlsplit(server)
    connection = http.client.HTTPSConnection(
        address.hostname or "", address.port or 443, context=context, timeout=TIMEOUT_S
    )
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        text = answer.read()
    except ssl.SSLCertVerificationError as error:
        raise Unauthenticated(f"the certificate of {server} is not of its cluster: {error.verify_message}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Transient(f"no server answers at {server}: {error}") from error
    finally:
        connection.close()
    if answer.status >= 400:
        raise (Transient if answer.status >= 500 else Rejected)(_detail(text))
    return text


def _detail(text: bytes) -> str:
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return "the server refused without a reason"


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
