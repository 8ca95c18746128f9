"""The server half of a node: its VM, and the hash of the document that its host shall bring it to."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.vm.plan import is_off
from pileus.compute.vm.types import VmAppliance, VmAssigned, VmDesired
from pileus.fleet.environment import environment
from pileus.fleet.node.plan import NodeWish, disk_gib, footprint_of, is_made_of, next_power
from pileus.fleet.node.types import Footprint, NodeAssigned, NodeDesired, NodeObserved
from pileus.fleet.request.types import QUEUE_MAX, queue_space
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.network.network.types import address_space
from pileus.node.document import document_hash
from pileus.storage.image.types import is_available, kernel_arguments

SHUTDOWN_S = 30
"""For a node to write down what it has not yet, before it is ended."""

ROLLOUT_AFTER_S = 1.0
"""How late a rollout looks at a node that it changed: it looks at all of them at once."""


class Around(Struct, frozen=True):
    """What a decision about a node is made of besides itself."""

    package: Resource
    image: Resource | None
    vm: Resource | None
    links: dict[str, str]
    told: str = ""
    """The OVF environment of the VM that is made of the package."""
    refused: str = ""
    """Why there can be none."""


class NodeController(Controller):
    """Keeps one VM per node: made of its package, or one that is there already."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Make the VM, follow it to its host, wish the document there; gone when the host let go of the channel."""
        assigned: NodeAssigned = resource.assigned
        observed: NodeObserved | None = resource.observed
        if resource.deleting:
            if not assigned.host or (resource.gone_confirmed and observed is not None and observed.state == "absent"):
                return Done()
            return Wait("Deleting", "its host still holds the backchannel", after_s=30.0)
        if assigned.host and (await store.get(assigned.host)).assigned.silent == "yes":
            return Wait("HostSilent", "its host does not report; it may still run there", 30.0, status="unknown")
        around = await _around(resource, store)
        held = _held(resource, around)
        if held is not None:
            return held
        footprint = footprint_of(around.package)
        wish = NodeWish(
            power=resource.desired.power,
            is_current=around.image is None or around.vm is None or is_made_of(footprint, around.vm),
            is_off=around.vm is not None and is_off(around.vm),
        )

        async def apply(tx: Transaction) -> None:
            vm = await _keep_vm(tx, resource, around, footprint, wish)
            decided = _decided(resource, around, footprint, vm)
            await tx.update(resource, assigned=decided)
            if (decided.host, decided.quarantined) != (assigned.host, assigned.quarantined):
                await _wake_requests(tx, resource)
            await tx.enqueue(resource.owner)  # what its role says of itself is for its owner
            if assigned.before is not None:
                await tx.enqueue(assigned.before.rollout, ROLLOUT_AFTER_S)

        if not wish.is_current:
            return Wait("Replacing", f"its VM is made anew, of {around.package}", 5.0, apply)
        return Done(apply)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Let a VM that was there before the node be without a backchannel again, and end what waits for the node."""
        await _wake_requests(tx, resource)
        if not resource.desired.vm:
            return
        vm = await tx.find_id(resource.assigned.vm)
        if vm is not None:
            await tx.update(vm, assigned=replace(vm.assigned, channel=""))


def _held(node: Resource, around: Around) -> Wait | None:
    """Return what the node's VM waits for; None when it can be made."""
    if around.image is not None and not is_available(around.image):
        image = around.image
        return Wait("ImageNotReady", f"{image} is not available; see `pileus describe image {image.name}`", 10.0)
    if around.refused:
        return Wait("PropertiesRefused", around.refused, 60.0)
    if node.desired.vm and around.vm is None:
        return Wait("VmMissing", "its VM is gone; delete the node", 60.0)
    return None


async def _wake_requests(tx: Transaction, node: Resource) -> None:
    for id in await tx.queue(queue_space(node.id), QUEUE_MAX):
        await tx.enqueue(id)


async def _around(node: Resource, store: Store) -> Around:
    links = await store.links(node.id)
    package = await store.get(links["package"])
    image = await store.get(package.assigned.image) if package.assigned.image and not node.desired.vm else None
    if node.desired.vm:
        found = await store.list(Filter(kind="compute.vm", ids=(links["vm"],)))
    else:
        found = await store.list(Filter(kind="compute.vm", owner=node.id))
    vm = found[0] if found else None
    if node.desired.vm:
        return Around(package, image, vm, links)
    try:
        return Around(package, image, vm, links, told=environment(package, node.desired.properties))
    except Invalid as error:
        return Around(package, image, vm, links, refused=error.message)


def _decided(node: Resource, around: Around, footprint: Footprint, vm: Resource) -> NodeAssigned:
    """Return the node's decisions, with its quarantine: it begins by what its host says, and ends when it is readmitted."""
    desired: NodeDesired = node.desired
    assigned: NodeAssigned = node.assigned
    observed: NodeObserved | None = node.observed
    quarantined = assigned.quarantined
    if observed is not None and observed.state == "quarantined" and observed.problem is not None:
        quarantined = quarantined or observed.problem.message
    if desired.readmit_serial > assigned.readmit_serial:
        quarantined = ""
    return replace(
        assigned,
        package=around.package.id,
        footprint=footprint,
        vm=vm.id,
        host=vm.host,
        hash=document_hash(desired.document),
        quarantined=quarantined,
        readmit_serial=desired.readmit_serial,
    )


async def _keep_vm(tx: Transaction, node: Resource, around: Around, footprint: Footprint, wish: NodeWish) -> Resource:
    """Return the node's VM, made now or changed to what the node wishes."""
    if node.desired.vm:
        assert around.vm is not None  # a node without it waits
        vm = await tx.get(around.vm.id)
        return await tx.update(vm, assigned=replace(vm.assigned, channel=footprint.channel))
    if around.vm is None:
        assert around.image is not None  # a package without image is for VMs that are there already
        return await _make_vm(tx, node, around, around.image, footprint)
    vm = await tx.get(around.vm.id)
    if not wish.is_current and wish.is_off and around.image is not None:
        vm = await _remake(tx, vm, around.image, footprint)
    desired = replace(vm.desired, nics=node.desired.nics, power=next_power(wish), ovf_environment=around.told)
    return await tx.update(vm, desired=desired, labels=node.labels)


async def _remake(tx: Transaction, vm: Resource, image: Resource, footprint: Footprint) -> Resource:
    """Let a VM that is stopped be what another package says; its controller makes the disk, if that is another."""
    await tx.link(vm.id, {**await tx.links(vm.id), "image": image.id})
    size: dict[str, Any] = {"vcpus": footprint.vcpus, "memory_mib": footprint.memory_mib}
    told = replace(vm.desired.appliance, channel=footprint.channel, role=footprint.role)
    desired = replace(vm.desired, image=image.id, disk_gib=disk_gib(image), appliance=told, **size)
    return await tx.update(vm, desired=desired, assigned=replace(vm.assigned, **size))


async def _make_vm(tx: Transaction, node: Resource, around: Around, image: Resource, footprint: Footprint) -> Resource:
    desired: NodeDesired = node.desired
    assigned: NodeAssigned = node.assigned
    is_of_account = node.owner == node.account_id
    size: dict[str, Any] = {
        "vcpus": footprint.vcpus, "memory_mib": footprint.memory_mib, "disk_gib": disk_gib(image),
    }  # fmt: skip
    wished = VmDesired(
        image=image.id,
        nics=desired.nics,
        power=desired.power,
        restart="always",
        shutdown_timeout_s=SHUTDOWN_S if is_of_account else 0,  # a router has nothing to lose
        ovf_environment=around.told,
        appliance=VmAppliance(
            channel=footprint.channel,
            role=footprint.role,
            apart_from=await _apart_from(tx, desired),
            part_of="account" if is_of_account else "cloud",
        ),
        vdc=assigned.vdc,
        **size,
    )
    vm = Resource(
        id="",
        kind="compute.vm",
        name=f"{node.name[:40]}-{node.id[-6:]}",  # tenants may have used the plain name
        labels=node.labels,
        desired=wished,
        assigned=VmAssigned(
            zone=assigned.zone,
            vdc=assigned.vdc,
            image=image.id,
            append=kernel_arguments(image),
            firmware=image.desired.firmware,
            **size,
        ),
    )
    networks = {field: id for field, id in around.links.items() if field.startswith("nics.")}
    made = await tx.ensure_child(node, vm, {"image": image.id, "vdc": assigned.vdc, **networks})
    for network in set(networks.values()):
        await _hand_on(tx, node, made, network)
    return made


async def _hand_on(tx: Transaction, node: Resource, vm: Resource, network: str) -> None:
    """Let the VM hold the addresses that the node claimed when it was asked for."""
    space = address_space(network)
    for value in await tx.claims(space, node.id):
        await tx.release(node.id, space, value)
        await tx.claim(space, value, vm.id, int(value))


async def _apart_from(tx: Transaction, desired: NodeDesired) -> str:
    other = await tx.find_id(desired.apart_from)
    return str(other.assigned.vm) if other is not None else ""
