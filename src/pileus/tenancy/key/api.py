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
from pileus.tenancy.role.types import MANAGER

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
        """Return the key. Raises: Invalid for a bad or past time, or not one holder; Denied for a more powerful one's."""
        expires_at = change.new.desired.expires_at
        if expires_at:
            _expiry(expires_at, tx.now)
        word, holder = await _holder(tx, change.links)
        if holder.account_id != change.new.account_id:
            raise Invalid(f"{holder} is not of this account; make the key where the {word} is", field=f"desired.{word}")
        await _refuse_more_powerful(tx, holder, change.principal)
        if change.old is not None and expires_at != change.old.desired.expires_at:
            raise Invalid(
                "a key's expiry cannot be changed; make another key", field="desired.expires_at", code="immutable"
            )
        return change.new

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Denied for the key of a more powerful user."""
        _, holder = await _holder(tx, await tx.links(resource.id))
        await _refuse_more_powerful(tx, holder, principal)

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


async def _holder(tx: Transaction, links: Mapping[str, str]) -> tuple[str, Resource]:
    """Return which field says whose key it is, and who that is. Raises: Invalid unless exactly one does."""
    words = [word for word in ("user", "manager") if word in links]
    if len(words) != 1:
        said = "both were said" if words else "neither was said"
        raise Invalid(f"a key belongs to a user or to a manager, exactly one of them; {said}", field="desired.user")
    return words[0], await tx.get(links[words[0]])


async def _refuse_more_powerful(tx: Transaction, holder: Resource, principal: Principal) -> None:
    links = await tx.links(holder.id)
    if "role" not in links:
        refuse_more_powerful(tx, principal, MANAGER.rules, str(holder))
        return
    role = await tx.get(links["role"])
    refuse_more_powerful(tx, principal, role.desired.rules, f"role {role.name} of {holder}")


def _expiry(text: str, now: float) -> None:
    try:
        expires = unix(text)
    except ValueError:
        raise Invalid(
            f"{text!r} is not an RFC 3339 time such as 2030-01-31T12:00:00Z", field="desired.expires_at"
        ) from None
    if expires <= now:
        raise Invalid(f"{text} is in the past", field="desired.expires_at")
