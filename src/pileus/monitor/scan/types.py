"""A scan: one look at one appliance. What could not be looked at is unknown, and never clean."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unknown, unready
from pileus.kernel.fields import SignatureRef, VmRef
from pileus.kernel.kind import Column, Kind, Resource

FINDINGS_MAX = 50
SCAN_S = 900.0
"""After it, a scan that has not ended is unknown."""


class ScanDesired(Struct, frozen=True, kw_only=True):
    """What is looked for where."""

    signature: Annotated[SignatureRef, Meta(description="Whose rules.")]
    vm: Annotated[VmRef, Meta(description="The appliance.")]


class ScanAssigned(Struct, frozen=True, kw_only=True):
    """The appliance, and the request that its node has. Times are Unix seconds."""

    vm: str
    signature: str
    signature_name: str
    request: str = ""
    began_at: float = 0.0
    ended_at: float = 0.0


class Finding(Struct, frozen=True, kw_only=True):
    """Where a rule matched, in the appliance's own words: untrusted. ``where``: file or process."""

    rule: str
    where: str = ""
    path: str = ""
    pid: int = 0


class ScanObserved(Struct, frozen=True, kw_only=True):
    """What was found. ``files`` and ``processes``: how many were looked at."""

    state: Literal["waiting", "running", "clean", "found", "unknown"] = "waiting"
    message: str = ""
    findings: tuple[Finding, ...] = ()
    files: int = 0
    processes: int = 0


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
