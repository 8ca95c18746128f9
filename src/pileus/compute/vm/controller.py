"""The server half of a VM: a host, its root volume and ports, and what they are waiting for."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pileus.compute.vm.capacity import HostTable, for_role, need_of
from pileus.compute.vm.placement import Candidate, explain, rank, summary
from pileus.compute.vm.plan import hold_of
from pileus.compute.vm.types import VmAssigned, VmDesired, VmObserved
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.quota import space
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import WAITING, Exhausted, Transaction
from pileus.network.port.types import PortDesired
from pileus.storage.volume.types import VolumeAssigned, VolumeDesired, attachment_space

NO_CAPACITY_RECHECK_S = 5.0


class VmController(Controller):
    """Places VMs and makes their parts."""

    def __init__(self, store: Store) -> None:
        self._table = HostTable(store)

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Choose a host once, keep parts and charges as wished; gone when the host says absent."""
        assigned: VmAssigned = resource.assigned
        observed: VmObserved | None = resource.observed
        if resource.deleting:
            if not assigned.host or (resource.gone_confirmed and observed is not None and observed.power == "absent"):
                return Done()
            power = observed.power if observed is not None else "not reported yet"
            return Wait("Deleting", f"the VM is {power} on its host", after_s=30.0)
        links = await store.links(resource.id)
        if not assigned.host:
            return await self._place(resource, links, store)
        host = await store.get(assigned.host)
        if host.assigned.silent == "yes":
            return Wait("HostSilent", "its host does not report; the VM may still run there", 30.0, status="unknown")
        waiting = _part_waiting(await _parts(resource, store))
        hold = hold_of(resource, await _networks(store, links))

        async def apply(tx: Transaction) -> None:
            await _charge_host(tx, resource, assigned)
            parts = replace(await _ensure_parts(tx, resource, links, assigned), hold=hold)
            await _keep_root(tx, parts)
            await _drop_parts(tx, resource, parts)
            await _release_detached(tx, resource)
            if parts != assigned:
                await tx.update(resource, assigned=parts)

        if waiting is not None:
            return Wait(waiting.reason, waiting.message, after_s=10.0, apply=apply)
        if hold and _is_due_to_start(resource):
            return Wait("NetworkNotServed", hold, after_s=5.0, apply=apply)
        return Done(apply)

    async def _place(self, vm: Resource, links: dict[str, str], store: Store) -> Outcome:
        hosts = await self._table.hosts()
        need = for_role(await need_of(store, vm, links), vm, hosts)
        ranked = rank(hosts, need)
        if not ranked:
            self._table.forget()
            message = summary(explain(hosts, need))
            return Wait("NoCapacity", message, NO_CAPACITY_RECHECK_S, lambda tx: _release_detached(tx, vm))
        for candidate in ranked[:1]:
            self._table.take(candidate.host, need)

        async def apply(tx: Transaction) -> None:
            parts = await _ensure_parts(tx, vm, links, vm.assigned)
            host = await self._charge_first(tx, vm, ranked, parts)
            placed = replace(parts, host=host.host)
            await tx.update(vm, assigned=placed)
            for id in (*placed.volumes, *placed.ports):
                await tx.enqueue(id)

        return Done(apply)

    async def _charge_first(
        self, tx: Transaction, vm: Resource, ranked: Sequence[Candidate], parts: VmAssigned
    ) -> Candidate:
        """Charge the VM to the best host that really has room, and to its pool the volumes that are on no host yet."""
        volumes = [volume for id in parts.volumes if not (volume := await tx.get(id)).host]
        for candidate in ranked:
            host = await tx.find_id(candidate.host)
            if host is None or host.deleting:
                continue
            try:
                await tx.charge(space(candidate.host, "memory_mib"), vm.id, parts.memory_mib)
                await tx.charge(space(candidate.host, "vcpus"), vm.id, parts.vcpus)
                for volume in volumes:
                    await tx.charge(space(candidate.pool, "disk_gib"), volume.id, volume.desired.size_gib)
            except Exhausted:
                await tx.uncharge(vm.id, f"{candidate.host}/")
                for volume in volumes:
                    await tx.uncharge(volume.id, f"{candidate.pool}/")
                continue
            return candidate
        self._table.forget()
        raise Waiting("NoCapacity", "the hosts that had room were filled by others; it is tried again", 0.5)


async def _networks(store: Store, links: dict[str, str]) -> list[Resource]:
    """Return the networks that the VM has NICs in."""
    ids = {id for field, id in links.items() if field.startswith("nics.")}
    return [await store.get(id) for id in sorted(ids)]


def _is_due_to_start(vm: Resource) -> bool:
    observed: VmObserved | None = vm.observed
    return vm.desired.power != "stopped" and (observed is None or observed.power in ("stopped", "absent"))


async def _charge_host(tx: Transaction, vm: Resource, assigned: VmAssigned) -> None:
    """Keep the host's charge at the VM's size, after a rescale too."""
    try:
        await tx.charge(space(assigned.host, "memory_mib"), vm.id, assigned.memory_mib)
        await tx.charge(space(assigned.host, "vcpus"), vm.id, assigned.vcpus)
    except Exhausted:
        raise Waiting("NoCapacity", "its host has too little left for the new size", 30.0) from None


async def _parts(vm: Resource, store: Store) -> list[Resource]:
    """Return the VM's disks, the tenant's own among them, and its ports, those that are leaving among them."""
    assigned: VmAssigned = vm.assigned
    volumes = await store.list(Filter(kind="storage.volume", ids=assigned.volumes))
    ports = await store.list(Filter(kind="network.port", owner=vm.id))
    return volumes + ports


def _part_waiting(parts: Sequence[Resource]) -> Wait | None:
    """Return why a part of the VM cannot be decided, if one says so; what only takes its time is no reason."""
    for part in parts:
        for condition in part.conditions:
            if condition.type == WAITING and condition.reason not in ("NoHost", "Deleting"):
                return Wait(condition.reason, condition.message)
    return None


async def _ensure_parts(tx: Transaction, vm: Resource, links: dict[str, str], assigned: VmAssigned) -> VmAssigned:
    """Make the root volume and the ports that are missing, and return the VM with its parts' ids."""
    desired: VmDesired = vm.desired
    root = assigned.volumes[0] if assigned.volumes else await _make_root(tx, vm, assigned)
    further = tuple(links[f"volumes.{position}.volume"] for position in range(len(desired.volumes)))
    ports = list(assigned.ports[: len(desired.nics)])
    for id, nic in zip(ports, desired.nics, strict=False):
        port = await tx.get(id)
        followed = replace(port.desired, addresses=nic.addresses, stations=nic.stations)
        await tx.update(port, desired=followed)
    for position in range(len(ports), len(desired.nics)):
        nic = desired.nics[position]
        network = links.get(f"nics.{position}.network", "")
        port = Resource(
            id="",
            kind="network.port",
            name=f"{vm.name[:40]}-{vm.id[-6:]}-nic{position}",
            desired=PortDesired(
                network=nic.network,
                attachment=nic.attachment,
                addresses=nic.addresses,
                stations=nic.stations,
                address=nic.address,
                extra_addresses=nic.extra_addresses,
                rate_limit_kbps=assigned.rate_limit_kbps,
            ),
        )
        former = await tx.find(port.kind, vm.account_id, port.name)
        if former is not None and (former.deleting or former.desired != port.desired):
            break  # the port that had this place is still leaving; its end wakes the VM
        ports.append((await tx.ensure_child(vm, port, {"network": network} if network else {})).id)
    return replace(assigned, volumes=(root, *further), ports=tuple(ports))


async def _make_root(tx: Transaction, vm: Resource, assigned: VmAssigned) -> str:
    volume = Resource(
        id="",
        kind="storage.volume",
        name=f"{vm.name[:40]}-{vm.id[-6:]}-root",
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


async def _keep_root(tx: Transaction, assigned: VmAssigned) -> None:
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


async def _drop_parts(tx: Transaction, vm: Resource, parts: VmAssigned) -> None:
    """Delete ports whose NIC was taken out of the wish, once the guest let go of them."""
    held = _held(vm)
    for child in await tx.children(vm.id):
        if child.kind == "network.port" and child.id not in parts.ports and held is not None and child.id not in held:
            await tx.mark_deleting(child)


async def _release_detached(tx: Transaction, vm: Resource) -> None:
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
