"""A request: one wish for 1 to 1000 machines, from a time on and until an end, of which all come, or as many as can."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.compute.placement.types import Service
from pileus.compute.set.types import MEMBERS_MAX, TEMPLATE, MemberSpec, Template
from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import YEAR_S, WarnS
from pileus.kernel.kind import Column, Kind, Resource
from pileus.kernel.term import ENDS_SOON

Mode = Literal["all-or-nothing", "best-effort"]
Phase = Literal["choosing", "reserved", "starting", "running", "ending", "releasing", "ended", "refused"]
"""``reserved``: room is held, the start has not come. ``ending``: told to stop. ``releasing``: all of it goes."""
LIVE: frozenset[Phase] = frozenset({"reserved", "starting", "running", "ending"})
OVER: frozenset[Phase] = frozenset({"ended", "refused"})

TOLD_MAX = 20
"""Missing machines and refusals that are told one by one."""


class RequestDesired(Template, frozen=True, kw_only=True):
    """The wish. Start: ``start_at``, or within ``start_within_s``, else now. End: whichever of its words comes first."""

    count: Annotated[int, Meta(ge=1, le=MEMBERS_MAX, description="How many machines.")] = 1
    service: Annotated[
        Service, Meta(description="best-effort: takes what guaranteed machines leave, and makes room for them.")
    ] = "guaranteed"
    mode: Annotated[
        Mode,
        Meta(description="all-or-nothing: one machine that cannot be had releases all; best-effort: the others run."),
    ] = "all-or-nothing"
    start_at: Annotated[str, Meta(max_length=40, description="When they start, as 2026-01-31T18:00:00Z.")] = ""
    start_within_s: Annotated[
        int, Meta(ge=0, le=YEAR_S, description="They start as soon as there is room, within so many seconds.")
    ] = 0
    duration_s: Annotated[
        int, Meta(ge=0, le=YEAR_S, description="How long after the start they end, in seconds; 0: not for that.")
    ] = 0
    until: Annotated[
        Literal["end", "exit"],
        Meta(description="exit: each ends when its guest powers itself off, too; all with the last."),
    ] = "end"
    warn_s: WarnS = 600


class RequestAssigned(MemberSpec, frozen=True, kw_only=True):
    """The decisions. Times are Unix seconds; ``end`` 0: none is set."""

    start_from: float
    start_by: float
    end: float = 0.0
    start: float = 0.0
    """When it was let start; 0: not yet."""
    set: str = ""
    """Id of the set that has the machines."""
    phase: Phase = "choosing"
    outcome: Literal["ended", "refused"] = "ended"
    """What it is once all is released."""
    reason: str = ""
    message: str = ""
    chosen_at: float = 0.0
    """When hosts were looked for last."""
    room_by: float = 0.0
    """Until when it waits for best-effort machines that make room for it; 0: for none."""


class Missing(Struct, frozen=True, kw_only=True):
    """A machine that there is not, or not as it should be."""

    number: int
    reason: str
    message: str = ""
    server: str = ""
    """Id of the host that refused it."""


class RequestObserved(Struct, frozen=True, kw_only=True):
    """How far it is. ``states``: how many machines are in each state of a placement; times as RFC 3339."""

    phase: Phase = "choosing"
    states: dict[str, int] = {}
    missing_count: int = 0
    missing: tuple[Missing, ...] = ()
    """At most TOLD_MAX."""
    starts_at: str = ""
    ends_at: str = ""
    is_ending: Literal["yes", "no"] = "no"
    """Whether it ends within ``warn_s``."""


def _ready(resource: Resource) -> Condition:
    assigned: RequestAssigned = resource.assigned
    observed: RequestObserved | None = resource.observed
    if observed is None:
        return unready("Deciding", "hosts are being chosen")
    match assigned.phase:
        case "choosing":
            return unready(assigned.reason or "Deciding", assigned.message or "hosts are being chosen")
        case "reserved":
            return unready("Reserved", f"room is held for all that was chosen; it starts at {observed.starts_at}")
        case "ended":
            return ready("Ended", assigned.message)
        case "refused":
            return unready("Refused", assigned.message)
        case "ending" | "releasing":
            return unready("Ending", assigned.message or "its machines are being released")
        case _:
            return _running(resource, observed)


def _running(resource: Resource, observed: RequestObserved) -> Condition:
    desired: RequestDesired = resource.desired
    confirmed = observed.states.get("confirmed", 0)
    done = confirmed + observed.states.get("released", 0)
    if done < desired.count or observed.missing_count:
        first = next(iter(observed.missing), None)
        why = f"; machine {first.number}: {first.message or first.reason}" if first is not None else ""
        reason = "Starting" if observed.phase == "starting" else "Missing"
        return unready(reason, f"{done} of {desired.count} machines are confirmed{why}")
    if observed.is_ending == "yes":
        return ready(ENDS_SOON, f"all machines end at {observed.ends_at}")
    return ready("AsDesired", f"{confirmed} machines run")


KIND = Kind(
    name="compute.request",
    summary="One wish for up to 1000 machines: a start, an end, and all of them or as many as can be had.",
    desired=RequestDesired,
    assigned=RequestAssigned,
    observed=RequestObserved,
    ready=_ready,
    word="machine-request",
    immutable=TEMPLATE | {"count", "service", "mode", "start_at", "start_within_s", "until"},
    columns=(
        Column("COUNT", "desired.count"),
        Column("PHASE", "observed.phase"),
        Column("MISSING", "observed.missing_count"),
        Column("SERVICE", "desired.service"),
        Column("STARTS", "observed.starts_at"),
        Column("ENDS", "observed.ends_at"),
    ),
)
