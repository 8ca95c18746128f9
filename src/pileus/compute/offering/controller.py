"""The server half of an offering: the VMs of it hear of every change."""

from __future__ import annotations

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.waking import wake_ids


class OfferingController(Controller):
    """An offering is due only when it was changed."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Make due the VMs that have it."""
        if not resource.deleting:
            await wake_ids(store, [id for (id,) in await store.fetch(sql.SOURCES_OF, target=resource.id)])
        return Done()
