"""Admission of a zone: VLAN IDs and public addresses that make sense."""

from __future__ import annotations

import ipaddress

from pileus.infra.zone.plan import public_pool
from pileus.infra.zone.types import ZoneDesired, public_space
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import Transaction


class ZoneAdmission(Admission):
    """Checks across the fields of a zone."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the zone. Raises: Invalid; Conflict for another public range while addresses of it are in use."""
        desired: ZoneDesired = change.new.desired
        if desired.vlan_first > desired.vlan_last:
            raise Invalid(
                f"vlan_first {desired.vlan_first} is above vlan_last {desired.vlan_last}", field="desired.vlan_first"
            )
        for address in desired.dns:
            try:
                ipaddress.IPv4Address(address)
            except ValueError:
                raise Invalid(f"{address!r} is not an IPv4 address", field="desired.dns") from None
        public_pool(desired)
        if change.old is not None and desired.public_range != change.old.desired.public_range:
            await _refuse_used(tx, change.old)
        return change.new


async def _refuse_used(tx: Transaction, zone: Resource) -> None:
    """Raises: Conflict while anybody holds a public address: numbers in the space are offsets in the range."""
    space = public_space(zone.id)
    if (await tx.statement(sql.CLAIM_LAST, space=space, high=2**32))[0][0] is not None:
        raise Conflict(
            f"addresses of {zone.desired.public_range} are in use in {zone}; its range can change once none is: "
            "`pileus get address --all-accounts` and `pileus get router --all-accounts` show them",
            code="in-use",
            field="desired.public_range",
        )
