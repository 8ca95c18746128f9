"""What hosts, pools, networks and images offer to a request: their rows, and what is free of their budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from msgspec.structs import replace

from pileus.compute.offers import Choice, Offer, YesNo
from pileus.infra.host.types import HostDesired
from pileus.kernel.kind import Resource
from pileus.kernel.quota import space
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.store.tables import budget, claim
from pileus.kernel.transaction import Transaction
from pileus.network.network.plan import pool as address_pool
from pileus.network.network.types import address_space
from pileus.storage.image.types import is_available

HOSTS_MAX = 100_000
ALL_FREE = sa.select(budget.c.space, budget.c.capacity - budget.c.used)
TAKEN = sa.select(sa.func.count()).select_from(claim).where(claim.c.space == sa.bindparam("space"))
IMAGES = "images"
"""The server of all images: the cloud's own, each host fetches what it lacks."""


async def offers_in(tx: Transaction, request: Resource, links: Mapping[str, str]) -> list[Offer]:
    """Return the offers as they are inside this transaction."""
    hosts = await tx.matching(Filter(kind="infra.host", account_id=""), limit=HOSTS_MAX)
    pools = await tx.matching(Filter(kind="storage.pool", account_id=""), limit=HOSTS_MAX)
    free: dict[str, Any] = dict(await tx.statement(ALL_FREE))
    rows = [await tx.get(id) for id in sorted(set(links.values()))]
    taken = {row.id: int((await tx.statement(TAKEN, space=address_space(row.id)))[0][0]) for row in _networks(rows)}
    return [*of_hosts(hosts, pools, free), *_of_rest(rows, taken)]


class OfferTable:
    """The hosts' offers in memory, read again when old: what a transaction can charge is what counts in the end."""

    MAX_AGE_S = 0.5

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read_at = float("-inf")
        self._hosts: dict[str, Offer] = {}

    async def offers(self, links: Mapping[str, str]) -> list[Offer]:
        """Return what there is for a request that refers to these."""
        now = self._store.clock()
        if not 0 <= now - self._read_at < self.MAX_AGE_S:
            hosts = await self._store.list(Filter(kind="infra.host", account_id=""), limit=HOSTS_MAX)
            pools = await self._store.list(Filter(kind="storage.pool", account_id=""), limit=HOSTS_MAX)
            made = of_hosts(hosts, pools, dict(await self._store.fetch(ALL_FREE)))
            self._hosts = {offer.server: offer for offer in made}
            self._read_at = now
        rows = [*(await self._store.get_all(links.values())).values()]
        taken = {}
        for row in _networks(rows):
            taken[row.id] = int((await self._store.fetch(TAKEN, space=address_space(row.id)))[0][0])
        return [*self._hosts.values(), *_of_rest(rows, taken)]

    def take(self, choice: Choice) -> None:
        """Lower what is thought free by what was just chosen."""
        for held in (held for chosen in choice.chosen for held in chosen.held):
            offer = self._hosts.get(held.server)
            if offer is not None:
                left = {word: amount - held.quantity.get(word, 0) for word, amount in offer.quantity.items()}
                self._hosts[held.server] = replace(offer, quantity=left)

    def forget(self) -> None:
        """Read again at the next call: what was thought free was not, or is taken now."""
        self._read_at = float("-inf")


def of_hosts(hosts: Sequence[Resource], pools: Sequence[Resource], free: Mapping[str, Any]) -> list[Offer]:
    """Return the offers of hosts and their pools, given what is free of every budget."""
    by_host = {pool.host: pool for pool in reversed(pools)}  # the first pool of a host takes its volumes
    made = []
    for host in hosts:
        pool = by_host.get(host.id)
        uefi: YesNo = "yes" if host.observed is not None and host.observed.has_uefi == "yes" else "no"
        made.append(
            Offer(
                server=host.id,
                kind="host",
                name=host.name,
                zone=host.zone,
                quantity={word: int(free.get(space(host.id, word), 0)) for word in ("vcpus", "memory_mib")},
                pool=pool.id if pool is not None else "",
                refuses=_refuses(host),
                roles=host.desired.roles,
                uefi=uefi,
            )
        )
        if pool is not None:
            room = {"disk_gib": int(free.get(space(pool.id, "disk_gib"), 0))}
            made.append(Offer(server=pool.id, kind="pool", name=pool.name, zone=host.zone, quantity=room))
    return made


def _refuses(host: Resource) -> str:
    desired: HostDesired = host.desired
    if host.deleting:
        return "Deleting"
    if desired.scheduling == "cordoned":
        return "Cordoned"
    ready = host.ready
    return "" if ready is not None and ready.status == "true" else (ready.reason if ready else "NotReady")


def _networks(rows: Sequence[Resource]) -> list[Resource]:
    return [row for row in rows if row.kind == "network.network"]


def _of_rest(rows: Sequence[Resource], taken: Mapping[str, int]) -> list[Offer]:
    """Return the offers of the networks and of the image."""
    made = []
    for network in _networks(rows):
        low, high = address_pool(network.desired)
        left = {"addresses": max(high - low + 1 - taken[network.id], 0)}
        made.append(Offer(server=network.id, kind="network", name=network.name, zone=network.zone, quantity=left))
    there = {row.id: 1 for row in rows if row.kind == "storage.image" and is_available(row)}
    made.append(Offer(server=IMAGES, kind="images", name=IMAGES, quantity=there))
    return made
