"""Makes many resources due at once, a page per transaction: for what follows something that changed."""

from __future__ import annotations

from collections.abc import Iterable

from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

PAGE = 500


async def wake(store: Store, filters: Iterable[Filter]) -> None:
    """Make due everything that matches one of the filters."""
    for filter in filters:
        after = ""
        while ids := [resource.id for resource in await store.list(filter, after=after, limit=PAGE)]:

            async def enqueue(tx: Transaction, ids: list[str] = ids) -> None:
                for id in ids:
                    await tx.enqueue(id)

            await store.write(enqueue)
            after = ids[-1]
