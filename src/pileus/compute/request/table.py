"""The offers in memory: one book, in which only what changed is written again. What a transaction charges counts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from pileus.compute.book import Book
from pileus.compute.choosing import choose
from pileus.compute.offers import Choice, Held, Machine, Mode, Offer
from pileus.compute.request.servers import (
    FREE,
    PROMISED,
    TAKEN,
    TIMED,
    Budgets,
    budgets_of,
    networks,
    of_hosts,
    of_rest,
)
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.store.tables import resource
from pileus.network.network.types import address_space

HOSTS, POOLS = "infra.host", "storage.pool"
REVISIONS = sa.select(resource.c.id, resource.c.revision).where(resource.c.kind == sa.bindparam("kind"))
FEW = 50
"""So many rows that changed are read one by one."""

Known = tuple[Offer, tuple[Held, ...]]


class OfferTable:
    """Chooses from what hosts offer, which is read again when it is old."""

    MAX_AGE_S = 0.5

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")
        self._rows: dict[str, dict[str, Resource]] = {HOSTS: {}, POOLS: {}}
        self._book = Book(())
        self._known: dict[str, Known] = {}
        """What the book was told of each server, without those of which something was chosen since."""

    async def choose(self, links: Mapping[str, str], machines: Sequence[Machine], mode: Mode, now: float) -> Choice:
        """Return what is chosen for a request that refers to these; it counts as taken until offers are read again.

        ``now``: the moment for which the machines' windows were reckoned.
        """
        await self._refresh()
        rest = await self._rest(links)
        for offer in rest:
            self._book.put(offer)
        choice = choose(machines, self._book, mode, now)
        for offer in rest:
            self._book.drop(offer.server)
        held = [held for chosen in choice.chosen for held in chosen.held]
        self._book.take(held, now)
        for each in held:
            self._known.pop(each.server, None)
        return choice

    async def offers(self, links: Mapping[str, str]) -> tuple[list[Offer], list[Held]]:
        """Return what there is for a request that refers to these, and what is held of it."""
        self.forget()
        await self._refresh()
        known = list(self._known.values())
        rest = await self._rest(links)
        return [*(offer for offer, _ in known), *rest], [held for _, some in known for held in some]

    def forget(self) -> None:
        """Read again at the next call: what was thought free was not, or is taken now."""
        self._read_at = float("-inf")

    async def _rest(self, links: Mapping[str, str]) -> list[Offer]:
        rows = [*(await self._store.get_all(links.values())).values()]
        taken = {}
        for row in networks(rows):
            taken[row.id] = int((await self._store.fetch(TAKEN, space=address_space(row.id)))[0][0])
        return of_rest(rows, taken)

    async def _refresh(self) -> None:
        async with self._reading:
            now = self._store.clock()
            if 0 <= now - self._read_at < self.MAX_AGE_S:
                return
            for kind in (HOSTS, POOLS):
                await self._read(kind)
            fetch = self._store.fetch
            budgets = budgets_of(await fetch(FREE), await fetch(TIMED), await fetch(PROMISED), now)
            self._write(budgets, now)
            self._read_at = now

    async def _read(self, kind: str) -> None:
        """Read the rows that are new or changed."""
        known = self._rows[kind]
        revisions: dict[str, int] = dict(await self._store.fetch(REVISIONS, kind=kind))
        changed = [id for id, revision in revisions.items() if id not in known or known[id].revision != revision]
        for id in known.keys() - revisions.keys():
            del known[id]
        if len(changed) > FEW:
            self._rows[kind] = {row.id: row for row in await self._store.list_all(Filter(kind=kind, account_id=""))}
            return
        for id in changed:
            row = await self._store.find_id(id)
            if row is not None:
                known[id] = row

    def _write(self, budgets: Budgets, now: float) -> None:
        """Tell the book what is different."""
        offers = of_hosts(self._rows[HOSTS].values(), self._rows[POOLS].values(), budgets.free)
        there = {offer.server for offer in offers}
        for server in [server for server in self._book.offers if server not in there]:
            self._book.drop(server)
            self._known.pop(server, None)
        for offer in offers:
            after = (offer, budgets.held.get(offer.server, ()))
            if self._known.get(offer.server) != after:
                self._book.put(offer)
                self._book.take(after[1], now)
                self._known[offer.server] = after
