"""Admission of a balancer: members that can be reached, a port that nobody else has."""

from __future__ import annotations

from dataclasses import replace

from pileus.gateway.admission import check_cidrs, claim_ports, publish_space, published, require_router, wake_router
from pileus.gateway.balancer.types import BalancerAssigned, BalancerDesired
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction


class BalancerAdmission(Admission):
    """What can be refused is refused before the router hears of it."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the balancer with its port claimed. Raises: Invalid, Conflict (port-taken)."""
        new = change.new
        desired: BalancerDesired = new.desired
        check_cidrs(desired.sources, "desired.sources")
        members = await _members(tx, change)
        vm = members[0]
        place = await published(tx, change, await tx.get(vm.zone))
        before: BalancerAssigned | None = change.old.assigned if change.old is not None else None
        left = publish_space(new.account_id, before.zone, before.address) if before is not None else ""
        await claim_ports(tx, new, place, left, [("tcp", desired.port)])
        await wake_router(tx, new.account_id, vm.zone)
        change.links["vdc"] = vm.vdc
        ids = tuple(member.id for member in members)
        address = change.links.get("address", "")
        return replace(new, assigned=BalancerAssigned(zone=vm.zone, vdc=vm.vdc, members=ids, address=address))


async def _members(tx: Transaction, change: Change) -> list[Resource]:
    """Return the members' VMs. Raises: Invalid for none, one given twice, one in another zone, one without router."""
    new = change.new
    desired: BalancerDesired = new.desired
    if not desired.members:
        raise Invalid(f"{new} has no members; name at least one VM with --vm", field="desired.members")
    zone = change.old.zone if change.old is not None else ""
    found: list[Resource] = []
    seen: dict[tuple[str, int], int] = {}
    for position, member in enumerate(desired.members):
        field = f"desired.members[{position}].vm"
        vm = await tx.get(change.links[f"members.{position}.vm"])
        place = (vm.id, member.port or desired.port)
        if place in seen:
            raise Invalid(f"{vm} is a member twice with port {place[1]}", field=field)
        seen[place] = position
        zone = zone or vm.zone
        if vm.zone != zone:
            raise Invalid(f"{vm} is in another zone than the balancer's other members", field=field)
        network = (await tx.links(vm.id)).get("nics.0.network")
        if network is None:
            raise Invalid(f"{vm} has no NIC", field=field)
        require_router(await tx.get(network), new, field)
        found.append(vm)
    return found
