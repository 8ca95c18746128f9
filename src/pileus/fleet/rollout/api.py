"""Admission of a rollout: what changes and for which nodes is decided here, and that no other one is at work on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

from pileus.fleet.admission import consent_of, refuse_disabled, refuse_other
from pileus.fleet.node.types import KIND as NODE
from pileus.fleet.package.types import PackageAssigned, PackageObserved
from pileus.fleet.rollout.plan import is_over, observed_of, order, results_of, waves_of
from pileus.fleet.rollout.types import HELD, NODES_MAX, RolloutAssigned, RolloutDesired
from pileus.kernel.access import Principal, visible
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, Denied, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import AlreadyClaimed, Transaction
from pileus.storage.image.types import refuse_unready


class RolloutAdmission(Admission):
    """A rollout knows its nodes from the start; those that come later are not its own."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the rollout with its waves. Raises: Invalid, Denied, Conflict."""
        if change.old is not None:
            return await _goes_on(tx, change, change.old)
        desired: RolloutDesired = change.new.desired
        manager = await tx.get(change.links["manager"])
        refuse_other(change.principal, manager)
        refuse_disabled(manager)
        _check_waves(desired)
        await _check_package(tx, change, manager)
        nodes = order(await _chosen(tx, change, manager))
        waves = waves_of([node.id for node in nodes], desired.waves)
        await _hold(tx, change.principal, change.new, (node.id for node in nodes))
        assigned = RolloutAssigned(
            manager=manager.id, package=change.links.get("package", ""), waves=waves, attempt=desired.attempt
        )
        # Nodes and accounts may go although a rollout names them.
        for field in [each for each in change.links if each.startswith(("nodes.", "accounts."))]:
            del change.links[field]
        observed = observed_of(assigned, results_of(nodes, waves))
        return replace(change.new, assigned=assigned, observed=observed, observed_generation=1)

    async def may_delete(self, tx: Transaction, resource: Resource, principal: Principal) -> None:
        """Raises: Denied for a manager, of what an account rolls out itself."""
        _check_own(principal, resource)


def _check_own(principal: Principal, rollout: Resource) -> None:
    """Raises: Denied for a manager that would change what an account of its nodes rolls out itself."""
    if principal.manager_id and rollout.account_id != principal.account_id:
        raise Denied(f"{rollout} is of account {rollout.account}, which alone changes it", code="not-yours")


def _check_waves(desired: RolloutDesired) -> None:
    waves = desired.waves
    if waves[-1] != 100 or waves[0] < 1 or any(one >= other for one, other in itertools.pairwise(waves)):
        raise Invalid(
            "waves are rising percentages of all nodes that end with 100, such as 5,25,100;"
            f" {','.join(map(str, waves))} is not that",
            field="desired.waves",
        )
    if not desired.package and not desired.document:
        raise Invalid("a rollout changes something: give it a package, a document, or both", field="desired.package")


async def _check_package(tx: Transaction, change: Change, manager: Resource) -> None:
    if "package" not in change.links:
        return
    package = await tx.get(change.links["package"])
    assigned: PackageAssigned = package.assigned
    if assigned.manager != manager.id:
        raise Invalid(f"{package} is not of {manager}", field="desired.package")
    observed: PackageObserved | None = package.observed
    if observed is not None and observed.state == "refused":
        raise Conflict(f"{package} cannot be used: {observed.message}", code="package-refused", field="desired.package")
    if assigned.image:
        refuse_unready(await tx.get(assigned.image))


async def _chosen(tx: Transaction, change: Change, manager: Resource) -> list[Resource]:
    """Return the nodes that match every word of the wish, of accounts that consented. Raises: Invalid."""
    new = change.new
    desired: RolloutDesired = new.desired
    filter = Filter(
        kind=NODE.name,
        manager=manager.id,
        account_id=new.account_id or None,
        labels=tuple(desired.labels.items()),
    )
    named = {id for field, id in change.links.items() if field.startswith("nodes.")}
    accounts = {id for field, id in change.links.items() if field.startswith("accounts.")}
    found = []
    for node in await tx.matching(filter, limit=10 * NODES_MAX):
        is_meant = (not named or node.id in named) and (not accounts or node.account_id in accounts)
        if is_meant and not node.deleting and node.owner == node.account_id:
            found.append(node)
    consented = {id for id in {node.account_id for node in found} if await _has_consent(tx, id, new, manager)}
    found = [node for node in found if node.account_id in consented and visible(change.principal, NODE, node)]
    if not found:
        raise Invalid(f"no node of {manager} is meant by this; see `pileus get node`", field="desired.nodes")
    if len(found) > NODES_MAX:
        raise Invalid(
            f"{len(found)} nodes are meant, a rollout may have {NODES_MAX}; choose some by accounts or labels",
            field="desired.nodes",
        )
    return found


async def _has_consent(tx: Transaction, account_id: str, rollout: Resource, manager: Resource) -> bool:
    """Tell whether the account has anything to do with the manager; what it allows is looked at node by node."""
    if account_id in (rollout.account_id, manager.account_id):
        return True
    return await consent_of(tx, account_id, manager) is not None


async def _hold(tx: Transaction, principal: Principal, rollout: Resource, nodes: Iterable[str]) -> None:
    """Let no other rollout change the nodes until this one is over. Raises: Conflict naming the other."""
    for id in nodes:
        try:
            await tx.claim(HELD, id, rollout.id)
        except AlreadyClaimed as error:
            other, node = await tx.get(error.holder), await tx.get(id)
            known = str(other) if visible(principal, tx.registry[other.kind], other) else "another rollout"
            raise Conflict(
                f"{known} is at work on {node} of account {node.account}; wait until it is done, or delete it",
                code="in-use",
                field="desired.nodes",
            ) from None


async def _goes_on(tx: Transaction, change: Change, old: Resource) -> Resource:
    """Return the rollout with its new wish; when it was over and begins again, it holds its nodes again."""
    desired: RolloutDesired = change.new.desired
    assigned: RolloutAssigned = old.assigned
    manager = await tx.get(assigned.manager)
    _check_own(change.principal, old)
    refuse_other(change.principal, manager)
    refuse_disabled(manager)
    if desired.attempt < old.desired.attempt:
        raise Invalid("attempt may only be raised", field="desired.attempt")
    begins = desired.attempt > assigned.attempt or desired.state != old.desired.state
    if is_over(assigned) and begins:
        await _hold(tx, change.principal, old, [id for wave in assigned.waves for id in wave if await tx.find_id(id)])
    return change.new
