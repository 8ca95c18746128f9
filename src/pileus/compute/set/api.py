"""Admission of a set: its template, and what all its members cost of the quota."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from pileus.compute.set.types import SetAssigned, SetDesired
from pileus.compute.template import charge_members, decided
from pileus.kernel.admission import Admission, Change
from pileus.kernel.clock import unix
from pileus.kernel.ends import decided_end, ends_of
from pileus.kernel.errors import Denied, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction


class SetAdmission(Admission):
    """The quota of all members is taken when they are asked for."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the set with its template decided. Raises: Invalid, Conflict, QuotaExceeded, Denied."""
        new, old = change.new, change.old
        desired: SetDesired = new.desired
        if old is None:
            assigned = SetAssigned(**await decided(tx, change), end=decided_end(desired, tx.now, tx.now))
            await charge_members(tx, assigned, new.id, desired.count)
            return replace(new, assigned=assigned)
        change.links.update(await tx.links(old.id))  # what was decided stays, said or not
        if desired.restart_serial < old.desired.restart_serial:
            raise Invalid("restart_serial may only be raised", field="desired.restart_serial")
        if old.assigned.request:
            if ends_of(desired) != ends_of(old.desired):
                raise Denied(f"{old} ends with {await tx.get(old.owner)}; patch duration_s of that")
            if desired.count != old.desired.count:
                raise Denied(f"the members of {old} are those of {await tx.get(old.owner)}; make another request")
            return new
        there = await tx.matching(Filter(kind="compute.vm", owner=old.id), limit=2 * old.desired.count + 100)
        await charge_members(tx, old.assigned, old.id, max(desired.count, len(there)))
        if ends_of(desired) == ends_of(old.desired):
            return new
        end = decided_end(desired, unix(old.created_at), tx.now)
        return replace(new, assigned=msgspec.structs.replace(old.assigned, end=end))
