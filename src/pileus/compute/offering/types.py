"""An offering: a named size of VM (elsewhere: flavour, instance type)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.kind import Column, Kind, Resource
from pileus.tenancy.account.types import VmLimits


class OfferingDesired(Struct, frozen=True, kw_only=True):
    """What a VM of this size gets."""

    vcpus: Annotated[int, Meta(ge=1, le=256, description="Virtual CPUs.")]
    memory_mib: Annotated[int, Meta(ge=32, le=4_194_304, description="Memory in MiB.")]
    disk_gib: Annotated[int, Meta(ge=1, le=65_536, description="Size of the root volume in GiB.")]
    iops_limit: Annotated[int, Meta(ge=0, le=10_000_000, description="Disk operations per second; 0: no limit.")] = 0
    throughput_limit_kib_s: Annotated[
        int, Meta(ge=0, le=1_000_000_000, description="Disk throughput in KiB per second; 0: no limit.")
    ] = 0
    rate_limit_kbps: Annotated[
        int, Meta(ge=0, le=1_000_000_000, description="Network rate of each NIC in kilobits per second; 0: no limit.")
    ] = 0


def limits(offering: OfferingDesired) -> VmLimits:
    """Return the limits that come with an offering."""
    return VmLimits(
        rate_limit_kbps=offering.rate_limit_kbps,
        iops_limit=offering.iops_limit,
        throughput_limit_kib_s=offering.throughput_limit_kib_s,
    )


BUILTIN: dict[str, OfferingDesired] = {
    "tiny": OfferingDesired(vcpus=1, memory_mib=128, disk_gib=1),
    "small": OfferingDesired(vcpus=1, memory_mib=512, disk_gib=4),
    "medium": OfferingDesired(vcpus=2, memory_mib=2048, disk_gib=20),
}
"""Offerings that every cluster has from the first start."""


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="compute.offering",
    summary="A named size of VM.",
    desired=OfferingDesired,
    ready=_ready,
    scope="cluster",
    writable_by="operator",
    columns=(
        Column("VCPUS", "desired.vcpus"),
        Column("MEMORY_MIB", "desired.memory_mib"),
        Column("DISK_GIB", "desired.disk_gib"),
        Column("IOPS", "desired.iops_limit", wide=True),
    ),
)
