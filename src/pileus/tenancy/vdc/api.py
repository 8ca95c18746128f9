"""Admission of a vdc: its zone, and its quota as budgets that every charge is held against."""

from __future__ import annotations

from dataclasses import replace

from msgspec.structs import asdict

from pileus.kernel.admission import Admission, Change, only
from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Waiting
from pileus.kernel.quota import remove_limits, set_limits, space
from pileus.kernel.store.store import Store
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

    async def may_delete(self, tx: Transaction, resource: Resource) -> None:
        """Raises: Conflict while something is in it."""
        held = await _held(tx, resource)
        if held:
            raise Conflict(f"{resource} still holds {held}; delete them first", code="in-use")


class VdcController(Controller):
    """Nothing to decide; its budgets go with it, and after everything that is charged to them."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Wait, when deleted with its account, for what is in it."""
        return Done(lambda tx: _wait_until_empty(tx, resource)) if resource.deleting else Done()

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Forget the budgets of the quota."""
        await remove_limits(tx, resource.id, asdict(Quota()))


async def _held(tx: Transaction, vdc: Resource) -> str:
    """Return what is charged to the quota, in words; empty when nothing is."""
    words = []
    for word in asdict(Quota()):
        _, used = await tx.budget(space(vdc.id, word))
        if used:
            words.append(f"{used} {word}")
    return ", ".join(words)


async def _wait_until_empty(tx: Transaction, vdc: Resource) -> None:
    held = await _held(tx, vdc)
    if held:
        raise Waiting("InUse", f"still holds {held}", 5.0)
