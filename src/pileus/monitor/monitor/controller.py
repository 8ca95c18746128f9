"""The server half of a monitor: its watchers, a row for each appliance, and which watcher has which row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from pileus.kernel.clock import iso
from pileus.kernel.ends import delete_ended, note_soon
from pileus.kernel.kind import Resource
from pileus.kernel.lease import holder
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.term import Phase, next_look_s
from pileus.kernel.transaction import Transaction
from pileus.monitor.monitor import plan
from pileus.monitor.monitor.picture import Picture
from pileus.monitor.monitor.types import APPLIANCES_MAX, MonitorAssigned, MonitorDesired, MonitorObserved
from pileus.monitor.notes import note_gone
from pileus.monitor.state.types import StateAssigned, StateObserved
from pileus.monitor.watcher.types import WatcherAssigned, WatcherDesired, is_at_work

LOOK_AGAIN_S = 3.0
"""How late a watcher that died without a word, or a new VM, is noticed."""
CHANGES_MAX = 200
"""Rows that one transaction makes, gives to another watcher, or removes."""
AT_ONCE_S = 0.01


class World(Struct, frozen=True, kw_only=True):
    """What a decision is made of. ``rows``: VM -> its row."""

    own: Resource
    meant: int
    vms: Sequence[Resource]
    rows: dict[str, Resource]
    watchers: Sequence[Resource]
    at_work: Sequence[str]
    """Watchers that appliances are given to: none past its end, and none before its inventory has moved in."""
    term: Phase


class MonitorController(Controller):
    """Keeps watchers and rows as the account's VMs are."""

    def __init__(self) -> None:
        self._pictures: dict[str, Picture] = {}
        """By monitor."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Make, give and remove what differs, a bounded number at once."""
        if resource.deleting:
            self._pictures.pop(resource.id, None)
            return Done()
        now = store.clock()
        term = plan.term_of(resource, now)
        if term == "ended" and resource.desired.at_end == "delete":
            return Done(lambda tx: _delete(tx, resource))
        picture = await self._look(resource, store)
        world = await _world(resource, store, term, picture)
        given = picture.given(resource, world.at_work)
        changes = _Changes(world, given)

        async def apply(tx: Transaction) -> None:
            await _keep_watchers(tx, world)
            await changes.write(tx)
            await _say(tx, await tx.get(resource.id), _observed(world, given))

        end: float = resource.assigned.end
        ahead_s = next_look_s((now + LOOK_AGAIN_S, end - resource.desired.warn_s, end), now)
        return Done(apply, after_s=AT_ONCE_S if changes.has_more else ahead_s)

    async def _look(self, own: Resource, store: Store) -> Picture:
        # What another server's loop has now is not looked at here any more.
        self._pictures = {id: each for id, each in self._pictures.items() if not each.is_old}
        picture = self._pictures.setdefault(own.id, Picture(store, own.account_id, own.id))
        await picture.look()
        return picture


async def _say(tx: Transaction, own: Resource, said: MonitorObserved) -> None:
    told = await tx.update(own, observed=said)
    await note_soon(tx, told, own.observed, said)


async def _delete(tx: Transaction, own: Resource) -> None:
    """Delete a monitor whose time is over, with what is nothing without it."""
    await delete_ended(tx, own)
    for each in await tx.referrers(own.id):
        await tx.mark_deleting(each)


class _Changes:
    """The rows that are made, given to another watcher, and removed, in one transaction."""

    def __init__(self, world: World, given: dict[str, str]) -> None:
        self._own = world.own
        self._given = given
        wanted = {vm.id for vm in world.vms}
        live = {vm: row for vm, row in world.rows.items() if not row.deleting}
        self._new = [vm for vm in world.vms if vm.id not in world.rows]
        self._moved = [row for vm, row in live.items() if vm in wanted and row.assigned.watcher != given[vm]]
        self._gone = [row for vm, row in live.items() if vm not in wanted]
        self.has_more = len(self._new) + len(self._moved) + len(self._gone) > CHANGES_MAX

    async def write(self, tx: Transaction) -> None:
        left = CHANGES_MAX
        # Those that nobody watches come first.
        for row in self._moved[:left]:
            now = await tx.get(row.id)
            assigned: StateAssigned = now.assigned
            moved = replace(assigned, watcher=self._given[assigned.vm], epoch=assigned.epoch + 1)
            await tx.update(now, assigned=moved)
        left -= len(self._moved[:left])
        for vm in self._new[:left]:
            await tx.ensure_child(self._own, plan.row_of(self._own, vm, self._given[vm.id]))
        left -= len(self._new[:left])
        for row in self._gone[:left]:
            await note_gone(tx, row)
            await tx.mark_deleting(await tx.get(row.id))


async def _world(own: Resource, store: Store, term: Phase, picture: Picture) -> World:
    watchers = await store.list(Filter(kind="monitor.watcher", owner=own.id))
    meant = picture.meant(own)
    is_idle = term == "ended" or plan.is_moving(own)
    return World(
        own=own,
        meant=len(meant),
        vms=meant[:APPLIANCES_MAX],
        rows=picture.rows,
        watchers=watchers,
        at_work=[each.id for each in watchers if not is_idle and is_at_work(each) and await holder(store, each.id)],
        term=term,
    )


async def _keep_watchers(tx: Transaction, world: World) -> None:
    desired: MonitorDesired = world.own.desired
    assigned: MonitorAssigned = world.own.assigned
    known = {each.desired.number: each for each in world.watchers}
    replicas = 0 if world.term == "ended" else desired.replicas
    for number in range(replicas):
        if number not in known:
            watcher = Resource(
                id="",
                kind="monitor.watcher",
                name=plan.watcher_name(world.own, number),
                desired=WatcherDesired(form=desired.form, number=number),
                assigned=WatcherAssigned(
                    monitor=world.own.id, zone=assigned.zone, vdc=assigned.vdc, image=assigned.image
                ),
            )
            await tx.ensure_child(world.own, watcher)
    for number, each in known.items():
        if number >= replicas:
            await tx.mark_deleting(await tx.get(each.id))


def _observed(world: World, given: dict[str, str]) -> MonitorObserved:
    seen: Counter[str] = Counter()
    for vm in world.vms:
        row = world.rows.get(vm.id)
        observed: StateObserved | None = row.observed if row is not None else None
        seen[observed.execution.state if observed is not None else "unknown"] += 1
    assigned: MonitorAssigned = world.own.assigned
    return MonitorObserved(
        watched=sum(1 for watcher in given.values() if watcher),
        unwatched=sum(1 for watcher in given.values() if not watcher),
        states=dict(sorted(seen.items())),
        watchers=len(world.at_work),
        message=plan.told(world.meant, len(world.at_work), plan.awaited(world.own, world.watchers)),
        moved_in=plan.told_of(assigned.moved_in),
        term=world.term,
        ends_at=iso(assigned.end) if assigned.end else "",
    )
