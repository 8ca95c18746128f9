"""An account: a tenant of the cloud, the owner of everything that is not the cluster's own."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.kind import Column, Kind, Resource


class VmLimits(Struct, frozen=True, kw_only=True):
    """The most that each VM gets; of several limits the lowest counts."""

    rate_limit_kbps: Annotated[
        int, Meta(ge=0, le=1_000_000_000, description="Network rate of each NIC in kilobits per second; 0: no limit.")
    ] = 0
    iops_limit: Annotated[
        int, Meta(ge=0, le=10_000_000, description="Operations per second of each disk; 0: no limit.")
    ] = 0
    throughput_limit_kib_s: Annotated[
        int, Meta(ge=0, le=1_000_000_000, description="Throughput of each disk in KiB per second; 0: no limit.")
    ] = 0


def lowest(*limits: VmLimits) -> VmLimits:
    """Return the lowest of each limit that is set."""
    words = VmLimits.__struct_fields__
    return VmLimits(**{word: min(filter(None, (getattr(each, word) for each in limits)), default=0) for word in words})


class AccountDesired(Struct, frozen=True, kw_only=True):
    """What an account shall be."""

    description: Annotated[str, Meta(max_length=200, description="Who this is, for people.")] = ""
    email: Annotated[str, Meta(max_length=200, description="Where bills and warnings go.")] = ""
    limits: Annotated[VmLimits, Meta(description="The most that each VM of the account gets.")] = VmLimits()


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="tenancy.account",
    summary="A tenant: owns VMs, networks, images, users and quotas. `create account` also makes its vdc and network.",
    desired=AccountDesired,
    ready=_ready,
    scope="cluster",
    readable_by="operator",
    writable_by="operator",
    columns=(Column("DESCRIPTION", "desired.description"),),
)
