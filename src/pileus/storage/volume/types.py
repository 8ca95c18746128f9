"""A volume: a virtual disk. A VM's root volume is made with it; others are made by tenants and attached."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import ImageRef, Problem, SnapshotRef, VdcRef
from pileus.kernel.kind import Column, Kind, Resource
from pileus.kernel.usage import Use


class VolumeDesired(Struct, frozen=True, kw_only=True):
    """Size, content and limits."""

    size_gib: Annotated[int, Meta(ge=1, le=65_536, description="Size as the guest sees it, in GiB; may only grow.")]
    image: Annotated[ImageRef, Meta(description="Image it starts as a copy of; empty: an empty disk.")] = ""
    snapshot: Annotated[
        SnapshotRef, Meta(description="Snapshot it starts as a copy of; it is made at once, on the snapshot's host.")
    ] = ""
    vdc: Annotated[VdcRef, Meta(description="The account's vdc; left out: the only one.")] = ""
    iops_limit: Annotated[int, Meta(ge=0, le=10_000_000, description="Operations per second; 0: no limit.")] = 0
    throughput_limit_kib_s: Annotated[
        int, Meta(ge=0, le=1_000_000_000, description="Throughput in KiB per second; 0: no limit.")
    ] = 0


class ImageSource(Struct, frozen=True, kw_only=True):
    """What a host must fetch before it can make the volume."""

    id: str
    sha256: str
    size_bytes: int
    virtual_size_bytes: int
    kernel_sha256: str = ""
    kernel_size_bytes: int = 0
    initrd_sha256: str = ""
    initrd_size_bytes: int = 0


class VolumeAssigned(Struct, frozen=True, kw_only=True):
    """Where the volume is; ``host`` and ``pool`` are empty until the first VM that uses it has a host."""

    zone: str
    vdc: str
    pool: str = ""
    host: str = ""
    image: ImageSource | None = None
    snapshot: str = ""
    """Id of the snapshot that it starts as a copy of."""
    iops_limit: int = 0
    throughput_limit_kib_s: int = 0
    """The lowest of what the volume, its account and its zone say."""


class VolumeObserved(Struct, frozen=True, kw_only=True):
    """What the host has."""

    state: Literal["absent", "present"]
    size_gib: int = 0
    problem: Problem | None = None


def attachment_space(volume: str) -> str:
    """Return the claim space that says which VM has the volume; its one value is ``vm``."""
    return f"attachment/{volume}"


def _ready(resource: Resource) -> Condition:
    assigned: VolumeAssigned | None = resource.assigned
    observed: VolumeObserved | None = resource.observed
    if assigned is None:
        return unready("Deciding", "no decision yet")
    if not assigned.host:
        return ready("Unbound", "is made on the host of the first VM that uses it")
    if observed is None:
        return unready("Making", "its host has not made it yet")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if observed.state != "present" or observed.size_gib < resource.desired.size_gib:
        return unready("Making", f"the disk is {observed.state}, {observed.size_gib} GiB")
    return ready()


def _meter(volume: Resource) -> Use:
    """Say what the volume uses: its size, from when a host has it. A root volume is in the use of its VM."""
    is_own = volume.owner == volume.account_id
    return Use({"disk_mib": 1024 * volume.desired.size_gib} if volume.host and is_own else {})


KIND = Kind(
    name="storage.volume",
    summary="A virtual disk of an account.",
    desired=VolumeDesired,
    assigned=VolumeAssigned,
    observed=VolumeObserved,
    ready=_ready,
    meter=_meter,
    immutable=frozenset({"image", "snapshot", "vdc"}),
    host_bound=True,
    columns=(
        Column("SIZE_GIB", "desired.size_gib"),
        Column("STATE", "observed.state"),
        Column("VM", "owner", wide=True, ref="compute.vm"),
        Column("HOST", "host", wide=True, ref="infra.host"),
    ),
)
