"""Admission of a network: a private range that meets no other of the account in the zone; its gateway is claimed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

import msgspec

from pileus.infra.zone.types import RouterWish
from pileus.kernel.admission import Admission, Change, only
from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.quota import charge
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction
from pileus.network.network.plan import offset, parse_address, parse_range, pool
from pileus.network.network.types import NetworkAssigned, NetworkDesired, address_space

PORTS_MAX = 100_000
"""Of an account in a zone."""


class NetworkAdmission(Admission):
    """Decides everything about a network when it is made."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the network with its zone, gateway and router. Raises: Invalid, Conflict (overlap), QuotaExceeded."""
        new = change.new
        desired: NetworkDesired = new.desired
        if change.old is not None:
            change.links["vdc"] = change.old.vdc
            router = _router(desired, await tx.get(new.zone))
            if (router, desired.dns) != (new.assigned.router, change.old.desired.dns):
                await _wake_ports(tx, new)
            return replace(new, assigned=msgspec.structs.replace(new.assigned, router=router))
        range_ = parse_range(desired.range)
        pool(desired)
        gateway = range_.network_address + 1
        if desired.gateway:
            gateway = parse_address(desired.gateway, range_, "desired.gateway")
        vdc = await tx.get(change.links.get("vdc") or (await only(tx, "tenancy.vdc", new.account_id, "vdc")).id)
        change.links["vdc"] = vdc.id  # also when it was not said: the vdc cannot go before the network
        zone = await tx.get(vdc.zone)
        await _refuse_overlap(tx, new, zone, range_)
        await charge(tx, vdc, new.id, {"networks": 1})
        number = offset(gateway, range_)
        await tx.claim(address_space(new.id), str(number), new.id, number)
        router = _router(desired, zone)
        return replace(new, assigned=NetworkAssigned(zone=vdc.zone, vdc=vdc.id, gateway=str(gateway), router=router))


async def _refuse_overlap(tx: Transaction, new: Resource, zone: Resource, range_: IPv4Network) -> None:
    public = zone.desired.public_range
    if public and IPv4Network(public).overlaps(range_):
        raise Conflict(
            f"{range_} overlaps the zone's public range {public}; say another with --range",
            code="overlap",
            field="desired.range",
        )
    for other in await tx.matching(Filter(kind=new.kind, account_id=new.account_id, zone=zone.id)):
        if parse_range(other.desired.range).overlaps(range_):
            raise Conflict(
                f"{range_} overlaps {other.desired.range} of {other}, which is in the same zone; say another with --range",
                code="overlap",
                field="desired.range",
            )


def _router(desired: NetworkDesired, zone: Resource) -> RouterWish:
    """Return who serves the network: what it says, else what its zone says."""
    wish: RouterWish = desired.router or zone.desired.router
    return wish


async def _wake_ports(tx: Transaction, network: Resource) -> None:
    """Let ports see that their network has a router now, or none any more, or other name servers."""
    here = Filter(kind="network.port", account_id=network.account_id, zone=network.zone)
    for port in await tx.matching(here, limit=PORTS_MAX):
        await tx.enqueue(port.id)
