"""The server half of a port: VLAN, MAC and addresses, claimed in the transaction that assigns them."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.infra.zone.types import ZoneDesired, vlan_space
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import AlreadyClaimed, Exhausted, Transaction
from pileus.network.network.types import NetworkDesired, address_space
from pileus.network.port.plan import host_numbers, numbered, wished_numbers
from pileus.network.port.types import MAC_SPACE, PortAssigned, PortDesired, PortObserved, mac_of


class PortController(Controller):
    """Gives a port what it needs as soon as its VM has a host."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Assign the port; it is gone when its host says so."""
        assigned: PortAssigned | None = resource.assigned
        observed: PortObserved | None = resource.observed
        if resource.deleting:
            if assigned is None or (resource.gone_confirmed and observed is not None and observed.state == "absent"):
                return Done()
            return Wait("Deleting", "its host still has it plugged", after_s=30.0)
        vm = await store.get(resource.owner)
        if not vm.host:
            return Wait("NoHost", f"{vm} has no host yet", after_s=10.0)
        if assigned is not None:
            if assigned.host == vm.host:
                return Done()
            moved = replace(assigned, host=vm.host)
            return Done(lambda tx: _write(tx, resource, moved))
        network = await store.get((await store.links(resource.id))["network"])
        zone = await store.get(network.zone)

        async def apply(tx: Transaction) -> None:
            await _write(tx, resource, await _assign(tx, resource, network, zone, vm.host))

        return Done(apply)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Give back the addresses, and the account's VLAN ID with its last port in the zone."""
        assigned: PortAssigned | None = resource.assigned
        if assigned is None:
            network = await tx.get((await tx.links(resource.id))["network"])
            for number in wished_numbers(network.desired.range, resource.desired):
                await tx.release(resource.owner, address_space(network.id), str(number))
            return
        network = await tx.get(assigned.network)
        for number in host_numbers(network.desired.range, (assigned.address, *assigned.extra_addresses)):
            await tx.release(resource.owner, address_space(network.id), str(number))
        left = await tx.matching(
            Filter(kind=resource.kind, account_id=resource.account_id, zone=assigned.zone), limit=2
        )
        if all(port.id == resource.id or port.assigned is None for port in left):
            await tx.release(resource.account_id, vlan_space(assigned.zone))


async def _write(tx: Transaction, port: Resource, assigned: PortAssigned) -> None:
    await tx.update(port, assigned=assigned)


async def _assign(tx: Transaction, port: Resource, network: Resource, zone: Resource, host: str) -> PortAssigned:
    range_: NetworkDesired = network.desired
    vlan = await _vlan(tx, port.account_id, zone)
    mac = await tx.claim_number(MAC_SPACE, 1, 2**32 - 1, port.id)
    numbers = await _addresses(tx, port, network)
    first, *extra = (numbered(range_.range, number) for number in numbers)
    return PortAssigned(
        zone=network.zone,
        vdc=network.vdc,
        network=network.id,
        mac=mac_of(mac),
        address=first,
        extra_addresses=tuple(extra),
        prefix_length=int(range_.range.partition("/")[2]),
        gateway=network.assigned.gateway,
        vlan=vlan,
        dns=range_.dns or zone.desired.dns,
        host=host,
    )


async def _vlan(tx: Transaction, account_id: str, zone: Resource) -> int:
    """Return the account's VLAN ID in the zone, claiming one if it has none."""
    space = vlan_space(zone.id)
    held = await tx.claims(space, account_id)
    if held:
        return int(held[0])
    desired: ZoneDesired = zone.desired
    try:
        return await tx.claim_number(space, desired.vlan_first, desired.vlan_last, account_id)
    except Exhausted as error:
        raise Waiting(
            "NoVlan",
            f"no VLAN ID is left in {zone}: all {error.capacity} of {desired.vlan_first}-{desired.vlan_last} are in use "
            "by other accounts; it starts as soon as one is given back",
            10.0,
        ) from None


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
    low, high = 1, 2 ** (32 - int(range_.range.partition("/")[2])) - 2
    try:
        return [await tx.claim_number(space, low, high, port.owner), *wished]
    except Exhausted:
        raise Waiting("NoAddress", f"no address is left in {network} ({range_.range})", 10.0) from None
