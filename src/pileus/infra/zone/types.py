"""A zone: a part of the cloud that fails and is isolated by itself."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.kind import Column, Kind, Resource
from pileus.tenancy.account.types import VmLimits

RouterWish = Literal["none", "single", "redundant"]
MirrorWish = Literal["allowed", "approval", "forbidden"]
VlanId = Annotated[int, Meta(ge=1, le=4094)]


class ZoneDesired(Struct, frozen=True, kw_only=True):
    """How tenants are kept apart in the zone, and what their guests are told."""

    isolation: Annotated[
        Literal["vlan", "vxlan"],
        Meta(description="How hosts of a pod share an account's VLAN: vlan, tagged on the trunk; vxlan, in tunnels."),
    ] = "vlan"
    vlan_first: Annotated[VlanId, Meta(description="Lowest VLAN ID that accounts get.")] = 1
    vlan_last: Annotated[VlanId, Meta(description="Highest VLAN ID that accounts get.")] = 4094
    dns: Annotated[tuple[str, ...], Meta(description="Name servers that routers ask and guests are told.")] = ()
    router: Annotated[
        RouterWish,
        Meta(description="Routing appliances of networks that do not say: none, a single one, or a redundant pair."),
    ] = "none"
    router_image: Annotated[str, Meta(description="The cluster's image that routing appliances start from.")] = (
        "appliance"
    )
    router_idle_s: Annotated[
        int,
        Meta(
            ge=5, le=2_592_000, description="How long a router stays after its account's last VM stopped, in seconds."
        ),
    ] = 600
    public_range: Annotated[str, Meta(description="Public IPv4 range in CIDR form; empty: the zone has none.")] = ""
    public_gateway: Annotated[str, Meta(description="Its gateway; empty: the first of the range.")] = ""
    public_first: Annotated[str, Meta(description="First address given out; empty: the first after the gateway.")] = ""
    public_last: Annotated[str, Meta(description="Last address given out; empty: the last of the range.")] = ""
    limits: Annotated[VmLimits, Meta(description="The most that each VM of the zone gets.")] = VmLimits()
    mirroring: Annotated[
        MirrorWish,
        Meta(
            description="Whether tenants may watch their packets: allowed, approval (an operator's, each time), forbidden."
        ),
    ] = "allowed"
    decapsulators: Annotated[
        int,
        Meta(
            ge=1,
            le=16,
            description="Appliances that share mirror sessions; with 2 another takes over from one that dies.",
        ),
    ] = 1
    decapsulator_idle_s: Annotated[
        int, Meta(ge=5, le=2_592_000, description="How long they stay after the zone's last session ended, in seconds.")
    ] = 300


def public_space(zone: str) -> str:
    """Return the claim space of the public addresses of a zone; numbers are offsets in ``public_range``."""
    return f"public/{zone}"


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
