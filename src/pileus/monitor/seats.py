"""Seats inside transactions: how they are charged and given back, and the gate that VMs pass which need them.

VMs that wait for a product have a number that tells how long they wait already, the same for all products. A VM takes the
seats of all products that it needs, or none; it stands in line for those only that have none for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.vm.plan import is_resting
from pileus.compute.vm.types import VmAssigned, VmBar, VmObserved, is_of_cloud
from pileus.kernel.errors import Conflict, QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import AlreadyClaimed, Exhausted, Transaction
from pileus.monitor.entitlement import plan
from pileus.monitor.entitlement.types import (
    COUNT_MAX,
    NEEDED_MAX,
    EntitlementDesired,
    entitled_space,
    holder_space,
    pinned_space,
    seats_of_space,
    seats_space,
    unseated_space,
    waiting_space,
)
from pileus.monitor.seat.plan import is_made_by_cloud, is_off
from pileus.monitor.seat.types import SeatAssigned, SeatDesired, SeatObserved

READ_MAX = 1000
"""Seats of a VM, at most."""


class Held(Struct, frozen=True):
    """A seat that a VM has, and what of."""

    seat: Resource
    entitlement: Resource


class SeatGate:
    """Gives leave to start to VMs that need no seat, or have those that they need."""

    async def look(self, tx: Transaction, vm: Resource, assigned: VmAssigned) -> VmAssigned:
        """Return the decisions with what keeps the VM from starting; check seats out, and give back what it needs no more."""
        if is_of_cloud(vm):
            return assigned
        entitlements = await _entitlements(tx, vm)
        held = await _held(tx, vm)
        if not entitlements and not held:
            await _stand(tx, vm, [], entitlements)
            return replace(assigned, bar=None, cleared_generation=-1)
        needed = plan.needed(entitlements, vm.labels)
        held = await _without_other_sizes(tx, vm, assigned, held)
        short: dict[str, plan.Short] = {}
        if is_wanted(vm):
            covered = _covered(held, tx.now)
            short = await _take(tx, vm, assigned, {key: needed[key] for key in needed if key not in covered})
            held = await _held(tx, vm)
        await _stand(tx, vm, [product for product in short if short[product].waits == "yes"], entitlements)
        held = await _without_superfluous(tx, vm, held, needed)
        await _wake(tx, vm, held)
        return replace(assigned, bar=_bar(vm, held, short, tx.now), cleared_generation=vm.generation)

    async def leave(self, tx: Transaction, vm: Resource) -> None:
        """Take a VM out of all lines; its seats see whether it is gone."""
        if vm.assigned.bar is not None:
            await _stand(tx, vm, [], await _entitlements(tx, vm))
        for id in await tx.queue(seats_of_space(vm.id), READ_MAX):
            await tx.enqueue(id)


def is_wanted(vm: Resource) -> bool:
    """Tell whether the VM runs or shall."""
    return vm.desired.power != "stopped" and not vm.deleting and not is_resting(vm)


async def look_again(tx: Transaction, vm_id: str) -> None:
    """Let a VM whose seats changed have the leave that it has now, in the same transaction."""
    vm = await tx.find_id(vm_id)
    if vm is not None and not vm.deleting and vm.assigned.host:
        await tx.update(vm, assigned=await SeatGate().look(tx, vm, vm.assigned))


async def take_seat(tx: Transaction, entitlement: Resource, vm: Resource, seat: str, units: int) -> int:
    """Let a seat take its units for the VM, and return how many are over the limit now.

    Raises: Conflict when the VM has a seat of it; QuotaExceeded.
    """
    licence: EntitlementDesired = entitlement.desired
    try:
        await tx.claim(holder_space(entitlement.id), vm.id, seat)
    except AlreadyClaimed as error:
        other = await tx.get(error.holder)
        raise Conflict(f"{vm} has {other} of {entitlement} already", code="already-exists") from None
    await tx.claim(seats_of_space(vm.id), entitlement.id, seat, 1)
    if licence.binding == "pinned":
        await _pin(tx, entitlement, vm, units)
    try:
        await tx.charge(seats_space(entitlement.id), seat, units)
    except Exhausted as full:
        raise QuotaExceeded(
            f"{full.used} of {full.capacity} {licence.metric} of {entitlement} are in use, and {full.asked} more asked for; "
            "return a seat first (`pileus get seat` lists them), or register more",
            code="no-seat",
        ) from None
    await tx.enqueue(entitlement.id)
    _, used = await tx.budget(seats_space(entitlement.id))
    return max(0, used - licence.limit)


async def _pin(tx: Transaction, entitlement: Resource, vm: Resource, units: int) -> None:
    """Let the VM have its place until it is deleted. Raises: QuotaExceeded when others have them all."""
    try:
        await tx.charge(pinned_space(entitlement.id), vm.id, units)
    except Exhausted as full:
        raise QuotaExceeded(
            f"{entitlement} is pinned: {full.used} of {full.capacity} belong to VMs that had a seat before, which keep "
            "their place until they are deleted",
            code="no-seat",
        ) from None


async def give_back(tx: Transaction, seat: Resource) -> None:
    """Let others have what a seat takes; its row may stay for a while."""
    assigned: SeatAssigned = seat.assigned
    await tx.release(seat.id, holder_space(assigned.entitlement))
    await tx.release(seat.id, seats_of_space(assigned.vm))
    await tx.uncharge(seat.id, seats_space(assigned.entitlement))
    await tx.enqueue(assigned.entitlement)


async def return_seat(tx: Transaction, seat: Resource, words: str) -> None:
    """Give a seat back, and remove it."""
    await give_back(tx, seat)
    await tx.event(seat, "Returned", "Returned", f"{seat} was returned: {words}")
    await tx.mark_deleting(await tx.get(seat.id))


def observed_of(over: int, entitlement: Resource) -> SeatObserved:
    """Return what is said of a seat that was just taken."""
    if over:
        return SeatObserved(state="over", message=f"{over} over the limit of {entitlement}")
    return SeatObserved(state="held")


async def _entitlements(tx: Transaction, vm: Resource) -> list[Resource]:
    """Return what VMs of the account may need, oldest first."""
    return [await tx.get(id) for id in await tx.queue(entitled_space(vm.account_id), NEEDED_MAX)]


async def _held(tx: Transaction, vm: Resource) -> list[Held]:
    """Return the VM's seats, those made by hand first, then by age."""
    seats = [await tx.get(id) for id in await tx.queue(seats_of_space(vm.id), READ_MAX)]
    found = [Held(seat, await tx.get(seat.assigned.entitlement)) for seat in seats if not seat.deleting]
    return sorted(found, key=lambda each: (is_made_by_cloud(each.seat), each.seat.id))


def _covered(held: Sequence[Held], now: float) -> set[str]:
    return {each.entitlement.desired.product for each in held if plan.is_in_force(each.entitlement, now)}


async def _without_other_sizes(tx: Transaction, vm: Resource, assigned: VmAssigned, held: Sequence[Held]) -> list[Held]:
    """Return those of the cloud's seats that are for another size than a VM has which is off, and the rest as it is."""
    kept = []
    for each in held:
        is_fixed = not is_made_by_cloud(each.seat) or _is_running(vm)
        if is_fixed or plan.units(each.entitlement, 0, assigned) == each.seat.assigned.units:
            kept.append(each)
        else:
            await return_seat(tx, each.seat, f"{vm} has another size")
    return kept


async def _without_superfluous(
    tx: Transaction, vm: Resource, held: Sequence[Held], needed: Mapping[str, object]
) -> list[Held]:
    """Return the cloud's seats of what the VM does not need, or has a better seat for; the rest stays."""
    kept: list[Held] = []
    covered: set[str] = set()
    for each in sorted(held, key=lambda each: not plan.is_in_force(each.entitlement, tx.now)):
        product = each.entitlement.desired.product
        is_needed = product in needed and product not in covered
        if is_made_by_cloud(each.seat) and not is_needed:
            await return_seat(tx, each.seat, f"{vm} does not need it")
            continue
        kept.append(each)
        covered |= _covered([each], tx.now)
    return kept


async def _take(
    tx: Transaction, vm: Resource, assigned: VmAssigned, lacking: Mapping[str, Sequence[Resource]]
) -> dict[str, plan.Short]:
    """Take a seat of each product, or none; return what is short."""
    chosen: list[Resource] = []
    short: dict[str, plan.Short] = {}
    age = await _age(tx, vm) if lacking else 0
    for product, candidates in lacking.items():
        found = await _choice(tx, vm, assigned, candidates, is_next=await _is_next(tx, vm, product, age))
        if isinstance(found, plan.Short):
            short[product] = found
        else:
            chosen.append(found)
    for entitlement in () if short else chosen:
        await _check_out(tx, entitlement, vm, assigned)
    return short


async def _is_next(tx: Transaction, vm: Resource, product: str, age: int) -> bool:
    """Tell whether nobody waits longer for the product."""
    for first in await tx.queue(waiting_space(vm.account_id, product), 1):
        other = await tx.claims(waiting_space(vm.account_id), first)
        return first == vm.id or not other or 0 < age < int(other[0])
    return True


async def _age(tx: Transaction, vm: Resource) -> int:
    """Return the number since when it waits; 0: it does not."""
    return int(next(iter(await tx.claims(waiting_space(vm.account_id), vm.id)), "0"))


async def _choice(
    tx: Transaction, vm: Resource, assigned: VmAssigned, candidates: Sequence[Resource], *, is_next: bool
) -> Resource | plan.Short:
    """Return the first entitlement with a seat, hard ones before soft ones; else why there is none."""
    used, units = {}, {}
    for each in sorted(candidates, key=lambda each: each.desired.enforcement == "soft"):
        licence: EntitlementDesired = each.desired
        units[each.id] = plan.units(each, 0, assigned)
        _, used[each.id] = await tx.budget(seats_space(each.id))
        if plan.term(licence, each.assigned, tx.now) not in plan.GIVING or not await _has_place(
            tx, each, vm, units[each.id]
        ):
            continue
        if licence.enforcement == "soft" or (is_next and used[each.id] + units[each.id] <= licence.limit):
            return each
    return plan.refusal(candidates, used, units, tx.now)


async def _has_place(tx: Transaction, entitlement: Resource, vm: Resource, units: int) -> bool:
    """Tell whether a pinned entitlement has a place for the VM; others need none."""
    if entitlement.desired.binding != "pinned":
        return True
    space = pinned_space(entitlement.id)
    ((has, *_),) = await tx.statement(sql.CHARGE, space=space, owner=vm.id)
    capacity, used = await tx.budget(space)
    return bool(used + units - has <= capacity)


async def _check_out(tx: Transaction, entitlement: Resource, vm: Resource, assigned: VmAssigned) -> None:
    id = tx.new_id()
    units = plan.units(entitlement, 0, assigned)
    over = await take_seat(tx, entitlement, vm, id, units)
    seat = Resource(
        id=id,
        kind="monitor.seat",
        name=f"{vm.name[:50]}-{id[-12:]}",
        account_id=entitlement.account_id,
        account=entitlement.account,
        owner=entitlement.id,
        desired=SeatDesired(entitlement=entitlement.id, vm=vm.id, lease_s=entitlement.desired.lease_s),
        assigned=SeatAssigned(entitlement=entitlement.id, vm=vm.id, units=units),
        observed=observed_of(over, entitlement),
    )
    await tx.create(seat, {"entitlement": entitlement.id})


async def _stand(tx: Transaction, vm: Resource, products: Sequence[str], entitlements: Sequence[Resource]) -> None:
    """Let the VM stand in line for these products, and for no other; tell the entitlements where that changed."""
    if not products and vm.assigned.bar is None:  # then it stands in none
        return
    account = vm.account_id
    lines = (f"{waiting_space(account)}/", unseated_space(account, ""))
    there = {space for (space,) in await tx.statement(sql.SPACES_OF, owner=vm.id) if space.startswith(lines)}
    wanted = {waiting_space(account, each) for each in products}
    if _is_running(vm):
        wanted |= {unseated_space(account, each) for each in products}
    if not wanted:
        await tx.release(vm.id, waiting_space(account))
    elif not await tx.claims(waiting_space(account), vm.id):
        await tx.claim_number(waiting_space(account), 1, COUNT_MAX, vm.id)
    age = await _age(tx, vm)
    for space in there - wanted:
        await tx.release(vm.id, space)
    for space in wanted - there:
        await tx.claim(space, vm.id, vm.id, age)
    changed = {space.partition(f"/{account}/")[2] for space in there ^ wanted}
    for each in entitlements:
        if each.desired.product in changed:
            await tx.enqueue(each.id)


async def _wake(tx: Transaction, vm: Resource, held: Sequence[Held]) -> None:
    """Let seats look that know the VM otherwise than it is."""
    for each in held:
        if is_off(each.seat, each.entitlement, vm, tx.now) != (each.seat.assigned.off_since > 0):
            await tx.enqueue(each.seat.id)


def _bar(vm: Resource, held: Sequence[Held], short: Mapping[str, plan.Short], now: float) -> VmBar | None:
    if not is_wanted(vm):
        return None
    forbids: Literal["start", "run"] = "start"
    messages = [each.message for each in short.values()]
    covered = _covered(held, now)
    for each in held:
        licence: EntitlementDesired = each.entitlement.desired
        if licence.at_end == "stop" and licence.product not in covered:
            forbids = "run"
            messages.append(f"{each.entitlement} ended {licence.ends}; register another, or return {each.seat}")
    return VmBar(reason="NoSeat", message=messages[0], forbids=forbids) if messages else None


def _is_running(vm: Resource) -> bool:
    observed: VmObserved | None = vm.observed
    return observed is not None and observed.power in ("running", "paused", "unknown")
