"""A monitor: which of the account's VMs are watched, how often, and by whom."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import DurationS, EndAt, ImageRef, VdcRef, VmRef, WarnS
from pileus.kernel.kind import Column, Kind, Resource
from pileus.kernel.term import ENDS_SOON, Phase

APPLIANCES_MAX = 10_000
REPLICAS_MAX = 4
MISSING_MAX = 20


class MonitorDesired(Struct, frozen=True, kw_only=True):
    """What is watched: the VMs that are named, or have all the labels; neither said: all of the account.

    The monitor's own appliances are never among them.
    """

    vms: Annotated[tuple[VmRef, ...], Meta(max_length=1000, description="VMs that are watched.")] = ()
    labels: Annotated[dict[str, str], Meta(description="VMs with all these labels are watched, too.")] = {}
    form: Annotated[
        Literal["server", "appliance"],
        Meta(description="Where it runs: within the cloud's servers, or as an appliance VM of the account."),
    ] = "server"
    replicas: Annotated[
        int, Meta(ge=1, le=REPLICAS_MAX, description="How many share the work; another takes over for one that fails.")
    ] = 1
    poll_s: Annotated[int, Meta(ge=1, le=3600, description="Seconds between two polls of an appliance, about.")] = 10
    misses: Annotated[int, Meta(ge=1, le=100, description="Polls without answer after which it is unknown.")] = 3
    hung_s: Annotated[
        int, Meta(ge=10, le=3600, description="Seconds without a word and without any I/O after which it is hung.")
    ] = 30
    actions_per_hour: Annotated[
        int, Meta(ge=0, le=1000, description="The most actions on one appliance in an hour; more are held.")
    ] = 3
    fleet_percent: Annotated[
        int,
        Meta(ge=0, le=100, description="The most appliances, in percent, that are acted on as a whole in ten minutes."),
    ] = 5
    mode: Annotated[
        Literal["enforce", "observe"], Meta(description="observe: actions are written, and none is done.")
    ] = "enforce"
    table: Annotated[
        Literal["stored", "memory"],
        Meta(description="memory: what appliances say is not stored but kept by the server that runs the watcher."),
    ] = "stored"
    vdc: Annotated[VdcRef, Meta(description="Of its appliances; left out: the account's only one.")] = ""
    image: Annotated[
        ImageRef,
        Meta(
            description="Imported disk of a monitor's appliance, which goes on with the inventory on it; form appliance only."
        ),
    ] = ""
    end_at: EndAt = ""
    duration_s: DurationS = 0
    warn_s: WarnS = 600
    at_end: Annotated[
        Literal["stop", "delete"],
        Meta(description="What becomes of it: it watches nothing until its end is put off, or goes with its policies."),
    ] = "stop"


class MovedIn(Struct, frozen=True, kw_only=True):
    """What became of the inventory on the disk that its appliances were made of: written once. ``at``: Unix seconds."""

    at: float
    vms: tuple[str, ...] = ()
    """Names of the VMs that the inventory's appliances are: what is watched, when nothing else is said."""
    policies: int = 0
    missing: tuple[str, ...] = ()
    """Names of the inventory's appliances that no VM of the account is, at most MISSING_MAX."""
    missing_count: int = 0
    left_out: tuple[str, ...] = ()
    """Policies that could not be taken over, each with the reason."""
    problem: str = ""
    """Why there was no inventory; empty when there was."""


class MonitorAssigned(Struct, frozen=True, kw_only=True):
    """Where its appliances are, and whom it acted on as a whole in the last ten minutes."""

    zone: str = ""
    vdc: str = ""
    acted: tuple[tuple[str, float], ...] = ()
    """(id of the VM, Unix seconds), oldest first."""
    image: str = ""
    """Id of the imported image of its appliances; empty: the cloud's own."""
    moved_in: MovedIn | None = None
    end: float = 0.0
    """Unix seconds; 0: never."""


class MonitorObserved(Struct, frozen=True, kw_only=True):
    """What it watches now. ``states``: execution state -> number of appliances."""

    watched: int = 0
    unwatched: int = 0
    """Appliances for which there is no watcher at work."""
    states: dict[str, int] = {}
    watchers: int = 0
    """How many are at work."""
    message: str = ""
    moved_in: str = ""
    """What is to be known of the inventory that it came with."""
    term: Phase = "on"
    ends_at: str = ""
    """RFC 3339; empty: at no certain time."""


def _ready(resource: Resource) -> Condition:
    observed: MonitorObserved | None = resource.observed
    if observed is None:
        return unready("Starting", "nothing is watched yet")
    if observed.term == "ended":
        return unready("Ended", f"it ended at {observed.ends_at} and watches nothing; a later end lets it go on")
    if observed.message:
        return unready("NotWatching", observed.message)
    states = ", ".join(f"{count} {state}" for state, count in observed.states.items())
    unwatched = f"; {observed.unwatched} wait for a watcher" if observed.unwatched else ""
    watches = f"watches {observed.watched} appliance{'' if observed.watched == 1 else 's'}: {states}{unwatched}"
    told = f"{watches}; {observed.moved_in}" if observed.moved_in else watches
    if observed.term == "soon":
        return ready(ENDS_SOON, f"it ends at {observed.ends_at}; until then it {told}")
    return ready("Watching", told)


KIND = Kind(
    name="monitor.monitor",
    summary="Watches VMs and appliances of an account, and acts by its policies.",
    desired=MonitorDesired,
    assigned=MonitorAssigned,
    observed=MonitorObserved,
    ready=_ready,
    immutable=frozenset({"form", "vdc", "image"}),
    columns=(
        Column("FORM", "desired.form"),
        Column("WATCHED", "observed.watched"),
        Column("STATES", "observed.states"),
        Column("MODE", "desired.mode"),
        Column("WATCHERS", "observed.watchers", wide=True),
        Column("ENDS", "observed.ends_at", wide=True),
    ),
)
