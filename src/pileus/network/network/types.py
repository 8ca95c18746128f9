"""A network: a private IPv4 range of an account in a zone. Two accounts may use the same range."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.infra.zone.types import RouterWish
from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import VdcRef
from pileus.kernel.kind import Column, Kind, Resource


class NetworkDesired(Struct, frozen=True, kw_only=True):
    """Range and what guests are told."""

    range: Annotated[str, Meta(description="Private IPv4 range in CIDR form (RFC 1918), /8 to /30.")] = "10.1.1.0/24"
    gateway: Annotated[str, Meta(description="Gateway's address; empty: the first of the range.")] = ""
    dns: Annotated[tuple[str, ...], Meta(max_length=4, description="Name servers; empty: those of the zone.")] = ()
    first: Annotated[str, Meta(description="First address given out; empty: the first of the range.")] = ""
    last: Annotated[str, Meta(description="Last address given out; empty: the last of the range.")] = ""
    router: Annotated[
        Literal["", "none", "single", "redundant"],
        Meta(description="Who serves it: none, a single routing appliance, a redundant pair; empty: as its zone says."),
    ] = ""
    vdc: Annotated[VdcRef, Meta(description="The account's vdc; left out: the only one.")] = ""


class NetworkAssigned(Struct, frozen=True, kw_only=True):
    """Where it is, and its gateway."""

    zone: str
    vdc: str
    gateway: str
    router: RouterWish = "none"
    """What was decided about ``desired.router``."""


class NetworkObserved(Struct, frozen=True, kw_only=True):
    """Who serves the network; written by the controller of its router.

    ``served`` from the moment its router runs the network's configuration until the router is collected.
    """

    state: Literal["waiting", "served"]
    router: str
    message: str = ""


def address_space(network: str) -> str:
    """Return the claim space of a network's addresses; numbers are offsets from the network address."""
    return f"address/{network}"


IDLE = "its router starts with the first VM"


def _ready(resource: Resource) -> Condition:
    assigned: NetworkAssigned | None = resource.assigned
    observed: NetworkObserved | None = resource.observed
    if assigned is None:
        return unready("Deciding", "no decision yet")
    if assigned.router == "none":
        return ready()
    if observed is None or observed.state != "served":
        return ready("Unserved", observed.message if observed is not None and observed.message else IDLE)
    return ready()


KIND = Kind(
    name="network.network",
    summary="A private IPv4 network of an account.",
    desired=NetworkDesired,
    assigned=NetworkAssigned,
    observed=NetworkObserved,
    ready=_ready,
    immutable=frozenset({"range", "gateway", "first", "last", "vdc"}),
    columns=(
        Column("RANGE", "desired.range"),
        Column("GATEWAY", "assigned.gateway"),
        Column("ROUTER", "assigned.router"),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
