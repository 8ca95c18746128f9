"""Rows of a request: made with what they hold, moved to another host. All inside one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from msgspec.structs import replace

from pileus.compute.offers import Chosen
from pileus.compute.placement.types import Contribution, PlacementAssigned, PlacementDesired, State
from pileus.compute.placing import charge_place, promise_place
from pileus.compute.request.preempt import RACE_S, SERVICE_LABEL
from pileus.compute.request.servers import IMAGES
from pileus.compute.request.types import RequestAssigned, RequestDesired
from pileus.compute.set.types import TEMPLATE, MemberSpec, SetAssigned, SetDesired
from pileus.kernel.kind import Resource
from pileus.kernel.outcome import Waiting
from pileus.kernel.store.tables import charge, promise, resource
from pileus.kernel.transaction import Exhausted, Transaction
from pileus.storage.volume.types import attachment_space

REFUSED_MAX = 20
"""Hosts that refused a machine and are remembered."""
OF_HOST = ("host", "pool")


def _owned_by(owners: sa.ColumnElement[bool]) -> sa.Select[Any]:
    is_owned = resource.c.owner != sa.literal_column("''")  # so that an index serves it
    return sa.select(resource.c.id).where(is_owned, owners)


_MACHINES = _owned_by(resource.c.owner == sa.bindparam("set"))
_OWNERS = sa.union_all(
    _owned_by(resource.c.owner == sa.bindparam("request")), _MACHINES, _owned_by(resource.c.owner.in_(_MACHINES))
)
CHARGED = sa.select(charge.c.space, charge.c.owner, charge.c.amount).where(charge.c.owner.in_(_OWNERS))
PROMISED = sa.select(promise.c.space, promise.c.owner, promise.c.amount, promise.c.start).where(
    promise.c.owner.in_(_OWNERS)
)
"""What placements, machines and their volumes hold."""


async def make_set(tx: Transaction, request: Resource) -> Resource:
    """Make the set of the machines; it has none before their placements are instructed."""
    desired: RequestDesired = request.desired
    assigned: RequestAssigned = request.assigned
    name = request.name
    if await tx.find("compute.set", request.account_id, name) is not None:
        name = f"{name[:56]}-{request.id[-6:]}"
    template = {field: getattr(desired, field) for field in TEMPLATE}
    spec = {field: getattr(assigned, field) for field in MemberSpec.__struct_fields__}
    made = Resource(
        id="",
        kind="compute.set",
        name=name,
        desired=SetDesired(**template, count=desired.count),
        assigned=SetAssigned(**spec, request=request.id),
    )
    return await tx.ensure_child(request, made, await tx.links(request.id))


async def make_rows(tx: Transaction, request: Resource, assigned: RequestAssigned, chosen: Sequence[Chosen]) -> None:
    """Make a row for each machine that was chosen, and hold its room. Raises: Waiting when somebody was faster."""
    desired: RequestDesired = request.desired
    for each in chosen:
        place = PlacementAssigned(
            zone=assigned.zone,
            vdc=assigned.vdc,
            request=request.id,
            number=each.number,
            server=each.host,
            pool=each.pool,
            vcpus=assigned.vcpus,
            memory_mib=assigned.memory_mib,
            disk_gib=assigned.disk_gib,
            service=desired.service,
            start=assigned.start,
            end=assigned.end,
            promised="yes" if assigned.start > tx.now else "no",
            message=each.reason,
            contributions=_contributions(each, assigned, desired),
        )
        row = Resource(
            id="",
            kind="compute.placement",
            name=f"{request.name[:51]}-{request.id[-6:]}-{each.number:04d}",
            desired=PlacementDesired(),
            assigned=place,
            labels={SERVICE_LABEL: desired.service},
        )
        await _hold(tx, await tx.ensure_child(request, row))


async def give_place(tx: Transaction, row: Resource, chosen: Chosen | None, now: float, *, is_off: bool) -> None:
    """Put a machine that was refused or preempted somewhere else; without a choice note that one was looked for.

    One that may still come up where it was refused is first to be off there (``is_off``): it never runs twice.
    """
    place: PlacementAssigned = row.assigned
    if (await tx.get(row.id)).assigned.state != place.state:
        return  # somebody decided about it meanwhile
    if place.state == "preempted":
        if chosen is not None:
            await bring_back(tx, row, chosen)
        return
    if chosen is not None and is_off:
        await move(tx, row, chosen, now)
        return
    after = replace(place, state="refused" if chosen is None else "moving", refused_by=_remembered(place))
    await tx.update(await tx.get(row.id), assigned=after)


async def bring_back(tx: Transaction, row: Resource, chosen: Chosen) -> None:
    """Hold room anew for a machine that was preempted: it is made again. Raises: Waiting when somebody was faster."""
    before: PlacementAssigned = row.assigned
    after = replace(
        before,
        server=chosen.host,
        pool=chosen.pool,
        state="offered",
        reason="",
        message=chosen.reason,
        promised="yes" if before.start > tx.now else "no",
        contributions=_renewed(before, chosen, "offered"),
    )
    await _hold(tx, await tx.update(await tx.get(row.id), assigned=after))


async def move(tx: Transaction, row: Resource, chosen: Chosen, now: float) -> None:
    """Let another host contribute to a machine that is no machine yet: it keeps its id and gets another root volume.

    The host that refused it removes what it has of it. Raises: Waiting when somebody was faster.
    """
    before: PlacementAssigned = row.assigned
    after = replace(
        before,
        server=chosen.host,
        pool=chosen.pool,
        state="instructed",
        reason="",
        message=chosen.reason,
        since=now,
        promised="no",
        doubted_at=0.0,
        refused_by=_remembered(before),
    )
    after = replace(after, contributions=_renewed(before, chosen, "instructed"))
    moved = await tx.update(await tx.get(row.id), assigned=after)
    await _hold(tx, moved)
    vm = await tx.find_id(after.vm)
    if vm is not None and vm.desired.power != "stopped":
        raise Waiting("Moving", "a machine that was to go elsewhere was let start again", RACE_S)
    if vm is not None:
        await _bring(tx, vm, before, moved)


def _remembered(place: PlacementAssigned) -> tuple[str, ...]:
    """Return the hosts that refused it, with the one that it is at."""
    return (*(host for host in place.refused_by if host != place.server), place.server)[-REFUSED_MAX:]


async def _bring(tx: Transaction, vm: Resource, before: PlacementAssigned, row: Resource) -> None:
    place: PlacementAssigned = row.assigned
    for server in filter(None, (before.server, before.pool)):
        await tx.uncharge(vm.id, f"{server}/")
    await tx.uncharge(row.id)
    await charge_place(tx, vm.id, place)
    for child in await tx.children(vm.id):
        if child.kind == "storage.volume":
            await tx.release(vm.id, attachment_space(child.id))
        await tx.mark_deleting(child)
    decided = replace(vm.assigned, host=place.server, volumes=(), ports=())
    await tx.update(vm, assigned=decided, observed=None, observed_generation=0)


async def _hold(tx: Transaction, row: Resource) -> None:
    hold = promise_place if row.assigned.promised == "yes" else charge_place
    try:
        await hold(tx, row.id, row.assigned)
    except Exhausted:
        raise Waiting("NoCapacity", "hosts that had room were filled by others; others are chosen", RACE_S) from None


async def fulfil(tx: Transaction, row: Resource) -> bool:
    """Charge what was promised to a machine that starts now. False: it is not free, and nothing of it is held."""
    await tx.uncharge(row.id)
    try:
        await charge_place(tx, row.id, row.assigned)
    except Exhausted:
        await tx.uncharge(row.id)
        return False
    return True


async def end_at(tx: Transaction, request: Resource, end: float) -> None:
    """Let all that its machines hold, and were promised, be held until another end. Raises: Exhausted."""
    ids = {"request": request.id, "set": request.assigned.set}
    for space, owner, amount in await tx.statement(CHARGED, **ids):
        await tx.charge(space, owner, amount, end)
    for space, owner, amount, start in await tx.statement(PROMISED, **ids):
        await tx.promise(space, owner, amount, start, end)


def _renewed(before: PlacementAssigned, chosen: Chosen, state: State) -> tuple[Contribution, ...]:
    """Return the contributions with those of another host and pool; the others stay."""
    kept = tuple(replace(each, state=state, reason="") for each in before.contributions if each.kind not in OF_HOST)
    held = {each.server: each for each in chosen.held}
    own = tuple(
        Contribution(server=id, kind=kind, quantity=dict(held[id].quantity), service=before.service, state=state)
        for id, kind in zip((chosen.host, chosen.pool), OF_HOST, strict=True)
        if id in held
    )
    return own + kept


def _contributions(chosen: Chosen, assigned: RequestAssigned, desired: RequestDesired) -> tuple[Contribution, ...]:
    kinds = {chosen.host: "host", chosen.pool: "pool", IMAGES: "image"}
    return tuple(
        Contribution(
            server=assigned.image if held.server == IMAGES else held.server,
            kind=kinds.get(held.server, "network"),
            quantity=dict(held.quantity),
            service=desired.service,
        )
        for held in chosen.held
    )
