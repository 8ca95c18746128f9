"""The server half of a set: makes, removes and changes its members, a page in each transaction."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.compute.pace import APART_S, Pace
from pileus.compute.placement.types import MEMBER
from pileus.compute.set.members import make_member
from pileus.compute.set.plan import Plan, due_of, member_of, observe, plan, term_of
from pileus.compute.set.types import MEMBERS_MAX, SetAssigned, SetDesired, SetObserved
from pileus.compute.template import charge_members
from pileus.compute.vm.types import VmDesired
from pileus.kernel.clock import Clock, iso, unix
from pileus.kernel.ends import delete_ended, note_soon
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.term import next_look_s
from pileus.kernel.transaction import Transaction

PAGE = 100
"""Members changed in one transaction: others' writes wait meanwhile."""
SOON_S = 0.05
READ_MAX = 2 * MEMBERS_MAX
"""Members, and those that are going."""

GOING = Wait("Deleting", "its members are being removed", APART_S)


class SetController(Controller):
    """Keeps as many VMs as are wished, all as they are wished."""

    def __init__(self, clock: Clock) -> None:
        self._pace = Pace(clock)

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Do the next page of what is due, and say what there is."""
        left_s = self._pace.left_s(resource)
        if resource.deleting:
            return GOING if left_s else await _let_go(resource, store)
        if left_s:
            return Done(after_s=left_s)
        assigned: SetAssigned = resource.assigned
        now, start = store.clock(), unix(resource.created_at)
        term, stops = term_of(resource.desired, assigned.end, start, now)
        if term == "ended" and resource.desired.at_end == "delete":
            return Done(lambda tx: delete_ended(tx, resource))
        desired = due_of(resource.desired, term)
        places = await _places(store, assigned.request) if assigned.request else {}
        wanted = set(places) if assigned.request else set(range(1, desired.count + 1))
        vms = await store.list(Filter(kind="compute.vm", owner=resource.id), limit=READ_MAX)
        members = [member_of(vm) for vm in vms]
        off = {number for number, place in places.items() if place.assigned.state == "moving"}
        due = plan(wanted, members, desired, off)
        links = await store.links(resource.id)

        async def apply(tx: Transaction) -> None:
            await _change(tx, due, desired)
            for number in due.make[:PAGE]:
                await make_member(tx, resource, number, places.get(number), links, desired)
            if not assigned.request:
                await charge_members(tx, assigned, resource.id, max(len(wanted), len(members)))
            seen = observe(wanted, members, desired)
            said = replace(seen, term=term, ends_at=iso(assigned.end) if assigned.end else "")
            await _say(tx, resource, said)

        ahead_s = next_look_s((assigned.end - desired.warn_s, stops, assigned.end), now)
        return Done(apply, after_s=SOON_S if _is_long(due) else ahead_s)


async def _say(tx: Transaction, own: Resource, said: SetObserved) -> None:
    told = await tx.update(own, observed=said, observed_generation=own.generation)
    await note_soon(tx, told, own.observed, said)


async def _let_go(resource: Resource, store: Store) -> Outcome:
    """Remove the members, a page at a time; gone with the last."""
    page = await store.list(Filter(kind="compute.vm", owner=resource.id), limit=PAGE)
    if not page:
        return Done()

    async def apply(tx: Transaction) -> None:
        for vm in page:
            if not vm.deleting:
                await tx.mark_deleting(await tx.get(vm.id))

    return replace(GOING, apply=apply)


def _is_long(due: Plan) -> bool:
    return any(len(one) > PAGE for one in (due.make, due.drop, due.power, due.boot))


async def _places(store: Store, request: str) -> dict[int, Resource]:
    """Return where the members of a request go, by number: those that there shall be now."""
    rows = await store.list(Filter(kind="compute.placement", owner=request), limit=READ_MAX)
    return {row.assigned.number: row for row in rows if row.assigned.state in MEMBER and not row.deleting}


async def _change(tx: Transaction, due: Plan, desired: SetDesired) -> None:
    for id in due.drop[:PAGE]:
        await tx.mark_deleting(await tx.get(id))
    for id in due.stop:
        vm = await tx.get(id)
        await tx.update(vm, desired=replace(vm.desired, power="stopped"))
    for id in {*due.power[:PAGE], *due.boot[:PAGE]}:
        vm = await tx.get(id)
        wished: VmDesired = vm.desired
        serial = max(wished.boot_serial, desired.restart_serial) if id in due.boot else wished.boot_serial
        await tx.update(vm, desired=replace(wished, power=desired.power, boot_serial=serial))
