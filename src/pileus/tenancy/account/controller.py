"""The server half of an account: what its limits hold for hears of every change."""

from __future__ import annotations

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.waking import wake

LIMITED = ("storage.volume", "compute.vm")


class AccountController(Controller):
    """An account is due when it was changed, and while it is being deleted."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Make due what has limits."""
        if not resource.deleting:
            await wake(store, [Filter(kind=kind, account_id=resource.id) for kind in LIMITED])
        return Done()
