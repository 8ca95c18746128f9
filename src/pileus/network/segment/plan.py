"""Which hosts a segment meets, and by what. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Literal

from msgspec.structs import replace

from pileus.infra.host.types import HostAssigned
from pileus.kernel.kind import Resource
from pileus.network.segment.types import SegmentAssigned


def has_uplinks(host: Resource) -> bool:
    """Tell whether the host can meet others at all."""
    assigned: HostAssigned = host.assigned
    return assigned.has_trunk == "yes" or bool(assigned.tunnel_address)


def placed(zone: Resource, host: Resource, vlan: int, vni: int) -> SegmentAssigned:
    """Return the segment of a VLAN on a host, as zone and host are now; peers are still to be found."""
    assigned: HostAssigned = host.assigned
    isolation: Literal["vlan", "vxlan"] = zone.desired.isolation
    return SegmentAssigned(
        zone=zone.id,
        host=host.id,
        pod=assigned.pod,
        vlan=vlan,
        vni=vni,
        isolation=isolation,
        trunk="yes" if isolation == "vlan" and assigned.has_trunk == "yes" else "no",
        tunnel_address=assigned.tunnel_address,
    )


def meet_on_trunk(one: SegmentAssigned, other: SegmentAssigned) -> bool:
    """Tell whether two hosts share the VLAN as tagged frames: those of a pod that both have a trunk."""
    return one.pod == other.pod and one.trunk == other.trunk == "yes"


def with_peers(own: SegmentAssigned, others: Iterable[SegmentAssigned]) -> SegmentAssigned:
    """Return the segment with the peers that it meets by VXLAN among all of its account, in the order of addresses."""
    if not own.tunnel_address:
        return replace(own, peers=())
    peers = {
        other.tunnel_address
        for other in others
        if other.vlan == own.vlan and other.zone == own.zone and other.host != own.host
        and other.tunnel_address and not meet_on_trunk(own, other)
    }  # fmt: skip
    return replace(own, peers=tuple(sorted(peers, key=IPv4Address)))
