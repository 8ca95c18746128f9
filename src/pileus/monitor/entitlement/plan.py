"""Where an entitlement is in its term, and what a seat of it takes: pure decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from pileus.compute.vm.types import VmAssigned
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.monitor.entitlement.types import SOON_S, EntitlementAssigned, EntitlementDesired, Metric

Term = Literal["future", "valid", "ending", "grace", "expired"]

GIVING = ("valid", "ending")
"""When seats are given."""

USERS_MAX = 1_000_000_000
"""Of one seat: as many as an entitlement may count."""


class Short(Struct, frozen=True, kw_only=True):
    """A product that has no seat for a VM now, and why. ``waits`` no: it never will as things are, so it is no use."""

    message: str
    waits: Literal["no", "yes"] = "yes"


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
    if users > USERS_MAX:
        raise Invalid(f"{entitlement}: a seat is for at most {USERS_MAX} users", field="desired.users")
    return {"instances": 1, "vcpus": vm.vcpus, "memory_gib": -(-vm.memory_mib // 1024), "users": users}[metric]


def needed(entitlements: Iterable[Resource], labels: Mapping[str, str]) -> dict[str, list[Resource]]:
    """Return by product, in order, whose seats a VM with these labels needs: one of those that are listed for each."""
    found: dict[str, list[Resource]] = {}
    for each in entitlements:
        needed_by: Mapping[str, str] = each.desired.needed_by
        if needed_by and not each.deleting and needed_by.items() <= labels.items():
            found.setdefault(each.desired.product, []).append(each)
    return dict(sorted(found.items()))


def is_in_force(entitlement: Resource, now: float) -> bool:
    """Tell whether a seat of it is leave to run: until its end and grace, and later where that is only reported."""
    return term(entitlement.desired, entitlement.assigned, now) != "expired" or entitlement.desired.at_end == "report"


def refusal(candidates: Sequence[Resource], used: Mapping[str, int], units: Mapping[str, int], now: float) -> Short:
    """Return why none of the entitlements gives a seat: of those that could, the first one's reason.

    ``used`` and ``units``: by id, what is in use, and what the VM would take.
    """
    terms = {each.id: term(each.desired, each.assigned, now) for each in candidates}
    best = min(candidates, key=lambda each: (terms[each.id] not in GIVING, terms[each.id] != "future"))
    desired: EntitlementDesired = best.desired
    if terms[best.id] == "future":
        return Short(message=f"{best} begins {desired.starts}")
    if terms[best.id] not in GIVING:
        return Short(message=f"{best} ended {desired.ends}; register another")
    giving = [each for each in candidates if terms[each.id] in GIVING]
    if all(units[each.id] > each.desired.limit for each in giving):
        words = f"{best} has {desired.limit} {desired.metric} in all, and {units[best.id]} are needed; register more"
        return Short(message=words, waits="no")
    words = (
        f"no seat of {best} ({used[best.id]} of {desired.limit} {desired.metric} in use); return one or register more"
    )
    return Short(message=words)
