"""A snapshot: a volume as it was at one moment, kept unchanged, whatever becomes of the volume and its VM."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import Problem, VolumeRef
from pileus.kernel.kind import Column, Kind, Resource
from pileus.kernel.usage import Use


class SnapshotDesired(Struct, frozen=True, kw_only=True):
    """What is kept, and why."""

    volume: Annotated[VolumeRef, Meta(description="Volume that is copied, a VM's root volume too; it may run on.")]
    reason: Annotated[str, Meta(max_length=1000, description="Why it is kept, in words of whoever wants it.")] = ""


class SnapshotAssigned(Struct, frozen=True, kw_only=True):
    """Where it is, and what it is of. ``volume`` is an id, which may be gone; ``taken_by``: the caller and its kind."""

    zone: str
    vdc: str
    host: str
    pool: str
    volume: str
    size_gib: int
    taken_by: str = ""
    vm: str = ""
    """Name of the VM that had the volume."""
    of_appliance: Literal["no", "yes"] = "no"
    """``yes``: what is in it is not the account's to read, but its operator's."""


class SnapshotObserved(Struct, frozen=True, kw_only=True):
    """What the host has. ``taken_at``: the moment that it shows (RFC 3339). ``used_mib``: its room, rounded up."""

    state: Literal["absent", "present"]
    taken_at: str = ""
    used_mib: int = 0
    problem: Problem | None = None


def _ready(resource: Resource) -> Condition:
    observed: SnapshotObserved | None = resource.observed
    if observed is None:
        return unready("Copying", "its host has not made it yet")
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if observed.state != "present":
        return unready("Copying", "its host is making it")
    return ready(message=f"the volume as it was at {observed.taken_at}")


def _meter(snapshot: Resource) -> Use:
    """Say what the snapshot uses: the room of its file."""
    observed: SnapshotObserved | None = snapshot.observed
    is_there = observed is not None and observed.state == "present" and observed.used_mib
    return Use({"disk_mib": observed.used_mib} if observed is not None and is_there else {})


KIND = Kind(
    name="storage.snapshot",
    summary="A volume as it was at one moment, kept unchanged.",
    desired=SnapshotDesired,
    assigned=SnapshotAssigned,
    observed=SnapshotObserved,
    ready=_ready,
    meter=_meter,
    name_prefix="snapshot",
    immutable=frozenset({"volume", "reason"}),
    host_bound=True,
    columns=(
        Column("VOLUME", "desired.volume"),
        Column("SIZE_GIB", "assigned.size_gib"),
        Column("TAKEN", "observed.taken_at"),
        Column("VM", "assigned.vm"),
        Column("REASON", "desired.reason", wide=True),
        Column("BY", "assigned.taken_by", wide=True),
        Column("HOST", "host", wide=True, ref="infra.host"),
    ),
)
