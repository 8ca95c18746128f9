"""Admission of a filter: what it says is understood before a session asks it."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.kernel.admission import Admission, Change
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.mirror.filter.plan import compiled


class FilterAdmission(Admission):
    """A changed filter is in force at its sessions at once."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the filter. Raises: Invalid with the word that is not understood."""
        compiled(change.new.desired)
        if change.old is not None and change.old.desired != change.new.desired:
            # Packets say as much as a console.
            change.principal.require("console", "compute.vm")
            for session in await tx.referrers(change.new.id):
                approval = session.desired.approval if change.principal.operator else ""
                await tx.update(session, desired=replace(session.desired, approval=approval))
                await tx.enqueue(session.id)
        return change.new
