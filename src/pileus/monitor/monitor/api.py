"""Admission of a monitor: VMs that are there, and the share of a zone that its appliances go to."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from pileus.kernel.admission import Admission, Change, only
from pileus.kernel.clock import unix
from pileus.kernel.ends import decided_end, ends_of
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.monitor.monitor.types import MonitorAssigned, MonitorDesired
from pileus.monitor.policy.plan import require_rights
from pileus.storage.image.types import refuse_unready


class MonitorAdmission(Admission):
    """What can be refused is refused here."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the monitor with its place. Raises: Invalid, Conflict."""
        # No links: a VM that is watched may be deleted; it is watched again when one of its name comes back.
        for path in [path for path in change.links if path.startswith("vms.")]:
            del change.links[path]
        new = change.new
        if change.old is not None:
            # Whoever changes what is watched decides what its policies act on.
            for policy in await tx.referrers(new.id):
                if policy.kind == "monitor.policy":
                    require_rights(change.principal, policy.desired.do)
            return _with_end(change.old, new, tx.now)
        desired: MonitorDesired = new.desired
        assigned = MonitorAssigned(end=decided_end(desired, tx.now, tx.now), image=await _image(tx, change))
        if not desired.vdc:
            if desired.form == "server":
                return replace(new, assigned=assigned)
            change.links["vdc"] = (await only(tx, "tenancy.vdc", new.account_id, "vdc")).id
        vdc = await tx.get(change.links["vdc"])
        return replace(new, assigned=msgspec.structs.replace(assigned, zone=vdc.assigned.zone, vdc=vdc.id))


def _with_end(old: Resource, new: Resource, now: float) -> Resource:
    """Return the monitor with its end, which a new word puts off. Raises: Invalid."""
    if ends_of(new.desired) == ends_of(old.desired):
        return new
    end = decided_end(new.desired, unix(old.created_at), now)
    return replace(new, assigned=msgspec.structs.replace(old.assigned, end=end))


async def _image(tx: Transaction, change: Change) -> str:
    """Return the id of the image that its appliances are made of. Raises: Invalid, Conflict (image-not-ready)."""
    id = change.links.get("image", "")
    if id and change.new.desired.form != "appliance":
        raise Invalid("an image is what appliances are made of; say form appliance, too", field="desired.image")
    if id:
        refuse_unready(await tx.get(id))
    return id
