"""A seat: what an appliance uses of an entitlement, for as long as it lives."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import EntitlementRef, VmRef
from pileus.kernel.kind import Column, Kind, Resource


class SeatDesired(Struct, frozen=True, kw_only=True):
    """Who uses what. Deleting a seat returns it; those that the cloud made belong to their entitlement."""

    entitlement: Annotated[EntitlementRef, Meta(description="What is used.")]
    vm: Annotated[VmRef, Meta(description="The VM that uses it; with it the seat is returned.")]
    users: Annotated[int, Meta(ge=0, description="For the metric users: how many.")] = 0
    lease_s: Annotated[
        int, Meta(ge=0, le=31_536_000, description="Seconds after which it is returned when its VM does not run.")
    ] = 300


class SeatAssigned(Struct, frozen=True, kw_only=True):
    """What it takes, and since when its VM does not run (Unix seconds; 0: it does)."""

    entitlement: str
    vm: str
    units: int
    off_since: float = 0.0


class SeatObserved(Struct, frozen=True, kw_only=True):
    """Whether the VM may use it. ``over``: it was given above the limit."""

    state: Literal["held", "over", "ended", "returned"] = "held"
    message: str = ""


def _ready(resource: Resource) -> Condition:
    observed: SeatObserved = resource.observed or SeatObserved()
    if observed.state == "held":
        return ready("Held", observed.message)
    return unready(observed.state.capitalize(), observed.message)


KIND = Kind(
    name="monitor.seat",
    summary="What a VM uses of an entitlement; returned when the VM ends.",
    desired=SeatDesired,
    assigned=SeatAssigned,
    observed=SeatObserved,
    ready=_ready,
    name_prefix="seat",
    immutable=frozenset({"entitlement", "vm", "users"}),
    columns=(
        Column("ENTITLEMENT", "assigned.entitlement", ref="monitor.entitlement"),
        Column("VM", "assigned.vm", ref="compute.vm"),
        Column("UNITS", "assigned.units"),
        Column("STATE", "observed.state"),
    ),
)
