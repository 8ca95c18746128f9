"""Admission of a VM: its size, its place, its addresses and disks, and what all of it costs of the quota."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import msgspec

from pileus.compute.sizing import Size, sized
from pileus.compute.vm.capacity import candidates
from pileus.compute.vm.parts import made_for, ports_of
from pileus.compute.vm.placement import explain, rank, reasons
from pileus.compute.vm.plan import (
    Made,
    NicKey,
    hold_of,
    is_switched_only,
    isolation_noted,
    matched,
    nic_key,
    refuse_bad_keys,
)
from pileus.compute.vm.types import VmAssigned, VmDesired, VmObserved, is_of_cloud
from pileus.kernel.access import OPERATOR, Principal
from pileus.kernel.admission import Admission, Change, Decision, only
from pileus.kernel.errors import Conflict, Denied, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.quota import charge, space
from pileus.kernel.transaction import AlreadyClaimed, Exhausted, Transaction
from pileus.network.addresses import claim_addresses
from pileus.network.network.plan import offset, parse_range
from pileus.network.network.types import address_space
from pileus.storage.image.types import kernel_arguments, refuse_unready
from pileus.storage.volume.types import attachment_space


class VmAdmission(Admission):
    """Everything that can be refused is refused here, before anything exists."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the VM with its size decided. Raises: Invalid, Conflict, QuotaExceeded."""
        new = change.new
        desired: VmDesired = new.desired
        if change.old is not None and desired.isolated != change.old.desired.isolated:
            _refuse_lifting(change.principal, change.old, desired)
            new = replace(new, assigned=isolation_noted(new, change.principal.described))
            if is_switched_only(change.old.desired, desired):
                change.links.update(await tx.links(change.old.id))
                return new
        _refuse_appliance(change)
        image = await tx.get(change.links["image"])
        if change.old is None:
            refuse_unready(image)
            refuse_bad_keys(desired.ssh_keys)
        wanted = await sized(tx, change, image)
        if change.old is None:
            vdc = await tx.get(change.links.get("vdc") or (await only(tx, "tenancy.vdc", new.account_id, "vdc")).id)
        else:
            vdc = await tx.get(change.old.vdc)
            wanted = _kept_disk(change.old, desired, wanted)
            _check_update(change.old, desired, wanted)
            await _charge_host(tx, change.old, wanted)
        change.links["vdc"] = vdc.id  # also when it was not said: the vdc cannot go before the VM
        await charge(
            tx,
            vdc,
            new.id,
            {
                "vms": 1,
                "vcpus": wanted.vcpus,
                "memory_mib": wanted.memory_mib,
                "volumes": 1,
                "disk_gib": wanted.disk_gib,
            },
        )
        await _change_addresses(tx, change, vdc)
        await _attach_volumes(tx, change, vdc)
        hold = await _hold(tx, change)
        decided = _assigned(new if change.old is not None else None, vdc, image, wanted)
        if change.old is None and desired.isolated == "yes":
            decided = msgspec.structs.replace(decided, isolated_by=change.principal.described)
        return replace(new, assigned=msgspec.structs.replace(decided, hold=hold))

    async def preview(self, tx: Transaction, resource: Resource, principal: Principal) -> list[Decision]:
        """Return the host that would be chosen, and why each other is not; a tenant hears of no host by name or size."""
        need, hosts = await candidates(tx, resource)
        best = rank(hosts, need, 1)
        if not principal.operator and best:
            return [Decision(subject="vm", verdict="chosen", message="a host has room for it")]
        if not principal.operator:
            return [Decision(subject="vm", verdict="refused", reason=each) for each in reasons(explain(hosts, need))]
        chosen = [Decision(subject=f"host {host.name}", verdict="chosen", message="most memory free") for host in best]
        refused = [
            Decision(subject=f"host {each.host}", verdict="refused", reason=each.reason, message=each.message)
            for each in explain(hosts, need)
        ]
        return chosen + refused


def _refuse_lifting(principal: Principal, old: Resource, desired: VmDesired) -> None:
    """Raises: Denied for what only an operator may switch: the cloud's appliances, and what an operator isolated."""
    if principal.operator:
        return
    if is_of_cloud(old):
        raise Denied(f"{old} is an appliance of the cloud; only its operator may isolate it or lift that")
    if desired.isolated == "no" and old.assigned.isolated_by.startswith(OPERATOR):
        raise Denied(f"the cloud's operator isolated {old}; ask the operator to lift that")


def _refuse_appliance(change: Change) -> None:
    """Raises: Denied for what only the cloud's appliances have, and for a change of one of them."""
    old, desired = change.old, change.new.desired
    if old is not None and old.owner != old.account_id:
        what = "an appliance of the cloud" if old.desired.appliance is not None else "a member of a set"
        raise Denied(f"{old} is {what} and changes with what it belongs to, not by hand")
    for position, nic in enumerate(desired.nics):
        if nic.attachment != "network" or nic.addresses or nic.stations:
            field = f"desired.nics[{position}]"
            raise Invalid(f"{field}: attachment, addresses and stations are for the cloud's appliances", field=field)
    if desired.appliance is not None:
        raise Invalid("desired.appliance is for the cloud's appliances", field="desired.appliance")


async def _hold(tx: Transaction, change: Change) -> str:
    """Return what a start must wait for, and let the routers of the VM's networks see the wish."""
    ids = {id for field, id in change.links.items() if field.startswith("nics.")}
    networks = [await tx.get(id) for id in sorted(ids)]
    for network in networks:
        if network.observed is not None:
            await tx.enqueue(network.observed.router)
    return hold_of(change.new, networks)


def _kept_disk(old: Resource, desired: VmDesired, wanted: Size) -> Size:
    """Return the size with the root volume as it is: another offering does not change it, only ``disk_gib`` does.

    Raises: Invalid for a smaller one.
    """
    assigned: VmAssigned = old.assigned
    asked = desired.disk_gib if desired.disk_gib != old.desired.disk_gib else 0
    if asked and asked < assigned.disk_gib:
        raise Invalid(
            f"the root volume of {old} has {assigned.disk_gib} GiB and may only grow", field="desired.disk_gib"
        )
    return msgspec.structs.replace(wanted, disk_gib=asked or assigned.disk_gib)


def _check_update(old: Resource, desired: VmDesired, wanted: Size) -> None:
    """Raises: Conflict for a new size while the VM runs; Invalid for what may not change that way."""
    assigned: VmAssigned = old.assigned
    observed: VmObserved | None = old.observed
    before: VmDesired = old.desired
    if desired.boot_serial < before.boot_serial:
        raise Invalid("boot_serial may only be raised", field="desired.boot_serial")
    if (wanted.vcpus, wanted.memory_mib) != (assigned.vcpus, assigned.memory_mib):
        off = observed is None or observed.power in ("stopped", "absent")
        if before.power != "stopped" or not off:
            raise Conflict(
                f"{old} must be stopped to change its size: `pileus stop vm {old.name} --wait`, then repeat",
                code="running",
            )


async def _charge_host(tx: Transaction, old: Resource, wanted: Size) -> None:
    """Let the VM's host keep room for the new size. Raises: Conflict when it has none."""
    if not old.host:
        return
    for word, amount in (("memory_mib", wanted.memory_mib), ("vcpus", wanted.vcpus)):
        try:
            await tx.charge(space(old.host, word), old.id, amount)
        except Exhausted:
            raise Conflict(
                f"the host of {old} has too little {word} left for that; choose a smaller size, or make another VM",
                code="no-capacity",
            ) from None


async def _change_addresses(tx: Transaction, change: Change, vdc: Resource) -> None:
    """Claim the addresses of NICs that come, give back those of NICs that go before they became ports.

    A port gives back its own. Raises: Invalid, Conflict (address-in-use).
    """
    desired: VmDesired = change.new.desired
    keys = _keys(desired, change.links)
    ports: dict[str, Made] = {}
    unmade: list[NicKey] = []
    if change.old is not None:
        ports = await made_for(tx, await ports_of(tx, change.old))
        before = _keys(change.old.desired, await tx.links(change.old.id))
        unmade = [key for key, port in zip(before, matched(before, ports), strict=True) if not port]
    coming: list[tuple[int, NicKey]] = []
    for position, (key, port) in enumerate(zip(keys, matched(keys, ports), strict=True)):
        if not port and key in unmade:
            unmade.remove(key)
        elif not port:
            coming.append((position, key))
    for key in unmade:
        await _release(tx, change.new.id, key)
    for position, key in coming:
        await claim_addresses(tx, change.new, vdc.zone, key[0], _wished(key), f"desired.nics[{position}]")


def _keys(desired: VmDesired, links: dict[str, str]) -> list[NicKey]:
    return [nic_key(links.get(f"nics.{position}.network", ""), nic) for position, nic in enumerate(desired.nics)]


def _wished(key: NicKey) -> tuple[str, ...]:
    _, _, address, extra = key
    return (address, *extra) if address else extra


async def _release(tx: Transaction, vm: str, key: NicKey) -> None:
    network = await tx.get(key[0])
    for text in _wished(key):
        number = offset(IPv4Address(text), parse_range(network.desired.range))
        await tx.release(vm, address_space(network.id), str(number))


async def _attach_volumes(tx: Transaction, change: Change, vdc: Resource) -> None:
    """Take every volume asked for. Raises: Invalid, Conflict (in-use)."""
    desired: VmDesired = change.new.desired
    host = change.old.host if change.old else ""
    seen: set[str] = set()
    for position in range(len(desired.volumes)):
        volume = await tx.get(change.links[f"volumes.{position}.volume"])
        field = f"desired.volumes[{position}].volume"
        if volume.id in seen:
            raise Invalid(f"{volume} is given twice", field=field)
        seen.add(volume.id)
        if volume.zone != vdc.zone:
            raise Invalid(f"{volume} is in another zone than the VM", field=field)
        if volume.owner != volume.account_id:
            raise Conflict(f"{volume} belongs to {await tx.get(volume.owner)}", code="in-use", field=field)
        host = host or volume.host
        if volume.host and volume.host != host:
            raise Conflict(
                f"{volume} lies on another host than the VM or its other volumes", code="elsewhere", field=field
            )
        try:
            await tx.claim(attachment_space(volume.id), "vm", change.new.id)
        except AlreadyClaimed as error:
            holder = await tx.get(error.holder)
            raise Conflict(
                f"{volume} is attached to {holder}; detach it there first", code="in-use", field=field
            ) from None
        await tx.enqueue(volume.id)


def _assigned(old: Resource | None, vdc: Resource, image: Resource, wanted: Size) -> VmAssigned:
    if old is not None:
        decided: VmAssigned = old.assigned
        return msgspec.structs.replace(
            decided,
            vcpus=wanted.vcpus,
            memory_mib=wanted.memory_mib,
            disk_gib=wanted.disk_gib,
        )
    return VmAssigned(
        zone=vdc.zone,
        vdc=vdc.id,
        vcpus=wanted.vcpus,
        memory_mib=wanted.memory_mib,
        disk_gib=wanted.disk_gib,
        image=image.id,
        append=kernel_arguments(image),
        firmware=image.desired.firmware,
    )
