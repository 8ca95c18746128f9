"""The package of the cloud's own routers: one per image, made when the first router needs it, gone with the image."""

from __future__ import annotations

from pileus.fleet.manager.plan import built_in
from pileus.fleet.manager.types import ROUTERS
from pileus.fleet.package.types import PackageAssigned, PackageDesired, PackageObserved
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction

ROLE = "router"
VCPUS, MEMORY_MIB = 1, 192


async def ensure_router_package(tx: Transaction, image: Resource) -> Resource:
    """Return the package of routers made of ``image``."""
    name = f"router-{image.id[-12:]}"
    known = await tx.find("fleet.package", "", name)
    if known is not None:
        return known
    manager = await tx.find("fleet.manager", "", ROUTERS) or await tx.create(built_in(ROUTERS, tx.new_id()))
    package = Resource(
        id="",
        kind="fleet.package",
        name=name,
        owner=image.id,
        desired=PackageDesired(
            manager=ROUTERS,
            version=image.id[-12:],
            image=image.name,
            role=ROLE,
            vcpus=VCPUS,
            memory_mib=MEMORY_MIB,
        ),
        assigned=PackageAssigned(manager=manager.id, image=image.id, vcpus=VCPUS, memory_mib=MEMORY_MIB),
        observed=PackageObserved(state="available"),
    )
    return await tx.create(package, {"manager": manager.id})
