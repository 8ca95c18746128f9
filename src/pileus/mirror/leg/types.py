"""A leg: what a mirror session has on one host. Made and removed by the session's controller."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import Problem
from pileus.kernel.kind import Column, Kind, Resource
from pileus.node.mirror.rules import Rule

LegRole = Literal["source", "relay", "delivery"]


LOST = "Lost"
"""The problem of a source that its host had in force and has no more: the session needs another key."""


class LegDesired(Struct, frozen=True):
    """Nothing: everything follows from the session."""


class LegAssigned(Struct, frozen=True, kw_only=True):
    """What the host shall have; see ``pileus.drivers.host.mirror.base`` for what each field means to which role."""

    host: str
    role: LegRole
    session: str
    key: str
    """15 hexadecimal digits. A leg with another key is another leg: counts belong to a key."""
    port: str = ""
    """Of the source, or of the sniffer; of a relay: the port of the decapsulator's first NIC."""
    sniffer_port: str = ""
    """A relay's: of the decapsulator's second NIC."""
    source: str = ""
    """Tunnel address that frames must come from; empty: this host."""
    target: str | None = ""
    """Tunnel address that frames go to; empty: this host; None (a relay's): the decapsulator keeps them."""
    number: int = 0
    direction: Literal["ingress", "egress", "both"] = "both"
    rules: tuple[Rule, ...] = ()
    snap_bytes: int = 0
    sample_one_in: int = 1
    sample_by: Literal["packet", "flow"] = "packet"
    rate_limit_kbps: int = 0


class LegObserved(Struct, frozen=True, kw_only=True):
    """What the host has. ``counts``: as they were when this was last said, the last ones of a leg that is gone."""

    state: Literal["absent", "in-force"]
    assigned: LegAssigned | None = None
    """What is in force, as far as it was decided."""
    counts: dict[str, int] = {}
    problem: Problem | None = None


def in_force(leg: Resource) -> bool:
    """Tell whether the host has the leg as it is decided now."""
    observed: LegObserved | None = leg.observed
    return (
        observed is not None
        and observed.problem is None
        and observed.state == "in-force"
        and observed.assigned == leg.assigned
        and not leg.unheard
    )


def _ready(resource: Resource) -> Condition:
    observed: LegObserved | None = resource.observed
    if observed is None:
        return unready("Starting", "its host has not made it yet")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    return ready() if in_force(resource) else unready("Starting", "its host has not put it in force yet")


KIND = Kind(
    name="mirror.leg",
    summary="What a mirror session has on a host: a source of copies, a relay at a decapsulator, or a delivery.",
    desired=LegDesired,
    assigned=LegAssigned,
    observed=LegObserved,
    ready=_ready,
    scope="cluster",
    readable_by="operator",
    writable_by="operator",
    created_by="kernel",
    host_bound=True,
    private=frozenset({"assigned.key", "observed.assigned"}),
    columns=(
        Column("ROLE", "assigned.role"),
        Column("STATE", "observed.state"),
        Column("SESSION", "assigned.session", ref="mirror.session"),
        Column("HOST", "host", ref="infra.host"),
    ),
)
