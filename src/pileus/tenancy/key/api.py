"""Admission of keys: the secret is made here, shown once, and kept as a hash only."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change, refuse_more_powerful
from pileus.kernel.clock import unix
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction

PREFIX = "pil_"
"""Lets people and secret scanners recognise a key."""


def new_secret() -> str:
    """Return a fresh key: PREFIX and 240 random bits, URL-safe."""
    return PREFIX + secrets.token_urlsafe(30)


def hashed(secret: str) -> str:
    """Return the form that is stored: SHA-256 in hex; enough for 240 random bits, no salt or stretching needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


class KeyAdmission(Admission):
    """Makes the secret with the key."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the key. Raises: Invalid for a bad or past time; Denied for the key of a more powerful user."""
        expires_at = change.new.desired.expires_at
        if expires_at:
            _expiry(expires_at, tx.now)
        user = await tx.get(change.links["user"])
        if user.account_id != change.new.account_id:
            raise Invalid(
                f"user {user.name} is not of this account; make the key where the user is", field="desired.user"
            )
        await _refuse_more_powerful(tx, user, change.principal)
        if change.old is not None and expires_at != change.old.desired.expires_at:
            raise Invalid(
                "a key's expiry cannot be changed; make another key", field="desired.expires_at", code="immutable"
            )
        return change.new

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Denied for the key of a more powerful user."""
        await _refuse_more_powerful(tx, await tx.get((await tx.links(resource.id))["user"]), principal)

    async def created(self, tx: Transaction, resource: Resource, principal: Principal) -> Mapping[str, Any]:
        """Return the secret, which nobody can read again."""
        secret = new_secret()
        expires_at = resource.desired.expires_at
        await tx.change(
            tx.insert.credential,
            hash=hashed(secret),
            purpose="key",
            id=resource.id,
            expires_at=unix(expires_at) if expires_at else 0.0,
        )
        return {"secret": secret}


async def _refuse_more_powerful(tx: Transaction, user: Resource, principal: Principal) -> None:
    role = await tx.get((await tx.links(user.id))["role"])
    refuse_more_powerful(tx, principal, role.desired.rules, f"role {role.name} of user {user.name}")


def _expiry(text: str, now: float) -> None:
    try:
        expires = unix(text)
    except ValueError:
        raise Invalid(
            f"{text!r} is not an RFC 3339 time such as 2030-01-31T12:00:00Z", field="desired.expires_at"
        ) from None
    if expires <= now:
        raise Invalid(f"{text} is in the past", field="desired.expires_at")
