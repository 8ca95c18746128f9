"""The server half of a network: its router hears when it goes."""

from __future__ import annotations

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.network.network.types import NetworkObserved


class NetworkController(Controller):
    """Everything else about a network is decided when it is made, or by its router."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Nothing to decide."""
        return Done()

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Let the router see that the network is gone: with the last one it goes too."""
        observed: NetworkObserved | None = resource.observed
        if observed is not None:
            await tx.enqueue(observed.router)
