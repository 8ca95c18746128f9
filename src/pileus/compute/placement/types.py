"""A placement: which servers contribute what to one machine of a request. All of them are the aggregation table."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.kind import Column, Kind, Resource

Service = Literal["guaranteed", "best-effort"]
State = Literal["offered", "instructed", "confirmed", "refused", "moving", "preempted", "released"]
"""``offered``: room is held, or promised. ``instructed``: the host was told. ``confirmed``: the machine ran there.

``refused``: it did not. ``moving``: its host is to say that it is off there, then it goes elsewhere. ``preempted``: it
went to make room for a guaranteed one. ``released``: what was held is given back.
"""
HELD: frozenset[State] = frozenset({"offered", "instructed", "confirmed", "refused", "moving"})
"""States in which the machine still has, or may have, something."""
MEMBER: frozenset[State] = frozenset({"instructed", "confirmed", "refused", "moving"})
"""States in which there is a VM, or shall be one."""


class PlacementDesired(Struct, frozen=True):
    """Nothing: everything follows from the request."""


class Contribution(Struct, frozen=True, kw_only=True):
    """What one resource server gives to the machine."""

    server: str
    kind: str
    """host, pool, network or image."""
    quantity: dict[str, int] = {}
    service: Service = "guaranteed"
    state: State = "offered"
    reason: str = ""


class PlacementAssigned(Struct, frozen=True, kw_only=True):
    """One machine: what was decided, and how far it is. Times are Unix seconds; ``end`` 0: none is set."""

    zone: str
    vdc: str
    request: str
    number: int
    server: str
    """Id of the host."""
    pool: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    service: Service = "guaranteed"
    start: float = 0.0
    end: float = 0.0
    promised: Literal["yes", "no"] = "no"
    """Whether its room is promised from its start on, and not held yet."""
    vm: str = ""
    """Empty until it is made; the same after a server was replaced."""
    state: State = "offered"
    reason: str = ""
    message: str = ""
    since: float = 0.0
    """When it was instructed."""
    doubted_at: float = 0.0
    """Since when its host reports a problem; 0: none."""
    refused_by: tuple[str, ...] = ()
    """Hosts that refused it, newest last."""
    contributions: tuple[Contribution, ...] = ()


def _ready(resource: Resource) -> Condition:
    assigned: PlacementAssigned = resource.assigned
    if assigned.state == "confirmed":
        return ready("Confirmed", assigned.message)
    if assigned.state == "released":
        return ready("Released", assigned.message)
    reason = assigned.reason or assigned.state.capitalize()
    return unready(reason, assigned.message or f"the machine is {assigned.state}")


KIND = Kind(
    name="compute.placement",
    summary="The servers that contribute to one machine of a request, and how far each is.",
    desired=PlacementDesired,
    assigned=PlacementAssigned,
    ready=_ready,
    created_by="kernel",
    columns=(
        Column("NUMBER", "assigned.number"),
        Column("STATE", "assigned.state"),
        Column("SERVICE", "assigned.service"),
        Column("VM", "assigned.vm", ref="compute.vm"),
        Column("SERVER", "assigned.server", wide=True, ref="infra.host"),
        Column("POOL", "assigned.pool", wide=True, ref="storage.pool"),
        Column("REASON", "assigned.reason"),
    ),
)
