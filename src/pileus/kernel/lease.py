"""Long leases: which server does what must be done by one at a time, for as long as it lives.

A lease that is not renewed ends, and another server takes it, with a token of its own; what the old holder still writes
is refused by ``check`` in the transaction that would write it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from msgspec import Struct

from pileus.kernel.errors import LeaseLost
from pileus.kernel.loop import AHEAD_MAX_S, TOKEN_BITS
from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Row
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction


class Lease(Struct, frozen=True, kw_only=True):
    """A lease in hand."""

    id: str
    token: int


async def take(tx: Transaction, id: str, holder: str, for_s: float) -> Lease | None:
    """Return the lease of ``id``, unless another holder has it still."""
    if _is_held(await tx.statement(sql.LEASE, id=id), tx.now, for_s):
        return None
    token = secrets.randbits(TOKEN_BITS)
    await tx.change(tx.insert.lease, id=id, holder=holder, token=token, until=tx.now + for_s)
    return Lease(id=id, token=token)


async def is_free(store: Store, id: str, for_s: float) -> bool:
    """Tell whether ``take`` would give it now: to ask costs no transaction."""
    return not _is_held(await store.fetch(sql.LEASE, id=id), store.clock(), for_s)


def _is_held(rows: Sequence[Row], now: float, for_s: float) -> bool:
    # One that ends too far ahead was written before the clock was set back.
    return bool(rows) and now < rows[0][2] <= now + max(for_s, AHEAD_MAX_S)


async def renew(tx: Transaction, lease: Lease, for_s: float) -> None:
    """Hold it for longer. Raises: LeaseLost."""
    if await tx.change(sql.LEASE_RENEW, b_id=lease.id, b_token=lease.token, until=tx.now + for_s) != 1:
        raise LeaseLost(f"the lease on {lease.id} went to another server")


async def check(tx: Transaction, lease: Lease) -> None:
    """Raises: LeaseLost when another took it, also when nobody did but its time is over."""
    rows = await tx.statement(sql.LEASE, id=lease.id)
    if not rows or rows[0][1] != lease.token or rows[0][2] <= tx.now:
        raise LeaseLost(f"the lease on {lease.id} is over, or went to another server")


async def give_back(tx: Transaction, lease: Lease) -> None:
    """Let another server take it at once."""
    await tx.change(sql.LEASE_END, b_id=lease.id, b_token=lease.token)


async def holder(store: Store, id: str) -> str:
    """Return who holds the lease of ``id``; empty for nobody."""
    rows = await store.fetch(sql.LEASE, id=id)
    return str(rows[0][0]) if rows and rows[0][2] > store.clock() else ""
