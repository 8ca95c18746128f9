"""An entitlement: a licence that the account registered, with its metric, its limit and its term."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.kind import Column, Kind, Resource

Metric = Literal["instances", "vcpus", "memory_gib", "users"]
"""What a seat takes: 1, the VM's virtual CPUs, its memory begun GiB by GiB, or as many users as are said."""

SOON_S = 14 * 86_400.0
"""So long before its end people are told."""
SAFETY_S = 300.0
"""How often seats, and entitlements that VMs need, are looked at without a reason: the net under a lost wake-up."""
NEEDED_MAX = 100
"""Entitlements of an account that VMs need: whenever a VM changes, all of them are looked at while others' writes wait."""
COUNT_MAX = 1 << 62
"""Of numbers that only count up."""


class EntitlementDesired(Struct, frozen=True, kw_only=True):
    """A licence. Its terms never change; another version is another entitlement."""

    product: Annotated[str, Meta(min_length=1, max_length=200, description="What it is a licence of.")]
    version: Annotated[str, Meta(max_length=63, description="Which terms of it these are.")] = ""
    metric: Annotated[Metric, Meta(description="What is counted.")] = "instances"
    limit: Annotated[int, Meta(ge=0, le=1_000_000_000, description="How many there are.")]
    enforcement: Annotated[
        Literal["hard", "soft"], Meta(description="hard: no seat over the limit; soft: it is given, and reported.")
    ] = "hard"
    binding: Annotated[
        Literal["floating", "pinned"],
        Meta(
            description="pinned: a seat stays with the VM that had it first, and goes to no other until it is deleted."
        ),
    ] = "floating"
    starts: Annotated[
        str, Meta(description="RFC 3339 time from which it holds; empty: at once.", extra={"format": "time"})
    ] = ""
    ends: Annotated[
        str, Meta(description="RFC 3339 time until which it holds; empty: for ever.", extra={"format": "time"})
    ] = ""
    grace_s: Annotated[
        int, Meta(ge=0, le=31_536_000, description="Seconds after its end in which seats stay, and none is given.")
    ] = 0
    at_end: Annotated[
        Literal["return", "report", "stop"],
        Meta(
            description="What becomes of seats after end and grace: they are returned; or stay and are reported; or "
            "stay, and their VMs are shut down until another entitlement of the product has a seat for them."
        ),
    ] = "return"
    needed_by: Annotated[
        dict[str, str],
        Meta(
            max_length=16,
            description="VMs with all these labels start with a seat of the product only, which the cloud checks out "
            "for them; empty: nobody needs one.",
        ),
    ] = {}
    lease_s: Annotated[
        int,
        Meta(ge=0, le=31_536_000, description="Seconds that a VM which needs a seat keeps it when it is off."),
    ] = 300
    key: Annotated[
        str, Meta(max_length=65_536, description="The licence itself, for whoever checks it.", extra={"file": True})
    ] = ""


class EntitlementAssigned(Struct, frozen=True, kw_only=True):
    """Its term in Unix seconds; ``ends`` 0: never."""

    starts: float = 0.0
    ends: float = 0.0


class EntitlementObserved(Struct, frozen=True, kw_only=True):
    """How much of it is in use. ``over``: how much more than its limit.

    ``waiting``: VMs that are held for want of a seat of the product; ``unseated``: those that run without one.
    ``checked``: the newest wish that all VMs of the account heard of.
    """

    state: Literal["future", "valid", "ending", "grace", "expired"] = "valid"
    used: int = 0
    over: int = 0
    seats: int = 0
    waiting: int = 0
    unseated: int = 0
    checked: int = 0


def seats_space(entitlement: str) -> str:
    """Return the budget space of an entitlement's units."""
    return f"{entitlement}/units"


def pinned_space(entitlement: str) -> str:
    """Return the budget space of a pinned entitlement's places, which VMs are charged for as long as they exist."""
    return f"{entitlement}/pinned"


def holder_space(entitlement: str) -> str:
    """Return the claim space of the VMs that have a seat: value the VM's id, owner the seat."""
    return f"entitlement/{entitlement}"


def seats_of_space(vm: str) -> str:
    """Return the claim space of a VM's seats: value the entitlement's id, owner the seat."""
    return f"{vm}/seats"


def entitled_space(account: str) -> str:
    """Return the claim space of the entitlements that VMs of an account need: owner the entitlement, oldest first."""
    return f"entitled/{account}"


def waiting_space(account: str, product: str = "") -> str:
    """Return the claim space of the VMs that wait for a product, by age; of none, that of their ages."""
    return f"waiting/{account}/{product}" if product else f"waiting/{account}"


def unseated_space(account: str, product: str) -> str:
    """Return the claim space of the VMs that wait for a product and run without it."""
    return f"unseated/{account}/{product}"


def _ready(resource: Resource) -> Condition:
    desired: EntitlementDesired = resource.desired
    observed: EntitlementObserved = resource.observed or EntitlementObserved()
    used = f"{observed.used} of {desired.limit} {desired.metric} in use"
    if observed.waiting:
        used += f"; {observed.waiting} VMs wait for one"
    if desired.needed_by and observed.checked < resource.generation:
        return unready("Checking", "the account's VMs are being looked at")
    if observed.state == "expired":
        return unready("Expired", f"it ended {desired.ends}; {used}")
    if observed.state == "grace":
        return unready("Grace", f"it ended {desired.ends}; what is in use stays for {desired.grace_s} s; {used}")
    if observed.state == "future":
        return unready("Future", f"it begins {desired.starts}")
    if observed.over:
        return unready("OverUse", f"{observed.over} over its limit: {used}")
    if observed.unseated:
        return unready("OverUse", f"{observed.unseated} VMs run without a seat; {used}")
    if observed.state == "ending":
        return ready("Ending", f"it ends {desired.ends}; {used}")
    return ready("Valid", used)


KIND = Kind(
    name="monitor.entitlement",
    summary="A licence of the account: how many may use something, and until when.",
    desired=EntitlementDesired,
    assigned=EntitlementAssigned,
    observed=EntitlementObserved,
    ready=_ready,
    private=frozenset({"desired.key"}),
    immutable=frozenset(EntitlementDesired.__struct_fields__) - {"at_end", "needed_by", "lease_s"},
    columns=(
        Column("PRODUCT", "desired.product"),
        Column("METRIC", "desired.metric"),
        Column("USED", "observed.used"),
        Column("LIMIT", "desired.limit"),
        Column("STATE", "observed.state"),
        Column("ENDS", "desired.ends", wide=True),
    ),
)
