"""Packages of the cloud's own appliances: one per role and image, made when the first node needs it, gone with the image."""

from __future__ import annotations

from msgspec import Struct

from pileus.fleet.manager.plan import built_in
from pileus.fleet.package.types import PackageAssigned, PackageDesired, PackageObserved
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction


class Appliance(Struct, frozen=True, kw_only=True):
    """What the cloud runs itself: by which of its managers, as which role, and how large."""

    manager: str
    role: str
    vcpus: int
    memory_mib: int


async def ensure_package(tx: Transaction, appliance: Appliance, image: Resource) -> Resource:
    """Return the package of such appliances made of ``image``."""
    name = f"{appliance.role}-{image.id[-12:]}"
    known = await tx.find("fleet.package", "", name)
    if known is not None:
        return known
    found = await tx.find("fleet.manager", "", appliance.manager)
    manager = found or await tx.create(built_in(appliance.manager, tx.new_id()))
    package = Resource(
        id="",
        kind="fleet.package",
        name=name,
        owner=image.id,
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
