"""The server half of a leg: it is its session's; what it counted last stays with that."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.mirror.leg.types import LegObserved
from pileus.mirror.session.plan import added
from pileus.mirror.session.types import SessionAssigned


class LegController(Controller):
    """Waits until the host has let go."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Let it go when its host says so, or is to go itself."""
        if not resource.deleting:
            return Done()
        observed: LegObserved | None = resource.observed
        host = await store.get(resource.assigned.host)
        if host.deleting or (resource.gone_confirmed and observed is not None and observed.state == "absent"):
            return Done()
        return Wait("Deleting", "its host has it still in force", after_s=30.0)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Add what it counted to its session's counts."""
        session = await tx.find_id(resource.owner)
        observed: LegObserved | None = resource.observed
        if session is None or observed is None:
            return
        assigned: SessionAssigned = session.assigned
        await tx.update(
            session, assigned=replace(assigned, closed=added(assigned.closed, resource.assigned, observed.counts))
        )
