"""Admission of a pool, and its size as a budget."""

from __future__ import annotations

from dataclasses import replace

from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.quota import space
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.storage.pool.types import PoolAssigned, PoolDesired, PoolObserved


class PoolAdmission(Admission):
    """A local pool is where its host is."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the pool with its place."""
        if change.old is not None:
            return change.new
        host = await tx.get(change.links["host"])
        return replace(change.new, assigned=PoolAssigned(host=host.id, zone=host.zone))

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Conflict while volumes lie in it."""
        _, used = await tx.budget(space(resource.id, "disk_gib"))
        if used:
            raise Conflict(f"{resource} still holds {used} GiB of volumes; delete them first", code="in-use")


class PoolController(Controller):
    """Keeps the budget as large as the disk that was reported."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Put the reported size in force."""
        observed: PoolObserved | None = resource.observed
        desired: PoolDesired = resource.desired
        if resource.deleting or observed is None or observed.problem is not None:
            return Done()  # a pool that could not be looked at is as large as it was
        size = observed.total_gib * desired.overcommit_percent // 100
        return Done(lambda tx: tx.set_capacity(space(resource.id, "disk_gib"), size))

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Forget the budget."""
        await tx.remove_capacity(space(resource.id, "disk_gib"))
