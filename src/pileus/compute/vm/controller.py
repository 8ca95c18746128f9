"""The server half of a VM: a host, its root volume and ports, and what they are waiting for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import asdict, replace

from pileus.compute.offering.types import limits
from pileus.compute.sizing import own_limits
from pileus.compute.vm.capacity import HostTable, for_role, need_of
from pileus.compute.vm.parts import drop_parts, ensure_parts, keep_root, rebuild, release_detached
from pileus.compute.vm.placement import Candidate, explain, rank, summary
from pileus.compute.vm.plan import hold_of, is_off
from pileus.compute.vm.types import VmAssigned, VmObserved, is_of_cloud
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.quota import space
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import WAITING, Exhausted, Transaction
from pileus.tenancy.account.types import VmLimits, lowest

NO_CAPACITY_RECHECK_S = 5.0


class Gate(Protocol):
    """Who gives leave to start VMs. The server says who that is: a capability that VMs know nothing of."""

    async def look(self, tx: Transaction, vm: Resource, assigned: VmAssigned) -> VmAssigned:
        """Return the decisions with ``bar`` and ``cleared_generation`` as they shall be for the VM's wish.

        Called at every change of a VM, before its host may start it for that.
        """

    async def leave(self, tx: Transaction, vm: Resource) -> None:
        """Forget a VM that is going or gone."""


class VmController(Controller):
    """Places VMs and makes their parts."""

    def __init__(self, store: Store, gate: Gate) -> None:
        self._table = HostTable(store)
        self._gate = gate

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Choose a host once, keep parts and charges as wished; gone when the host says absent."""
        assigned: VmAssigned = resource.assigned
        observed: VmObserved | None = resource.observed
        if resource.deleting:
            if not assigned.host or (resource.gone_confirmed and observed is not None and observed.power == "absent"):
                return Done()
            power = observed.power if observed is not None else "not reported yet"
            leave = functools.partial(self._gate.leave, vm=resource)
            return Wait("Deleting", f"the VM is {power} on its host", after_s=30.0, apply=leave)
        links = await store.links(resource.id)
        if not assigned.host:
            return await self._place(resource, links, store)
        around = await store.get_all([assigned.host, *_around(resource, links)])
        if around[assigned.host].assigned.silent == "yes":
            words = "its host does not report; the VM may still run there"
            return Wait("HostSilent", words, 30.0, functools.partial(self._gate.leave, vm=resource), status="unknown")
        if links["image"] != assigned.image and is_off(resource):
            image = await store.get(links["image"])
            return Wait(
                "Replacing", f"its disk is made anew, of {image}", 0.5, lambda tx: _rebuild(tx, resource, image)
            )
        waiting = _part_waiting(await _parts(resource, store))
        limited = _limited(resource, links, around)
        hold = hold_of(resource, [each for each in around.values() if each.kind == "network.network"])

        async def apply(tx: Transaction) -> None:
            await _charge_host(tx, resource, assigned)
            parts = replace(await ensure_parts(tx, resource, links, limited), hold=hold)
            await keep_root(tx, parts)
            await drop_parts(tx, resource, parts)
            parts = await self._gate.look(tx, resource, parts)
            await release_detached(tx, await tx.update(resource, assigned=parts))

        if waiting is not None:
            return Wait(waiting.reason, waiting.message, after_s=10.0, apply=apply)
        if hold and _is_due_to_start(resource):
            return Wait("NetworkNotServed", hold, after_s=5.0, apply=apply)
        return Done(apply)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Let others have what it was given leave for."""
        await self._gate.leave(tx, resource)

    async def _place(self, vm: Resource, links: dict[str, str], store: Store) -> Outcome:
        hosts = await self._table.hosts()
        need = for_role(await need_of(store, vm, links), vm, hosts)
        limited = _limited(vm, links, await store.get_all(_around(vm, links)))
        ranked = rank(hosts, need)
        if not ranked:
            self._table.forget()
            message = summary(explain(hosts, need))
            return Wait("NoCapacity", message, NO_CAPACITY_RECHECK_S, functools.partial(self._let_go, vm=vm))
        for candidate in ranked[:1]:
            self._table.take(candidate.host, need)

        async def apply(tx: Transaction) -> None:
            parts = await ensure_parts(tx, vm, links, limited)
            host = await self._charge_first(tx, vm, ranked, parts)
            placed = await self._gate.look(tx, vm, replace(parts, host=host.host))
            await tx.update(vm, assigned=placed)
            for id in (*placed.volumes, *placed.ports):
                await tx.enqueue(id)

        return Done(apply)

    async def _let_go(self, tx: Transaction, vm: Resource) -> None:
        await self._gate.leave(tx, vm)
        await release_detached(tx, vm)

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


def _around(vm: Resource, links: dict[str, str]) -> list[str]:
    """Return the ids of what decides about the VM besides itself: account, zone, offering, networks."""
    named = [id for field, id in links.items() if field == "offering" or field.startswith("nics.")]
    return [vm.zone, *named, *([] if is_of_cloud(vm) else [vm.account_id])]


def _limited(vm: Resource, links: dict[str, str], around: dict[str, Resource]) -> VmAssigned:
    """Return the decision with the limits in force: the lowest of its own or its offering's, account's and zone's.

    Appliances have none.
    """
    assigned: VmAssigned = vm.assigned
    if is_of_cloud(vm):
        return replace(assigned, **asdict(VmLimits()))
    named = limits(around[links["offering"]].desired) if "offering" in links else VmLimits()
    around_it = (around[vm.account_id].desired.limits, around[vm.zone].desired.limits)
    return replace(assigned, **asdict(lowest(own_limits(vm.desired), named, *around_it)))


async def _rebuild(tx: Transaction, vm: Resource, image: Resource) -> None:
    await rebuild(tx, vm, image)


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
