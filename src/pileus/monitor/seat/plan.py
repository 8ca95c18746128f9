"""What becomes of a seat: it stays, or is returned with its VM, its lease or its entitlement. Pure decisions."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pileus.compute.vm.plan import is_resting
from pileus.compute.vm.types import VmObserved
from pileus.kernel.kind import Resource
from pileus.monitor.entitlement import plan
from pileus.monitor.entitlement.types import SAFETY_S
from pileus.monitor.seat.types import SeatAssigned


class Standing(Struct, frozen=True, kw_only=True):
    """How a seat stands. ``returned`` says why it is returned; empty: it is not. ``after_s``: when that may change."""

    state: Literal["held", "ended"] = "held"
    off_since: float = 0.0
    returned: str = ""
    after_s: float = SAFETY_S


def is_made_by_cloud(seat: Resource) -> bool:
    """Tell whether the cloud checked it out by itself, for a VM that needs it."""
    return seat.owner != seat.account_id


def is_off(seat: Resource, entitlement: Resource, vm: Resource, now: float) -> bool:
    """Tell whether the VM is off in the sense of the seat's lease.

    One whose host is silent is not. Of a seat that the cloud made, or that ended and stops its VM, only one is that
    shall be off: who is to run again keeps it.
    """
    is_stopping = plan.term(entitlement.desired, entitlement.assigned, now) == "expired" and (
        entitlement.desired.at_end == "stop"
    )
    if is_stopping or is_made_by_cloud(seat):
        return is_resting(vm) and (not is_stopping or bool(vm.desired.power == "stopped"))
    observed: VmObserved | None = vm.observed
    is_known = vm.ready is None or vm.ready.status != "unknown"
    return is_known and (observed is None or observed.power not in ("running", "paused", "unknown"))


def standing(seat: Resource, entitlement: Resource, vm: Resource | None, now: float) -> Standing:
    """Return how the seat stands now."""
    assigned: SeatAssigned = seat.assigned
    if vm is None:
        return Standing(returned="its VM is gone")
    is_expired = plan.term(entitlement.desired, entitlement.assigned, now) == "expired"
    if is_expired and entitlement.desired.at_end == "return":
        return Standing(returned=f"{entitlement} has ended")
    state: Literal["held", "ended"] = "ended" if is_expired else "held"
    if not is_off(seat, entitlement, vm, now):
        return Standing(state=state)
    lease_s = entitlement.desired.lease_s if is_made_by_cloud(seat) else seat.desired.lease_s
    off_since = assigned.off_since or now
    left_s = off_since + lease_s - now
    if left_s <= 0:
        return Standing(returned=f"its VM has not run for {lease_s} s")
    return Standing(state=state, off_since=off_since, after_s=left_s)
