"""A network: a private IPv4 range of an account in a zone. Two accounts may use the same range."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import VdcRef
from pileus.kernel.kind import Column, Kind, Resource


class NetworkDesired(Struct, frozen=True, kw_only=True):
    """Range and what guests are told."""

    range: Annotated[str, Meta(description="Private IPv4 range in CIDR form (RFC 1918), /8 to /30.")] = "10.1.1.0/24"
    gateway: Annotated[str, Meta(description="Gateway's address; empty: the first of the range.")] = ""
    dns: Annotated[tuple[str, ...], Meta(max_length=4, description="Name servers; empty: those of the zone.")] = ()
    vdc: Annotated[VdcRef, Meta(description="The account's vdc; left out: the only one.")] = ""


class NetworkAssigned(Struct, frozen=True, kw_only=True):
    """Where it is, and its gateway."""

    zone: str
    vdc: str
    gateway: str


def address_space(network: str) -> str:
    """Return the claim space of a network's addresses; numbers are offsets from the network address."""
    return f"address/{network}"


def _ready(resource: Resource) -> Condition:
    return unready("Deciding", "no decision yet") if resource.assigned is None else ready()


KIND = Kind(
    name="network.network",
    summary="A private IPv4 network of an account.",
    desired=NetworkDesired,
    assigned=NetworkAssigned,
    ready=_ready,
    immutable=frozenset({"range", "gateway", "vdc"}),
    columns=(
        Column("RANGE", "desired.range"),
        Column("GATEWAY", "assigned.gateway"),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
