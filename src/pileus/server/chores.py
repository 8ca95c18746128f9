"""What a server does by the clock: forgets what is too old to matter, and renews its certificate in time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from pileus.kernel.background import for_ever
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

EVERY_S = 600.0
GONE_S = 86_400.0
"""A watch that was away longer starts again from the whole list."""
IDEMPOTENCY_S = 86_400.0
"""How long a repeated Idempotency-Key gets the first answer."""
CREDENTIAL_S = 30 * 86_400.0
"""How long an expired key is told from an unknown one."""


@contextlib.asynccontextmanager
async def running(store: Store, renew: Callable[[], None]) -> AsyncIterator[None]:
    """Do the chores in the background for the block."""
    tasks = [for_ever(lambda: _prune_later(store), "prune"), for_ever(lambda: _renew_later(renew), "renewal")]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def prune(store: Store) -> None:
    """Forget what is too old to matter."""

    async def work(tx: Transaction) -> None:
        for statement, age_s in zip(sql.PRUNE, (GONE_S, IDEMPOTENCY_S, CREDENTIAL_S), strict=True):
            await tx.change(statement, before=tx.now - age_s)

    await store.write(work)


async def _prune_later(store: Store) -> None:
    await asyncio.sleep(EVERY_S)
    await prune(store)


async def _renew_later(renew: Callable[[], None]) -> None:
    await asyncio.sleep(EVERY_S)
    renew()
