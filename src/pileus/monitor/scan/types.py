"""A scan: one look at one appliance. What could not be looked at is unknown, and never clean."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unknown, unready
from pileus.kernel.fields import SignatureRef, VmRef
from pileus.kernel.kind import Column, Kind, Resource

FINDINGS_MAX = 50
SCAN_S = 900.0
"""After it, a scan from inside that has not ended is unknown."""
OUTSIDE_S = 7200.0
"""After it, one from outside is: its host reads one disk at a time."""


class ScanDesired(Struct, frozen=True, kw_only=True):
    """What is looked for where."""

    signature: Annotated[SignatureRef, Meta(description="Whose rules.")]
    vm: Annotated[VmRef, Meta(description="The appliance.")]


class ScanAssigned(Struct, frozen=True, kw_only=True):
    """The appliance, the request that its node has, and the look that its host has. Times are Unix seconds."""

    vm: str
    signature: str
    signature_name: str
    sides: Literal["", "auto", "inside", "outside", "both"] = ""
    """What the signature said when it began."""
    request: str = ""
    look: str = ""
    refused: str = ""
    """Why one side could not be begun."""
    began_at: float = 0.0
    ended_at: float = 0.0


class Finding(Struct, frozen=True, kw_only=True):
    """Where a rule matched; its texts are untrusted. ``where``: file, process, memory; from outside file or disk.

    From outside it says in which ``volume`` (its name), in which partition (0: the disk has none), and of what is in no
    file at which ``offset`` of the disk in bytes.
    """

    rule: str
    where: str = ""
    path: str = ""
    pid: int = 0
    volume: str = ""
    partition: int = 0
    offset: int = 0


class ScannedDisk(Struct, frozen=True, kw_only=True):
    """What was found on one disk from outside. ``findings``: how many there are; the first are in the scan."""

    volume: str
    state: Literal["clean", "found", "unknown"]
    message: str = ""
    findings: int = 0
    files: int = 0
    scanned_bytes: int = 0


class ScanObserved(Struct, frozen=True, kw_only=True):
    """What was found. ``files`` and ``processes``: how many were looked at. ``disks``: those looked at from outside."""

    state: Literal["waiting", "running", "clean", "found", "unknown"] = "waiting"
    message: str = ""
    findings: tuple[Finding, ...] = ()
    files: int = 0
    processes: int = 0
    disks: tuple[ScannedDisk, ...] = ()


OVER = frozenset({"clean", "found", "unknown"})


def scans_space(signature: str) -> str:
    """Return the claim space of a signature's newest scans: value the VM's id, owner the scan."""
    return f"monitor/scan/{signature}"


def _ready(resource: Resource) -> Condition:
    observed: ScanObserved = resource.observed or ScanObserved()
    if observed.state == "clean":
        return ready("Clean", observed.message)
    if observed.state == "found":
        return ready("Found", observed.message)
    if observed.state == "unknown":
        return unknown("Unknown", observed.message)
    return unready(observed.state.capitalize(), observed.message or "it is not over yet")


KIND = Kind(
    name="monitor.scan",
    summary="One look at an appliance with the rules of a signature.",
    desired=ScanDesired,
    assigned=ScanAssigned,
    observed=ScanObserved,
    ready=_ready,
    name_prefix="scan",
    immutable=frozenset({"signature", "vm"}),
    columns=(
        Column("SIGNATURE", "desired.signature"),
        Column("VM", "assigned.vm", ref="compute.vm"),
        Column("STATE", "observed.state"),
        Column("FOUND", "observed.findings.0.path"),
        Column("RULE", "observed.findings.0.rule", wide=True),
    ),
)
