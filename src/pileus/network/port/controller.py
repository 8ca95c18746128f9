"""The server half of a port: VLAN, MAC and addresses, claimed in the transaction that assigns them."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import AlreadyClaimed, Exhausted, Transaction
from pileus.network.network.plan import pool
from pileus.network.network.types import NetworkDesired, address_space
from pileus.network.port.plan import followed, guest_dns, host_numbers, numbered, served, wished_numbers
from pileus.network.port.types import APART, MAC_SPACE, PUBLIC_VLAN, PortAssigned, PortDesired, PortObserved, mac_of
from pileus.network.vlan import claim_vlan, ensure_segment, leave_host


class PortController(Controller):
    """Gives a port what it needs as soon as its VM has a host."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Assign the port, and follow its network's router and its VM's host; it is gone when its host says so."""
        assigned: PortAssigned | None = resource.assigned
        observed: PortObserved | None = resource.observed
        if resource.deleting:
            if assigned is None or (resource.gone_confirmed and observed is not None and observed.state == "absent"):
                return Done()
            return Wait("Deleting", "its host still has it plugged", after_s=30.0)
        vm = await store.get(resource.owner)
        if not vm.host:
            return Wait("NoHost", f"{vm} has no host yet", after_s=10.0)
        id = await _network_id(resource, store)
        around = await store.get_all([vm.zone, vm.host, *([id] if id else [])])
        network, zone, host = around.get(id), around[vm.zone], around[vm.host]

        async def apply(tx: Transaction) -> None:
            if assigned is None:
                decided = await _assign(tx, resource, network, zone, vm)
            else:
                decided = followed(assigned, resource.desired, network, zone)
            after = replace(decided, host=vm.host)
            await ensure_segment(tx, resource, after.vlan, zone, host)
            await tx.update(resource, assigned=after)
            if after != assigned:
                await _wake_router(tx, network)

        return Done(apply)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Give back the addresses, and the account's VLAN with its last port on the host, and in the zone."""
        await _release_addresses(tx, resource)
        if resource.assigned is not None:
            await leave_host(tx, resource)


async def _network_id(port: Resource, store: Store) -> str:
    """Return the network that the port is in; empty for an appliance's port."""
    if port.desired.attachment != "network":
        return ""
    return str(port.assigned.network) if port.assigned is not None else (await store.links(port.id))["network"]


async def _release_addresses(tx: Transaction, port: Resource) -> None:
    """Give back what is claimed in the port's network; addresses of an appliance's port are its owner's."""
    if port.desired.attachment != "network":
        return
    network = await tx.get((await tx.links(port.id))["network"])
    await _wake_router(tx, network)
    assigned: PortAssigned | None = port.assigned
    if assigned is None:
        numbers = wished_numbers(network.desired.range, port.desired)
    else:
        numbers = host_numbers(network.desired.range, (assigned.address, *assigned.extra_addresses))
    for number in numbers:
        await tx.release(port.owner, address_space(network.id), str(number))


async def _wake_router(tx: Transaction, network: Resource | None) -> None:
    """Let the network's router see that a guest came, changed or went."""
    if network is not None and network.observed is not None:
        await tx.enqueue(network.observed.router)


async def _assign(
    tx: Transaction, port: Resource, network: Resource | None, zone: Resource, vm: Resource
) -> PortAssigned:
    vlan = await _vlan(tx, port, zone)
    mac = mac_of(await tx.claim_number(MAC_SPACE, 1, 2**32 - 1, port.id))
    if network is None:
        return PortAssigned(
            zone=zone.id,
            vdc=vm.vdc,
            network="",
            mac=mac,
            address="",
            extra_addresses=port.desired.addresses,
            prefix_length=0,
            gateway="",
            vlan=vlan,
        )
    range_: NetworkDesired = network.desired
    first, *extra = (numbered(range_.range, number) for number in await _addresses(tx, port, network))
    return PortAssigned(
        zone=network.zone,
        vdc=network.vdc,
        network=network.id,
        mac=mac,
        address=first,
        extra_addresses=tuple(extra),
        prefix_length=int(range_.range.partition("/")[2]),
        gateway=network.assigned.gateway,
        vlan=vlan,
        dns=guest_dns(network, zone),
        served=served(network),
    )


async def _vlan(tx: Transaction, port: Resource, zone: Resource) -> int:
    match port.desired.attachment:
        case "public":
            return PUBLIC_VLAN
        case "mirror":
            return APART
        case _:
            return await claim_vlan(tx, port.account_id, zone)


async def _addresses(tx: Transaction, port: Resource, network: Resource) -> list[int]:
    """Return the offsets of the port's addresses, claimed for its VM: those asked for, else the next free one."""
    desired: PortDesired = port.desired
    space = address_space(network.id)
    range_: NetworkDesired = network.desired
    wished = wished_numbers(range_.range, desired)
    for number in wished:
        try:
            await tx.claim(space, str(number), port.owner, number)
        except AlreadyClaimed:
            address = numbered(range_.range, number)
            raise Waiting("AddressInUse", f"{address} of {network} is in use by another VM", 10.0) from None
    if desired.address:
        return wished
    low, high = pool(range_)
    try:
        return [await tx.claim_number(space, low, high, port.owner), *wished]
    except Exhausted:
        span = f"{numbered(range_.range, low)} to {numbered(range_.range, high)}"
        raise Waiting("NoAddress", f"no address is left in {network} ({span})", 10.0) from None
