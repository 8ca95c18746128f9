"""Bearer keys: who calls, from memory where nothing changed; and the first administrator.

Only hashes of keys are stored. What is cached goes as soon as any user, role, key, account, fleet manager or consent
changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator

import msgspec
from msgspec import Struct

from pileus.fleet.consent import types as consent_types
from pileus.fleet.manager import types as manager_types
from pileus.fleet.manager.plan import built_in
from pileus.kernel.access import Principal
from pileus.kernel.clock import iso, unix
from pileus.kernel.errors import NotFound, Unauthenticated
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.tenancy.key import types as key_types
from pileus.tenancy.key.api import hashed, new_secret
from pileus.tenancy.role import types as role_types
from pileus.tenancy.role.types import MANAGER
from pileus.tenancy.user import types as user_types

PURPOSE = "key"
_KEY = re.compile(r"pil_[A-Za-z0-9_-]{40}")
CACHE_MAX = 10_000
"""Keys kept in memory; only ones that were good get there."""
RECHECK_S = 60.0
"""A connection that stays open is checked again this often even when nothing seems to have changed."""
FOLLOWED = (
    "tenancy.user",
    "tenancy.role",
    "tenancy.key",
    "tenancy.account",
    manager_types.KIND.name,
    consent_types.KIND.name,
)
"""Kinds that decide who calls and what that allows."""
OPERATOR_MADE = "operator/made"
ADMINISTRATOR = "admin"
MANAGER_ROLE = "manager"
"""The word for what managers' keys allow; there is no such object."""


class Known(Struct, frozen=True, kw_only=True):
    """A good key: who it is, and until which Unix second (0: for ever)."""

    principal: Principal
    expires_at: float = 0.0


class Auth:
    """Turns ``Authorization`` into a principal."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self._store = store
        self._hub = hub
        self._known: dict[str, Known] = {}
        self._epoch = 0
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start following changes of who calls and what that allows."""
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._forget(ready), name="auth")
        await ready.wait()

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def principal(self, authorization: str, address: str) -> Principal:
        """Return who sent this ``Authorization`` header from this socket address. Raises: Unauthenticated."""
        known = await self._find(authorization)
        return msgspec.structs.replace(known.principal, address=address)

    async def until_changed(self, authorization: str, principal: Principal) -> None:
        """Return once the header no longer means exactly this principal: key gone or expired, rights changed."""
        while True:
            epoch = self._epoch
            try:
                known = await self._find(authorization)
            except Unauthenticated:
                return
            if msgspec.structs.replace(known.principal, address=principal.address) != principal:
                return
            left_s = known.expires_at - self._store.clock() if known.expires_at else RECHECK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(left_s, 0.0) + 0.01, RECHECK_S)), self._changed:
                    await self._changed.wait_for(lambda seen=epoch: self._epoch != seen)  # type: ignore[misc]

    async def _find(self, authorization: str) -> Known:
        scheme, _, secret = authorization.partition(" ")
        if not authorization:
            raise Unauthenticated("this needs a key: send `Authorization: Bearer pil_...`, or use `pileus login`")
        if scheme.lower() != "bearer" or _KEY.fullmatch(secret) is None:
            raise Unauthenticated('the Authorization header must be "Bearer " and a key that starts with pil_')
        hash = hashed(secret)
        known = self._known.get(hash)
        if known is None:
            epoch = self._epoch
            known = await self._load(hash)
            if epoch == self._epoch:
                if len(self._known) >= CACHE_MAX:
                    self._known.clear()
                self._known[hash] = known
        if known.expires_at and known.expires_at <= self._store.clock():
            raise _expired(known.expires_at)
        return known

    async def _load(self, hash: str) -> Known:
        rows = await self._store.fetch(sql.CREDENTIAL, hash=hash)
        if not rows or rows[0][0] != PURPOSE:
            raise Unauthenticated("the key is unknown: deleted, mistyped or of another cluster; see `pileus context`")
        try:
            return await self._follow(rows[0][1], float(rows[0][2]))
        except NotFound as error:
            raise Unauthenticated("whose key it was is gone; ask for another key") from error

    async def _follow(self, key_id: str, expires_at: float) -> Known:
        key = await self._store.get(key_id)
        desired: key_types.KeyDesired = key.desired
        if key.deleting:
            raise Unauthenticated("the key was deleted; create another with `pileus create key`")
        ends = [end for end in (expires_at, unix(desired.expires_at) if desired.expires_at else 0.0) if end]
        links = await self._store.links(key.id)
        principal = await (self._manager(links["manager"]) if "manager" in links else self._user(links.get("user", "")))
        return Known(principal=msgspec.structs.replace(principal, key_id=key.id), expires_at=min(ends, default=0.0))

    async def _user(self, id: str) -> Principal:
        user = await self._store.get(id)
        role = await self._store.get((await self._store.links(user.id)).get("role", ""))
        person: user_types.UserDesired = user.desired
        allowed: role_types.RoleDesired = role.desired
        if user.deleting or person.state != "active":
            raise Unauthenticated(f"user {user.name} is disabled; ask an owner of the account to enable it")
        return Principal(
            user_id=user.id,
            user=user.name,
            account_id=user.account_id,
            account=user.account,
            role=role.name,
            rules=allowed.rules,
        )

    async def _manager(self, id: str) -> Principal:
        """Return a fleet manager with the accounts that consent now."""
        manager = await self._store.get(id)
        desired: manager_types.ManagerDesired = manager.desired
        if manager.deleting or desired.state != "active":
            raise Unauthenticated(f"{manager} is disabled; ask who runs it to set its state to active")
        asked = {"manager": manager.id, "kind": consent_types.KIND.name}
        consents = await self._store.fetch(sql.STANDING, **asked)
        withdrawn = (await self._store.fetch(sql.STANDING_GONE, **asked))[0][0] or 0
        return Principal(
            user_id=manager.id,
            user=manager.name,
            account_id=manager.account_id,
            account=manager.account,
            role=MANAGER_ROLE,
            rules=MANAGER.rules,
            manager_id=manager.id,
            consents=frozenset(account_id for account_id, _, deleting_at in consents if deleting_at is None),
            sight=max([withdrawn, *(revision for _, revision, _ in consents)]),
        )

    async def _forget(self, ready: asyncio.Event) -> None:
        with self._hub.watch(*(("kind", kind) for kind in FOLLOWED)) as changes:
            ready.set()
            while True:
                if await changes.wait(RECHECK_S):
                    self._known.clear()
                    self._epoch += 1
                    async with self._changed:
                        self._changed.notify_all()


def _expired(expires_at: float) -> Unauthenticated:
    return Unauthenticated(f"the key expired at {iso(expires_at)}; create another with `pileus create key`")


@contextlib.asynccontextmanager
async def following(auth: Auth) -> AsyncIterator[Auth]:
    """Have ``auth`` open for the block."""
    await auth.open()
    try:
        yield auth
    finally:
        await auth.close()


async def ensure_operator(store: Store) -> str | None:
    """Make the built-in roles and managers and, once in a cluster's life, the user ``admin``; return its key, or None.

    The key is returned by the call that makes it and never again; there is no default password anywhere.
    """
    secret = new_secret()

    async def ensure(tx: Transaction) -> str | None:
        for name, desired in role_types.BUILTIN.items():
            if await tx.find("tenancy.role", "", name) is None:
                await tx.create(Resource(id="", kind="tenancy.role", name=name, desired=desired))
        await ensure_managers(tx)
        if await tx.statement(sql.SETTING, name=OPERATOR_MADE):
            return None
        await tx.change(tx.insert.setting, name=OPERATOR_MADE, value="yes")
        await _make_key(tx, await _administrator(tx), secret)
        return secret

    return await store.write(ensure)


async def ensure_managers(tx: Transaction) -> None:
    """Make the managers that the platform itself is."""
    for name in manager_types.BUILTIN:
        if await tx.find(manager_types.KIND.name, "", name) is None:
            await tx.create(built_in(name, tx.new_id()))


async def replace_operator_key(store: Store) -> str:
    """Give the user ``admin`` (made again if need be) one more key and return it: for root when all keys are lost."""
    secret = new_secret()

    async def make(tx: Transaction) -> None:
        await _make_key(tx, await _administrator(tx), secret)

    await store.write(make)
    return secret


async def _administrator(tx: Transaction) -> Resource:
    user = await tx.find("tenancy.user", "", ADMINISTRATOR)
    if user is not None:
        return user
    role = await tx.find("tenancy.role", "", "operator")
    assert role is not None
    desired = user_types.UserDesired(role="operator")
    return await tx.create(Resource(id="", kind="tenancy.user", name=ADMINISTRATOR, desired=desired), {"role": role.id})


async def _make_key(tx: Transaction, user: Resource, secret: str) -> None:
    name = f"{ADMINISTRATOR}-{secrets.token_hex(4)}"
    desired = key_types.KeyDesired(user=user.name)
    key = await tx.create(Resource(id="", kind="tenancy.key", name=name, desired=desired), {"user": user.id})
    await tx.change(tx.insert.credential, hash=hashed(secret), purpose=PURPOSE, id=key.id, expires_at=0.0)
