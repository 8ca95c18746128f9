"""Writes what a rollout wants into one node, or what the node had before, within the transaction of the decision."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from pileus.fleet.admission import consent_of
from pileus.fleet.node.plan import costs, footprint_of
from pileus.fleet.node.types import BEFORE, Document, Footprint, NodeAssigned, NodeBefore, NodeDesired
from pileus.fleet.rollout.plan import is_touched
from pileus.fleet.rollout.types import State
from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.quota import charge
from pileus.kernel.transaction import Transaction
from pileus.node.document import document_hash, merged


class Left(Struct, frozen=True):
    """A node that was not changed: what its result is, and why."""

    state: State
    message: str


class Target(Struct, frozen=True, kw_only=True):
    """What a node gets."""

    package: Resource
    document: Document
    before: NodeBefore


async def may_configure(tx: Transaction, account_id: str, rollout: Resource, manager: Resource) -> bool:
    """Tell whether the rollout may change nodes of the account: its own, or the account lets the manager."""
    if account_id in (rollout.account_id, manager.account_id):
        return True
    consent = await consent_of(tx, account_id, manager)
    return consent is not None and "configure" in consent.allows


async def bring_forward(tx: Transaction, rollout: Resource, manager: Resource, id: str) -> Left | None:
    """Give the node its new package and document, and let it keep what it had; one that has them is asked again."""
    node = await tx.find_id(id)
    if node is None or node.deleting:
        return Left("gone", "it was deleted")
    if not await may_configure(tx, node.account_id, rollout, manager):
        return Left("skipped", f"its account does not let {manager} configure it")
    assigned: NodeAssigned = node.assigned
    known = assigned.before
    if known is not None and known.rollout == rollout.id and known.turned == "forward" and not is_touched(node, known):
        await _ask_again(tx, node, known)
        return None
    old = await tx.get(assigned.package)
    new = await tx.get(rollout.assigned.package) if rollout.assigned.package else old
    document = merged(node.desired.document, rollout.desired.document)
    before = NodeBefore(rollout=rollout.id, package=old.name, package_id=old.id, document=node.desired.document)
    return await _write(tx, node, Target(package=new, document=document, before=before))


async def bring_back(tx: Transaction, rollout: Resource, manager: Resource, id: str) -> Left | None:
    """Give the node again what it had before the rollout."""
    node = await tx.find_id(id)
    if node is None or node.deleting:
        return Left("gone", "it was deleted")
    if not await may_configure(tx, node.account_id, rollout, manager):
        return Left("skipped", f"its account does not let {manager} configure it; it is left changed")
    before: NodeBefore = node.assigned.before
    old = await tx.find_id(before.package_id)
    if old is None or old.deleting:
        return Left("skipped", f"package {before.package}, which it had, is gone; it is left changed")
    turned = replace(before, turned="back")
    return await _write(tx, node, Target(package=old, document=before.document, before=turned))


async def _ask_again(tx: Transaction, node: Resource, before: NodeBefore) -> None:
    """Let the host try at once, and tell what comes of it: what it said before is no answer to this."""
    generation = node.generation + 1
    again = replace(before, generation=generation)
    await tx.update(node, generation=generation, assigned=replace(node.assigned, before=again))


async def forget(tx: Transaction, node: Resource) -> None:
    """Let the node forget what it had before."""
    await _link(tx, node, {})
    await tx.update(node, assigned=replace(node.assigned, before=None))


async def _write(tx: Transaction, node: Resource, target: Target) -> Left | None:
    desired: NodeDesired = node.desired
    assigned: NodeAssigned = node.assigned
    package = target.package
    is_new = package.id != assigned.package
    left = await _fit(tx, node, package) if is_new else None
    if left is not None:
        return left
    footprint = footprint_of(package) if is_new else assigned.footprint
    is_remade = not desired.vm and is_new and _vm_of(footprint) != _vm_of(assigned.footprint)
    boot_id = node.observed.boot_id if is_remade and node.observed is not None else ""
    wish = replace(desired, document=target.document, package=package.name if is_new else desired.package)
    hash = document_hash(target.document)
    before = replace(
        target.before,
        generation=node.generation + (wish != desired),
        hash=hash,
        made_of=package.id,
        boot_id=boot_id,
    )
    decided = replace(assigned, package=package.id, footprint=footprint, hash=hash, before=before)
    links = {"package": package.id}
    if before.turned == "forward" and is_new:
        links[BEFORE] = before.package_id
    await _link(tx, node, links)
    await tx.update(node, desired=wish, assigned=decided)
    return None


def _vm_of(footprint: Footprint) -> Footprint:
    """Return what of a footprint cannot change without a new boot from a new disk."""
    return replace(footprint, guest_agent=None)


async def _link(tx: Transaction, node: Resource, links: dict[str, str]) -> None:
    known = await tx.links(node.id)
    kept = {field: target for field, target in known.items() if field != BEFORE}
    if {**kept, **links} != known:
        await tx.link(node.id, {**kept, **links})


async def _fit(tx: Transaction, node: Resource, package: Resource) -> Left | None:
    """Charge the node for another package, or return why it cannot be made of that."""
    desired: NodeDesired = node.desired
    if desired.vm:
        fits = package.desired.channel == "qga"
        return (
            None if fits else Left("failed", f"{package} is not for a VM that is there already: its channel is not qga")
        )
    if not package.assigned.image:
        return Left("failed", f"{package} has no image: it is for VMs that are there already")
    if package.assigned.nics != len(desired.nics):
        return Left("failed", f"{package} has {package.assigned.nics} NICs, the node {len(desired.nics)}")
    vdc = await tx.get(node.assigned.vdc)
    try:
        await charge(tx, vdc, node.id, costs(package, await tx.get(package.assigned.image)))
    except QuotaExceeded as error:
        old = await tx.get(node.assigned.package)
        await charge(tx, vdc, node.id, costs(old, await tx.get(old.assigned.image)))  # what was charged in part
        return Left("failed", error.message)
    return None
