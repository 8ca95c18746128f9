"""Makes many resources due, a page per transaction: for what follows something that changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

PAGE = 500


async def wake(store: Store, filters: Iterable[Filter]) -> None:
    """Make due everything that matches one of the filters."""
    for filter in filters:
        after = ""
        while ids := [resource.id for resource in await store.list(filter, after=after, limit=PAGE)]:
            await wake_ids(store, ids)
            after = ids[-1]


async def wake_ids(store: Store, ids: Sequence[str]) -> None:
    """Make these due."""
    for first in range(0, len(ids), PAGE):

        async def enqueue(tx: Transaction, page: Sequence[str] = ids[first : first + PAGE]) -> None:
            for id in page:
                await tx.enqueue(id)

        await store.write(enqueue)
