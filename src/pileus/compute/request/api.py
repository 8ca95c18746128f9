"""Admission of a request: everything that contradicts itself is refused here, before anything exists."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from pileus.compute.choosing import choose
from pileus.compute.offers import Choice
from pileus.compute.request.moves import end_at
from pileus.compute.request.plan import end_of, needs
from pileus.compute.request.servers import offers_in
from pileus.compute.request.telling import window
from pileus.compute.request.types import OVER, RequestAssigned, RequestDesired, RequestObserved
from pileus.compute.template import charge_members, decided
from pileus.kernel.access import Principal
from pileus.kernel.admission import Admission, Change, Decision
from pileus.kernel.clock import iso
from pileus.kernel.errors import Conflict, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Exhausted, Transaction

TOLD_MAX = 50
"""Machines that a dry run tells one by one."""


class RequestAdmission(Admission):
    """The quota of all machines is taken at once; room on hosts is what its controller takes."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the request with its window and template decided. Raises: Invalid, Conflict, QuotaExceeded."""
        new = change.new
        desired: RequestDesired = new.desired
        if change.old is not None:
            change.links.update(await tx.links(change.old.id))
            return replace(new, assigned=await _changed(tx, change.old, desired))
        start_from, start_by = window(desired, tx.now)
        assigned = RequestAssigned(**await decided(tx, change), start_from=start_from, start_by=start_by)
        assigned = msgspec.structs.replace(assigned, end=end_of(desired, assigned))
        await charge_members(tx, assigned, new.id, desired.count)
        said = RequestObserved(starts_at=iso(start_from), ends_at=iso(assigned.end) if assigned.end else "")
        return replace(new, assigned=assigned, observed=said)

    async def preview(self, tx: Transaction, resource: Resource, principal: Principal) -> list[Decision]:
        """Return where each machine would go, and why others would not take it; a tenant hears of no host by name."""
        desired: RequestDesired = resource.desired
        links = await tx.links(resource.id)
        machines = needs(desired, resource.assigned, links, range(1, desired.count + 1), tx.now)
        offers, held = await offers_in(tx, links)
        choice = choose(machines, offers, desired.mode, tx.now, held)
        names = {offer.server: offer.name for offer in offers} if principal.operator else {}
        return _told(choice, names, tx.now)


def _told(choice: Choice, names: dict[str, str], now: float) -> list[Decision]:
    chosen = [
        Decision(
            subject=f"machine {each.number}",
            verdict="chosen",
            reason=f"host {names[each.host]}" if names else "",
            message=each.reason if names else f"a host has room for it{_from(each.start, now)}",
        )
        for each in choice.chosen[:TOLD_MAX]
    ]
    if len(choice.chosen) > TOLD_MAX:
        chosen.append(Decision(subject=f"{len(choice.chosen) - TOLD_MAX} more machines", verdict="chosen"))
    refused = [
        Decision(
            subject=f"{len(each.machines)} machines" if len(each.machines) > 1 else f"machine {each.machines[0]}",
            verdict="refused",
            reason=refusal.reason,
            message=f"{refusal.count} hosts: {refusal.message}, such as {', '.join(refusal.first)}" if names else "",
        )
        for each in choice.refused
        for refusal in each.refusals
    ]
    return chosen + refused


def _from(start: float, now: float) -> str:
    return f" from {iso(start)} on" if start > now else ""


async def _changed(tx: Transaction, old: Resource, desired: RequestDesired) -> RequestAssigned:
    """Return the decision with another end. Raises: Conflict, Invalid."""
    assigned: RequestAssigned = old.assigned
    if assigned.phase in OVER or assigned.phase == "releasing":
        raise Conflict(f"{old} is {assigned.phase} and changes no more; make another one", code="ended")
    end = end_of(desired, assigned)
    if 0 < end <= tx.now:
        raise Invalid("its end would be in the past; delete it instead", field="desired.duration_s")
    if assigned.set and end != assigned.end:
        try:
            await end_at(tx, old, end)
        except Exhausted:
            raise Conflict(
                f"what the machines of {old} hold is promised to others before that; choose an earlier end",
                code="promised",
                field="desired.duration_s",
            ) from None
    return msgspec.structs.replace(assigned, end=end)
