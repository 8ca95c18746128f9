"""Admission of a forward: a VM that can be reached, ports that nobody else has."""

from __future__ import annotations

from dataclasses import replace

from pileus.gateway.admission import check_cidrs, claim_ports, publish_space, published, require_router, wake_router
from pileus.gateway.forward.plan import ports
from pileus.gateway.forward.types import PORTS_MAX, ForwardAssigned, ForwardDesired
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction


class ForwardAdmission(Admission):
    """What can be refused is refused before the router hears of it."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the forward with its ports claimed. Raises: Invalid, Conflict (port-taken)."""
        new = change.new
        desired: ForwardDesired = new.desired
        _check_ports(desired)
        check_cidrs(desired.sources, "desired.sources")
        vm = await tx.get(change.links["vm"])
        network = await _network(tx, change, vm)
        require_router(network, new, "desired.network" if desired.network else "desired.vm")
        place = await published(tx, change, await tx.get(vm.zone))
        before: ForwardAssigned | None = change.old.assigned if change.old is not None else None
        left = publish_space(new.account_id, before.zone, before.address) if before is not None else ""
        await claim_ports(tx, new, place, left, [(desired.protocol, port) for port in ports(desired)])
        await wake_router(tx, new.account_id, vm.zone)
        change.links["vdc"] = vm.vdc
        address = change.links.get("address", "")
        assigned = ForwardAssigned(zone=vm.zone, vdc=vm.vdc, vm=vm.id, network=network.id, address=address)
        return replace(new, assigned=assigned)


def _check_ports(desired: ForwardDesired) -> None:
    if desired.port_last and desired.port_last < desired.port:
        raise Invalid(f"port_last {desired.port_last} is below port {desired.port}", field="desired.port_last")
    count = len(ports(desired))
    if count > PORTS_MAX:
        raise Invalid(f"{count} ports are asked, {PORTS_MAX} are the most", field="desired.port_last")
    if (desired.vm_port or desired.port) + count - 1 > 65_535:
        raise Invalid(f"{count} ports from {desired.vm_port} on go beyond 65535", field="desired.vm_port")


async def _network(tx: Transaction, change: Change, vm: Resource) -> Resource:
    """Return the network in which the VM is reached. Raises: Invalid when it is not on it."""
    links = await tx.links(vm.id)
    fields = [f"nics.{position}.network" for position in range(len(vm.desired.nics))]
    on = [links[field] for field in fields if field in links]  # an appliance's NICs are in no network
    if not on:
        raise Invalid(f"{vm} has no NIC", field="desired.vm")
    wished = change.links.get("network")
    if wished is None:
        return await tx.get(on[0])
    network = await tx.get(wished)
    if wished not in on:
        names = ", ".join([(await tx.get(id)).name for id in on])
        raise Invalid(f"{vm} is not on {network}; it is on {names}", field="desired.network")
    return network
