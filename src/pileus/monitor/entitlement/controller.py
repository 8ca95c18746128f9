"""The server half of an entitlement: where it is in its term, how much is in use, and whose seats end with it."""

from __future__ import annotations

from pileus.kernel.clock import Clock
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.entitlement import plan
from pileus.monitor.entitlement.types import EntitlementDesired, EntitlementObserved, pinned_space, seats_space


class EntitlementController(Controller):
    """Shows what is used, and wakes the seats when the term changes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Note the term and the use; look again when the term changes."""
        desired: EntitlementDesired = resource.desired
        now = self._clock()
        term = plan.term(desired, resource.assigned, now)
        before: EntitlementObserved | None = resource.observed

        async def apply(tx: Transaction) -> None:
            _, used = await tx.budget(seats_space(resource.id))
            seats = [each for each in await tx.referrers(resource.id) if each.kind == "monitor.seat"]
            said = EntitlementObserved(
                state=term, used=used, over=max(0, used - desired.limit), seats=len(seats)
            )  # fmt: skip
            await tx.update(await tx.get(resource.id), observed=said)
            if before is None or before.state != term:
                for seat in seats:
                    await tx.enqueue(seat.id)

        return Done(apply, after_s=plan.next_change(desired, resource.assigned, now))

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Forget its budgets."""
        await tx.remove_capacity(seats_space(resource.id))
        await tx.remove_capacity(pinned_space(resource.id))
