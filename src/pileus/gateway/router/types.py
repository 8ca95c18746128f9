"""A router: what serves an account's networks in a zone, by one routing appliance or two."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.infra.zone.types import RouterWish
from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.kind import Column, Kind, Resource


class RouterDesired(Struct, frozen=True, kw_only=True):
    """Made with the account's first network in a zone that wishes one."""

    zone: Annotated[str, Meta(description="The zone whose networks of the account it serves.")]
    vdc: Annotated[str, Meta(description="The vdc it was made for.")]


class RouterAssigned(Struct, frozen=True, kw_only=True):
    """The decisions. ``public_address`` is what the account's guests are seen as outside; empty while it is idle."""

    zone: str
    vdc: str
    redundancy: RouterWish = "single"
    public_address: str = ""
    public_prefix: int = 0
    public_gateway: str = ""
    idle_since: float = 0.0
    """Unix seconds when the last VM was seen stopped; 0: some VM wants it. In the database, so that a restart keeps it."""
    active: Literal["yes", "no"] = "no"
    """Whether it shall have appliances now."""
    blocked: str = ""
    """Why it cannot start: the zone has no public address left."""


class RouterObserved(Struct, frozen=True, kw_only=True):
    """What its nodes say. ``state`` idle: no VM needs it; ending: its appliances are being removed."""

    state: Literal["idle", "starting", "ready", "degraded", "ending"]
    message: str = ""
    nodes: tuple[str, ...] = ()
    active_node: str = ""
    """The one of a pair that has the addresses."""
    hash: str = ""
    """Of the shared part of the document that is in force on every node."""


def router_space(zone: str) -> str:
    """Return the claim space of the routers of a zone: value the account's id, owner the router."""
    return f"router/{zone}"


def _ready(resource: Resource) -> Condition:
    observed: RouterObserved | None = resource.observed
    if observed is None:
        return unready("Deciding", "no decision yet")
    if observed.state in ("idle", "ending"):
        return ready(observed.state.capitalize(), "no VM needs it now")
    if observed.state == "ready":
        return ready()
    if observed.state == "degraded":
        return ready("Degraded", observed.message) if observed.active_node else unready("Degraded", observed.message)
    return unready("Starting", observed.message)


KIND = Kind(
    name="gateway.router",
    summary="Serves an account's networks in a zone: DHCP, DNS, NAT and what the gateway kinds ask for.",
    desired=RouterDesired,
    assigned=RouterAssigned,
    observed=RouterObserved,
    ready=_ready,
    created_by="kernel",
    columns=(
        Column("STATE", "observed.state"),
        Column("PUBLIC", "assigned.public_address"),
        Column("REDUNDANCY", "assigned.redundancy"),
        Column("ZONE", "zone", ref="infra.zone"),
        Column("VDC", "vdc", wide=True, ref="tenancy.vdc"),
    ),
)
