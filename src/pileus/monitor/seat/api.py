"""Admission of a seat: it is charged in the transaction that makes it, so that the last one goes to one only."""

from __future__ import annotations

from dataclasses import replace

from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import AlreadyClaimed, Exhausted, Transaction
from pileus.monitor.entitlement import plan
from pileus.monitor.entitlement.types import EntitlementDesired, holder_space, pinned_space, seats_space
from pileus.monitor.seat.types import SeatAssigned, SeatDesired, SeatObserved


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
        if term in ("future", "grace", "expired"):
            words = f"it begins {licence.starts}" if term == "future" else f"it ended {licence.ends}"
            raise Conflict(f"{entitlement} gives no seats now: {words}", code=term)
        units = plan.units(entitlement, desired.users, vm.assigned)
        try:
            await tx.claim(holder_space(entitlement.id), vm.id, new.id)
        except AlreadyClaimed as error:
            other = await tx.get(error.holder)
            raise Conflict(f"{vm} has {other} of {entitlement} already", code="already-exists") from None
        if licence.binding == "pinned":
            await _pin(tx, entitlement, vm, units)
        over = await _charge(tx, entitlement, new.id, units)
        await tx.enqueue(entitlement.id)
        return replace(
            new,
            assigned=SeatAssigned(entitlement=entitlement.id, vm=vm.id, units=units),
            observed=SeatObserved(
                state="over" if over else "held", message=f"{over} over the limit of {entitlement}" if over else ""
            ),
        )


async def _charge(tx: Transaction, entitlement: Resource, seat: str, units: int) -> int:
    """Take the units, and return how many are over the limit now. Raises: QuotaExceeded."""
    licence: EntitlementDesired = entitlement.desired
    try:
        await tx.charge(seats_space(entitlement.id), seat, units)
    except Exhausted as full:
        raise QuotaExceeded(
            f"{full.used} of {full.capacity} {licence.metric} of {entitlement} are in use, and {full.asked} more asked for; "
            "return a seat first (`pileus get seat` lists them), or register more",
            code="no-seat",
        ) from None
    _, used = await tx.budget(seats_space(entitlement.id))
    return max(0, used - licence.limit)


async def _pin(tx: Transaction, entitlement: Resource, vm: Resource, units: int) -> None:
    """Let the VM have its place until it is deleted. Raises: QuotaExceeded when others have them all."""
    try:
        await tx.charge(pinned_space(entitlement.id), vm.id, units)
    except Exhausted as full:
        raise QuotaExceeded(
            f"{entitlement} is pinned: {full.used} of {full.capacity} belong to VMs that had a seat before, which keep "
            "their place until they are deleted",
            code="no-seat",
        ) from None
