"""Admission of a snapshot: what may be copied by whom, where it lies, and what it costs of the quota."""

from __future__ import annotations

from dataclasses import replace

from pileus.kernel.access import OPERATOR, Principal
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, Denied
from pileus.kernel.kind import Resource
from pileus.kernel.quota import charge, space
from pileus.kernel.transaction import Exhausted, Transaction
from pileus.storage.snapshot.types import SnapshotAssigned
from pileus.storage.volume.types import VolumeAssigned, VolumeObserved, attachment_space


class SnapshotAdmission(Admission):
    """Decides everything at once: where the volume is, the snapshot will be."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the snapshot with its place. Raises: Conflict, Denied, QuotaExceeded."""
        if change.old is not None:
            return change.new
        volume = await tx.get(change.links.pop("volume"))  # no link is kept: the volume may go, and its VM with it
        place: VolumeAssigned = volume.assigned
        observed: VolumeObserved | None = volume.observed
        if not place.host or observed is None or observed.state != "present":
            message = f"{volume} is not made yet; it is when the first VM that uses it has a host"
            raise Conflict(message, code="not-made", field="desired.volume")
        vm = await _vm_of(tx, volume)
        is_of_appliance = vm is not None and vm.owner != vm.account_id
        if is_of_appliance and not change.principal.operator:
            raise Denied(f"{volume} is an appliance's; only the cloud's operator may copy it")
        size_gib = max(volume.desired.size_gib, observed.size_gib)
        vdc = await tx.get(place.vdc)
        change.links["vdc"] = vdc.id  # the vdc cannot go before the snapshot
        await charge(tx, vdc, change.new.id, {"disk_gib": size_gib})
        try:
            await tx.charge(space(place.pool, "disk_gib"), change.new.id, size_gib)
        except Exhausted:
            message = f"the pool of {volume} has too little room left for a copy of {size_gib} GiB"
            raise Conflict(f"{message}; delete volumes or snapshots there", code="no-capacity") from None
        decided = SnapshotAssigned(
            zone=place.zone,
            vdc=place.vdc,
            host=place.host,
            pool=place.pool,
            volume=volume.id,
            size_gib=size_gib,
            taken_by=change.principal.described,
            vm=vm.name if vm is not None else "",
            of_appliance="yes" if is_of_appliance else "no",
        )
        return replace(change.new, assigned=decided)

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Denied for an operator's evidence."""
        if resource.assigned.taken_by.startswith(OPERATOR) and not principal.operator:
            raise Denied(f"the cloud's operator keeps {resource}; ask the operator to delete it")


async def _vm_of(tx: Transaction, volume: Resource) -> Resource | None:
    """Return the VM that has the volume."""
    if volume.owner != volume.account_id:
        return await tx.get(volume.owner)
    holder = await tx.holder(attachment_space(volume.id), "vm")
    return await tx.get(holder) if holder is not None else None
