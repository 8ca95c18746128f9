"""Admission of a node: whose it is, what it is made of, where it is connected, and what it costs of the quota."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from pileus.compute.vm.types import node_space
from pileus.fleet.admission import require, require_consent
from pileus.fleet.consent.types import Allowed, ConsentDesired
from pileus.fleet.environment import environment
from pileus.fleet.node.plan import costs, footprint_of
from pileus.fleet.node.types import BEFORE, NodeAssigned, NodeDesired
from pileus.fleet.package.types import PackageAssigned, PackageObserved
from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change, only
from pileus.kernel.errors import Conflict, Denied, Invalid, QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.quota import charge
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import AlreadyClaimed, Transaction
from pileus.network.addresses import claim_addresses
from pileus.storage.image.types import refuse_unready

NEEDS: dict[str, Allowed] = {
    "document": "configure", "package": "configure", "properties": "configure", "power": "power",
    "readmit_serial": "power",
}  # fmt: skip
"""What a manager needs of an account's consent to change a field of a node."""


class NodeAdmission(Admission):
    """Everything that can be refused is refused here, before anything exists."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the node with its package and place decided. Raises: Denied, Invalid, Conflict, QuotaExceeded."""
        if change.new.desired.apart_from:
            raise Invalid("desired.apart_from is for the cloud's routers", field="desired.apart_from")
        if change.old is not None:
            return await _changed(tx, change, change.old)
        new = change.new
        manager = await tx.get(change.links["manager"])
        await require(tx, change.principal, new.account_id, manager, "create")
        consent = await require_consent(tx, new.account_id, manager)
        await _count(tx, new, manager, consent)
        package = await _package(tx, change, manager)
        if new.desired.vm:
            vdc = await _take_vm(tx, change, package)
        else:
            vdc = await tx.get(change.links.get("vdc") or (await only(tx, "tenancy.vdc", new.account_id, "vdc")).id)
            environment(package, new.desired.properties)
            await _check_nics(tx, change, package, vdc)
            await _charge(tx, new, package, vdc)
        change.links["vdc"] = vdc.id
        assigned = NodeAssigned(
            zone=vdc.zone, vdc=vdc.id, manager=manager.id, package=package.id, footprint=footprint_of(package)
        )
        # Said from now on: a newer package is another wish.
        return replace(new, desired=msgspec.structs.replace(new.desired, package=package.name), assigned=assigned)

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Denied for a manager that the account does not let."""
        if principal.manager_id:
            manager = await tx.get(principal.manager_id)
            await require(tx, principal, resource.account_id, manager, "power")


async def _count(tx: Transaction, node: Resource, manager: Resource, consent: ConsentDesired) -> None:
    """Take one of the nodes that the consent allows. Raises: QuotaExceeded."""
    space = f"nodes/{node.account_id}/{manager.id}"
    has = await tx.claimed(space)
    if has >= consent.nodes_max:
        raise QuotaExceeded(
            f"the account lets {manager} have {consent.nodes_max} nodes, and it has {has}; "
            "delete one, or raise nodes_max of the consent"
        )
    await tx.claim(space, node.id, node.id)


async def _package(tx: Transaction, change: Change, manager: Resource) -> Resource:
    """Return what the node is made of: the package named, else the manager's newest. Raises: Invalid, Conflict."""
    if "package" in change.links:
        package = await tx.get(change.links["package"])
    else:
        of_manager = await tx.matching(Filter(kind="fleet.package", manager=manager.id))
        own = [each for each in of_manager if not each.deleting]
        if not own:
            raise Invalid(f"{manager} has no package yet; see `pileus get package`", field="desired.package")
        package = own[-1]
        change.links["package"] = package.id
    assigned: PackageAssigned = package.assigned
    if assigned.manager != manager.id:
        raise Invalid(f"{package} is not of {manager}", field="desired.package")
    observed: PackageObserved | None = package.observed
    if observed is not None and observed.state == "refused":
        raise Conflict(f"{package} cannot be used: {observed.message}", code="package-refused", field="desired.package")
    if assigned.image:
        refuse_unready(await tx.get(assigned.image))
    elif not change.new.desired.vm:
        raise Invalid(
            f"{package} has no image: it is for VMs that are there already, say which with --vm", field="desired.vm"
        )
    return package


async def _take_vm(tx: Transaction, change: Change, package: Resource) -> Resource:
    """Make a VM of the account this node's, and return its vdc. Raises: Denied, Invalid, Conflict (in-use)."""
    vm = await tx.get(change.links["vm"])
    if change.principal.manager_id:
        raise Denied("only the account's own users may make a node of a VM that is there already", code="not-yours")
    if vm.owner != vm.account_id:
        raise Invalid(f"{vm} is an appliance already", field="desired.vm")
    if change.new.desired.nics:
        raise Invalid("a VM that is there already has its NICs; leave nics out", field="desired.nics")
    if change.links.get("vdc", vm.vdc) != vm.vdc:
        raise Invalid(f"{vm} is in another vdc; leave vdc out", field="desired.vdc")
    _check_reach(change.new.desired, package)
    try:
        await tx.claim(node_space(), vm.id, change.new.id)
    except AlreadyClaimed as error:
        holder = await tx.get(error.holder)
        raise Conflict(f"{vm} is {holder} already", code="in-use", field="desired.vm") from None
    return await tx.get(vm.vdc)


def _check_reach(desired: NodeDesired, package: Resource) -> None:
    """Raises: Invalid for what cannot be had of a VM that was there before the node."""
    if package.desired.channel != "qga":
        raise Invalid(
            f"{package} has channel {package.desired.channel}, whose key is made with a VM; only channel qga can reach "
            "a VM that is there already",
            field="desired.package",
        )
    if desired.power != "running":
        raise Invalid("a VM that is there already is stopped by itself: `pileus stop vm`", field="desired.power")


async def _check_nics(tx: Transaction, change: Change, package: Resource, vdc: Resource) -> None:
    """Raises: Invalid for NICs that the package does not want, Conflict for an address that is in use."""
    desired: NodeDesired = change.new.desired
    wanted = package.assigned.nics
    if len(desired.nics) != wanted:
        raise Invalid(
            f"{package} has {wanted} NICs, {len(desired.nics)} were given; say a network for each of them",
            field="desired.nics",
        )
    for position, nic in enumerate(desired.nics):
        field = f"desired.nics[{position}]"
        if nic.attachment != "network" or nic.addresses or nic.stations:
            raise Invalid(f"{field}: attachment, addresses and stations are for routers", field=field)
        network = change.links.get(f"nics.{position}.network", "")
        wished = filter(None, (nic.address, *nic.extra_addresses))
        # The addresses asked for are held until the VM is made, which gets them.
        await claim_addresses(tx, change.new, vdc.zone, network, wished, field)


async def _charge(tx: Transaction, node: Resource, package: Resource, vdc: Resource) -> None:
    """Charge the account for the node's VM. Raises: QuotaExceeded."""
    await charge(tx, vdc, node.id, costs(package, await tx.get(package.assigned.image)))


async def _changed(tx: Transaction, change: Change, old: Resource) -> Resource:
    """Return the node as it shall be from now on. Raises: as ``admit``."""
    if old.owner != old.account_id:
        raise Denied(f"{old} belongs to {await tx.get(old.owner)} and changes with that, not by hand")
    new = change.new
    if not new.desired.package:
        new = replace(new, desired=msgspec.structs.replace(new.desired, package=old.desired.package))
        change.links["package"] = old.assigned.package
    manager = await tx.get(change.links["manager"])
    for field, what in NEEDS.items():
        if getattr(new.desired, field) != getattr(old.desired, field):
            await require(tx, change.principal, old.account_id, manager, what)
    _check_change(new.desired, old.desired)
    package = await _package(tx, change, manager)
    before = old.assigned.before
    if before is not None and before.turned == "forward" and before.package_id != package.id:
        change.links[BEFORE] = before.package_id
    desired: NodeDesired = new.desired
    if desired.vm:
        _check_reach(desired, package)
    else:
        if package.assigned.nics != len(desired.nics):
            raise Invalid(
                f"{package} has {package.assigned.nics} NICs, the node {len(desired.nics)}", field="desired.package"
            )
        environment(package, desired.properties)
        await _charge(tx, new, package, await tx.get(old.vdc))
    return replace(new, assigned=_decided(new, old, package))


def _check_change(desired: NodeDesired, before: NodeDesired) -> None:
    """Raises: Invalid for what of a node never changes."""
    if desired.nics != before.nics:
        raise Invalid("the NICs of a node cannot be changed; make another node", code="immutable", field="desired.nics")
    if desired.readmit_serial < before.readmit_serial:
        raise Invalid("readmit_serial may only be raised", field="desired.readmit_serial")


def _decided(new: Resource, old: Resource, package: Resource) -> NodeAssigned:
    """Return the decision; what was changed is not in force before its controller has looked: who waits hears so."""
    assigned: NodeAssigned = msgspec.structs.replace(new.assigned, package=package.id)
    if package.id != old.assigned.package or new.desired.document != old.desired.document:
        return msgspec.structs.replace(assigned, hash="")
    return assigned
