"""Admission of a public address: one of the zone's pool, claimed with the wish."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from pileus.gateway.address.types import AddressAssigned, AddressDesired
from pileus.gateway.admission import require_public, vdc_of, wake_router
from pileus.infra.zone.plan import PublicPool
from pileus.infra.zone.types import public_space
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.quota import charge, set_limits
from pileus.kernel.transaction import AlreadyClaimed, Exhausted, Transaction


class AddressAdmission(Admission):
    """Everything about an address is decided when it is made."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the address with its number claimed. Raises: Invalid, Conflict (pool-empty), QuotaExceeded."""
        new = change.new
        vdc = await vdc_of(tx, change)
        change.links["vdc"] = vdc.id
        if change.old is not None:
            return new
        zone = await tx.get(vdc.zone)
        pool = require_public(zone)
        await set_limits(tx, vdc.id, {"addresses": vdc.desired.quota.addresses})  # vdcs are older than this limit
        await charge(tx, vdc, new.id, {"addresses": 1})
        number = await _claim(tx, new, zone, pool)
        await wake_router(tx, new.account_id, zone.id)
        assigned = AddressAssigned(
            zone=zone.id,
            vdc=vdc.id,
            address=pool.address(number),
            prefix=pool.network.prefixlen,
            gateway=str(pool.gateway),
        )
        return replace(new, assigned=assigned)


async def _claim(tx: Transaction, new: Resource, zone: Resource, pool: PublicPool) -> int:
    desired: AddressDesired = new.desired
    space = public_space(zone.id)
    if not desired.address:
        try:
            return await tx.claim_number(space, pool.low, pool.high, new.id)
        except Exhausted:
            raise Conflict(
                f"all {pool.size} public addresses of {zone} are in use; delete one that you do not need, or ask the "
                "operator for a larger public range",
                code="pool-empty",
            ) from None
    number = _number(desired.address, zone, pool)
    try:
        await tx.claim(space, str(number), new.id, number)
    except AlreadyClaimed:
        raise Conflict(
            f"{desired.address} is in use; choose another of {pool}, or leave the address out to get a free one",
            code="address-in-use",
            field="desired.address",
        ) from None
    return number


def _number(text: str, zone: Resource, pool: PublicPool) -> int:
    try:
        address = IPv4Address(text)
    except ValueError:
        raise Invalid(f"{text!r} is not an IPv4 address", field="desired.address") from None
    number = pool.number(address)
    if not pool.low <= number <= pool.high:
        raise Invalid(
            f"{address} is none of the public addresses of {zone}, which are {pool}; leave it out to get a free one",
            field="desired.address",
        )
    return number
