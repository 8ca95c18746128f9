"""A segment: an account's VLAN on one host, as the host shares it with others. Made with the first port there."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import Problem
from pileus.kernel.kind import Column, Kind, Resource

VLANS = 4096
"""VLAN IDs of a zone; a VXLAN number is the zone's number times this, plus the VLAN ID."""

ACCOUNT_LABEL = "account"
"""Label of a segment: the name of the account whose VLAN it is."""

ZONE_NUMBERS = "zone-number"
"""Claim space of the numbers that keep zones apart in one underlay; owners are zones."""


class SegmentDesired(Struct, frozen=True):
    """Nothing: everything follows from ports and hosts."""


class SegmentAssigned(Struct, frozen=True, kw_only=True):
    """The decisions. ``trunk``: it goes tagged over the host's trunk; ``tunnel_address``: the host's own, if it has one.

    ``peers``: tunnel addresses of the hosts that share the VLAN and are not met on the trunk.
    """

    zone: str
    host: str
    pod: str
    vlan: int
    vni: int
    isolation: Literal["vlan", "vxlan"] = "vlan"
    trunk: Literal["yes", "no"] = "no"
    tunnel_address: str = ""
    peers: tuple[str, ...] = ()


class SegmentObserved(Struct, frozen=True, kw_only=True):
    """What the host's switch has; ``peers`` as far as they are in force."""

    state: Literal["absent", "joined"]
    peers: tuple[str, ...] = ()
    problem: Problem | None = None


def _ready(resource: Resource) -> Condition:
    assigned: SegmentAssigned = resource.assigned
    observed: SegmentObserved | None = resource.observed
    if observed is None:
        return unready("Joining", "its host has not joined it yet")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if observed.state == "joined" and observed.peers == assigned.peers:
        return ready()
    return unready(
        "Joining", f"the segment is {observed.state}, with {len(observed.peers)} of {len(assigned.peers)} peers"
    )


KIND = Kind(
    name="network.segment",
    summary="An account's VLAN on a host, as trunk and tunnels join it to other hosts.",
    desired=SegmentDesired,
    assigned=SegmentAssigned,
    observed=SegmentObserved,
    ready=_ready,
    scope="cluster",
    readable_by="operator",
    writable_by="operator",
    created_by="kernel",
    host_bound=True,
    columns=(
        Column("VLAN", "assigned.vlan"),
        Column("VNI", "assigned.vni"),
        Column("TRUNK", "assigned.trunk"),
        Column("STATE", "observed.state"),
        Column("HOST", "host", ref="infra.host"),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
