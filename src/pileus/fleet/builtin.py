"""The cloud's own appliances: their nodes, and what those are made of.

There is one package per role and image, made when the first node needs it, gone with the image.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.vm.types import VmAssigned
from pileus.fleet.manager.plan import built_in
from pileus.fleet.node.plan import footprint_of
from pileus.fleet.node.types import NodeAssigned, NodeDesired
from pileus.fleet.package.types import PackageAssigned, PackageDesired, PackageObserved
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction


class Appliance(Struct, frozen=True, kw_only=True):
    """What the cloud runs itself: by which of its managers, as which role, and how large."""

    manager: str
    role: str
    vcpus: int
    memory_mib: int


async def macs_of(store: Store, vm: Resource) -> list[str]:
    """Return the MACs of an appliance's NICs, in their order; fewer as long as it has not all of them."""
    assigned: VmAssigned = vm.assigned
    ports = {port.id: port for port in await store.list(Filter(kind="network.port", owner=vm.id))}
    made = [ports[id] for id in assigned.ports if id in ports]
    return [port.assigned.mac for port in made if port.assigned is not None]


async def make_node(
    tx: Transaction, appliance: Appliance, image: Resource, owner: Resource, name: str, desired: NodeDesired
) -> None:
    """Make a node of ``owner``, in its zone; manager and package of ``desired`` are said here."""
    package = await _ensure_package(tx, appliance, image)
    manager = (await tx.links(package.id))["manager"]
    node = Resource(
        id="",
        kind="fleet.node",
        name=name,
        desired=replace(desired, manager=appliance.manager, package=package.name),
        assigned=NodeAssigned(
            zone=owner.zone, vdc=desired.vdc, manager=manager, package=package.id, footprint=footprint_of(package)
        ),
    )
    await tx.ensure_child(owner, node, {"manager": manager, "package": package.id})


async def _ensure_package(tx: Transaction, appliance: Appliance, image: Resource) -> Resource:
    """Return the package of such appliances made of ``image``, which is where the image is: an account's is its own."""
    name = f"{appliance.role}-{image.id[-12:]}"
    known = await tx.find("fleet.package", image.account_id, name)
    if known is not None:
        return known
    found = await tx.find("fleet.manager", "", appliance.manager)
    manager = found or await tx.create(built_in(appliance.manager, tx.new_id()))
    package = Resource(
        id="",
        kind="fleet.package",
        name=name,
        owner=image.id,
        account_id=image.account_id,
        account=image.account,
        desired=PackageDesired(
            manager=appliance.manager,
            version=image.id[-12:],
            image=image.name,
            role=appliance.role,
            vcpus=appliance.vcpus,
            memory_mib=appliance.memory_mib,
        ),
        assigned=PackageAssigned(
            manager=manager.id, image=image.id, vcpus=appliance.vcpus, memory_mib=appliance.memory_mib
        ),
        observed=PackageObserved(state="available"),
    )
    return await tx.create(package, {"manager": manager.id})
