"""The server half of a snapshot: all was decided when it was taken; it goes when its host says that it has gone."""

from __future__ import annotations

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.store import Store
from pileus.storage.snapshot.types import SnapshotObserved


class SnapshotController(Controller):
    """Waits for the host."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Return whether it is gone."""
        observed: SnapshotObserved | None = resource.observed
        if not resource.deleting or (resource.gone_confirmed and observed is not None and observed.state == "absent"):
            return Done()
        return Wait("Deleting", "its host still has it", after_s=30.0)
