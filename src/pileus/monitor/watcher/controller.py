"""The server half of a watcher: its appliance, if it has one; who runs it, and how it is, is said by that server."""

from __future__ import annotations

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.store import Store


class WatcherController(Controller):
    """Keeps the appliance of a watcher."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Nothing is to be done for one that runs within the servers."""
        return Done()
