"""The server half of a watcher: its appliance, if it has one. How it is, is said by the server that runs it."""

from __future__ import annotations

from pileus.fleet.builtin import Appliance, make_node
from pileus.fleet.manager.types import MONITORS
from pileus.fleet.node.types import NodeDesired
from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.quota import charge
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.watcher.types import WatcherAssigned
from pileus.storage.image.types import is_available

APPLIANCE = Appliance(manager=MONITORS, role="monitor", vcpus=1, memory_mib=192)
COSTS = {"vms": 1, "vcpus": APPLIANCE.vcpus, "memory_mib": APPLIANCE.memory_mib}


class WatcherController(Controller):
    """Keeps the appliance of a watcher, on the account's quota."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Make its node."""
        assigned: WatcherAssigned = resource.assigned
        if resource.deleting or resource.desired.form == "server":
            return Done()
        if await store.list(Filter(kind="fleet.node", owner=resource.id), limit=1):
            return Done()
        zone = await store.get(assigned.zone)
        found = (
            store.find_id(assigned.image)
            if assigned.image
            else store.find("storage.image", "", zone.desired.router_image)
        )
        image = await found
        if image is None or not is_available(image):
            name = image.name if image is not None else zone.desired.router_image
            return Wait("NoImage", f"the image {name} is not available; ask the operator", 10.0)

        async def apply(tx: Transaction) -> None:
            try:
                await charge(tx, await tx.get(assigned.vdc), resource.id, COSTS)
            except QuotaExceeded as full:
                raise Waiting("QuotaExceeded", full.message, 30.0) from None
            wish = NodeDesired(manager=MONITORS, vdc=assigned.vdc, apart_from=await _sibling(tx, resource))
            await make_node(tx, APPLIANCE, image, resource, resource.name, wish)

        return Done(apply)


async def _sibling(tx: Transaction, watcher: Resource) -> str:
    """Return the node of another watcher of the monitor, whose host is avoided; empty for none."""
    for other in await tx.children(watcher.owner):
        if other.kind == watcher.kind and other.id != watcher.id:
            for node in await tx.children(other.id):
                return node.id
    return ""
