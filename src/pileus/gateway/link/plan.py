"""The entries of a link in the documents of its two routers. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address

from pileus.gateway.facts import Facts
from pileus.gateway.link.types import LinkAssigned, LinkSide
from pileus.kernel.kind import Resource
from pileus.node.document import Document

KEEPALIVE_S = 25
INNER = IPv4Address("169.254.64.0")
"""Tunnels of links have their addresses from here on, four for each (RFC 3927: link-local)."""
LINKS_MAX = 4096


def inner(number: int) -> tuple[str, str]:
    """Return the two addresses in the tunnel of a link, 0 <= number < LINKS_MAX."""
    base = INNER + 4 * number
    return str(base + 1), str(base + 2)


def sides(link: Resource, zone: str) -> tuple[LinkSide, LinkSide] | None:
    """Return the side of the link in ``zone`` and the other one; None when it has none there."""
    assigned: LinkAssigned = link.assigned
    if zone == assigned.near.zone:
        return assigned.near, assigned.far
    return (assigned.far, assigned.near) if zone == assigned.far.zone else None


def entries(link: Resource, facts: Facts) -> Document:
    """Return the tunnel and the stretch of the router in the facts' zone; none while it has no public address."""
    assigned: LinkAssigned = link.assigned
    found = sides(link, facts.zone)
    if found is None or not facts.here.public_address:
        return {}
    own, other = found
    network = next((each for each in facts.here.networks if each.id == own.network), None)
    if network is None:
        return {}
    there = facts.place(other.zone).public_address
    peer = {
        "allowed": [f"{other.inner}/32"],
        "endpoint": f"{there}:{other.port}" if there else "",
        "keepalive_s": KEEPALIVE_S if there else 0,
    }
    tunnel = {
        "interface": f"wg{own.interface}",
        "private_key": own.private_key,
        "port": own.port,
        "address": f"{own.inner}/30",
        "peers": {other.public_key: peer},
    }
    stretch = {
        "network": own.network,
        "range": network.range,
        "tunnel": link.id,
        "vni": assigned.vni,
        "local": own.inner,
        "remote": other.inner,
    }
    return {"tunnels": {link.id: tunnel}, "stretches": {link.id: stretch}}
