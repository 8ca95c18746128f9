"""The server half of a package: whether its image is there."""

from __future__ import annotations

from pileus.fleet.package.types import PackageAssigned, PackageObserved
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.storage.image.types import ImageObserved

IMAGE_RECHECK_S = 2.0


class PackageController(Controller):
    """A package is available as soon as its image is, and stays so."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Look at the image."""
        if resource.deleting:
            return Done()
        assigned: PackageAssigned = resource.assigned
        if not assigned.image:
            found = PackageObserved(state="available")
        else:
            image = await store.get(assigned.image)
            found = _seen(image)
        if found.state == "waiting":
            return Wait("ImageNotReady", found.message, IMAGE_RECHECK_S, lambda tx: _note(tx, resource, found))
        return Done(lambda tx: _note(tx, resource, found))


def _seen(image: Resource) -> PackageObserved:
    observed: ImageObserved | None = image.observed
    if observed is not None and observed.problem is not None:
        return PackageObserved(state="refused", message=f"{image}: {observed.problem.message}")
    if observed is None or observed.state != "available":
        state = observed.state if observed is not None else "awaiting-upload"
        return PackageObserved(state="waiting", message=f"{image} is {state}; see `pileus describe image {image.name}`")
    return PackageObserved(state="available")


async def _note(tx: Transaction, package: Resource, found: PackageObserved) -> None:
    await tx.update(package, observed=found)
