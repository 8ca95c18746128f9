"""The server half of a leg: it is its session's; what it counted last stays with that."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.mirror.leg.types import LegObserved
from pileus.mirror.session.plan import Live, began_anew, read_counts, released
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
        """Add what it counted to its session's counts: what its host said last of all, or regularly before."""
        session = await tx.find_id(resource.owner)
        if session is None or session.observed is None:
            return
        assigned: SessionAssigned = session.assigned
        rows = await tx.statement(sql.SAMPLE, id=resource.id)
        counts = read_counts(rows[0] if rows else None)
        observed: LegObserved | None = resource.observed
        if observed is not None and not began_anew(counts, observed.counts):
            counts = observed.counts
        gone = Live(id=resource.id, leg=resource.assigned, counts=counts)
        closed = released(assigned.closed, gone, session.observed)
        await tx.update(session, assigned=replace(assigned, closed=closed))
