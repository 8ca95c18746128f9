"""The server half of a host: its capacity as budgets, and whether it still reports."""

from __future__ import annotations

from msgspec.structs import asdict, replace

from pileus.infra.host.plan import Room, capacity
from pileus.infra.host.types import SILENT_AFTER_S, HostAssigned, HostDesired, HostObserved, silence
from pileus.kernel.clock import iso
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.quota import remove_limits, set_limits, space
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction


class HostController(Controller):
    """Keeps budgets and silence as the facts say."""

    def __init__(self, began: float) -> None:
        """``began``: when this server started; before it nobody could hear the agents through it."""
        self._began = began

    def _is_silent(self, seen_at: float, assigned: HostAssigned, now: float) -> bool:
        """Tell whether the host is silent; after an outage of the servers its agent gets the whole time to return."""
        heard = seen_at if assigned.silent == "yes" else max(seen_at, self._began)
        return now - heard > SILENT_AFTER_S

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Put the reported capacity in force, and note when the host went silent or spoke again."""
        if resource.deleting:
            return Done(lambda tx: _wait_until_empty(tx, resource))
        if resource.assigned is None:
            return Done()
        rows = await store.fetch(sql.PRESENCE, host=resource.id)
        seen_at = rows[0][0] if rows else None
        assigned = _with_uplinks(resource)
        silent = seen_at is not None and self._is_silent(seen_at, assigned, store.clock())
        if silent != (assigned.silent == "yes"):
            assigned = replace(assigned, silent="yes" if silent else "no", seen_at=iso(seen_at or 0.0))

        async def apply(tx: Transaction) -> None:
            await _set_budgets(tx, resource)
            if assigned != resource.assigned:
                await tx.update(resource, assigned=assigned)
                for (id,) in await tx.statement(sql.ON_HOST, host=resource.id):
                    await tx.enqueue(id)

        if silent:  # looked at often: it may speak again over the connection that it has
            return Wait("HostSilent", silence(assigned), 5.0, apply=apply, status="unknown")
        return Done(apply)

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Forget the host's budgets."""
        await remove_limits(tx, resource.id, asdict(Room(0, 0)))


def _with_uplinks(host: Resource) -> HostAssigned:
    """Return the decision with the uplinks that the host reports; while it cannot look, it has those of before."""
    assigned: HostAssigned = host.assigned
    observed: HostObserved | None = host.observed
    if observed is None or observed.problem is not None:
        return assigned
    return replace(assigned, tunnel_address=observed.tunnel_address, has_trunk=observed.has_trunk)


async def _set_budgets(tx: Transaction, resource: Resource) -> None:
    observed: HostObserved | None = resource.observed
    desired: HostDesired = resource.desired
    if observed is not None and observed.problem is None:  # else it is as large as it was
        await set_limits(tx, resource.id, asdict(capacity(desired, observed)))


async def _wait_until_empty(tx: Transaction, host: Resource) -> None:
    """Something may have been placed on it in the moment it was deleted."""
    for kind, name in await tx.statement(sql.TENANTS_ON_HOST, host=host.id):
        raise Waiting("InUse", f"still has {kind.partition('.')[2]} {name}", 5.0)
    _, held_mib = await tx.budget(space(host.id, "memory_mib"))
    if held_mib:
        raise Waiting("InUse", f"{held_mib} MiB are held for machines of a request that has not started yet", 5.0)


async def wake_silent(store: Store) -> None:
    """Make due every host that has not reported for SILENT_AFTER_S and is not known to be silent."""
    silent = await store.fetch(sql.SILENT, before=store.clock() - SILENT_AFTER_S)

    async def enqueue(tx: Transaction) -> None:
        for (host,) in silent:
            await tx.enqueue(host)

    if silent:
        await store.write(enqueue)
