"""A signature: YARA rules, which appliances are looked at with them, where, and how often."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import MonitorRef
from pileus.kernel.kind import Column, Kind, Resource

RULES_CHARACTERS_MAX = 32_768
"""They go to the appliance inline, with a request."""

Path = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^/[^\x00-\x1f]*$(?!\n)")]


class SignatureDesired(Struct, frozen=True, kw_only=True):
    """What is looked for in the monitor's appliances."""

    monitor: Annotated[MonitorRef, Meta(description="The monitor whose appliances are scanned.")]
    rules: Annotated[
        str,
        Meta(
            max_length=RULES_CHARACTERS_MAX,
            description="YARA rules; empty: the harmless test file of EICAR, or with clamav all that the host's ClamAV knows.",
            extra={"file": True},
        ),
    ] = ""
    engine: Annotated[
        Literal["yara", "clamav"],
        Meta(description="What looks: YARA rules, or the ClamAV daemon of the host, which looks from outside only."),
    ] = "yara"
    look: Annotated[
        Literal["auto", "inside", "outside", "both"],
        Meta(description="From where: inside by its node, outside at its disks; auto: inside while its node answers."),
    ] = "auto"
    paths: Annotated[
        tuple[Path, ...],
        Meta(max_length=64, description="Folders and files that are read from inside; processes always are."),
    ] = ("/",)
    every_s: Annotated[
        int, Meta(ge=0, le=2_592_000, description="Seconds between two scans of an appliance; 0: only when asked.")
    ] = 3600
    scan_serial: Annotated[int, Meta(ge=0, description="Raising it scans all of them now.")] = 0
    labels: Annotated[dict[str, str], Meta(description="Only appliances with all these labels.")] = {}


class SignatureAssigned(Struct, frozen=True, kw_only=True):
    """When all are scanned anew: the serial that was seen last, and when that was (Unix seconds)."""

    scan_serial: int = 0
    asked_at: float = 0.0


class SignatureObserved(Struct, frozen=True, kw_only=True):
    """How many appliances are in which state since their last scan."""

    appliances: int = 0
    states: dict[str, int] = {}
    refused: str = ""
    """Why its rules cannot be used, with the line."""


def _ready(resource: Resource) -> Condition:
    observed: SignatureObserved | None = resource.observed
    if observed is None:
        return unready("Starting", "nothing is scanned yet")
    if observed.refused:
        return unready("BadRules", observed.refused)
    found = observed.states.get("found", 0)
    if found:
        return ready("Found", f"found in {found} of {observed.appliances} appliances; `pileus get scan` says where")
    unknown = observed.appliances - observed.states.get("clean", 0)
    if unknown:
        return ready("Partly", f"{unknown} of {observed.appliances} appliances could not be scanned, or were not yet")
    return ready("Clean", f"not found in {observed.appliances} appliances")


KIND = Kind(
    name="monitor.signature",
    summary="Rules that find malicious software in a monitor's appliances.",
    desired=SignatureDesired,
    assigned=SignatureAssigned,
    observed=SignatureObserved,
    ready=_ready,
    immutable=frozenset({"monitor"}),
    columns=(
        Column("MONITOR", "desired.monitor"),
        Column("EVERY_S", "desired.every_s"),
        Column("LOOK", "desired.look", wide=True),
        Column("ENGINE", "desired.engine", wide=True),
        Column("APPLIANCES", "observed.appliances"),
        Column("STATES", "observed.states"),
    ),
)
