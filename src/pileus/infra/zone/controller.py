"""The server half of a zone: what follows from it hears of every change."""

from __future__ import annotations

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.waking import wake

FOLLOWERS = ("network.segment", "network.port", "storage.volume", "compute.vm", "gateway.router")
"""Kinds that a zone's wish decides something about: isolation, name servers, limits, routers."""


class ZoneController(Controller):
    """A zone is due only when it was changed."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Make due what is in the zone."""
        if not resource.deleting:
            await wake(store, [Filter(kind=kind, zone=resource.id) for kind in FOLLOWERS])
        return Done()
