"""The server half of a seat: it ends with its VM, with its lease when the VM does not run, and with its entitlement."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from pileus.compute.vm.types import VmObserved
from pileus.kernel.clock import Clock
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.entitlement import plan
from pileus.monitor.entitlement.types import seats_space
from pileus.monitor.seat.types import SeatAssigned, SeatDesired, SeatObserved

LOOK_AGAIN_S = 10.0


class SeatController(Controller):
    """Returns seats that nobody uses."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Return it when its time is over."""
        assigned: SeatAssigned = resource.assigned
        desired: SeatDesired = resource.desired
        if resource.deleting:
            return Done()
        now = self._clock()
        entitlement = await store.get(assigned.entitlement)
        vm = await store.find_id(assigned.vm)
        term = plan.term(entitlement.desired, entitlement.assigned, now)
        off_since = 0.0 if vm is not None and _lives(vm) else assigned.off_since or now
        if vm is None or (off_since and now >= off_since + desired.lease_s):
            words = "its VM is gone" if vm is None else f"its VM has not run for {desired.lease_s} s"
            return Done(lambda tx: _return(tx, resource, words))
        if term == "expired" and entitlement.desired.at_end == "return":
            return Done(lambda tx: _return(tx, resource, f"{entitlement} has ended"))
        state: Literal["held", "over", "ended"] = "ended" if term == "expired" else "held"

        async def apply(tx: Transaction) -> None:
            current = await tx.get(resource.id)
            _, used = await tx.budget(seats_space(entitlement.id))
            is_over = state == "held" and current.observed.state == "over" and used > entitlement.desired.limit
            said = current.observed if is_over else SeatObserved(state=state)
            await tx.update(current, assigned=replace(assigned, off_since=off_since), observed=said)

        return Done(apply, after_s=LOOK_AGAIN_S)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Let the entitlement say how much is in use now."""
        await tx.enqueue(resource.assigned.entitlement)


def _lives(vm: Resource) -> bool:
    """Tell whether it runs or is paused, as far as is known: a host that is silent returns no seat."""
    observed: VmObserved | None = vm.observed
    is_known = vm.ready is None or vm.ready.status != "unknown"
    return not is_known or (observed is not None and observed.power in ("running", "paused", "unknown"))


async def _return(tx: Transaction, seat: Resource, words: str) -> None:
    await tx.event(seat, "Returned", "Returned", f"{seat} was returned: {words}")
    await tx.mark_deleting(await tx.get(seat.id))
