"""The server half of a request: holds room for its machines at once, lets them start, follows them to their end."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from pileus.compute.choosing import choose
from pileus.compute.offers import Choice, Machine, Mode, summary
from pileus.compute.pace import Pace
from pileus.compute.placement.types import PlacementAssigned
from pileus.compute.placing import promise_place
from pileus.compute.request.moves import fulfil, give_place, make_rows, make_set
from pileus.compute.request.plan import (
    NOT_FREE,
    RETRY_S,
    Changes,
    Next,
    VmSeen,
    begins,
    contributions,
    end_of,
    follow,
    found,
    is_silent,
    late_by,
    needs,
    not_free,
    see,
    stop_at,
    without_room,
)
from pileus.compute.request.preempt import best_effort, preempt, victims
from pileus.compute.request.table import OfferTable
from pileus.compute.request.telling import observe
from pileus.compute.request.types import OVER, RequestAssigned, RequestDesired
from pileus.compute.set.types import MEMBERS_MAX
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Exhausted, Transaction

NO_CAPACITY_RECHECK_S = 5.0
ROOM_S = 120.0
"""How long machines that make room may take to stop."""
ROOM_RECHECK_S = 3.0
LATE_RECHECK_S = 1.0
"""How often promised room that is not free yet is looked at."""
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
        vms = await store.list(Filter(kind="compute.vm", owner=assigned.set), limit=READ_MAX)
        seen = {vm.id: see(vm) for vm in vms}
        if _is_lacking(resource, rows, seen, store.clock()):
            return await self._complete(resource, rows, seen, store)
        decided = follow(resource.desired, assigned, {row.id: row.assigned for row in rows}, seen, store.clock())
        return Done(lambda tx: _apply(tx, resource, rows, decided), after_s=decided.after_s)

    async def _begin(self, request: Resource, store: Store) -> Outcome:
        """Hold room for all machines, or as many as can be had; refuse when the window is over."""
        desired: RequestDesired = request.desired
        assigned: RequestAssigned = request.assigned
        now = store.clock()
        search = await self._search(request, store, range(1, desired.count + 1), desired.mode)
        choice = search.choice
        if not choice.chosen:
            return await self._wait_for_room(request, store, search)
        start = min(each.start for each in choice.chosen)
        chosen = [each for each in choice.chosen if each.start == start]
        then = replace(assigned, start=start, chosen_at=now, phase="reserved", message=found(choice, start))
        then = replace(then, end=end_of(desired, then))

        async def apply(tx: Transaction) -> None:
            made = await make_set(tx, request)
            await make_rows(tx, request, then, chosen)
            await _say(tx, request, replace(then, set=made.id))
            await tx.enqueue(made.id)

        return Done(apply, after_s=0.01)

    async def _wait_for_room(self, request: Resource, store: Store, search: Search) -> Outcome:
        """Let best-effort machines make room, else wait until the window is over, and refuse then."""
        assigned: RequestAssigned = request.assigned
        now = store.clock()
        message = summary(search.choice)
        is_due = now - assigned.chosen_at >= RETRY_S and (not assigned.room_by or now < assigned.room_by)
        in_the_way = await self._in_the_way(request, store, search) if is_due else None
        if in_the_way is not None:
            looked_at = now if in_the_way else assigned.chosen_at
            then = replace(assigned, room_by=assigned.room_by or now + ROOM_S, chosen_at=looked_at)

            async def apply(tx: Transaction) -> None:
                await preempt(tx, in_the_way, f"made room for {request}")
                await tx.update(request, assigned=then)

            words = f"{len(in_the_way)} best-effort machines make room" if in_the_way else "there is room again"
            return Wait("MakingRoom", words, 1.0, apply)
        if now < max(assigned.start_by, assigned.room_by):
            left_s = max(assigned.start_by, assigned.room_by) - now + 0.01
            return Wait("NoCapacity", message, min(1.0 if assigned.room_by > now else NO_CAPACITY_RECHECK_S, left_s))
        return Done(lambda tx: _refuse(tx, request, message))

    async def _complete(
        self, request: Resource, rows: Sequence[Resource], seen: Mapping[str, VmSeen], store: Store
    ) -> Outcome:
        """Look for places for machines that have none, or lost theirs; the others go on."""
        desired: RequestDesired = request.desired
        now = store.clock()
        without = {row.assigned.number: row for row in rows if _has_no_place(row, seen)}
        refused = [row for row in without.values() if row.assigned.state != "preempted"]
        placed = {row.assigned.number for row in rows}
        numbers = sorted({*without, *(set(range(1, desired.count + 1)) - placed)})
        avoided = frozenset(host for row in refused for host in (*row.assigned.refused_by, row.assigned.server))
        search = await self._search(request, store, numbers, "best-effort", avoided)
        choice = search.choice
        in_the_way = (await self._in_the_way(request, store, search) if choice.refused else None) or []
        looked_at = now - RETRY_S + ROOM_RECHECK_S if in_the_way else now
        then = replace(request.assigned, chosen_at=looked_at, message=summary(choice))
        chosen = {each.number: each for each in choice.chosen}

        async def apply(tx: Transaction) -> None:
            await preempt(tx, in_the_way, f"made room for {request}")
            await make_rows(tx, request, then, [each for each in choice.chosen if each.number not in without])
            for number, row in without.items():
                await give_place(tx, row, chosen.get(number), now, is_off=_is_off(row, seen))
            await _say(tx, request, then)
            await tx.enqueue(then.set)

        return Done(apply, after_s=0.01)

    async def _search(
        self,
        request: Resource,
        store: Store,
        numbers: Sequence[int],
        mode: Mode,
        avoided: frozenset[str] = frozenset(),
    ) -> Search:
        """Look for places of these machines, on hosts that refused none of them."""
        links = await store.links(request.id)
        now = store.clock()
        machines = needs(request.desired, request.assigned, links, numbers, now)
        machines = [replace(machine, not_on=avoided) for machine in machines]
        return Search(machines, now, await self._table.choose(links, machines, mode, now))

    async def _in_the_way(self, request: Resource, store: Store, search: Search) -> list[Resource] | None:
        """Return the best-effort machines that have to go for guaranteed ones without a place.

        None: nothing would help. Empty: nothing has to, for there is room by now.
        """
        if request.desired.service != "guaranteed":
            return None
        rows = await best_effort(store)
        if not rows:
            return None
        offers, held = await self._table.offers(await store.links(request.id))
        now = search.now
        return victims(rows, offers, held, now, lambda book: choose(search.machines, book, "all-or-nothing", now))


class Search(NamedTuple):
    """What was looked for, when, and what came of it."""

    machines: list[Machine]
    now: float
    choice: Choice


def _is_lacking(request: Resource, rows: Sequence[Resource], seen: Mapping[str, VmSeen], now: float) -> bool:
    """Tell whether it is time to look for places again."""
    desired: RequestDesired = request.desired
    assigned: RequestAssigned = request.assigned
    stops = stop_at(desired, assigned)
    if assigned.phase not in ("reserved", "starting", "running") or (stops and now >= stops):
        return False
    if desired.mode != "best-effort" and assigned.phase != "running":
        return False
    without = [row for row in rows if _has_no_place(row, seen)]
    if any(row.assigned.state == "moving" or not _is_known(row) for row in without):
        return True
    return now - assigned.chosen_at >= RETRY_S and (bool(without) or len(rows) < desired.count)


def _has_no_place(row: Resource, seen: Mapping[str, VmSeen]) -> bool:
    """Tell whether the machine of a row is to be put somewhere else now."""
    place: PlacementAssigned = row.assigned
    if place.state == "moving":
        return _is_off(row, seen)
    return place.state == "preempted" or (place.state == "refused" and not is_silent(place))


def _is_off(row: Resource, seen: Mapping[str, VmSeen]) -> bool:
    """Tell whether the machine of a row runs nowhere, and nobody will let it."""
    vm = seen.get(row.assigned.vm)
    return not row.assigned.vm or (vm is not None and vm.is_off == "yes" and row.assigned.state == "moving")


def _is_known(row: Resource) -> bool:
    """Tell whether another place was looked for since its host refused it."""
    place: PlacementAssigned = row.assigned
    return place.state != "refused" or place.server in place.refused_by


async def _apply(tx: Transaction, request: Resource, rows: Sequence[Resource], decided: Next) -> None:
    """Write what was decided, all in one transaction: no server can stop in between."""
    decided = await _hold_promised(tx, request, rows, decided)
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


async def _hold_promised(tx: Transaction, request: Resource, rows: Sequence[Resource], decided: Next) -> Next:
    """Hold what was promised to machines that start now, and return what is to be done about those who find it taken.

    Raises: Waiting when all are to start together and there is time.
    """
    starting = [row for row in rows if begins(row.assigned, decided.rows.get(row.id, {}))]
    late = [row for row in starting if not await fulfil(tx, row)]
    is_over = tx.now >= late_by(request.desired, request.assigned)
    if late and request.desired.mode == "all-or-nothing" and not is_over:
        raise Waiting(NOT_FREE, not_free(len(late)), LATE_RECHECK_S)
    if late and not is_over:
        for row in late:
            with contextlib.suppress(Exhausted):  # its host was made smaller; it looks elsewhere once it is over
                await promise_place(tx, row.id, row.assigned)
    return without_room(request.desired, decided, [row.id for row in late], is_over=is_over)


async def _write(tx: Transaction, row: Resource, changes: Changes) -> PlacementAssigned:
    """Write changed fields of a row as it is now: its set notes the VM in it."""
    current = await tx.get(row.id)
    if current.assigned.state != row.assigned.state:
        kept: PlacementAssigned = current.assigned
        return kept  # it was preempted meanwhile, or its host is gone
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
