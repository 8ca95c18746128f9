"""The server half of a request: holds room for its machines at once, lets them start, follows them to their end."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pileus.compute.choosing import choose
from pileus.compute.offers import Choice, summary
from pileus.compute.pace import Pace
from pileus.compute.placement.types import PlacementAssigned
from pileus.compute.request.moves import make_rows, make_set, move
from pileus.compute.request.plan import (
    RETRY_S,
    Changes,
    Next,
    contributions,
    end_of,
    follow,
    is_silent,
    needs,
    see,
    stop_at,
)
from pileus.compute.request.servers import OfferTable
from pileus.compute.request.telling import observe
from pileus.compute.request.types import OVER, RequestAssigned, RequestDesired
from pileus.compute.set.types import MEMBERS_MAX
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

NO_CAPACITY_RECHECK_S = 5.0
RELEASING_S = 30.0
"""Its set wakes it when it is gone."""
READ_MAX = 2 * MEMBERS_MAX


class RequestController(Controller):
    """Brings a request through its phases."""

    def __init__(self, store: Store) -> None:
        self._table = OfferTable(store)
        self._pace = Pace(store.clock)

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Choose, start, confirm, end: whatever is due now."""
        assigned: RequestAssigned = resource.assigned
        if resource.deleting or assigned.phase in OVER:
            return Done()
        if assigned.phase == "choosing":
            return await self._begin(resource, store)
        if assigned.phase == "releasing":
            is_there = await store.find_id(assigned.set) is not None
            return Done(after_s=RELEASING_S) if is_there else Done(lambda tx: _close(tx, resource))
        if left_s := self._pace.left_s(resource):
            return Done(after_s=left_s)
        rows = await store.list(Filter(kind="compute.placement", owner=resource.id), limit=READ_MAX)
        if _is_lacking(resource, rows, store.clock()):
            return await self._complete(resource, rows, store)
        vms = await store.list(Filter(kind="compute.vm", owner=assigned.set), limit=READ_MAX)
        decided = follow(
            resource.desired,
            assigned,
            {row.id: row.assigned for row in rows},
            {vm.id: see(vm) for vm in vms},
            store.clock(),
        )
        return Done(lambda tx: _apply(tx, resource, rows, decided), after_s=decided.after_s)

    async def _begin(self, request: Resource, store: Store) -> Outcome:
        """Hold room for all machines, or as many as can be had; refuse when the window is over."""
        desired: RequestDesired = request.desired
        assigned: RequestAssigned = request.assigned
        now = store.clock()
        choice = await self._choose(request, store, range(1, desired.count + 1), frozenset())
        if not choice.chosen:
            self._table.forget()  # for the next look
            if now < assigned.start_by:
                wait_s = min(NO_CAPACITY_RECHECK_S, assigned.start_by - now + 0.01)
                return Wait("NoCapacity", summary(choice), wait_s)
            return Done(lambda tx: _refuse(tx, request, summary(choice)))
        start = max(assigned.start_from, now)
        then = replace(assigned, start=start, chosen_at=now, phase="reserved", message=summary(choice))
        then = replace(then, end=end_of(desired, then))

        async def apply(tx: Transaction) -> None:
            made = await make_set(tx, request)
            await make_rows(tx, request, then, choice.chosen)
            await _say(tx, request, replace(then, set=made.id))
            await tx.enqueue(made.id)

        return Done(apply, after_s=0.01)

    async def _complete(self, request: Resource, rows: Sequence[Resource], store: Store) -> Outcome:
        """Look for places for machines that have none, or whose host refused them; the others go on."""
        desired: RequestDesired = request.desired
        now = store.clock()
        taken = {row.assigned.number: row for row in rows}
        refused = {
            row.assigned.number: row for row in rows if row.assigned.state == "refused" and not is_silent(row.assigned)
        }
        numbers = sorted({*refused, *(set(range(1, desired.count + 1)) - set(taken))})
        avoided = frozenset(
            host for row in refused.values() for host in (*row.assigned.refused_by, row.assigned.server)
        )
        choice = await self._choose(request, store, numbers, avoided)
        then = replace(request.assigned, chosen_at=now, message=summary(choice))

        async def apply(tx: Transaction) -> None:
            await make_rows(tx, request, then, [each for each in choice.chosen if each.number not in refused])
            for each in choice.chosen:
                if each.number in refused:
                    await move(tx, refused[each.number], each, now)
            await _say(tx, request, then)
            await tx.enqueue(then.set)

        return Done(apply, after_s=0.01)

    async def _choose(self, request: Resource, store: Store, numbers: Sequence[int], avoided: frozenset[str]) -> Choice:
        """Return the places of these machines, on hosts that refused none of them."""
        links = await store.links(request.id)
        offers = [offer for offer in await self._table.offers(links) if offer.server not in avoided]
        now = store.clock()
        machines = needs(request.desired, request.assigned, links, numbers, now)
        choice = choose(machines, offers, request.desired.mode, now)
        self._table.take(choice)
        return choice


def _is_lacking(request: Resource, rows: Sequence[Resource], now: float) -> bool:
    """Tell whether it is time to look for places again."""
    desired: RequestDesired = request.desired
    assigned: RequestAssigned = request.assigned
    if desired.mode != "best-effort" or assigned.phase not in ("reserved", "starting", "running"):
        return False
    stops = stop_at(desired, assigned)
    if stops and now >= stops:
        return False
    is_again = now - assigned.chosen_at >= RETRY_S
    fresh = any(_is_movable(row) and row.assigned.server not in row.assigned.refused_by for row in rows)
    return fresh or (is_again and (len(rows) < desired.count or any(_is_movable(row) for row in rows)))


def _is_movable(row: Resource) -> bool:
    place: PlacementAssigned = row.assigned
    return place.state == "refused" and not is_silent(place)


async def _apply(tx: Transaction, request: Resource, rows: Sequence[Resource], decided: Next) -> None:
    """Write what was decided, all in one transaction: no server can stop in between."""
    is_released = decided.drop == "yes"
    places = []
    for row in rows:
        changes = decided.rows.get(row.id, {})
        if is_released and row.assigned.state not in ("refused", "released") and "state" not in changes:
            changes = {**changes, "state": "released", "reason": decided.assigned.reason, "end": tx.now}
        places.append(await _write(tx, row, changes) if changes else row.assigned)
    members = await tx.find_id(decided.assigned.set)
    if members is not None and is_released:
        await tx.mark_deleting(members)
    elif members is not None and decided.power and members.desired.power != decided.power:
        await tx.update(members, desired=replace(members.desired, power=decided.power))
    elif decided.rows:
        await tx.enqueue(decided.assigned.set)
    await _say(tx, request, decided.assigned, places)


async def _write(tx: Transaction, row: Resource, changes: Changes) -> PlacementAssigned:
    """Write changed fields of a row as it is now: its set notes the VM in it."""
    current = await tx.get(row.id)
    place: PlacementAssigned = replace(current.assigned, **changes)
    place = replace(place, contributions=contributions(place, place.state, place.reason))
    if place.state in ("released", "refused"):
        await tx.uncharge(row.id)
    await tx.update(current, assigned=place)
    return place


async def _say(
    tx: Transaction, request: Resource, assigned: RequestAssigned, places: Sequence[PlacementAssigned] | None = None
) -> None:
    """Write how far it is; ``places``: its rows, when they are known."""
    if places is None:
        rows = await tx.matching(Filter(kind="compute.placement", owner=request.id), limit=READ_MAX)
        places = [row.assigned for row in rows]
    observed = observe(request.desired, assigned, places, tx.now)
    await tx.update(request, assigned=assigned, observed=observed, observed_generation=request.generation)


async def _refuse(tx: Transaction, request: Resource, message: str) -> None:
    """Say that there is no place; nothing was held."""
    await tx.uncharge(request.id)
    await _say(tx, request, replace(request.assigned, phase="refused", reason="NoCapacity", message=message))


async def _close(tx: Transaction, request: Resource) -> None:
    """Say what came of it once all is released."""
    assigned: RequestAssigned = request.assigned
    await tx.uncharge(request.id)
    await _say(tx, request, replace(assigned, phase=assigned.outcome))
