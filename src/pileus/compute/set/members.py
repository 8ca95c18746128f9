"""One member of a set: a VM like any other, owned by the set. Inside one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from pileus.compute.placement.types import PlacementAssigned
from pileus.compute.placing import charge_place
from pileus.compute.set.types import NUMBER_LABEL, SET_LABEL, SetAssigned, SetDesired
from pileus.compute.vm.plan import hold_of
from pileus.compute.vm.types import VmAssigned, VmDesired, VmNic
from pileus.kernel.kind import Resource
from pileus.kernel.outcome import Waiting
from pileus.kernel.transaction import Exhausted, Transaction


async def make_member(
    tx: Transaction,
    owner: Resource,
    number: int,
    place: Resource | None,
    links: Mapping[str, str],
    desired: SetDesired,
) -> Resource | None:
    """Make one member as it is ``desired`` now and return it; one that was placed goes there, charged what was held for it.

    None: the host is gone, and the placement says so. Raises: Waiting when the host was made smaller meanwhile.
    """
    if place is not None and await _is_lost(tx, place.id):
        return None
    networks = [await tx.get(links[f"nics.{position}.network"]) for position in range(len(desired.nics))]
    vm = Resource(
        id=tx.new_id(),
        kind="compute.vm",
        name=await _name(tx, owner, number),
        desired=_wish(desired),
        assigned=_decision(owner.assigned),
        owner=owner.id,
        account_id=owner.account_id,
        account=owner.account,
        labels={SET_LABEL: owner.name, NUMBER_LABEL: str(number)},
    )
    made = await tx.create(vm, links)
    assigned: VmAssigned = replace(made.assigned, hold=hold_of(made, networks))
    if place is not None:
        row = await tx.get(place.id)
        await take_over(tx, made, row)
        assigned = replace(assigned, host=row.assigned.server)
        await tx.update(row, assigned=replace(row.assigned, vm=made.id))
    await _wake_routers(tx, networks)
    return await tx.update(made, assigned=assigned)


async def _is_lost(tx: Transaction, row_id: str) -> bool:
    """Tell whether the host of a placement is gone or going; its request puts the machine elsewhere, if it may."""
    row = await tx.get(row_id)
    host = await tx.find_id(row.assigned.server)
    if host is not None and not host.deleting:
        return False
    await tx.uncharge(row.id)
    await tx.update(row, assigned=replace(row.assigned, state="refused", reason="HostGone", message="its host is gone"))
    await tx.enqueue(row.owner)
    return True


async def take_over(tx: Transaction, vm: Resource, row: Resource) -> None:
    """Charge the VM with what a placement holds on its host and in its pool; its volume takes the disk over from it.

    Raises: Waiting when host or pool have less than they promised.
    """
    place: PlacementAssigned = row.assigned
    await tx.uncharge(row.id)
    try:
        await charge_place(tx, vm.id, place)
    except Exhausted:
        raise Waiting("NoCapacity", "the host was made smaller since it had room for all members", 5.0) from None


def _wish(desired: SetDesired) -> VmDesired:
    return VmDesired(
        image=desired.image,
        offering=desired.offering,
        vcpus=desired.vcpus,
        memory_mib=desired.memory_mib,
        function=desired.function,
        load=desired.load,
        disk_gib=desired.disk_gib,
        iops_limit=desired.iops_limit,
        throughput_limit_kib_s=desired.throughput_limit_kib_s,
        rate_limit_kbps=desired.rate_limit_kbps,
        nics=tuple(VmNic(network=nic.network) for nic in desired.nics),
        power=desired.power,
        boot_serial=desired.restart_serial,
        shutdown_timeout_s=desired.shutdown_timeout_s,
        user_data=desired.user_data,
        ssh_keys=desired.ssh_keys,
        vdc=desired.vdc,
    )


def _decision(assigned: SetAssigned) -> VmAssigned:
    return VmAssigned(
        zone=assigned.zone,
        vdc=assigned.vdc,
        vcpus=assigned.vcpus,
        memory_mib=assigned.memory_mib,
        disk_gib=assigned.disk_gib,
        image=assigned.image,
        append=assigned.append,
        firmware=assigned.firmware,
    )


async def _wake_routers(tx: Transaction, networks: Sequence[Resource]) -> None:
    """Let the routers of the member's networks see that somebody comes."""
    for network in {network.id: network for network in networks}.values():
        if network.observed is not None:
            await tx.enqueue(network.observed.router)


async def _name(tx: Transaction, owner: Resource, number: int) -> str:
    """Return the member's name: SET-0001, with more when another VM of the account has that."""
    name = f"{owner.name[:58]}-{number:04d}"
    if await tx.find("compute.vm", owner.account_id, name) is None:
        return name
    return f"{owner.name[:51]}-{number:04d}-{owner.id[-6:]}"
