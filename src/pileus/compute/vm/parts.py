"""The parts of a VM: its root volume and its ports, made, kept as wished and let go. All inside one transaction."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from pileus.compute.vm.plan import Made, matched, nic_key
from pileus.compute.vm.types import VmAssigned, VmDesired, VmNic, VmObserved
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import Transaction
from pileus.network.port.types import PortDesired
from pileus.storage.image.types import kernel_arguments
from pileus.storage.volume.types import VolumeAssigned, VolumeDesired, attachment_space


async def ensure_parts(tx: Transaction, vm: Resource, links: dict[str, str], assigned: VmAssigned) -> VmAssigned:
    """Make the root volume and the ports that are missing, and return the VM with its parts' ids."""
    suffix = f"-{vm.host[-6:]}" if vm.host else ""  # one that was moved may still have an older one, which is going
    root = assigned.volumes[0] if assigned.volumes else await _make_root(tx, vm, assigned, suffix)
    further = tuple(links[f"volumes.{position}.volume"] for position in range(len(vm.desired.volumes)))
    ports = await _ensure_ports(tx, vm, links, assigned)
    return replace(assigned, volumes=(root, *further), ports=ports)


async def ports_of(tx: Transaction, vm: Resource) -> list[Resource]:
    """Return all ports of a VM: those in use in the order of the guest's devices, then those that leave."""
    ports = {each.id: each for each in await tx.children(vm.id) if each.kind == "network.port"}
    return [ports.pop(id) for id in vm.assigned.ports if id in ports] + list(ports.values())


async def made_for(tx: Transaction, ports: list[Resource]) -> dict[str, Made]:
    """Return what NIC each of the ports was made for, by id, without those that are being deleted."""
    found = {}
    for port in ports:
        if not port.deleting:
            network = (
                port.assigned.network if port.assigned is not None else (await tx.links(port.id)).get("network", "")
            )
            address = port.assigned.address if port.assigned is not None else ""
            found[port.id] = Made(nic_key(network, port.desired), address)
    return found


async def _ensure_ports(tx: Transaction, vm: Resource, links: dict[str, str], assigned: VmAssigned) -> tuple[str, ...]:
    desired: VmDesired = vm.desired
    known = await ports_of(tx, vm)
    networks = [links.get(f"nics.{position}.network", "") for position in range(len(desired.nics))]
    wished = [nic_key(network, nic) for network, nic in zip(networks, desired.nics, strict=True)]
    names = {port.name for port in known}
    by_id = {port.id: port for port in known}
    ids = []
    for network, nic, id in zip(networks, desired.nics, matched(wished, await made_for(tx, known)), strict=True):
        port = _port(nic, assigned, desired.isolated)
        if id:
            await tx.update(by_id[id], desired=replace(port, network=by_id[id].desired.network))
            ids.append(id)
            continue
        name = _free_name(vm, names)
        made = Resource(id="", kind="network.port", name=name, desired=port)
        ids.append((await tx.ensure_child(vm, made, {"network": network} if network else {})).id)
        names.add(name)
    for leaving in known:
        if leaving.id not in ids:  # a guest that does not let go of a NIC still has it
            await tx.update(leaving, desired=replace(leaving.desired, isolated=desired.isolated))
    return tuple(ids)


def _port(nic: VmNic, assigned: VmAssigned, isolated: Literal["no", "yes"]) -> PortDesired:
    return PortDesired(
        network=nic.network,
        attachment=nic.attachment,
        addresses=nic.addresses,
        stations=nic.stations,
        address=nic.address,
        extra_addresses=nic.extra_addresses,
        rate_limit_kbps=assigned.rate_limit_kbps,
        isolated=isolated,
    )


def _free_name(vm: Resource, taken: set[str]) -> str:
    number = 0
    while (name := f"{vm.name[:40]}-{vm.id[-6:]}-nic{number}") in taken:
        number += 1
    return name


async def rebuild(tx: Transaction, vm: Resource, image: Resource) -> Resource:
    """Give a VM that is stopped a new root volume of ``image``, and return it; the old one goes, with what is on it.

    It is as large as the VM wishes now, be that less than before: so much the account is charged. NICs, addresses and
    further disks stay as they are. Only the cloud wishes that, for appliances.
    """
    assigned: VmAssigned = vm.assigned
    changed = replace(
        assigned,
        image=image.id,
        append=kernel_arguments(image),
        firmware=image.desired.firmware,
        disk_gib=vm.desired.disk_gib,
    )
    if assigned.volumes:
        await tx.release(vm.id, attachment_space(assigned.volumes[0]))
        await tx.mark_deleting(await tx.get(assigned.volumes[0]))
    root = await _make_root(tx, vm, changed, f"-{tx.new_id()[-6:]}")
    return await tx.update(vm, assigned=replace(changed, volumes=(root, *assigned.volumes[1:])))


async def _make_root(tx: Transaction, vm: Resource, assigned: VmAssigned, suffix: str = "") -> str:
    volume = Resource(
        id="",
        kind="storage.volume",
        name=f"{vm.name[:40]}-{vm.id[-6:]}-root{suffix}",
        desired=VolumeDesired(
            size_gib=assigned.disk_gib,
            image=vm.desired.image,
            iops_limit=assigned.iops_limit,
            throughput_limit_kib_s=assigned.throughput_limit_kib_s,
        ),
        assigned=VolumeAssigned(zone=assigned.zone, vdc=assigned.vdc),
    )
    made = await tx.ensure_child(vm, volume, {"image": assigned.image})
    await tx.claim(attachment_space(made.id), "vm", vm.id)
    return made.id


async def keep_root(tx: Transaction, assigned: VmAssigned) -> None:
    """Let the root volume have the size and the limits that the VM has; a host grows it while the VM is stopped."""
    root = await tx.get(assigned.volumes[0])
    before: VolumeDesired = root.desired
    after = replace(
        before,
        size_gib=max(before.size_gib, assigned.disk_gib),
        iops_limit=assigned.iops_limit,
        throughput_limit_kib_s=assigned.throughput_limit_kib_s,
    )
    await tx.update(root, desired=after)


async def drop_parts(tx: Transaction, vm: Resource, parts: VmAssigned) -> None:
    """Delete ports whose NIC was taken out of the wish, once the guest let go of them."""
    held = _held(vm)
    for child in await tx.children(vm.id):
        if child.kind == "network.port" and child.id not in parts.ports and held is not None and child.id not in held:
            await tx.mark_deleting(child)


async def release_detached(tx: Transaction, vm: Resource) -> None:
    """Give volumes free for others that the VM neither wishes nor has."""
    assigned: VmAssigned = vm.assigned
    held = _held(vm)
    if held is None:
        return
    wished = {target for field, target in (await tx.links(vm.id)).items() if field.startswith("volumes.")}
    kept = {*assigned.volumes[:1], *wished, *held}
    for (claimed,) in await tx.statement(sql.SPACES_OF, owner=vm.id):
        volume = claimed.removeprefix(attachment_space(""))
        if volume != claimed and volume not in kept:
            await tx.release(vm.id, claimed)
            await tx.enqueue(volume)


def _held(vm: Resource) -> set[str] | None:
    """Return the volumes and ports that the host has in the VM or was last told to put there; None: nobody knows."""
    if not vm.host:
        return set()
    observed: VmObserved | None = vm.observed
    if observed is None or observed.power == "unknown":
        return None
    return {*observed.volumes, *observed.ports, *observed.told}
