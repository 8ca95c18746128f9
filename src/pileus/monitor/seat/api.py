"""Admission of a seat: it is charged in the transaction that makes it, so that the last one goes to one only."""

from __future__ import annotations

from dataclasses import replace

from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.monitor.entitlement import plan
from pileus.monitor.entitlement.types import EntitlementDesired
from pileus.monitor.seat.types import SeatAssigned, SeatDesired
from pileus.monitor.seats import give_back, look_again, observed_of, take_seat


class SeatAdmission(Admission):
    """What can be refused is refused here."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the seat with what it takes. Raises: Invalid, Conflict, QuotaExceeded."""
        new = change.new
        desired: SeatDesired = new.desired
        if change.old is not None:
            return new
        entitlement = await tx.get(change.links["entitlement"])
        # No link: a VM is deleted whatever it uses, and its seat goes with it.
        vm = await tx.get(change.links.pop("vm"))
        licence: EntitlementDesired = entitlement.desired
        term = plan.term(licence, entitlement.assigned, tx.now)
        if term not in plan.GIVING:
            words = f"it begins {licence.starts}" if term == "future" else f"it ended {licence.ends}"
            raise Conflict(f"{entitlement} gives no seats now: {words}", code=term)
        units = plan.units(entitlement, desired.users, vm.assigned)
        over = await take_seat(tx, entitlement, vm, new.id, units)
        await tx.enqueue(vm.id)
        return replace(
            new,
            assigned=SeatAssigned(entitlement=entitlement.id, vm=vm.id, units=units),
            observed=observed_of(over, entitlement),
        )

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Give it back at once: its VM may not start with what is being returned."""
        await give_back(tx, resource)
        await look_again(tx, resource.assigned.vm)
