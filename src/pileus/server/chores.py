"""What a server does by the clock: forgets what is too old to matter, and renews its certificate in time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Sequence

from pileus.kernel.background import for_ever
from pileus.kernel.clock import iso
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

EVERY_S = 600.0
GONE_S = 86_400.0
"""A watch that was away longer starts again from the whole list."""
IDEMPOTENCY_S = 86_400.0
"""How long a repeated Idempotency-Key gets the first answer."""
EVENT_S = 30 * 86_400.0
"""How long events are kept. The audit log is kept for ever."""
EVENTS_AT_ONCE = 5_000
"""Few enough not to keep other writers waiting."""
METER_EVERY_S = 86_400.0
METERED_AT_ONCE = 200
CREDENTIAL_S = 30 * 86_400.0
"""How long an expired key is told from an unknown one."""


@contextlib.asynccontextmanager
async def running(store: Store, *tidy: Callable[[], None]) -> AsyncIterator[None]:
    """Do the chores in the background for the block; ``tidy``: others, which need no store."""
    tasks = [
        for_ever(lambda: _prune_later(store), "prune"),
        for_ever(lambda: _tidy_later(tidy), "tidying"),
        for_ever(lambda: _meter_daily(store), "metering"),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def prune(store: Store) -> None:
    """Forget what is too old to matter."""

    async def work(tx: Transaction) -> None:
        last = (await tx.statement(sql.GONE_LAST, before=tx.now - GONE_S))[0][0]
        if last is not None:
            await tx.change(tx.insert.setting, name=sql.FORGOTTEN, value=str(last))
        for statement, age_s in zip(sql.PRUNE, (GONE_S, IDEMPOTENCY_S, CREDENTIAL_S), strict=True):
            await tx.change(statement, before=tx.now - age_s)

    async def events(tx: Transaction) -> int:
        return await tx.change(sql.PRUNE_EVENTS, before=iso(tx.now - EVENT_S), n=EVENTS_AT_ONCE)

    await store.write(work)
    while await store.write(events) == EVENTS_AT_ONCE:
        pass


async def meter_all(store: Store) -> None:
    """Let the meter have all that is used: after an upgrade from a version without one, or beside an older server."""
    for kind in (each for each in store.registry if each.meter is not None):
        after = ""
        while page := await store.list(Filter(kind=kind.name, account_id=None), after=after, limit=METERED_AT_ONCE):
            ids = [each.id for each in page]
            await store.write(functools.partial(_meter, ids=ids))
            after = ids[-1]
    for id, since, gone_at in await store.fetch(sql.USAGE_LEFT):
        await store.write(functools.partial(_end_run, id=id, since=since, until=gone_at))


async def _end_run(tx: Transaction, id: str, since: float, until: float | None) -> None:
    """End the run of what an older server let go; when that was is known for a day."""
    await tx.change(sql.USAGE_END, b_id=id, b_since=since, until=max(tx.now if until is None else until, since))


async def _meter(tx: Transaction, ids: Sequence[str]) -> None:
    for id in ids:
        found = await tx.find_id(id)
        if found is not None:
            await tx.meter(found)


async def _meter_daily(store: Store) -> None:
    await meter_all(store)
    await asyncio.sleep(METER_EVERY_S)


async def _prune_later(store: Store) -> None:
    await asyncio.sleep(EVERY_S)
    await prune(store)


async def _tidy_later(tidy: Sequence[Callable[[], None]]) -> None:
    await asyncio.sleep(EVERY_S)
    for each in tidy:
        each()
