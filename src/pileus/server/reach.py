"""The way to a VM's port: which appliance, on which host, is in the VM's network. Each missing link is named."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from pileus.compute.vm.types import VmAssigned, VmObserved
from pileus.fleet.node.types import NodeAssigned
from pileus.gateway.router.types import RouterObserved
from pileus.kernel.errors import Conflict, NotFound, Transient
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.store.store import Store
from pileus.network.network.types import IDLE, NetworkAssigned, NetworkObserved
from pileus.network.port.types import PortAssigned

LOOK_S = 2.0
"""How often a VM that is connected to is looked at, at most: a host has many changes."""


class Place(Struct, frozen=True, kw_only=True):
    """Where a VM's address can be connected to: through an appliance's VM on a host."""

    host: str
    appliance: str
    address: str


async def place(store: Store, vm: Resource, network: str) -> Place:
    """Return the way to the VM in the named network; in the first one that has a router for "".

    Raises: Conflict (not-running, no-nic, no-router), Transient (router-not-ready).
    """
    _check_running(vm)
    found = await _nics(store, vm)
    nics = [(net, port) for net, port in found if network in ("", net.name, net.id)]
    if not nics:
        others = ", ".join(net.name for net, _ in found)
        where = f"no NIC in a network {network}; it is in {others}" if network and others else "no NIC in a network"
        raise Conflict(f"{vm} has {where}", code="no-nic")
    served = [(net, port) for net, port in nics if _is_served(net)]
    net, port = (served or nics)[0]
    if not served:
        raise _unserved(net, vm)
    observed: NetworkObserved = net.observed
    node = await _active_node(store, net, observed.router)
    assigned: NodeAssigned | None = node.assigned
    if assigned is None or not assigned.vm or not assigned.host:
        raise Transient(f"the router of {net} is starting; try again", code="router-not-ready")
    return Place(host=assigned.host, appliance=assigned.vm, address=port.address)


def check_on(vm: Resource) -> None:
    """Raises: Conflict (not-running) for a VM that is known to have no machine now."""
    observed: VmObserved | None = vm.observed
    power = observed.power if observed is not None else "unknown"
    if power == "stopped":
        raise Conflict(f"{vm} is stopped; `pileus start vm {vm.name}` starts it", code="not-running")
    if power == "absent":
        raise Conflict(f"{vm} is not there yet; `pileus describe vm {vm.name}` says why", code="not-running")


def _check_running(vm: Resource) -> None:
    check_on(vm)
    observed: VmObserved | None = vm.observed
    if observed is not None and observed.power == "paused":
        raise Conflict(f"{vm} is paused; `pileus resume vm {vm.name}` lets it run on", code="not-running")


async def until_ended(store: Store, hub: Hub, vm: Resource) -> None:
    """Return never; Raises: Transient when the VM is stopped, boots again, or is gone: no connection outlives that."""
    began: VmObserved | None = vm.observed
    with hub.watch(("host", vm.host)) as changes:
        while True:
            try:
                now: VmObserved | None = (await store.get(vm.id)).observed
            except NotFound:
                raise Transient(f"{vm} was deleted", code="ended") from None
            if now is not None and now.power in ("stopped", "absent"):
                raise Transient(f"{vm} was stopped", code="ended")
            if now is not None and began is not None and now.boots > began.boots:
                raise Transient(f"{vm} boots again", code="ended")
            await asyncio.sleep(LOOK_S)
            await changes.wait(60.0)


async def _nics(store: Store, vm: Resource) -> list[tuple[Resource, PortAssigned]]:
    assigned: VmAssigned | None = vm.assigned
    nics = []
    for id in assigned.ports if assigned is not None else ():
        port: PortAssigned | None = (await store.get(id)).assigned
        if port is not None and port.network and port.address:
            nics.append((await store.get(port.network), port))
    return nics


def _is_served(net: Resource) -> bool:
    observed: NetworkObserved | None = net.observed
    return observed is not None and observed.state == "served"


def _unserved(net: Resource, vm: Resource) -> Conflict | Transient:
    assigned: NetworkAssigned | None = net.assigned
    observed: NetworkObserved | None = net.observed
    if assigned is None or assigned.router == "none":
        return Conflict(
            f"{net} has no router, so nothing can connect to it from outside; `pileus console vm {vm.name}` works",
            code="no-router",
        )
    why = observed.message if observed is not None and observed.message else IDLE
    return Transient(f"{net} is not served yet: {why}", code="router-not-ready")


async def _active_node(store: Store, net: Resource, router: str) -> Resource:
    observed: RouterObserved | None = None
    try:
        observed = (await store.get(router)).observed
        if observed is not None and observed.active_node:
            return await store.get(observed.active_node)
    except NotFound:
        pass  # collected since the network was read
    why = observed.message if observed is not None and observed.message else "it starts"
    raise Transient(f"the router of {net} cannot be used now: {why}; try again", code="router-not-ready")
