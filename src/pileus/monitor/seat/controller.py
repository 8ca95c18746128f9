"""The server half of a seat: it ends with its VM, with its lease when the VM does not run, and with its entitlement."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.kernel.clock import Clock
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.entitlement.types import seats_space
from pileus.monitor.seat.plan import standing
from pileus.monitor.seat.types import SeatAssigned, SeatObserved
from pileus.monitor.seats import give_back, look_again, return_seat


class SeatController(Controller):
    """Returns seats that nobody uses. It is woken by its VM and its entitlement, and by its own lease."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Return it when its time is over."""
        assigned: SeatAssigned = resource.assigned
        if resource.deleting:
            return Done()
        entitlement = await store.get(assigned.entitlement)
        vm = await store.find_id(assigned.vm)

        async def apply(tx: Transaction) -> None:
            # Whether its VM is off is decided on what is true in the transaction: after it the VM may not start.
            await _settle(tx, resource, await tx.get(entitlement.id))

        return Done(apply, after_s=standing(resource, entitlement, vm, self._clock()).after_s)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Let its VM know, and others have it."""
        await give_back(tx, resource)
        await look_again(tx, resource.assigned.vm)


async def _settle(tx: Transaction, seat: Resource, entitlement: Resource) -> None:
    assigned: SeatAssigned = seat.assigned
    now = standing(seat, entitlement, await tx.find_id(assigned.vm), tx.now)
    if now.returned:
        await return_seat(tx, seat, now.returned)
        await look_again(tx, assigned.vm)
        return
    _, used = await tx.budget(seats_space(entitlement.id))
    is_over = now.state == "held" and seat.observed.state == "over" and used > entitlement.desired.limit
    said = seat.observed if is_over else SeatObserved(state=now.state)
    if (said.state == "ended") != (seat.observed.state == "ended"):
        await tx.enqueue(assigned.vm)
    await tx.update(seat, assigned=replace(assigned, off_since=now.off_since), observed=said)
