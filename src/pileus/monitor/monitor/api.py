"""Admission of a monitor: VMs that are there, and the share of a zone that its appliances go to."""

from __future__ import annotations

from dataclasses import replace

from pileus.kernel.admission import Admission, Change, only
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.monitor.monitor.types import MonitorAssigned
from pileus.monitor.policy.plan import require_rights


class MonitorAdmission(Admission):
    """What can be refused is refused here."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the monitor with its place. Raises: Invalid."""
        # No links: a VM that is watched may be deleted; it is watched again when one of its name comes back.
        for path in [path for path in change.links if path.startswith("vms.")]:
            del change.links[path]
        new = change.new
        if change.old is not None:
            # Whoever changes what is watched decides what its policies act on.
            for policy in await tx.referrers(new.id):
                if policy.kind == "monitor.policy":
                    require_rights(change.principal, policy.desired.do)
            return new
        if not new.desired.vdc:
            if new.desired.form == "server":
                return replace(new, assigned=MonitorAssigned())
            change.links["vdc"] = (await only(tx, "tenancy.vdc", new.account_id, "vdc")).id
        vdc = await tx.get(change.links["vdc"])
        return replace(new, assigned=MonitorAssigned(zone=vdc.assigned.zone, vdc=vdc.id))
