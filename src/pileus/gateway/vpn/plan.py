"""The entries of a VPN in its router's document, and the addresses of its clients. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network
from typing import Any

from pileus.gateway.facts import Facts, cidrs
from pileus.gateway.vpn.types import VpnAssigned, VpnDesired
from pileus.kernel.kind import Resource
from pileus.node.document import Document

KEEPALIVE_S = 25
"""WireGuard's own advice for ends behind a NAT; it also brings a tunnel up before anybody sends."""


def client_addresses(range_: IPv4Network, names: Iterable[str], held: Mapping[str, str]) -> dict[str, str] | None:
    """Return an address for each name: the one it has, else the lowest free; None when the range is too small.

    The first address of the range is the router's own.
    """
    wanted = list(names)
    kept = {name: held[name] for name in wanted if name in held}
    taken = set(kept.values())
    free = (str(address) for number, address in enumerate(range_.hosts()) if number > 0 and str(address) not in taken)
    for name in wanted:
        if name not in kept:
            address = next(free, None)
            if address is None:
                return None
            kept[name] = address
    return {name: kept[name] for name in wanted}


def endpoint(vpn: Resource, facts: Facts) -> str:
    """Return where the VPN is reached; empty while its router has no public address."""
    assigned: VpnAssigned = vpn.assigned
    public = facts.public(assigned.zone, assigned.address)
    return f"{public}:{assigned.port}" if public else ""


def ranges(facts: Facts, zone: str) -> tuple[str, ...]:
    """Return the ranges of the account's networks in a zone that its router serves."""
    return tuple(network.range for network in facts.place(zone).networks)


def meeting(left: Iterable[str], right: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two ranges that overlap."""
    others = [IPv4Network(text) for text in right]
    for text in left:
        for other in others:
            if IPv4Network(text).overlaps(other):
                return text, str(other)
    return None


def remotes(vpn: Resource, facts: Facts) -> tuple[str, ...]:
    """Return what guests reach through the VPN: the clients' addresses, or ranges of the other sides."""
    return tuple(text for peer in _peers(vpn, facts).values() for text in peer["allowed"])


def not_routed(vpn: Resource, facts: Facts) -> str:
    """Return which ranges of other sides guests cannot reach through the VPN, since they meet another; else ""."""
    reached = remotes(vpn, facts)
    lost = [text for other in facts.joined(vpn) for text in ranges(facts, other.assigned.zone) if text not in reached]
    return f"not routed, because they overlap others that are: {', '.join(lost)}" if lost else ""


def entries(vpn: Resource, facts: Facts) -> Document:
    """Return the VPN's tunnel; none while it has no public address."""
    desired: VpnDesired = vpn.desired
    assigned: VpnAssigned = vpn.assigned
    if not facts.public(assigned.zone, assigned.address):
        return {}
    inner = ""
    if desired.mode == "remote-access":
        range_ = IPv4Network(desired.range)
        inner = f"{range_.network_address + 1}/{range_.prefixlen}"
    tunnel = {
        "interface": f"wg{assigned.interface}",
        "private_key": assigned.private_key,
        "port": assigned.port,
        "address": inner,
        "peers": _peers(vpn, facts),
    }
    return {"tunnels": {vpn.id: tunnel}}


def _peers(vpn: Resource, facts: Facts) -> dict[str, dict[str, Any]]:
    desired: VpnDesired = vpn.desired
    assigned: VpnAssigned = vpn.assigned
    if desired.mode == "remote-access":
        return {client.public_key: _peer([f"{assigned.clients[client.name]}/32"], "", 0) for client in desired.clients}
    taken = [*ranges(facts, assigned.zone), *_of_others(vpn, facts)]
    found = {}
    if desired.outside is not None:
        found[desired.outside.public_key] = _peer(cidrs(desired.outside.ranges), desired.outside.endpoint, KEEPALIVE_S)
    for other in facts.joined(vpn):
        there: VpnAssigned = other.assigned
        apart = [text for text in ranges(facts, there.zone) if meeting((text,), taken) is None]
        taken += apart
        found[there.public_key] = _peer(apart, endpoint(other, facts), KEEPALIVE_S)
    return found


def _of_others(vpn: Resource, facts: Facts) -> list[str]:
    """Return the ranges that the other VPNs of the zone reach by their own wish."""
    found: list[str] = []
    for other in facts.vpns.values():
        desired: VpnDesired = other.desired
        if other.id != vpn.id and other.assigned.zone == vpn.assigned.zone:
            found += [desired.range] if desired.range else []
            found += cidrs(desired.outside.ranges) if desired.outside is not None else []
    return found


def _peer(allowed: Iterable[str], endpoint: str, keepalive_s: int) -> dict[str, Any]:
    return {"allowed": list(allowed), "endpoint": endpoint, "keepalive_s": keepalive_s if endpoint else 0}
