"""The server half of a rollout: looks at its nodes, and changes those whose turn it is."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from pileus.fleet.manager.types import ManagerDesired
from pileus.fleet.node.types import NodeAssigned
from pileus.fleet.rollout.change import Left, bring_back, bring_forward, forget
from pileus.fleet.rollout.plan import (
    AT_ONCE,
    Decision,
    NodeSeen,
    Results,
    ahead_of,
    decide,
    is_over,
    looked_at,
    observed_of,
    see,
)
from pileus.fleet.rollout.types import HELD, RolloutAssigned, RolloutDesired, RolloutObserved
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

RECHECK_S = 5.0
"""How late it hears of a node that told nobody; nodes that change wake it."""
SOON_S = 0.05
"""After changes: there may be more to change, or some that could not be."""
PAGE = 250


class RolloutController(Controller):
    """Brings a rollout through its waves, or back."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Change the nodes of the wave, wait for them, go on or turn back; one that is deleted stops where it is."""
        assigned: RolloutAssigned = resource.assigned
        observed: RolloutObserved = resource.observed
        if resource.deleting:
            return await _let_go(resource, store)
        manager = await store.get(assigned.manager)
        wished: ManagerDesired = manager.desired
        if wished.state == "disabled":
            return Wait("ManagerDisabled", f"{manager} is disabled; nothing is changed meanwhile", 30.0)
        seen = await _see(resource, store)
        now = store.clock()
        decision = decide(resource.desired, assigned, observed.results, seen, now)

        async def apply(tx: Transaction) -> None:
            await _apply(tx, resource, manager, decision)

        return Done(apply, after_s=_next_look_s(resource.desired, decision, now))

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Say what was left changed."""
        observed: RolloutObserved = resource.observed
        left = ahead_of(observed.results)
        message = f"{len(left)} of {observed.total} nodes stay changed, {observed.failed} failed"
        await tx.event(resource, "Left", "Left", message)


def _next_look_s(desired: RolloutDesired, decision: Decision, now: float) -> float:
    assigned = decision.assigned
    if is_over(assigned):
        return 0.0
    if decision.changes:
        return SOON_S
    if assigned.healthy_since:
        return min(max(assigned.healthy_since + desired.settle_s - now, 0.0) + 0.01, RECHECK_S)
    return RECHECK_S


async def _see(rollout: Resource, store: Store) -> dict[str, NodeSeen]:
    """Return the nodes that matter now, as they are; VMs only of those that may have to be made anew."""
    results = looked_at(rollout.observed.results)
    nodes = await _rows(store, "fleet.node", (one.node for one in results))
    moving = [one.node for one in results if one.state in ("changing", "rolling-back") and one.node in nodes]
    vm_of = {
        id: nodes[id].assigned.vm for id in moving if nodes[id].assigned.footprint.image and not nodes[id].desired.vm
    }
    vms = await _rows(store, "compute.vm", vm_of.values()) if rollout.desired.package else {}
    return {one.node: see(nodes.get(one.node), vms.get(vm_of.get(one.node, "")), rollout.id) for one in results}


async def _rows(store: Store, kind: str, ids: Iterable[str]) -> dict[str, Resource]:
    """Return those of the resources that are there."""
    wanted = [id for id in ids if id]
    found: dict[str, Resource] = {}
    for first in range(0, len(wanted), PAGE):
        some = wanted[first : first + PAGE]
        padded = (*some, *[some[0]] * (PAGE - len(some)))  # one statement for all
        found.update({row.id: row for row in await store.list(Filter(kind=kind, ids=padded), limit=PAGE)})
    return found


async def _apply(tx: Transaction, rollout: Resource, manager: Resource, decision: Decision) -> None:
    """Write the changes and what came of each, all in one transaction: no server can stop in between."""
    bring = bring_forward if decision.assigned.turn == "forward" else bring_back
    left = {}
    for id in decision.changes:
        refused = await bring(tx, rollout, manager, id)
        if refused is not None:
            left[id] = refused
    observed = observed_of(decision.assigned, _noted(decision.results, left))
    await tx.update(rollout, assigned=decision.assigned, observed=observed, observed_generation=rollout.generation)
    if is_over(decision.assigned):
        await tx.release(rollout.id, HELD)


def _noted(results: Results, left: dict[str, Left]) -> Results:
    """Return the results with what could not be changed."""
    if not left:
        return results
    noted = []
    for one in results:
        known = left.get(one.node)
        if known is None:
            noted.append(one)
        elif known.state == "failed":
            noted.append(replace(one, state="failed", failure=one.failure or known.message, message=known.message))
        else:
            noted.append(replace(one, state=known.state, message=known.message))
    return tuple(noted)


async def _let_go(rollout: Resource, store: Store) -> Outcome:
    """Let the nodes forget what they had before; gone when all did."""
    assigned: RolloutAssigned = rollout.assigned
    nodes = await _rows(store, "fleet.node", (id for wave in assigned.waves for id in wave))
    held = [node for node in nodes.values() if _is_of(node, rollout)][:AT_ONCE]
    if not held:
        return Done()

    async def apply(tx: Transaction) -> None:
        for seen in held:
            node = await tx.find_id(seen.id)
            if node is not None and _is_of(node, rollout):
                await forget(tx, node)

    return Wait("Deleting", "its nodes forget what they had before", 0.01, apply)


def _is_of(node: Resource, rollout: Resource) -> bool:
    assigned: NodeAssigned = node.assigned
    return assigned.before is not None and assigned.before.rollout == rollout.id
