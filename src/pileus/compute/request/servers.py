"""What hosts, pools, networks and images offer to a request: their rows, and what is held of their budgets, and when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from pileus.compute.offers import Held, Offer, YesNo
from pileus.compute.request.plan import LATE_S
from pileus.infra.host.types import HostDesired
from pileus.kernel.holding import COVER
from pileus.kernel.kind import Resource
from pileus.kernel.quota import space
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.tables import budget, charge, claim, promise
from pileus.kernel.transaction import Transaction
from pileus.network.network.plan import pool as address_pool
from pileus.network.network.types import address_space
from pileus.storage.image.types import is_available

HOSTS_MAX = 100_000
FREE = sa.select(budget.c.space, budget.c.capacity - budget.c.used)
TIMED = (
    sa.select(charge.c.space, charge.c.until, sa.cast(sa.func.sum(charge.c.amount), sa.BigInteger))
    .where(charge.c.until != sa.literal_column("0"))
    .group_by(charge.c.space, charge.c.until)
)
PROMISED = sa.select(
    promise.c.space, promise.c.start, promise.c.until, sa.cast(sa.func.sum(promise.c.amount), sa.BigInteger)
).group_by(promise.c.space, promise.c.start, promise.c.until)
TAKEN = sa.select(sa.func.count()).select_from(claim).where(claim.c.space == sa.bindparam("space"))
IMAGES = "images"
"""The server of all images: the cloud's own, each host fetches what it lacks."""


class Budgets(NamedTuple):
    """What there is of each space beside what has no end, and what each server holds until, or from, a known moment."""

    free: dict[str, int]
    held: Mapping[str, tuple[Held, ...]]


def budgets_of(
    free: Iterable[Any], timed: Iterable[tuple[str, float, int]], promised: Iterable[Any], now: float
) -> Budgets:
    """Return the budgets as these rows have them."""
    there = {where: int(amount) for where, amount in free}
    held: dict[str, list[Held]] = defaultdict(list)
    for where, until, amount in timed:
        server, _, word = where.partition("/")
        there[where] = there.get(where, 0) + amount
        if until != COVER:  # what should have ended and has not is thought to end soon
            ends = until if until > now else now + LATE_S
            held[server].append(Held(server=server, quantity={word: amount}, until=ends))
    for where, start, until, amount in promised:
        server, _, word = where.partition("/")
        held[server].append(Held(server=server, quantity={word: amount}, start=start, until=until or float("inf")))
    return Budgets(there, {server: tuple(some) for server, some in held.items()})


async def offers_in(tx: Transaction, links: Mapping[str, str]) -> tuple[list[Offer], list[Held]]:
    """Return the offers as they are inside this transaction, and what is held of them."""
    hosts = await tx.matching(Filter(kind="infra.host", account_id=""), limit=HOSTS_MAX)
    pools = await tx.matching(Filter(kind="storage.pool", account_id=""), limit=HOSTS_MAX)
    budgets = budgets_of(await tx.statement(FREE), await tx.statement(TIMED), await tx.statement(PROMISED), tx.now)
    rows = [await tx.get(id) for id in sorted(set(links.values()))]
    taken = {row.id: int((await tx.statement(TAKEN, space=address_space(row.id)))[0][0]) for row in networks(rows)}
    offers = [*of_hosts(hosts, pools, budgets.free), *of_rest(rows, taken)]
    return offers, [held for offer in offers for held in budgets.held.get(offer.server, ())]


def of_hosts(hosts: Iterable[Resource], pools: Iterable[Resource], free: Mapping[str, int]) -> list[Offer]:
    """Return the offers of hosts and their pools, given what there is of every budget."""
    by_host: dict[str, Resource] = {}
    for pool in pools:  # the first pool of a host takes its volumes
        by_host[pool.host] = min(pool, by_host.get(pool.host, pool), key=lambda each: each.id)
    made = []
    for host in hosts:
        own = by_host.get(host.id)
        uefi: YesNo = "yes" if host.observed is not None and host.observed.has_uefi == "yes" else "no"
        made.append(
            Offer(
                server=host.id,
                kind="host",
                name=host.name,
                zone=host.zone,
                quantity={word: free.get(space(host.id, word), 0) for word in ("vcpus", "memory_mib")},
                pool=own.id if own is not None else "",
                refuses=_refuses(host),
                roles=host.desired.roles,
                uefi=uefi,
            )
        )
        if own is not None:
            room = {"disk_gib": free.get(space(own.id, "disk_gib"), 0)}
            made.append(Offer(server=own.id, kind="pool", name=own.name, zone=host.zone, quantity=room))
    return made


def _refuses(host: Resource) -> str:
    desired: HostDesired = host.desired
    if host.deleting:
        return "Deleting"
    if desired.scheduling == "cordoned":
        return "Cordoned"
    ready = host.ready
    return "" if ready is not None and ready.status == "true" else (ready.reason if ready else "NotReady")


def networks(rows: Iterable[Resource]) -> list[Resource]:
    """Return those of what a request refers to that are networks."""
    return [row for row in rows if row.kind == "network.network"]


def of_rest(rows: Sequence[Resource], taken: Mapping[str, int]) -> list[Offer]:
    """Return the offers of the networks and of the image."""
    made = []
    for network in networks(rows):
        low, high = address_pool(network.desired)
        left = {"addresses": max(high - low + 1 - taken[network.id], 0)}
        made.append(Offer(server=network.id, kind="network", name=network.name, zone=network.zone, quantity=left))
    there = {row.id: 1 for row in rows if row.kind == "storage.image" and is_available(row)}
    made.append(Offer(server=IMAGES, kind="images", name=IMAGES, quantity=there))
    return made
