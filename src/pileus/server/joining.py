"""How an agent gets in: a one-time token from an operator, a certificate of the cluster, and its renewal.

A certificate counts only while its fingerprint is stored for a host that exists: deleting the host or joining again
revokes it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets

import msgspec
from msgspec import Struct

from pileus.kernel.access import Principal
from pileus.kernel.clock import iso
from pileus.kernel.errors import NotFound, Unauthenticated
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.server.ca import Authority, Issued, host_of
from pileus.server.tls import PeerCertificate

JOIN, AGENT = "join", "agent"
TOKEN_S = 3600.0
HOST = "infra.host"


class JoinToken(Struct, frozen=True, kw_only=True):
    """What an operator carries to the machine."""

    token: str
    expires_at: str


class Inside(Struct, frozen=True, kw_only=True):
    """What the token says: the authority to trust, and the secret to show it."""

    ca_sha256: str
    secret: str


class JoinRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /agent/v1/join``."""

    token: str
    csr: str


class RenewRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /agent/v1/renew``."""

    csr: str


class Joined(Struct, frozen=True, kw_only=True):
    """The agent's certificate, the authority (both PEM), and the id of its host."""

    certificate: str
    ca: str
    host: str


def read_token(token: str) -> Inside:
    """Return what a token says. Raises: Unauthenticated."""
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=Inside)
    except (ValueError, msgspec.DecodeError) as error:
        raise Unauthenticated("this is not a join token; make one with `pileus join-token HOST`") from error


class Joining:
    """Hands out join tokens and agents' certificates, and tells whose a certificate is."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self._store = store
        self._authority = authority

    @property
    def ca_pem(self) -> str:
        """The authority's certificate."""
        return self._authority.pem

    async def token(self, principal: Principal, host: Resource, request_id: str) -> JoinToken:
        """Return a token for the agent of ``host``: good once, for TOKEN_S. Only its hash is kept."""
        inside = Inside(ca_sha256=self._authority.sha256, secret=secrets.token_urlsafe(24))
        expires_at = self._store.clock() + TOKEN_S

        async def keep(tx: Transaction) -> None:
            await tx.change(
                tx.insert.credential, hash=_hash(inside.secret), purpose=JOIN, id=host.id, expires_at=expires_at
            )
            await tx.audit(_entry(principal.actor, "join-token", host, principal.address, request_id))

        await self._store.write(keep)
        token = base64.urlsafe_b64encode(msgspec.json.encode(inside)).decode().rstrip("=")
        return JoinToken(token=token, expires_at=iso(expires_at))

    async def join(self, request: JoinRequest, address: str, request_id: str) -> Joined:
        """Return the certificate for the key in the request; uses the token up and revokes older certificates.

        Raises: Unauthenticated for a token that is unknown, used or expired, or of a host that is going; Invalid.
        """
        hash = _hash(read_token(request.token).secret)
        host = await self._host_of_token(hash)
        issued = self._authority.agent_certificate(host.id, request.csr)

        async def settle(tx: Transaction) -> None:
            if await tx.change(sql.CREDENTIAL_DELETE, hash=hash) != 1:
                raise _bad_token()
            await tx.change(sql.CREDENTIALS_DELETE, id=host.id)
            await _keep(tx, issued, host.id)
            await tx.audit(_entry(f"host {host.name}", "join", host, address, request_id))

        await self._store.write(settle)
        return Joined(certificate=issued.pem, ca=self._authority.pem, host=host.id)

    async def renew(self, host_id: str, request: RenewRequest, address: str, request_id: str) -> Joined:
        """Return a new certificate for a host that has a good one; the old one stays good until it ends."""
        host = await self._store.get(host_id)
        issued = self._authority.agent_certificate(host.id, request.csr)

        async def settle(tx: Transaction) -> None:
            await _keep(tx, issued, host.id)
            await tx.audit(_entry(f"host {host.name}", "renew", host, address, request_id))

        await self._store.write(settle)
        return Joined(certificate=issued.pem, ca=self._authority.pem, host=host.id)

    async def host(self, certificate: PeerCertificate | None) -> Resource:
        """Return the host whose agent shows this certificate. Raises: Unauthenticated."""
        if certificate is None:
            raise Unauthenticated("this path is for agents, which show a client certificate; see `pileus join-token`")
        host_id = host_of(certificate.uris)
        rows = await self._store.fetch(sql.CREDENTIAL, hash=hashlib.sha256(certificate.der).hexdigest())
        if host_id is None or not rows or tuple(rows[0][:2]) != (AGENT, host_id):
            raise Unauthenticated("the agent's certificate was revoked; join again with `pileus join-token HOST`")
        if rows[0][2] <= self._store.clock():
            raise Unauthenticated("the agent's certificate has expired; join again with `pileus join-token HOST`")
        return await self._existing(host_id)

    async def _host_of_token(self, hash: str) -> Resource:
        rows = await self._store.fetch(sql.CREDENTIAL, hash=hash)
        if not rows or rows[0][0] != JOIN or rows[0][2] <= self._store.clock():
            raise _bad_token()
        return await self._existing(rows[0][1])

    async def _existing(self, host_id: str) -> Resource:
        try:
            host = await self._store.get(host_id)
        except NotFound as error:
            raise Unauthenticated("the agent's host was deleted from the cloud") from error
        if host.kind != HOST:
            raise _bad_token()
        return host


async def _keep(tx: Transaction, issued: Issued, host_id: str) -> None:
    await tx.change(
        tx.insert.credential, hash=issued.sha256, purpose=AGENT, id=host_id, expires_at=float(issued.not_after)
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _bad_token() -> Unauthenticated:
    return Unauthenticated(
        "the join token is unknown, used or expired; tokens are good once, for an hour: `pileus join-token HOST`"
    )


def _entry(actor: str, verb: str, host: Resource, address: str, request_id: str) -> dict[str, str]:
    return {
        "actor": actor,
        "account_id": "",
        "verb": verb,
        "kind": host.kind,
        "id": host.id,
        "name": host.name,
        "outcome": "ok",
        "address": address,
        "request": request_id,
    }
