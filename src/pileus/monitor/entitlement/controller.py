"""The server half of an entitlement: where it is in its term, how much is in use, and whom that concerns."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pileus.compute.vm.types import VmAssigned
from pileus.kernel.clock import Clock
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.kernel.waking import wake_ids
from pileus.monitor.entitlement import plan
from pileus.monitor.entitlement.types import (
    SAFETY_S,
    EntitlementDesired,
    EntitlementObserved,
    holder_space,
    pinned_space,
    seats_space,
    unseated_space,
    waiting_space,
)

PAGE = 200
"""VMs looked at in one transaction: others' writes wait meanwhile."""
WOKEN_MAX = 64
"""Of those that wait, so many are asked at once whether there is a seat for them."""


class EntitlementController(Controller):
    """Shows what is used, and wakes VMs and seats when the term or the need changes, or a seat comes free."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Note the term and the use; look again when the term changes."""
        desired: EntitlementDesired = resource.desired
        now = self._clock()
        term = plan.term(desired, resource.assigned, now)
        before: EntitlementObserved = resource.observed or EntitlementObserved()
        is_news = (before.state, before.checked) != (term, resource.generation)
        if is_news and (desired.needed_by or before.checked):
            await _tell_vms(store, resource)
        seats = [id for (id,) in await store.fetch(sql.SOURCES_OF, target=resource.id)] if is_news else []
        await wake_ids(store, seats)

        async def apply(tx: Transaction) -> None:
            said = await _seen(tx, resource, term)
            await tx.update(resource, observed=said)
            if before.over and not said.over:
                for (id,) in await tx.statement(sql.SOURCES_OF, target=resource.id):
                    await tx.enqueue(id)
            if said.waiting or said.unseated:
                await _wake_next(tx, resource, said)

        next_s = plan.next_change(desired, resource.assigned, now)
        is_safe = not desired.needed_by
        return Done(apply, after_s=next_s if is_safe else min(next_s or SAFETY_S, SAFETY_S))

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Forget its budgets."""
        await tx.remove_capacity(seats_space(resource.id))
        await tx.remove_capacity(pinned_space(resource.id))


async def _seen(tx: Transaction, entitlement: Resource, term: plan.Term) -> EntitlementObserved:
    desired: EntitlementDesired = entitlement.desired
    about = (entitlement.account_id, desired.product)
    _, used = await tx.budget(seats_space(entitlement.id))
    unseated = await tx.claimed(unseated_space(*about)) if desired.needed_by else 0
    waiting = await tx.claimed(waiting_space(*about)) if desired.needed_by else 0
    return EntitlementObserved(
        state=term,
        used=used,
        over=max(0, used - desired.limit),
        seats=await tx.claimed(holder_space(entitlement.id)),
        waiting=waiting - unseated,
        unseated=unseated,
        checked=entitlement.generation,
    )


async def _wake_next(tx: Transaction, entitlement: Resource, said: EntitlementObserved) -> None:
    """Let as many VMs look as there may be seats for, those that wait longest."""
    desired: EntitlementDesired = entitlement.desired
    free = desired.limit - said.used if desired.enforcement == "hard" else WOKEN_MAX
    if said.state in plan.GIVING and free > 0:
        for id in await tx.queue(waiting_space(entitlement.account_id, desired.product), min(free, WOKEN_MAX)):
            await tx.enqueue(id)


async def _tell_vms(store: Store, entitlement: Resource) -> None:
    """Let every VM of the account look at what it needs. From now on none starts for a new wish before it did."""
    after = ""
    while page := await store.list(
        Filter(kind="compute.vm", account_id=entitlement.account_id), after=after, limit=PAGE
    ):

        async def tell(tx: Transaction, page: Sequence[Resource] = page) -> None:
            for each in page:
                vm = await tx.find_id(each.id)
                if vm is None:
                    continue
                await tx.enqueue(vm.id)
                assigned: VmAssigned = vm.assigned
                if entitlement.desired.needed_by and assigned.cleared_generation < 0 and not vm.deleting:
                    await tx.update(vm, assigned=replace(assigned, cleared_generation=vm.generation))

        await store.write(tell)
        after = page[-1].id
