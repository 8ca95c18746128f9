"""Where an entitlement is in its term, and what a seat of it takes: pure decisions."""

from __future__ import annotations

from typing import Literal

from pileus.compute.vm.types import VmAssigned
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.monitor.entitlement.types import SOON_S, EntitlementAssigned, EntitlementDesired, Metric

Term = Literal["future", "valid", "ending", "grace", "expired"]


def term(desired: EntitlementDesired, assigned: EntitlementAssigned, now: float) -> Term:
    """Return where it is in its term."""
    if now < assigned.starts:
        return "future"
    if not assigned.ends or now < assigned.ends - SOON_S:
        return "valid"
    if now < assigned.ends:
        return "ending"
    return "grace" if now < assigned.ends + desired.grace_s else "expired"


def next_change(desired: EntitlementDesired, assigned: EntitlementAssigned, now: float) -> float:
    """Return in how many seconds its term changes; 0: never."""
    ends = assigned.ends
    times = (assigned.starts, *((ends - SOON_S, ends, ends + desired.grace_s) if ends else ()))
    return min((at - now for at in times if at > now), default=0.0)


def units(entitlement: Resource, users: int, vm: VmAssigned) -> int:
    """Return what a seat for the VM takes. Raises: Invalid."""
    metric: Metric = entitlement.desired.metric
    if (metric == "users") != (users > 0):
        words = (
            "it counts users: say how many with --users"
            if metric == "users"
            else f"it counts {metric}: leave users out"
        )
        raise Invalid(f"{entitlement}: {words}", field="desired.users")
    return {"instances": 1, "vcpus": vm.vcpus, "memory_gib": -(-vm.memory_mib // 1024), "users": users}[metric]
