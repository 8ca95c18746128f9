"""The server half of a node: its VM, and the hash of the document that its host shall bring it to."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.compute.vm.types import VmAppliance, VmAssigned, VmDesired
from pileus.fleet.node.types import NodeAssigned, NodeDesired, NodeObserved
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.node.document import document_hash


class NodeController(Controller):
    """Keeps one VM per node."""

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
        image = await store.get((await store.links(resource.id))["image"])
        if image.observed is None or image.observed.state != "available":
            return Wait("ImageNotReady", f"{image} is not available; see `pileus describe image {image.name}`", 10.0)

        async def apply(tx: Transaction) -> None:
            vm = await _ensure_vm(tx, resource, image)
            await tx.update(
                resource,
                assigned=replace(
                    assigned,
                    vm=vm.id,
                    host=vm.host,
                    hash=document_hash(resource.desired.document),
                    channel=resource.desired.channel,
                ),
            )
            await tx.enqueue(resource.owner)  # what its role says of itself is for its owner

        return Done(apply)


async def _ensure_vm(tx: Transaction, node: Resource, image: Resource) -> Resource:
    """Return the node's VM, made now or changed to what the node wishes."""
    desired: NodeDesired = node.desired
    assigned: NodeAssigned = node.assigned
    disk_gib = max(1, -(-image.observed.virtual_size_bytes // 2**30))
    wished = VmDesired(
        image=image.id,
        vcpus=desired.vcpus,
        memory_mib=desired.memory_mib,
        disk_gib=disk_gib,
        nics=desired.nics,
        restart="always",
        shutdown_timeout_s=0,
        appliance=VmAppliance(channel=desired.channel, role=desired.role, apart_from=desired.apart_from),
        vdc=desired.vdc,
    )
    for known in await tx.children(node.id):
        if known.kind == "compute.vm":
            return await tx.update(known, desired=replace(known.desired, nics=desired.nics))
    vm = Resource(
        id="",
        kind="compute.vm",
        name=f"{node.name[:40]}-{node.id[-6:]}",  # tenants may have used the plain name
        desired=wished,
        assigned=VmAssigned(
            zone=assigned.zone,
            vdc=assigned.vdc,
            vcpus=desired.vcpus,
            memory_mib=desired.memory_mib,
            disk_gib=disk_gib,
            image=image.id,
            append=image.desired.append if image.observed.kernel_sha256 else "",
        ),
    )
    return await tx.ensure_child(node, vm, {"image": image.id, "vdc": assigned.vdc})
