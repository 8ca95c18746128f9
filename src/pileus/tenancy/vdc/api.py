"""Admission of a vdc: its zone, and its quota as budgets that every charge is held against."""

from __future__ import annotations

from dataclasses import replace

from msgspec.structs import asdict

from pileus.kernel.admission import Admission, Change, only
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.quota import remove_limits, set_limits
from pileus.kernel.transaction import Transaction
from pileus.tenancy.vdc.types import Quota, VdcAssigned, VdcDesired


class VdcAdmission(Admission):
    """Puts the quota in force with the wish itself, so that it holds from the first moment."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the vdc with its zone. Raises: Invalid when the zone is not clear."""
        new = change.new
        desired: VdcDesired = new.desired
        if change.old is None:
            zone = change.links.get("zone") or (await only(tx, "infra.zone", "", "zone")).id
            new = replace(new, assigned=VdcAssigned(zone=zone))
        await set_limits(tx, new.id, asdict(desired.quota))
        return new


class VdcController(Controller):
    """Nothing to decide; its budgets go with it."""

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Forget the budgets of the quota."""
        await remove_limits(tx, resource.id, asdict(Quota()))
