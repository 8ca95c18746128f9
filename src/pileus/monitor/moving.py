"""A monitor goes on with the inventory that came on its image: policies first, then what stood, then it is done.

Each part is a transaction of the server that has the watcher's lease, and finds what is done already: a server that dies
in between, or another one, goes on. Until all of it is done the monitor watches nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec.structs import replace

from pileus.kernel.kind import Resource
from pileus.kernel.lease import Lease, check
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.inventory import Found, Moved, Unreadable, first_row, found, moved, origin, read
from pileus.monitor.monitor.plan import is_moving, row_of, told_of
from pileus.monitor.monitor.types import MISSING_MAX, MovedIn
from pileus.monitor.state.types import StateObserved
from pileus.node.monitor.model import POLICIES_MAX

ROWS_MAX = 100
"""Rows written in one transaction."""
POLICIES_PAGE = 50


async def move_in(store: Store, lease: Lease, id: str, ask: Callable[[], Awaitable[bytes]]) -> None:
    """Take over the inventory that the monitor's appliance gives, unless it came with none or that is done.

    It is asked for before anything is said to the appliance, which would keep that instead. Raises: LeaseLost, Transient.
    """
    monitor = await store.get(id)
    if not is_moving(monitor):
        return
    try:
        kept = read(await ask())
    except Unreadable as wrong:
        await _done(store, lease, id, replace(_NOTHING, problem=str(wrong)))
        return
    account = monitor.account_id
    vms = await store.list_all(Filter(kind="compute.vm", account_id=account))
    nodes = await store.list_all(Filter(kind="fleet.node", account_id=account))
    matches = found(kept, vms, {node.assigned.vm: node.name for node in nodes if node.assigned.vm})
    known = await store.list_all(Filter(kind="monitor.policy", account_id=account))
    own = {policy.labels["moved-in"]: policy.id for policy in known if _is_its(policy, monitor)}
    others = [policy for policy in known if policy.id not in own.values()]
    room = POLICIES_MAX - sum(1 for policy in others if policy.desired.monitor in (monitor.name, monitor.id))
    policies = moved(kept, monitor, [policy.name for policy in others], room)
    ids = await _make_policies(store, lease, monitor, policies, own)
    begun = [(vm, first_row(kept.appliances[id].row, ids)) for id, vm in matches.pairs.items()]
    rows = [(vm, row) for vm, row in begun if row is not None]
    for start in range(0, len(rows), ROWS_MAX):
        await store.write(functools.partial(_write_rows, lease=lease, own=monitor, rows=rows[start : start + ROWS_MAX]))
    await _done(store, lease, id, _moved_in(matches, policies))


_NOTHING = MovedIn(at=0.0)


def _is_its(policy: Resource, monitor: Resource) -> bool:
    return "moved-in" in policy.labels and policy.desired.monitor == monitor.name


def _moved_in(matches: Found, policies: Moved) -> MovedIn:
    return replace(
        _NOTHING,
        vms=tuple(sorted(vm.name for vm in matches.pairs.values())),
        policies=len(policies.policies),
        missing=matches.missing[:MISSING_MAX],
        missing_count=len(matches.missing),
        left_out=policies.left_out,
    )


async def _make_policies(
    store: Store, lease: Lease, monitor: Resource, policies: Moved, own: Mapping[str, str]
) -> dict[str, str]:
    """Return id there -> id here; those that are there already stay as they are."""
    ids = {id: own[origin(id)] for id in policies.policies if origin(id) in own}
    missing = [(id, policy) for id, policy in policies.policies.items() if id not in ids]

    async def make(tx: Transaction, page: Sequence[tuple[str, Resource]]) -> dict[str, str]:
        await check(tx, lease)
        return {id: (await tx.create(policy, {"monitor": monitor.id})).id for id, policy in page}

    for start in range(0, len(missing), POLICIES_PAGE):
        ids |= await store.write(functools.partial(make, page=missing[start : start + POLICIES_PAGE]))
    return ids


async def _write_rows(
    tx: Transaction, lease: Lease, own: Resource, rows: Sequence[tuple[Resource, StateObserved]]
) -> None:
    """Write what stood of VMs that nothing is known of yet."""
    await check(tx, lease)
    for vm, first in rows:
        row = await tx.ensure_child(own, row_of(own, vm, ""))
        if row.observed is None and not row.deleting:
            await tx.update(row, observed=first)


async def _done(store: Store, lease: Lease, id: str, moved_in: MovedIn) -> None:
    async def write(tx: Transaction) -> None:
        await check(tx, lease)
        own = await tx.get(id)
        if not is_moving(own):
            return
        decided = replace(moved_in, at=tx.now)
        await tx.update(own, assigned=replace(own.assigned, moved_in=decided))
        said = told_of(decided)
        done = f"{len(decided.vms)} appliances and {decided.policies} policies, which observe"
        await tx.event(own, "MovedIn", "MovedIn", f"{done}; {said}" if said and not decided.problem else said or done)

    await store.write(write)
