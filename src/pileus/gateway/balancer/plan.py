"""The entries of a balancer in its router's document, and its members' health. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec.structs import asdict

from pileus.gateway.balancer.types import BalancerAssigned, BalancerDesired, MemberHealth
from pileus.gateway.facts import Facts, cidrs
from pileus.kernel.kind import Resource
from pileus.node.document import Document


def members(balancer: Resource, facts: Facts) -> list[tuple[str, str, int]]:
    """Return (key, address, port) of each member, in the wish's order; its address is empty while it has none."""
    desired: BalancerDesired = balancer.desired
    assigned: BalancerAssigned = balancer.assigned
    found = []
    for member, vm in zip(desired.members, assigned.members, strict=True):
        port = member.port or desired.port
        guest = facts.guests.get(vm)
        found.append((f"{vm}:{port}", guest.address_in("") if guest else "", port))
    return found


def entries(balancer: Resource, facts: Facts) -> Document:
    """Return the balancer's entry with the members that have an address; none while it has no public address."""
    desired: BalancerDesired = balancer.desired
    assigned: BalancerAssigned = balancer.assigned
    public = facts.public(assigned.zone, assigned.address)
    if not public:
        return {}
    reached = {key: {"address": address, "port": port} for key, address, port in members(balancer, facts) if address}
    entry = {
        "address": public,
        "port": desired.port,
        "protocol": desired.protocol,
        "algorithm": desired.algorithm,
        "members": reached,
        "check": asdict(desired.check),
        "sources": cidrs(desired.sources),
    }
    return {"balancers": {balancer.id: entry}}


def health(balancer: Resource, facts: Facts, statuses: Sequence[Mapping[str, Any]]) -> tuple[MemberHealth, ...]:
    """Return the members as the appliances say they are: up when one says up. What they say is untrusted."""
    desired: BalancerDesired = balancer.desired
    said = [_said(status, balancer.id) for status in statuses]
    found = []
    for member, (key, address, port) in zip(desired.members, members(balancer, facts), strict=True):
        words = {each.get(key) for each in said if isinstance(each.get(key), str)}
        state: Literal["up", "down", "unknown"] = "up" if "up" in words else "down" if "down" in words else "unknown"
        found.append(MemberHealth(vm=member.vm, address=address, port=port, health=state))
    return tuple(found)


def _said(status: Mapping[str, Any], id: str) -> Mapping[str, Any]:
    balancers = status.get("balancers")
    said = balancers.get(id) if isinstance(balancers, Mapping) else None
    return said if isinstance(said, Mapping) else {}
