"""A host: a Linux machine with an agent."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unknown, unready
from pileus.kernel.fields import PodRef, Problem, ProviderRef
from pileus.kernel.kind import Column, Kind, Resource

HostRole = Literal["compute", "routing", "storage"]


class HostDesired(Struct, frozen=True, kw_only=True):
    """What the host is for."""

    pod: Annotated[PodRef, Meta(description="The pod; left out: the only one.")] = ""
    roles: Annotated[tuple[HostRole, ...], Meta(min_length=1, description="What runs here.")] = (
        "compute",
        "routing",
        "storage",
    )
    provider: Annotated[ProviderRef, Meta(description="Who owns the machine; empty: the operator.")] = ""
    scheduling: Annotated[Literal["enabled", "cordoned"], Meta(description="cordoned: no new VMs here.")] = "enabled"
    vcpus_per_cpu: Annotated[
        int,
        Meta(ge=1, le=64, description="Virtual CPUs given out per CPU of the machine; 16 is usual."),
    ] = 16
    memory_reserve_mib: Annotated[
        int, Meta(ge=0, le=1_048_576, description="Memory kept for the host itself, in MiB.")
    ] = 1024


class HostAssigned(Struct, frozen=True, kw_only=True):
    """Where the host is; ``host`` is its own id, so that its agent gets its row."""

    host: str
    zone: str
    pod: str
    silent: Literal["yes", "no"] = "no"
    """``yes`` once no report came for SILENT_AFTER_S."""
    seen_at: str = ""
    tunnel_address: str = ""
    has_trunk: Literal["yes", "no"] = "no"
    """As last reported: by what the host's VLANs are joined to other hosts."""


class HostNic(Struct, frozen=True, kw_only=True):
    """A network interface of the machine. ``speed_mbps`` 0: not known; ``bond``: the bond it is part of."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[str, ...] = ()
    speed_mbps: int = 0
    bond: str = ""


class HostObserved(Struct, frozen=True, kw_only=True):
    """What the agent found."""

    version: str
    cpus: int
    memory_mib: int
    kernel: str = ""
    accelerator: str = ""
    accelerator_reason: str = ""
    hypervisor: str = ""
    switch: str = ""
    nics: tuple[HostNic, ...] = ()
    tunnel_address: str = ""
    """Where its VXLAN tunnels end, without a prefix length; empty: it has none."""
    has_trunk: Literal["yes", "no"] = "no"
    has_public: Literal["yes", "no"] = "no"
    has_uefi: Literal["yes", "no"] = "no"
    """Whether it has firmware for VMs that start by UEFI."""
    clamd: str = ""
    """The version of the ClamAV daemon that scans disks there; empty: none answers."""
    problem: Problem | None = None


SILENT_AFTER_S = 15.0
"""A host that reported nothing for this long is unknown (reliability: fencing timeline)."""


def silence(assigned: HostAssigned) -> str:
    """Return what is known of a silent host."""
    return f"the agent last reported at {assigned.seen_at}; see that it runs"


def _ready(resource: Resource) -> Condition:
    if resource.assigned is not None and resource.assigned.silent == "yes":
        return unknown("HostSilent", silence(resource.assigned))
    observed: HostObserved | None = resource.observed
    if observed is None:
        return unready("NoAgent", "no agent has joined yet; see `pileus join-token`")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    return ready()


KIND = Kind(
    name="infra.host",
    summary="A Linux machine with an agent, on which VMs run.",
    desired=HostDesired,
    assigned=HostAssigned,
    observed=HostObserved,
    ready=_ready,
    scope="cluster",
    readable_by="operator",
    writable_by="operator",
    immutable=frozenset({"pod"}),
    host_bound=True,
    columns=(
        Column("CPUS", "observed.cpus"),
        Column("MEMORY", "observed.memory_mib"),
        Column("ACCELERATOR", "observed.accelerator"),
        Column("SCHEDULING", "desired.scheduling"),
        Column("POD", "assigned.pod", wide=True, ref="infra.pod"),
        Column("ZONE", "zone", wide=True, ref="infra.zone"),
    ),
)
