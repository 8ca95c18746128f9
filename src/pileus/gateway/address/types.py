"""A public address: one of the zone's pool, an account's until it is deleted."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import VdcRef
from pileus.kernel.kind import Column, Kind, Resource
from pileus.kernel.usage import Use


class AddressDesired(Struct, frozen=True, kw_only=True):
    """Which one."""

    address: Annotated[str, Meta(description="Public IPv4 address of the zone; empty: the next free one.")] = ""
    vdc: Annotated[VdcRef, Meta(description="The account's vdc; left out: the only one.")] = ""


class AddressAssigned(Struct, frozen=True, kw_only=True):
    """The address, and what its segment looks like."""

    zone: str
    vdc: str
    address: str
    prefix: int
    gateway: str


def _ready(resource: Resource) -> Condition:
    return ready() if resource.assigned is not None else unready("Deciding", "no decision yet")


def _meter(address: Resource) -> Use:
    """Say what it uses: an address, from when it was given until it is given back."""
    return Use({"addresses": 1} if address.assigned is not None else {})


KIND = Kind(
    name="gateway.address",
    summary="A public IPv4 address of an account.",
    desired=AddressDesired,
    assigned=AddressAssigned,
    ready=_ready,
    meter=_meter,
    aliases=("addresses",),
    immutable=frozenset({"address", "vdc"}),
    columns=(
        Column("ADDRESS", "assigned.address"),
        Column("ZONE", "zone", ref="infra.zone"),
        Column("VDC", "vdc", wide=True, ref="tenancy.vdc"),
    ),
)
