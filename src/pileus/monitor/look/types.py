"""A look: the disks of one appliance, scanned by the agent of the host where they lie. Made and removed by its scan."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import Problem
from pileus.kernel.kind import Column, Kind, Resource

DISK_FINDINGS_MAX = 50
"""Of one disk; files come first."""


class LookDesired(Struct, frozen=True):
    """Nothing: everything follows from the scan."""


class LookAssigned(Struct, frozen=True, kw_only=True):
    """What the host shall look at, and for what. ``volumes``: ids, the root volume first."""

    host: str
    vm: str
    volumes: tuple[str, ...]
    engine: Literal["yara", "clamav"] = "yara"
    rules: str = ""


class DiskFinding(Struct, frozen=True, kw_only=True):
    """Where a rule matched: in a file, or at an offset of the disk. Its texts are untrusted."""

    rule: str
    path: str = ""
    partition: int = 0
    offset: int = 0


class DiskLook(Struct, frozen=True, kw_only=True):
    """What was found on one disk. ``files``: how many were read one by one."""

    volume: str
    name: str = ""
    state: Literal["clean", "found", "unknown"]
    message: str = ""
    findings: tuple[DiskFinding, ...] = ()
    left_out: int = 0
    """Findings beyond those."""
    files: int = 0
    scanned_bytes: int = 0


class LookObserved(Struct, frozen=True, kw_only=True):
    """How far the host is. ``disks``: those that are done."""

    state: Literal["waiting", "copying", "reading", "over"] = "waiting"
    volume: str = ""
    """Name of the volume that is looked at now."""
    looked_bytes: int = 0
    """How much of that was looked at, told now and then."""
    disks: tuple[DiskLook, ...] = ()
    problem: Problem | None = None


def _ready(resource: Resource) -> Condition:
    observed: LookObserved = resource.observed or LookObserved()
    if observed.problem is not None:
        return unready(observed.problem.reason, observed.problem.message)
    if observed.state == "over":
        return ready(message="all disks were looked at, as far as they could be")
    return unready(observed.state.capitalize(), words(observed))


def words(observed: LookObserved) -> str:
    """Return how far it is, for people."""
    if observed.state == "copying":
        return f"copying volume {observed.volume} as it is at this moment"
    if observed.state == "reading":
        return f"reading volume {observed.volume}, {observed.looked_bytes >> 20} MiB so far"
    return "waiting until its host has time: one disk is looked at at a time"


KIND = Kind(
    name="monitor.look",
    summary="The disks of an appliance, scanned by its host from outside; a part of a scan.",
    desired=LookDesired,
    assigned=LookAssigned,
    observed=LookObserved,
    ready=_ready,
    created_by="kernel",
    host_bound=True,
    leaves=False,
    private=frozenset({"assigned.rules"}),
    columns=(
        Column("VM", "assigned.vm", ref="compute.vm"),
        Column("STATE", "observed.state"),
        Column("VOLUME", "observed.volume"),
        Column("LOOKED_BYTES", "observed.looked_bytes"),
        Column("HOST", "host", wide=True, ref="infra.host"),
    ),
)
