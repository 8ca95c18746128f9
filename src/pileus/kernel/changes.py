"""What changed in an account since somebody looked last, by which a picture is kept that was read whole once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store

PAGE = 1000


class Changes:
    """Follows the revisions of one account."""

    def __init__(self, store: Store, account_id: str) -> None:
        self._store, self._account_id = store, account_id
        self._revision = 0

    async def begin(self) -> None:
        """Follow from now on: what is read after this is no older."""
        self._revision = await self._newest()

    async def news(self) -> dict[str, str]:
        """Return what was written or removed since it was asked last: id -> kind."""
        newest = await self._newest()
        found: dict[str, str] = {}
        for statement in (sql.CHANGES, sql.GONE) if newest != self._revision else ():
            place = self._revision
            while rows := await self._store.fetch(statement, after=place, n=PAGE):
                found |= {row[1]: row[2] for row in rows if row[3] == self._account_id}
                place = rows[-1][0]
                if len(rows) < PAGE:
                    break
        # What is committed meanwhile comes again: to hear of something twice does no harm.
        self._revision = newest
        return found

    async def _newest(self) -> int:
        newest: int = (await self._store.fetch(sql.NEWEST))[0][0]
        return newest


def ids_of(changed: dict[str, str], kind: str) -> list[str]:
    """Return the ids of one kind."""
    return [id for id, its in changed.items() if its == kind]


async def pages(store: Store, filter: Filter) -> AsyncIterator[Sequence[Resource]]:
    """Yield all resources that match; others have their turn between the pages."""
    after = ""
    while page := await store.list(filter, after=after, limit=PAGE):
        yield page
        after = page[-1].id
        await asyncio.sleep(0)


async def read_all(store: Store, kind: str, ids: Sequence[str]) -> list[Resource]:
    """Return those of these resources that are there."""
    found: list[Resource] = []
    for start in range(0, len(ids), PAGE):
        part = list(ids[start : start + PAGE])
        # A statement is made for each number of ids: there are few of them this way.
        part += part[:1] * ((1 << (len(part) - 1).bit_length()) - len(part))
        found += await store.list(Filter(kind=kind, ids=tuple(part)), limit=len(part))
        await asyncio.sleep(0)
    return found
