"""A zone: a part of the cloud that fails and is isolated by itself."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.kind import Column, Kind, Resource

VlanId = Annotated[int, Meta(ge=1, le=4094)]


class ZoneDesired(Struct, frozen=True, kw_only=True):
    """How tenants are kept apart in the zone, and what their guests are told."""

    isolation: Annotated[Literal["vlan"], Meta(description="vlan: an 802.1Q VLAN ID per account.")] = "vlan"
    vlan_first: Annotated[VlanId, Meta(description="Lowest VLAN ID that accounts get.")] = 1
    vlan_last: Annotated[VlanId, Meta(description="Highest VLAN ID that accounts get.")] = 4094
    dns: Annotated[tuple[str, ...], Meta(description="Name servers that guests are told.")] = ()


def vlan_space(zone: str) -> str:
    """Return the claim space of the VLAN IDs of a zone; owners are accounts."""
    return f"vlan/{zone}"


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="infra.zone",
    summary="An isolated part of the cloud; holds pods.",
    desired=ZoneDesired,
    ready=_ready,
    scope="cluster",
    writable_by="operator",
    columns=(
        Column("ISOLATION", "desired.isolation"),
        Column("VLANS", "desired.vlan_first", wide=True),
        Column("TO", "desired.vlan_last", wide=True),
    ),
)
