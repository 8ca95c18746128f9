"""Admission of a zone: a range of VLAN IDs that makes sense."""

from __future__ import annotations

import ipaddress

from pileus.infra.zone.plan import public_pool
from pileus.infra.zone.types import ZoneDesired
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction


class ZoneAdmission(Admission):
    """Checks across the fields of a zone."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the zone. Raises: Invalid."""
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
        return change.new
