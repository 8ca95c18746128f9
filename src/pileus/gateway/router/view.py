"""Reads what decides about a router's document."""

from __future__ import annotations

from pileus.gateway.facts import Guest
from pileus.gateway.link.plan import sides
from pileus.gateway.reading import guests_in, living, read_facts
from pileus.gateway.router.document import RULES, RouterView
from pileus.infra.zone.types import ZoneDesired
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store


async def load_view(store: Store, router: Resource) -> RouterView:
    """Return what decides about the document of ``router``: a list per kind, none per guest."""
    account, zone = router.account_id, router.assigned.zone
    guests = await guests_in(store, account, zone)
    facts = await read_facts(store, account, zone, guests)
    rules: list[Resource] = []
    for kind in RULES:
        found = await living(store, Filter(kind=kind, account_id=account))
        rules += [rule for rule in found if _concerns(rule, zone)]
    addresses = await living(store, Filter(kind="gateway.address", account_id=account))
    described: ZoneDesired = (await store.get(zone)).desired
    return RouterView(
        router=router,
        facts=facts,
        resolvers=described.dns,
        rules=tuple(rules),
        addresses=tuple(address for address in addresses if address.assigned.zone == zone),
        far_guests=await _far_guests(store, account, zone, rules),
    )


def _concerns(rule: Resource, zone: str) -> bool:
    """Tell whether the rule is about the zone: a link is about two."""
    if rule.kind == "gateway.link":
        return sides(rule, zone) is not None
    return bool(rule.assigned.zone == zone)


async def _far_guests(store: Store, account: str, zone: str, rules: list[Resource]) -> dict[str, tuple[Guest, ...]]:
    found = {}
    guests: dict[str, dict[str, Guest]] = {}
    for rule in rules:
        ends = sides(rule, zone) if rule.kind == "gateway.link" else None
        if ends is None:
            continue
        own, other = ends
        if other.zone not in guests:
            guests[other.zone] = await guests_in(store, account, other.zone)
        found[own.network] = tuple(_only(guest, other.network) for guest in guests[other.zone].values())
    return found


def _only(guest: Guest, network: str) -> Guest:
    return Guest(id=guest.id, name=guest.name, nics=tuple(nic for nic in guest.nics if nic.network == network))
