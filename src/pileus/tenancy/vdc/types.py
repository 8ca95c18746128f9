"""A virtual data centre: an account's share of a zone, with its quota."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.fields import ZoneRef
from pileus.kernel.kind import Column, Kind, Resource

Count = Annotated[int, Meta(ge=0, le=10_000_000)]


class Quota(Struct, frozen=True, kw_only=True):
    """The most that the account may have in the zone."""

    vms: Annotated[Count, Meta(description="VMs, running or not.")] = 20
    vcpus: Annotated[Count, Meta(description="Virtual CPUs of all VMs.")] = 40
    memory_mib: Annotated[Count, Meta(description="Memory of all VMs, in MiB.")] = 65_536
    volumes: Annotated[Count, Meta(description="Volumes, root volumes included.")] = 60
    disk_gib: Annotated[Count, Meta(description="Size of all volumes, in GiB.")] = 1_000
    networks: Annotated[Count, Meta(description="Networks.")] = 10
    addresses: Annotated[Count, Meta(description="Public addresses besides those of routers.")] = 10


class VdcDesired(Struct, frozen=True, kw_only=True):
    """Where, and how much."""

    zone: Annotated[ZoneRef, Meta(description="The zone; left out: the only one.")] = ""
    quota: Annotated[Quota, Meta(description="Limits, held at every moment.")] = Quota()


class VdcAssigned(Struct, frozen=True, kw_only=True):
    """The zone it is a share of."""

    zone: str


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="tenancy.vdc",
    summary="An account's share of a zone, with its quota.",
    desired=VdcDesired,
    assigned=VdcAssigned,
    ready=_ready,
    writable_by="operator",
    immutable=frozenset({"zone"}),
    columns=(
        Column("ZONE", "zone", ref="infra.zone"),
        Column("VMS", "desired.quota.vms"),
        Column("VCPUS", "desired.quota.vcpus"),
        Column("MEMORY", "desired.quota.memory_mib"),
        Column("DISK", "desired.quota.disk_gib"),
    ),
)
