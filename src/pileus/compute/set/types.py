"""A set: many VMs of one template, started, stopped and restarted together."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.compute.vm.types import Power, Sized
from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import DurationS, EndAt, NetworkRef, VdcRef, WarnS
from pileus.kernel.kind import Column, Kind, Resource
from pileus.kernel.term import ENDS_SOON, Phase
from pileus.storage.image.types import Firmware

MEMBERS_MAX = 1000
RESULTS_MAX = 20
"""Members that are not as wished and are told one by one; of all others there is a count."""

SET_LABEL, NUMBER_LABEL = "set", "number"
"""Labels of members: the set's name, and the member's number in it."""


class MemberNic(Struct, frozen=True, kw_only=True):
    """A NIC of every member."""

    network: Annotated[NetworkRef, Meta(description="Network it is on; each member gets the next free address.")] = (
        "default"
    )


class Template(Sized, frozen=True, kw_only=True):
    """What each member is."""

    nics: Annotated[
        tuple[MemberNic, ...], Meta(max_length=8, description="NICs, in the order the guest sees them.")
    ] = (MemberNic(),)
    shutdown_timeout_s: Annotated[
        int, Meta(ge=0, le=3600, description="How long a guest may take to power off before it is ended, in seconds.")
    ] = 30
    user_data: Annotated[
        str,
        Meta(max_length=65_536, description="Script or cloud-config for the first start.", extra={"file": True}),
    ] = ""
    ssh_keys: Annotated[
        tuple[str, ...], Meta(max_length=32, description="Public keys that may log in.", extra={"flag": "ssh-key"})
    ] = ()
    vdc: Annotated[VdcRef, Meta(description="The account's vdc; left out: the only one.")] = ""


TEMPLATE = frozenset(Template.__struct_fields__)
"""Fields that never change: another template is another set."""


class MemberSpec(Struct, frozen=True, kw_only=True):
    """What was decided about every member when it was asked for."""

    zone: str
    vdc: str
    image: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    append: str = ""
    firmware: Firmware = "bios"


class SetDesired(Template, frozen=True, kw_only=True):
    """The wish: a template, how many, what they shall be, and until when: whichever word of its end comes first."""

    count: Annotated[
        int, Meta(ge=0, le=MEMBERS_MAX, description="How many members; fewer: those with the highest numbers go.")
    ] = 1
    power: Annotated[Power, Meta(description="What all members shall be.")] = "running"
    restart_serial: Annotated[
        int, Meta(ge=0, description="Raising it boots every member once more, a tenth of them at a time.")
    ] = 0
    end_at: EndAt = ""
    duration_s: DurationS = 0
    warn_s: WarnS = 600
    at_end: Annotated[
        Literal["stop", "delete"],
        Meta(description="What becomes of it: its members are stopped until its end is put off, or it is deleted."),
    ] = "stop"


class SetAssigned(MemberSpec, frozen=True, kw_only=True):
    """The decisions. ``request``: whose members they are, and who says on which hosts. ``end``: Unix seconds; 0: never."""

    request: str = ""
    end: float = 0.0


class MemberResult(Struct, frozen=True, kw_only=True):
    """A member that is not as wished, and why."""

    number: int
    vm: str
    reason: str
    message: str = ""


class SetObserved(Struct, frozen=True, kw_only=True):
    """What there is. ``powers``: how many members are running, stopped, paused, or ``starting`` (not told yet)."""

    wanted: int = 0
    members: int = 0
    ready: int = 0
    """As wished, in power and in boots."""
    powers: dict[str, int] = {}
    results: tuple[MemberResult, ...] = ()
    """Of members that are not as wished, at most RESULTS_MAX."""
    term: Phase = "on"
    ends_at: str = ""
    """RFC 3339; empty: at no certain time."""


def _ready(resource: Resource) -> Condition:
    observed: SetObserved | None = resource.observed
    if observed is None or resource.observed_generation < resource.generation:
        return unready("Deciding", "its wish is not looked at yet")
    if observed.ready == observed.wanted == observed.members:
        return _as_desired(resource.desired, observed)
    first = next(iter(observed.results), None)
    why = f"; member {first.number}: {first.message or first.reason}" if first is not None else ""
    return unready("Converging", f"{observed.ready} of {observed.wanted} members are as wished{why}")


def _as_desired(desired: SetDesired, observed: SetObserved) -> Condition:
    done = "deleted" if desired.at_end == "delete" else "stopped"
    match observed.term:
        case "soon":
            return ready(ENDS_SOON, f"its members are {done} at {observed.ends_at}")
        case "ending":
            return ready("Ending", f"its members are stopped, for it ends at {observed.ends_at}")
        case "ended":
            return ready(
                "Ended", f"it ended at {observed.ends_at}, and its members are {done}; a later end starts them"
            )
        case _:
            return ready("AsDesired", f"{observed.ready} members")


KIND = Kind(
    name="compute.set",
    summary="Many VMs of one template: scaled, stopped and restarted together.",
    desired=SetDesired,
    assigned=SetAssigned,
    observed=SetObserved,
    ready=_ready,
    immutable=TEMPLATE,
    columns=(
        Column("COUNT", "desired.count"),
        Column("READY", "observed.ready"),
        Column("POWER", "desired.power"),
        Column("IMAGE", "desired.image"),
        Column("ENDS", "observed.ends_at", wide=True),
        Column("VCPUS", "assigned.vcpus"),
        Column("MEMORY", "assigned.memory_mib"),
        Column("VDC", "vdc", wide=True, ref="tenancy.vdc"),
    ),
)
