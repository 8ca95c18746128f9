"""The entries of a forward in its router's document. Pure."""

from __future__ import annotations

from pileus.gateway.facts import Facts, cidrs
from pileus.gateway.forward.types import ForwardAssigned, ForwardDesired
from pileus.kernel.kind import Resource
from pileus.node.document import Document


def ends(forward: Resource, facts: Facts) -> tuple[str, str]:
    """Return the public address and the VM's; empty: it has none now."""
    assigned: ForwardAssigned = forward.assigned
    guest = facts.guests.get(assigned.vm)
    return facts.public(assigned.zone, assigned.address), guest.address_in(assigned.network) if guest else ""


def ports(desired: ForwardDesired) -> range:
    """Return the ports that are reached from outside."""
    return range(desired.port, max(desired.port, desired.port_last) + 1)


def entries(forward: Resource, facts: Facts) -> Document:
    """Return the forward's entry; none while one of its ends has no address."""
    desired: ForwardDesired = forward.desired
    public, to_address = ends(forward, facts)
    if not public or not to_address:
        return {}
    outside = ports(desired)
    entry = {
        "address": public,
        "protocol": desired.protocol,
        "port_first": outside[0],
        "port_last": outside[-1],
        "to_address": to_address,
        "to_port": desired.vm_port or desired.port,
        "sources": cidrs(desired.sources),
    }
    return {"forwards": {forward.id: entry}}
