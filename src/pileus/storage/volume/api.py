"""Admission of a volume: its vdc and quota; it may only grow."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change, only
from pileus.kernel.errors import Conflict, Denied, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.quota import charge, space
from pileus.kernel.transaction import Exhausted, Transaction
from pileus.storage.image.types import refuse_unready
from pileus.storage.snapshot.types import SnapshotAssigned
from pileus.storage.volume.types import VolumeAssigned, VolumeDesired, attachment_space


class VolumeAdmission(Admission):
    """Checks a tenant's own volume; a VM's root volume is made and charged by its VM."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the volume with its vdc. Raises: Invalid, QuotaExceeded."""
        new, old = change.new, change.old
        desired: VolumeDesired = new.desired
        if old is None:
            vdc = await tx.get(change.links.get("vdc") or (await only(tx, "tenancy.vdc", new.account_id, "vdc")).id)
            new = replace(new, assigned=VolumeAssigned(zone=vdc.zone, vdc=vdc.id))
            if "image" in change.links:
                _check_image(await tx.get(change.links["image"]), desired)
            if "snapshot" in change.links:
                new = await _of_snapshot(tx, change, new, await tx.get(change.links["snapshot"]))
        else:
            vdc = await tx.get(old.vdc)
            if old.owner != old.account_id:
                owner = await tx.get(old.owner)
                raise Conflict(f"{old} belongs to {owner}; change that instead", code="in-use")
            if desired.size_gib < old.desired.size_gib:
                raise Invalid(
                    f"{old} has {old.desired.size_gib} GiB and may only grow; make a smaller one and copy",
                    field="desired.size_gib",
                )
        change.links["vdc"] = vdc.id  # also when it was not said: the vdc cannot go before the volume
        await charge(tx, vdc, new.id, {"volumes": 1, "disk_gib": desired.size_gib})
        return new

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Conflict while a VM has it."""
        holder = await tx.holder(attachment_space(resource.id), "vm")
        if holder is not None:
            raise Conflict(f"{resource} is attached to {await tx.get(holder)}; detach it first", code="in-use")


async def _of_snapshot(tx: Transaction, change: Change, new: Resource, snapshot: Resource) -> Resource:
    """Return the volume with its place, where the snapshot is. Raises: Invalid, Conflict, Denied."""
    kept: SnapshotAssigned = snapshot.assigned
    desired: VolumeDesired = new.desired
    if "image" in change.links:
        raise Invalid("a volume starts from an image or from a snapshot, not from both", field="desired.snapshot")
    if kept.of_appliance == "yes" and not change.principal.operator:
        raise Denied(f"{snapshot} is of an appliance; only the cloud's operator may read it")
    if new.assigned.zone != kept.zone:
        raise Invalid(f"{snapshot} is in another zone than the vdc", field="desired.vdc")
    if snapshot.observed is None or snapshot.observed.state != "present":
        raise Conflict(f"{snapshot} is not made yet; `pileus wait snapshot {snapshot.name}`", code="not-ready")
    if desired.size_gib < kept.size_gib:
        raise Invalid(f"{snapshot} has {kept.size_gib} GiB; ask for as much at least", field="desired.size_gib")
    try:
        await tx.charge(space(kept.pool, "disk_gib"), new.id, desired.size_gib)
    except Exhausted:
        raise Conflict(f"the pool of {snapshot} has too little room left for a copy", code="no-capacity") from None
    place = msgspec.structs.replace(new.assigned, host=kept.host, pool=kept.pool, snapshot=snapshot.id)
    return replace(new, assigned=place)


def _check_image(image: Resource, desired: VolumeDesired) -> None:
    """Raises: Conflict for an image that is not there yet; Invalid for one that is larger than the volume."""
    refuse_unready(image)
    image_gib = -(-image.observed.virtual_size_bytes // 2**30)
    if desired.size_gib < image_gib:
        raise Invalid(f"{image} has {image_gib} GiB; ask for as much at least", field="desired.size_gib")
